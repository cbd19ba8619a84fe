"""Metrics: does an image show what its prompt says? Scores, prompt sets, intervals, ceiling and chance.

Definitions as in arXiv 2601.06338, for object 1 and object 2 of a prompt (a word not said is not tested):

shape, color     each object has a detection of its shape (any colour), of its colour (any shape)
exist_binding    each object has a detection of its shape and colour, a candidate
unique_binding   each object has exactly one candidate
dx, dy           x1 - x2 and y1 - y2 of the two unique candidates in px, y down; NaN where not unique
loose            unique_binding, and each axis the relation names is beyond the threshold (5 px) on its side
strict           loose, and an axis the relation does not name is within the threshold

`mode="paper"` differs from `mode="clean"` in the detector (see `detect`) and in two rules: one detection may
stand for both objects, and two objects within the threshold on both axes are strictly "above" or "below"
although they are not loosely so.

A score means nothing without its bounds: `ceiling` scores ground-truth pictures, `chance` two kinds of
ignorance.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np
import pandas as pd
import torch

from .captions import PHRASE_RELATION, PHRASES, parse
from .detect import check_mode, detect_batch
from .render import render
from .scenes import ALIGN, COLORS, OFFSETS, RELATIONS, SHAPES, SIZE, Scenes, sample, uniform

METRICS = ("shape", "color", "exist_binding", "unique_binding", "loose", "strict")
DISTANCES = ("dx", "dy")
BASELINES = ("random_relation", "bag_of_words")
PROMPT_SETS = ("264", "96", "22")
MARGIN = 25  # a colour passes if each channel is closer than this to pure red or blue
_PURE = np.array([(255, 0, 0), (0, 0, 255)])  # in the order of COLORS
_CHUNK = 1024  # images rendered at once
Decode = Callable[[torch.Tensor], torch.Tensor]


def prompt_set(name: int | str) -> list[str]:
    """Prompts of the authors' set 264, 96 or 22, ordered so that the first N mix relations and objects.

    264: 22 phrases x 6 ordered pairs of shapes x 2 colour orders. 96: 8 phrases, with "the" before object 2,
    which the training captions never have. 22: every phrase for a blue circle and a red square. Raises
    ValueError for another name.
    """
    if str(name) not in PROMPT_SETS:
        raise ValueError(f"prompt set {name!r} is not one of {', '.join(PROMPT_SETS)}")
    of_relation = [[p for p, r in zip(PHRASES, PHRASE_RELATION) if r == i] for i in range(len(RELATIONS))]
    phrases = [p[k] for k in range(3) for p in of_relation if k < len(p)]  # relations take turns
    shapes = list(permutations(SHAPES, 2))
    colors = [COLORS[::(1, -1)[(i + i // 6) % 2]] for i in range(12)]  # each relation meets both orders early
    objects = [(f"{c} {s}", f"{d} {t}") for (s, t), (c, d) in zip(shapes * 2, colors)]
    article = ""
    if str(name) == "96":
        spoken = {"above", "below", "to the left of", "to the right of"}
        phrases = [p for p in phrases if p in spoken or " and to the " in p]
        article = "the "
    elif str(name) == "22":
        objects = [("blue circle", "red square")]
    n = len(phrases)  # a Latin square of phrases and objects
    pairs = ((phrases[k % n], objects[(k % n + k // n) % len(objects)]) for k in range(n * len(objects)))
    return [f"{one} is {phrase} {article}{two}" for phrase, (one, two) in pairs]


def _wanted(prompts: Sequence[str]) -> pd.DataFrame:
    """What each prompt asks for, one row each: indices s1, s2, c1, c2 (-1 = any), relation, and its labels.

    Raises ValueError for no prompts, and for a prompt without two shapes or a relation.
    """
    if not len(prompts):
        raise ValueError("prompts is empty; give at least one")
    rows = {}
    for prompt in dict.fromkeys(prompts):
        said = parse(prompt)
        if said.relation is None or None in said.shape:
            raise ValueError(f"prompt {prompt!r} must name two shapes of {', '.join(SHAPES)} and a relation, "
                             f'as in "red circle is above blue square"')
        colors = [-1 if c is None else c for c in said.color]
        rows[prompt] = (*said.shape, *colors, said.relation, RELATIONS[said.relation], PHRASES[said.phrase],
                        "-".join(SHAPES[s] for s in said.shape))
    columns = ["s1", "s2", "c1", "c2", "index", "relation", "phrase", "pair"]
    return pd.DataFrame([rows[p] for p in prompts], columns=columns)


def score(images: torch.Tensor, prompts: Sequence[str], mode: str = "clean",
          threshold: float = ALIGN) -> pd.DataFrame:
    """One row an image: prompt, relation, phrase, pair (of shapes), METRICS (bool), dx and dy (px or NaN).

    images: uint8 [B, 3, 128, 128]; prompts: B strings; threshold in px. Raises ValueError for a prompt
    without two shapes or a relation, an unknown mode, images of another size or type, or another number of
    prompts.
    """
    check_mode(mode)
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images but {len(prompts)} prompts; give one prompt an image")
    if tuple(images.shape[1:]) != (3, SIZE, SIZE):
        raise ValueError(f"images must be a uint8 tensor [B, 3, {SIZE}, {SIZE}], got {tuple(images.shape)}")
    wanted = _wanted(prompts)
    found = [(i, d) for i, blobs in enumerate(detect_batch(images, mode)) for d in blobs]  # N blobs in all
    image = np.array([i for i, _ in found], dtype=int)                                     # [N]
    shape = np.array([SHAPES.index(d.shape) if d.shape in SHAPES else -1 for _, d in found], dtype=int)
    center = np.array([d.center for _, d in found]).reshape(-1, 2)                         # [N, 2]
    color = np.array([d.color for _, d in found]).reshape(-1, 1, 3)  # [N, 1, 3]
    passes = (np.abs(color - _PURE) < MARGIN).all(2)  # [N, 2] red, blue
    shape_of, color_of = wanted[["s1", "s2"]].to_numpy()[image], wanted[["c1", "c2"]].to_numpy()[image]
    shape_ok = shape[:, None] == shape_of  # [N, 2] blob, object
    color_ok = (color_of < 0) | np.take_along_axis(passes, color_of.clip(0), 1)            # [N, 2]
    both_ok = shape_ok & color_ok

    def total(values: np.ndarray) -> np.ndarray:  # [N, ...] -> [B, ...] sum over the blobs of each image
        out = np.zeros((len(prompts), *values.shape[1:]))
        np.add.at(out, image, values)
        return out

    def candidates(ok: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # [N, 2] -> [B] some, exactly one each
        n, shared = total(ok), total(ok.all(1)) * (mode == "clean")
        return n.prod(1) > shared, (n == 1).all(1) & (shared == 0)

    exist, unique = candidates(both_ok)
    d = total((both_ok[:, :1] * 1.0 - both_ok[:, 1:]) * center)  # [B, 2] x1 - x2, y1 - y2
    d[~unique] = np.nan
    offset = OFFSETS.numpy()[wanted["index"].to_numpy()]  # [B, 2] -1, 0, 1
    sign = np.sign(d) * (np.abs(d) > threshold)  # [B, 2] 0 = aligned
    loose = ((offset == 0) | (sign == offset)).all(1) & unique
    if mode == "paper":
        aligned = (sign == 0).all(1)
        sign[aligned, 1] = np.where(d[aligned, 1] < 0, -1, 1)
    frame = wanted[["relation", "phrase", "pair"]].copy()
    frame.insert(0, "prompt", list(prompts))
    values = (candidates(shape_ok)[0], candidates(color_ok)[0], exist, unique, loose, (sign == offset).all(1))
    return frame.assign(**dict(zip(METRICS, values)), dx=d[:, 0], dy=d[:, 1])


def summarise(frame: pd.DataFrame, by: str | list[str] | None = None, seed: int = 0,
              n_boot: int = 2000) -> pd.DataFrame:
    """Mean and 95 % interval of each metric, indexed by metric, or by (`by`, metric) for a table per group.

    The interval is a percentile bootstrap over prompts: all images of a prompt stay together, since they are
    not independent. Columns: mean, low, high, n_prompts, n_images, n_nan; NaNs (dx and dy without a unique
    binding) are left out of all but the last. Below two prompts low and high are NaN. Raises ValueError for
    an empty frame or an unknown column.
    """
    keys = [by] if isinstance(by, str) else list(by or [])
    missing = [c for c in ("prompt", *keys) if c not in frame]
    if missing or frame.empty:
        raise ValueError(f"frame has no column {missing[0]!r} among {', '.join(frame)}" if missing
                         else "frame is empty")
    if keys:
        parts = {k: summarise(g, None, seed, n_boot) for k, g in frame.groupby(keys, sort=False)}
        return pd.concat(parts, names=[*keys, "metric"])
    columns = [m for m in METRICS + DISTANCES if m in frame]
    grouped = frame[columns].astype(float).groupby(frame["prompt"].to_numpy(), sort=False)
    sums, counts = grouped.sum().to_numpy(), grouped.count().to_numpy()  # [P, M] without NaN
    prompts, images = (counts > 0).sum(0), counts.sum(0)                                 # [M]
    n = len(sums)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_boot)  # [n_boot, P]
    with np.errstate(invalid="ignore"):
        mean = sums.sum(0) / images
        draws = (weights @ sums) / (weights @ counts)  # [n_boot, M]
    low, high = np.transpose([np.nanpercentile(x, [2.5, 97.5]) if k > 1 else (np.nan, np.nan)
                              for x, k in zip(draws.T, prompts)])
    return pd.DataFrame({"mean": mean, "low": low, "high": high, "n_prompts": prompts, "n_images": images,
                         "n_nan": len(frame) - images}, index=pd.Index(columns, name="metric"))


def _scenes(prompts: Sequence[str], images_per_prompt: int, seed: int, preset: str,
            random_relation: bool = False) -> tuple[Scenes, list[str], torch.Tensor]:
    """Scenes that fit the prompts (unsaid colours are drawn), the prompt of each, and spare coins [B, 2]."""
    if images_per_prompt < 1:
        raise ValueError(f"images_per_prompt must be at least 1, got {images_per_prompt}")
    prompts = [p for p in prompts for _ in range(images_per_prompt)]
    wanted = torch.tensor(_wanted(prompts)[["s1", "s2", "c1", "c2", "index"]].to_numpy())   # [B, 5]
    shape, color, relation = wanted[:, :2], wanted[:, 2:4].clone(), wanted[:, 4]
    index = torch.arange(len(prompts))
    u = uniform(seed, index, 16)[:, 12:]  # [B, 4] draws that `sample` leaves unused
    neither = (color < 0).all(1)
    color[neither, 0] = (u[neither, 0] * 2).long()
    color = torch.where(color < 0, 1 - color.flip(1), color)
    if random_relation:
        relation = (u[:, 1] * len(RELATIONS)).long()
    return sample(index, seed, preset, relation=relation, shape=shape, color=color), prompts, u[:, 2:] < 0.5


def _score_scenes(scenes: Scenes, prompts: list[str], mode: str, decode: Decode | None) -> pd.DataFrame:
    """Render, pass through `decode` (uint8 -> uint8, e.g. a VAE round trip) if given, score; in chunks."""
    frames = []
    for i in range(0, len(prompts), _CHUNK):
        images = render(scenes[i:i + _CHUNK])
        frames.append(score(decode(images) if decode else images, prompts[i:i + _CHUNK], mode))
    return pd.concat(frames, ignore_index=True)


def ceiling(prompts: Sequence[str], images_per_prompt: int = 4, seed: int = 0, preset: str = "clean",
            mode: str = "clean", decode: Decode | None = None) -> pd.DataFrame:
    """`score` of ground-truth scenes that fit each prompt: what a perfect model of this preset would get."""
    scenes, repeated, _ = _scenes(prompts, images_per_prompt, seed, preset)
    return _score_scenes(scenes, repeated, mode, decode)


def chance(prompts: Sequence[str], images_per_prompt: int = 4, seed: int = 0, preset: str = "clean",
           mode: str = "clean", decode: Decode | None = None) -> pd.DataFrame:
    """`score` of two models that know the objects but not the sentence, told apart by the column `baseline`.

    random_relation: the right two objects in a relation drawn from all 8. bag_of_words: the right words
    without their order; the relation's axis is right, but which shape has which colour and which object comes
    first are coin flips, so that binding is 1/2 and loose 1/4 of the ceiling.
    """
    scenes, repeated, _ = _scenes(prompts, images_per_prompt, seed, preset, random_relation=True)
    random_relation = _score_scenes(scenes, repeated, mode, decode)
    scenes, _, coin = _scenes(prompts, images_per_prompt, seed, preset)
    swapped = scenes.replace(color=torch.where(coin[:, :1], scenes.color.flip(1), scenes.color),
                             xy=torch.where(coin[:, 1:, None], scenes.xy.flip(1), scenes.xy))
    frames = dict(zip(BASELINES, (random_relation, _score_scenes(swapped, repeated, mode, decode))))
    return pd.concat(frames, names=["baseline", None]).reset_index(level="baseline").reset_index(drop=True)
