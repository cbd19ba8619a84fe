"""Sweep: many conditions of the same pictures as one batch, and their effects with intervals.

A sweep over C conditions draws the same prompts and seeds C times, conditions varying fastest:
picture i under condition c is sample i * C + c.
"""
from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import Tensor
from tqdm import tqdm

from ..data.metrics import METRICS, axis_and_side, check_prompts, score
from ..data.scenes import RELATIONS, check_seed
from ..hooks.core import Hook
from ..hooks.run import run
from ..model.pipeline import Model
from .intervals import N_BOOT, by_prompt, mean_interval, wilson_edges

EFFECT = ["mean", "low", "high", "change", "change_low", "change_high", "n_prompts", "n_images"]
_SEEDS = 1_000_000  # each sweep's seeds start at a multiple of this
_CHUNK = 256  # pictures decoded and scored at once


def pictures(prompts: Sequence[str], per_prompt: int, seed: int) -> tuple[list[str], list[int]]:
    """Prompt and seed of each of a sweep's pictures; image k of prompt i has the seed
    seed * 1_000_000 + i * per_prompt + k.

    Raises ValueError for no prompts, no pictures, or a seed that leaves no room in 63 bits.
    """
    if per_prompt < 1 or not prompts:
        raise ValueError(f"a sweep needs a prompt and an image, got {len(prompts)} prompts and "
                         f"{per_prompt} images")
    check_seed(seed, 2 ** 63 // _SEEDS - 1)
    texts = [p for p in prompts for _ in range(per_prompt)]
    return texts, [seed * _SEEDS + i for i in range(len(texts))]


def sweep(model: Model, prompts: Sequence[str | list[str]], names: Sequence[str],
          hooks: Sequence[Hook] = (), per_prompt: int = 1, seed: int = 1, batch: int = 32,
          progress: bool = False, scored: Sequence[str | list[str]] | None = None, **options
          ) -> pd.DataFrame:
    """Draw and score every picture under each of the C named conditions: the frame of
    `metrics.score`, a row a sample, plus axis, side, condition and seed.

    `hooks` describe P * per_prompt * C samples (see `spread`). `prompts` [P] and `scored` [P], the
    prompts to score against if not those drawn, may hold a list with a prompt for each condition.
    Options as of `sample_latents`. Raises ValueError, before sampling, for names, prompts or scored
    prompts that do not fit each other, or prompts that cannot be encoded or scored; after it for
    latents that are not finite.
    """
    if not names or len(set(names)) < len(names):
        raise ValueError(f"names is {list(names)}; a sweep needs conditions of different names")
    if scored is not None and len(scored) != len(prompts):
        raise ValueError(f"{len(scored)} prompts to score against for {len(prompts)} prompts; "
                         "give one each")
    _, seeds = pictures([""] * len(prompts), per_prompt, seed)
    texts = _flat(prompts, per_prompt, len(names))
    against = texts if scored is None else _flat(scored, per_prompt, len(names))
    check_prompts(against)
    seeds = [s for s in seeds for _ in names]
    batch = max(1, batch // len(names)) * len(names)     # a picture's conditions stay in one batch
    latents = run(model, texts, seeds, *hooks, batch=batch, progress=progress, **options)
    frames = []
    for start in tqdm(range(0, len(texts), _CHUNK), desc="scoring", disable=not progress):
        part = slice(start, start + _CHUNK)
        frames.append(score(model.vae.decode(latents[part]), against[part]))
    frame = pd.concat(frames, ignore_index=True)
    said = [RELATIONS.index(relation) for relation in frame["relation"]]
    frame["axis"], frame["side"] = axis_and_side(frame["dx"], frame["dy"], said)
    return frame.assign(condition=list(names) * (len(texts) // len(names)), seed=seeds)


def _flat(prompts: Sequence[str | list[str]], per_prompt: int, conditions: int) -> list[str]:
    """One prompt a sample [P * per_prompt * C]."""
    out: list[str] = []
    for row in prompts:
        each = [row] * conditions if isinstance(row, str) else list(row)
        if len(each) != conditions:
            raise ValueError(f"{len(each)} prompts, {each[:1]} ..., for {conditions} conditions; "
                             "give one each, or one for all")
        out += each * per_prompt
    return out


def spread(values: Tensor, pictures: int) -> Tensor:
    """One row a condition [C, ...] -> one row a sample [pictures * C, ...]."""
    return values.repeat(pictures, *[1] * (values.ndim - 1))


def effects(frame: pd.DataFrame, metrics: Sequence[str] = METRICS, seed: int = 0,
            n_boot: int = N_BOOT, edges: bool = False) -> pd.DataFrame:
    """Each condition's mean and its paired difference from the first condition, the intact model,
    with 95 % intervals by a bootstrap over prompts.

    Indexed by condition and metric: mean, low, high, change, change_low, change_high, n_prompts,
    n_images (per condition). With `edges`, low and high are Wilson's where the mean is 0 or 1.
    """
    order = list(dict.fromkeys(frame["condition"]))
    cells, rows = by_prompt(frame, metrics), {}                                         # [P, M x C]
    for condition in order:
        for metric in metrics:
            x = cells[metric, condition].to_numpy()
            change = x - cells[metric, order[0]].to_numpy()
            ends = mean_interval(np.stack([x, change], 1), n_boot=n_boot, seed=seed)     # [2, 2]
            low, high = ends[:, 0]
            if edges:
                low, high = wilson_edges(x.mean(), low, high, len(x))
            rows[condition, metric] = (x.mean(), low, high, change.mean(), *ends[:, 1], len(x),
                                       len(frame) // len(order))
    index = pd.MultiIndex.from_tuples(rows, names=["condition", "metric"])
    return pd.DataFrame(list(rows.values()), index, EFFECT)
