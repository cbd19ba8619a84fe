"""Placed: synopsis and ablation for any model and any two things, in memory that does not grow with
the number of pictures, heads or places; finished chunks may be kept (`chunks.Chunks`).

A prompt's things and relation come from `text.parser`, their places from a `locate.Locator`. The
synopsis draws each picture twice: places are known only when the picture is there, and in the
second drawing attention is summed over them where it is computed. Heads are tested by the largest
score under shuffles (`max_statistic`), which very many of them do not make blind.
"""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..data.scenes import ALIGN, SIZE
from ..hooks.core import Hook, pick
from ..hooks.edits import Ablate, MaskKeys
from ..hooks.run import run
from ..model.pipeline import Model
from ..model.sampler import STEPS, ready_scheduler
from ..text.parser import Spatial, read_spatial
from ..text.roles import mask_of_role, role_mask, role_table
from .chunks import Chunks, Part
from .edit_files import check_edits
from .heads import Head, head_conditions, head_name, heads_of, layers_and_heads
from .heatmap import WordAttention
from .intervals import mean_interval
from .locate import Locator
from .max_statistic import head_p
from .sweep import effects, pictures
from .synopsis import CLASSES, attention_scores

JUDGED = ("found", "placed", "dx", "dy")


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
    return pd.DataFrame(rows, columns=["relation", *JUDGED])


def placed_ablation(model: Model, prompts: Sequence[str], sets: Mapping[str, Sequence[Head]],
                    locate: Locator, per_prompt: int = 1, seed: int = 1, role: str | None = None,
                    when: Sequence[int] | None = None, chunk: int = 4, progress: bool = False,
                    chunks: Chunks | None = None, **options) -> pd.DataFrame:
    """Pictures without each set of heads (zero ablation), or with a role's tokens hidden from it:
    the frame of `judge`, plus prompt and condition, "intact" first.

    One condition and `chunk` pictures at a time; `chunks` keeps each. Raises ValueError, before
    sampling, for a prompt without two things, a role that a prompt lacks, nouns that the locator
    does not know, heads or steps out of range, and chunks of another run.
    """
    drawn = asked(model, prompts, locate, per_prompt, seed, chunk, when, **options)
    names, where = head_conditions(model, sets)
    if role:
        role_mask(model.encoder, prompts, role)
    kept = (chunks or Chunks()).open(
        "ablate", model, prompts=list(prompts), sets=dict(sets), per_prompt=per_prompt, seed=seed,
        role=role, when=when, chunk=chunk, options=options)

    def hooks(number: int, part: slice) -> list[Hook]:
        heads = where[number]
        if not heads.any():
            return []
        if not role:
            return [Ablate(heads[None], steps=when)]
        roles = model.encoder.encode(["", *drawn.texts[part]]).roles[1:]
        return [MaskKeys(mask_of_role(roles, role), heads[None], steps=when)]
    return judge_pictures(model, drawn, names, hooks, locate, chunk, kept, progress, options)


@dataclass
class Asked:
    """The pictures that are asked for: prompt and seed of each, and what it is judged by."""
    texts: list[str]
    seeds: list[int]
    said: list[Spatial]


def asked(model: Model, prompts: Sequence[str], locate: Locator, per_prompt: int, seed: int,
          chunk: int, when: Sequence[int] | None = None, steps: int = STEPS, **_) -> Asked:
    """The pictures of these prompts. ValueError for what cannot be drawn, located, or cut into
    chunks, and for a step of `when` that does not exist."""
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1")
    check_when(model, when, steps)
    said = {prompt: read_spatial(prompt) for prompt in prompts}
    locate(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), [s.nouns for s in said.values()])
    for prompt in said:
        model.encoder.encode([prompt])                  # refuses what is too long, or unknown
    check_edits(model, prompts, steps)
    texts, seeds = pictures(prompts, per_prompt, seed)
    return Asked(texts, seeds, [said[text] for text in texts])


def check_when(model: Model, when: Sequence[int] | None, steps: int = STEPS) -> None:
    """Raise ValueError for steps of which one is not in a run of so many of the scheduler's; a
    second-order solver makes two of each."""
    last = len(ready_scheduler(model.scheduler, steps).timesteps) - 1
    for step in when or []:
        if not 0 <= step <= last:
            raise ValueError(f"step {step} is out of range; the run has steps 0 to {last}")


def judge_pictures(model: Model, drawn: Asked, names: Sequence[str],
                   hooks: Callable[[int, slice], list[Hook]], locate: Locator, chunk: int,
                   kept: Chunks, progress: bool, options: dict) -> pd.DataFrame:
    """The frame of `judge`, plus prompt and condition, of all pictures under each named condition;
    `hooks(number, part)` are those of one for a part of the pictures. One condition and `chunk`
    pictures at a time."""
    starts = range(0, len(drawn.texts), chunk)
    places = [(slice(start, start + chunk), number) for start in starts
              for number in range(len(names))]
    jobs = [(f"{part.start:06}-{number:04}", partial(_judged, model, drawn, part, hooks, number,
                                                    locate, options)) for part, number in places]
    frames = []
    for (part, number), found in zip(places, kept.parts(jobs, "pictures", progress)):
        columns = {column: found[column].numpy() for column in JUDGED}
        frame = pd.DataFrame({"relation": [s.relation for s in drawn.said[part]], **columns})
        frames.append(frame.assign(prompt=drawn.texts[part], condition=names[number]))
    return pd.concat(frames, ignore_index=True)


def _judged(model: Model, drawn: Asked, part: slice, hooks: Callable[[int, slice], list[Hook]],
            number: int, locate: Locator, options: dict) -> Part:
    """The columns of `judge` for one part under one condition, the relation aside."""
    said = drawn.said[part]
    latents = run(model, drawn.texts[part], drawn.seeds[part], *hooks(number, part), **options)
    frame = judge(locate(model.vae.decode(latents).cpu(), [s.nouns for s in said]), said)
    return {name: torch.from_numpy(frame[name].to_numpy(copy=True)) for name in JUDGED}


def placed_effects(frame: pd.DataFrame) -> pd.DataFrame:
    """`sweep.effects` of a `placed_ablation`: of `found`, and of `placed` over the prompts whose
    relation has a side, if any."""
    sided = frame.dropna(subset=["placed"])
    tables = [effects(part, [metric]) for part, metric in ((frame, "found"), (sided, "placed"))
              if len(part)]
    return pd.concat(tables)


def placed_synopsis(model: Model, prompts: Sequence[str], locate: Locator, per_prompt: int = 1,
                    seed: int = 1, chunk: int = 4, progress: bool = False,
                    chunks: Chunks | None = None, **options) -> pd.DataFrame:
    """All heads by both scores of `synopsis.attention_scores`: name, layer, head, score, mean, low,
    high (95 % over prompts), p (`max_statistic.head_p`, corrected for all heads) and images, the
    number of pictures in which both things were found.

    `chunks` keeps each chunk. Raises ValueError as `placed_ablation` does, and if no picture
    counts.
    """
    drawn = asked(model, prompts, locate, per_prompt, seed, chunk, **options)
    kept = (chunks or Chunks()).open("synopsis", model, prompts=list(prompts), seed=seed,
                                     per_prompt=per_prompt, chunk=chunk, options=options)
    places = [slice(start, start + chunk) for start in range(0, len(drawn.texts), chunk)]
    jobs = [(f"{place.start:06}", partial(_seen, model, drawn, place, locate, options))
            for place in places]
    tables, held, owners = [], [], []
    for place, part in zip(places, kept.parts(jobs, "synopsis", progress)):
        tables += part["table"][part["found"]]
        held += part["held"][part["found"]]
        owners += [text for text, found in zip(drawn.texts[place], part["found"].tolist()) if found]
    if not tables:
        raise ValueError("both things were found in no picture, so that heads cannot be ranked")
    table = torch.stack(tables)
    by_prompt = {text: [i for i, owner in enumerate(owners) if owner == text] for text in owners}
    means = torch.stack([table[rows].mean(0) for rows in by_prompt.values()])
    p = head_p(means, torch.stack([held[rows[0]] for rows in by_prompt.values()]))
    rows = []
    for score, values in attention_scores(table).items():
        low, high = mean_interval(values.flatten(1).numpy(), owners)
        ends = zip(heads_of(model), values.flatten(1).mean(0).tolist(), low, high,
                   p[score].flatten().tolist())
        rows += [(head_name(*head), *head, score, *numbers, len(tables)) for head, *numbers in ends]
    columns = ["name", "layer", "head", "score", "mean", "low", "high", "p", "images"]
    return pd.DataFrame(rows, columns=columns).sort_values(
        ["score", "mean"], ascending=[False, False], ignore_index=True)


def _seen(model: Model, drawn: Asked, place: slice, locate: Locator, options: dict) -> Part:
    """One chunk of b pictures: table [b, L, H, 3, R] attention per token from each place to each
    role, 0 for a role that the prompt lacks; held [b, R], the roles it has; found [b], both things
    are in the picture."""
    texts, seeds = drawn.texts[place], drawn.seeds[place]
    latents = model.latents(texts, seeds, **options)
    masks = locate(model.vae.decode(latents).cpu(), [said.nouns for said in drawn.said[place]])
    patch = model.transformer.config["patch_size"]
    grid = [n // patch for n in latents.shape[-2:]]
    places = interpolate(masks.float(), grid, mode="area").flatten(2)                # [b, 2, N]
    rest = (1 - places.sum(1, keepdim=True)).clamp_min(0)
    roles = role_table(model.encoder.encode(["", *texts]).roles[1:])                 # [b, T, R]
    held, found = roles.any(1), masks.flatten(2).any(2).all(1)
    shape = (len(texts), *layers_and_heads(model), len(CLASSES), roles.shape[2])
    if not found.any():
        return {"table": torch.zeros(shape), "held": held, "found": found}
    reader = PlaceAttention(roles, torch.cat([places, rest], 1))
    run(model, texts, seeds, reader, **options)
    total = torch.stack([reader.total[i] for i in sorted(reader.total)], 1).cpu()
    area = reader.places.cpu().sum(2)[:, None, None, :, None] * len(reader.steps_seen)
    each = total / area / roles.sum(1)[:, None, None, None]                      # [b, L, H, 3, R]
    return {"table": each.nan_to_num(0, 0, 0), "held": held, "found": found}
