"""Ablation: what fails without a head. All conditions of a sweep run as one batch, each sample with its own edit.

A sweep over C conditions draws the same prompts and seeds C times, ordered so that the conditions of one picture lie side
by side: sample (picture i, condition c) is row i * C + c. Effects are paired differences from the intact model.
"""
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from .captions import ROLES
from .edits import Ablate, MaskKeys, Outputs
from .hooks import Hook, run
from .metrics import METRICS, score
from .sample import STEPS
from .text import Encoder

INTACT = "intact"
EFFECT = ["mean", "low", "high", "change", "change_low", "change_high", "n_prompts", "n_images"]


def name(layer: int, head: int) -> str:
    """The field's name of a head, e.g. L2H3."""
    return f"L{layer}H{head}"


def heads_of(model) -> list[tuple[int, int]]:
    """Every cross-attention head (layer, head) of a `pretrained.Model`."""
    blocks = model.transformer.transformer_blocks
    return [(layer, head) for layer, block in enumerate(blocks) for head in range(block.attn1.heads)]


def others(model, heads: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """All cross-attention heads but these."""
    return [h for h in heads_of(model) if h not in heads]


def conditions(model, sets: dict[str, Sequence[tuple[int, int]]]) -> tuple[list[str], Tensor]:
    """Names, the intact model first, and masks [C, L, H] of sets of heads."""
    blocks = model.transformer.transformer_blocks
    where = torch.zeros(1 + len(sets), len(blocks), blocks[0].attn1.heads, dtype=torch.bool)
    for row, heads in zip(where[1:], sets.values()):
        for layer, head in heads:
            if not (0 <= layer < where.shape[1] and 0 <= head < where.shape[2]):
                raise ValueError(f"head {name(layer, head)} is out of range; the model has L0H0 to "
                                 f"{name(where.shape[1] - 1, where.shape[2] - 1)}")
            row[layer, head] = True
    return [INTACT, *sets], where


def pictures(prompts: Sequence[str], per_prompt: int, seed: int) -> tuple[list[str], list[int]]:
    """Prompts and seeds of a sweep's pictures; image k of prompt i has the seed seed * 1_000_000 + i * per_prompt + k."""
    if per_prompt < 1 or not prompts:
        raise ValueError(f"a sweep needs a prompt and an image, got {len(prompts)} prompts and {per_prompt} images")
    told = [p for p in prompts for _ in range(per_prompt)]
    return told, [seed * 1_000_000 + i for i in range(len(told))]


def sweep(model, prompts: Sequence[str], names: Sequence[str], hooks: Sequence[Hook] = (), per_prompt: int = 1, seed: int = 1,
          batch: int = 32, progress: bool = False, scored: Sequence[str] | None = None, **options) -> pd.DataFrame:
    """Draw and score every picture under each of the named conditions: `metrics.score`'s frame plus condition and seed.

    `hooks` describe pictures x conditions samples, conditions varying fastest (see `spread`). `prompts` and `scored`,
    the prompts to score against if not those drawn, may hold a list with a prompt for each condition.
    """
    told, seeds = pictures(prompts, per_prompt, seed)
    flat = lambda rows: [x for row in rows for x in ([row] * len(names) if isinstance(row, str) else row)]
    told, seeds = flat(told), [s for s in seeds for _ in names]
    against = told if scored is None else flat(s for s in scored for _ in range(per_prompt))
    batch = max(1, batch // len(names)) * len(names)                 # all conditions of a picture stay in one batch
    latents = run(model, told, seeds, *hooks, batch=batch, progress=progress, **options)
    parts = range(0, len(told), 256)
    frames = [score(model.vae.decode(latents[i:i + 256]), against[i:i + 256])
              for i in tqdm(parts, desc="scoring", disable=not progress)]
    frame = pd.concat(frames, ignore_index=True)
    return frame.assign(condition=list(names) * (len(told) // len(names)), seed=seeds)


def spread(values: Tensor, pictures: int) -> Tensor:
    """One row a condition [C, ...] -> one row a sample [pictures * C, ...]."""
    return values.repeat(pictures, *[1] * (values.ndim - 1))


def ablate(model, prompts: Sequence[str], sets: dict[str, Sequence[tuple[int, int]]], per_prompt: int = 1, seed: int = 1,
           mean: Tensor | None = None, half: str = "cond", when: Sequence[int] | None = None, **options) -> pd.DataFrame:
    """Scores without each set of heads (zero ablation, or mean ablation with `mean` from `mean_outputs`), at steps `when`.

    Frame as of `sweep`, condition "intact" first. Raises ValueError for a head out of range or an unencodable prompt,
    before sampling.
    """
    names, where = conditions(model, sets)
    hooks = [Ablate(spread(where, len(prompts) * per_prompt), mean, half, steps=when)] if where.any() else []
    return sweep(model, prompts, names, hooks, per_prompt, seed, **options)


def mask_roles(model, prompts: Sequence[str], groups: dict[str, tuple], per_prompt: int = 1, seed: int = 1, half: str = "cond",
               when: Sequence[int] | None = None, **options) -> pd.DataFrame:
    """Scores with the tokens of a role hidden: `groups` name conditions (role, heads or None for all), or (role, heads, steps)
    where the steps are not `when`.

    Raises ValueError for a role that a prompt does not hold, before sampling.
    """
    wanted = [(role, heads, tuple(steps[0] if steps else when or ())) for role, heads, *steps in groups.values()]
    keys = {role: role_mask(model.encoder, prompts, role) for role, _, _ in wanted}
    everywhere = heads_of(model)
    names, where = conditions(model, {k: everywhere if heads is None else heads for k, (_, heads, _) in zip(groups, wanted)})
    hidden = torch.stack([torch.zeros_like(next(iter(keys.values()))), *(keys[role] for role, _, _ in wanted)], 1)
    hidden = hidden.repeat_interleave(per_prompt, 0).flatten(0, 1)                         # [P * n * C, T]
    hooks = []
    for steps in dict.fromkeys(s for _, _, s in wanted):                                   # a hook for each window of steps
        mine = torch.tensor([False, *(s == steps for _, _, s in wanted)])
        hooks.append(MaskKeys(hidden, spread(where & mine[:, None, None], len(prompts) * per_prompt), half, steps=steps or None))
    return sweep(model, prompts, names, hooks, per_prompt, seed, **options)


def knock(model, prompts: Sequence[str], mean: Tensor | None = None, candidates: Sequence[tuple[int, int]] | None = None,
          rounds: int = 4, lost: float = 1 / 3, **options) -> pd.DataFrame:
    """Heads taken away greedily: each round the one without which, besides those gone already, most pictures have both
    objects but in the wrong places (unique binding minus loose).

    Ends after `rounds`, or when loose has lost the share `lost` of the intact model's. A row a round, of the heads gone so
    far: name, head, misplaced, shape, unique_binding, loose, lost. `candidates` are all heads by default.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; it must be at least 1")
    gone: list[tuple[int, int]] = []
    rows = []
    while len(rows) < rounds and (not rows or rows[-1]["lost"] < lost):
        sets = {name(*h): [*gone, h] for h in (candidates or heads_of(model)) if h not in gone}
        if not sets:
            break
        frame = ablate(model, prompts, sets, mean=mean, **options)
        table = frame.groupby("condition", sort=False)[["shape", "unique_binding", "loose"]].mean()
        table.insert(0, "misplaced", table["unique_binding"] - table["loose"])
        best = table.drop(INTACT)["misplaced"].idxmax()
        gone = sets[best]
        share = 1 - table.loc[best, "loose"] / max(table.loc[INTACT, "loose"], 1e-9)
        rows.append({"name": best, "head": gone[-1], **table.loc[best], "lost": share})
    return pd.DataFrame(rows)


def role_mask(encoder: Encoder, prompts: Sequence[str], role: str) -> Tensor:
    """[P, T] True at the tokens of that role, or of several ("colour1+colour2").

    Raises ValueError naming the first prompt without any of them, or an unknown role.
    """
    parts = role.split("+")
    if unknown := [r for r in parts if r not in ROLES]:
        raise ValueError(f"role {unknown[0]!r} is unknown; choose from {', '.join(ROLES)}")
    mask = torch.tensor([[r in parts for r in row] for row in encoder.encode(list(prompts)).roles])
    missing = (~mask.any(1)).nonzero().flatten().tolist()
    if missing and role != "pad":
        raise ValueError(f"prompt {prompts[missing[0]]!r} holds no token of role {role}")
    return mask


def mean_outputs(model, prompts: Sequence[str], per_prompt: int = 1, seed: int = 2, steps: int = STEPS, **options) -> Tensor:
    """Every cross-attention head's output averaged over prompts and seeds: [steps, halves, L, H, N, d], for mean ablation.

    The prompts should be balanced, so that the mean tells nothing of a single one.
    """
    reader = Outputs()
    run(model, *pictures(prompts, per_prompt, seed), reader, steps=steps, **options)
    return reader.mean


def effects(frame: pd.DataFrame, metrics: Sequence[str] = METRICS, seed: int = 0, n_boot: int = 2000) -> pd.DataFrame:
    """Each condition's mean and its paired difference from the intact model, with a 95 % bootstrap over prompts.

    Indexed by condition and metric: mean, low, high, change, change_low, change_high, n_prompts, n_images.
    """
    order = list(dict.fromkeys(frame["condition"]))
    cell = frame.groupby(["prompt", "condition"], sort=False)[list(metrics)].mean()
    values = cell.unstack("condition").astype(float)                                         # [P, M x C]
    n = len(values)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_boot) / n
    rows = {}
    for condition in order:
        for metric in metrics:
            x, base = values[metric, condition].to_numpy(), values[metric, order[0]].to_numpy()
            (low, high), (d_low, d_high) = (np.percentile(weights @ v, [2.5, 97.5]) for v in (x, x - base))
            rows[condition, metric] = (x.mean(), low, high, (x - base).mean(), d_low, d_high, n, len(frame) // len(order))
    index = pd.MultiIndex.from_tuples(rows, names=["condition", "metric"])
    return pd.DataFrame(list(rows.values()), index, EFFECT)
