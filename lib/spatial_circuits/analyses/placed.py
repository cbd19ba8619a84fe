"""Placed: synopsis and ablation for any model and any two things, in memory that does not grow with
the number of pictures, heads or places.

A prompt's things and relation come from `text.parser`, their places from a `locate.Locator`. The
synopsis draws each picture twice: places are known only when the picture is there, and in the
second drawing attention is summed over them where it is computed.
"""
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from ..data.scenes import ALIGN, SIZE
from ..hooks.core import Hook, pick
from ..hooks.edits import Ablate, MaskKeys
from ..hooks.run import run
from ..model.pipeline import Model
from ..text.parser import Spatial, read_spatial
from ..text.roles import mask_of_role, role_table
from .heads import Head, head_conditions, head_name, heads_of
from .heatmap import WordAttention
from .intervals import mean_interval
from .locate import Locator
from .sweep import effects, pictures
from .synopsis import attention_scores


class PlaceAttention(WordAttention):
    """Sums attention over the image tokens of each place, too: `total[layer]` [S, H, places, R]."""
    per_sample = (*WordAttention.per_sample, "places")  # type: ignore[assignment]

    def __init__(self, roles: Tensor, places: Tensor):
        super().__init__(roles)
        self.places = places                                     # [S, places, N]

    def reduced(self, seen: Tensor, samples: Tensor) -> Tensor:
        return pick(self.places, samples)[:, None] @ seen


def judge(found: Tensor, said: Sequence[Spatial]) -> pd.DataFrame:
    """A row a picture, from masks bool [B, 2, H, W]: `found` both things; `placed`, as the prompt
    says, by more than 4 % of the picture on each axis named (NaN if the relation has no side)."""
    weight = found.float()
    area, rows = weight.sum((2, 3)).clamp_min(1), []
    centre = [weight.sum(5 - axis) @ torch.linspace(0, 1, found.shape[axis]) / area
              for axis in (3, 2)]                                                    # x, y: [B, 2]
    offset = torch.stack([c[:, 0] - c[:, 1] for c in centre], 1).tolist()
    for both, one, away in zip(found.flatten(2).any(2).all(1).tolist(), said, offset):
        right = both and all(s * v > ALIGN / SIZE for s, v in zip(one.side or (), away) if s)
        rows.append((one.relation, both, float(right) if one.side else float("nan"), *away))
    return pd.DataFrame(rows, columns=["relation", "found", "placed", "dx", "dy"])


def placed_ablation(model: Model, prompts: Sequence[str], sets: Mapping[str, Sequence[Head]],
                    locate: Locator, per_prompt: int = 1, seed: int = 1, role: str | None = None,
                    when: Sequence[int] | None = None, chunk: int = 4, progress: bool = False,
                    **options) -> pd.DataFrame:
    """Pictures without each set of heads (zero ablation), or with a role's tokens hidden from it:
    the frame of `judge`, plus prompt and condition, "intact" first.

    One condition and `chunk` pictures at a time. Raises ValueError, before sampling, for a prompt
    without two things, nouns that the locator does not know, and heads out of range.
    """
    said = {prompt: read_spatial(prompt) for prompt in prompts}
    locate(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), [s.nouns for s in said.values()])
    names, where = head_conditions(model, sets)
    texts, seeds = pictures(prompts, per_prompt, seed)
    frames = []
    for start in tqdm(range(0, len(texts), chunk), desc="ablation", disable=not progress):
        drawn = texts[start:start + chunk], seeds[start:start + chunk]
        roles = model.encoder.encode(["", *drawn[0]]).roles[1:]
        for name, heads in zip(names, where):
            edit: Hook = Ablate(heads[None], steps=when)
            if role:
                edit = MaskKeys(mask_of_role(roles, role), heads[None], steps=when)
            latents = run(model, *drawn, *([edit] if heads.any() else []), **options)
            each = [said[text] for text in drawn[0]]
            masks = locate(model.vae.decode(latents).cpu(), [s.nouns for s in each])
            frames.append(judge(masks, each).assign(prompt=drawn[0], condition=name))
    return pd.concat(frames, ignore_index=True)


def placed_effects(frame: pd.DataFrame) -> pd.DataFrame:
    """`sweep.effects` of a `placed_ablation`: of `found`, and of `placed` over the prompts whose
    relation has a side, if any."""
    sided = frame.dropna(subset=["placed"])
    tables = [effects(part, [metric]) for part, metric in ((frame, "found"), (sided, "placed"))
              if len(part)]
    return pd.concat(tables)


def placed_synopsis(model: Model, prompts: Sequence[str], locate: Locator, per_prompt: int = 1,
                    seed: int = 1, chunk: int = 4, progress: bool = False, **options
                    ) -> pd.DataFrame:
    """All heads by both scores of `synopsis.attention_scores`: name, layer, head, score, mean, low,
    high (95 % over prompts) and images, the number of pictures in which both things were found.

    Raises ValueError as `placed_ablation` does, and if no picture counts.
    """
    said = {prompt: read_spatial(prompt) for prompt in prompts}
    locate(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), [s.nouns for s in said.values()])
    texts, seeds = pictures(prompts, per_prompt, seed)
    patch, tables, owners = model.transformer.config["patch_size"], [], []
    for start in tqdm(range(0, len(texts), chunk), desc="synopsis", disable=not progress):
        drawn = texts[start:start + chunk], seeds[start:start + chunk]
        latents = model.latents(*drawn, **options)
        masks = locate(model.vae.decode(latents).cpu(), [said[text].nouns for text in drawn[0]])
        grid = [n // patch for n in latents.shape[-2:]]
        places = interpolate(masks.float(), grid, mode="area").flatten(2)            # [b, 2, N]
        rest = (1 - places.sum(1, keepdim=True)).clamp_min(0)
        roles = role_table(model.encoder.encode(["", *drawn[0]]).roles[1:])          # [b, T, R]
        reader = PlaceAttention(roles, torch.cat([places, rest], 1))
        counts = masks.flatten(2).any(2).all(1).tolist()
        if any(counts):
            run(model, *drawn, reader, **options)
            total = torch.stack([reader.total[i] for i in sorted(reader.total)], 1).cpu()
            area = reader.places.cpu().sum(2)[:, None, None, :, None] * len(reader.steps_seen)
            each = total / area / roles.sum(1)[:, None, None, None]              # [b, L, H, 3, R]
            tables += [table for table, counted in zip(each.nan_to_num(0, 0, 0), counts) if counted]
            owners += [text for text, counted in zip(drawn[0], counts) if counted]
    if not tables:
        raise ValueError("both things were found in no picture, so that heads cannot be ranked")
    rows = []
    for score, values in attention_scores(torch.stack(tables)).items():
        low, high = mean_interval(values.flatten(1).numpy(), owners)
        ends = zip(heads_of(model), values.flatten(1).mean(0).tolist(), low, high)
        rows += [(head_name(*head), *head, score, *numbers, len(tables)) for head, *numbers in ends]
    columns = ["name", "layer", "head", "score", "mean", "low", "high", "images"]
    return pd.DataFrame(rows, columns=columns).sort_values(
        ["score", "mean"], ascending=[False, False], ignore_index=True)
