"""Metrics: does an image show what its prompt says? Scores, prompt sets, ceiling and chance.

Definitions as in arXiv 2601.06338, for object 1 and object 2 of a prompt (what is not said is not
tested):

shape, color     each object has a detection of its shape (any colour), of its colour (any shape)
exist_binding    each object has a detection of its shape and colour, a candidate
unique_binding   each object has exactly one candidate
dx, dy           x1 - x2 and y1 - y2 of the unique candidates in px, y down; NaN where not unique
loose            unique_binding, and each axis the relation names is beyond 5 px on its side
strict           loose, and an axis the relation does not name is within 5 px

`mode="paper"` differs from `mode="clean"` in the detector (see `detect`) and in two rules: one
detection may stand for both objects, and two objects within 5 px on both axes are strictly "above"
or "below" although they are not loosely so.

A score means nothing without its bounds: `ceiling` scores ground-truth pictures, `chance` two kinds
of ignorance; `analyses.intervals.summarise` gives means and intervals. A new metric goes into
METRICS and `score`.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from .captions import PHRASE_RELATION, PHRASES, parse
from .detect import check_mode, detect_batch
from .render import render
from .scenes import (
    ALIGN,
    COLORS,
    GAP,
    OFFSETS,
    RELATIONS,
    SHAPES,
    SIZE,
    Scenes,
    sample_scenes,
    uniform,
)

METRICS = ("shape", "color", "exist_binding", "unique_binding", "loose", "strict")
PARTS = ("axis", "side")    # of the relation, see `axis_and_side`
DISTANCES = ("dx", "dy")
BASELINES = ("random_relation", "bag_of_words")
PROMPT_SETS = ("264", "96", "22")
_LEVEL = GAP / 2     # px: objects closer than this along an axis are level there
MARGIN = 25  # a colour passes if each channel is closer than this to pure red or blue
_PURE = np.array([(255, 0, 0), (0, 0, 255)])  # in the order of COLORS
_CHUNK = 1024  # images rendered at once
Decode = Callable[[torch.Tensor], torch.Tensor]


def prompt_set(name: int | str) -> list[str]:
    """Prompts of the authors' set 264, 96 or 22, ordered so that the first N mix relations and
    objects.

    264: 22 phrases x 6 ordered pairs of shapes x 2 colour orders. 96: 8 phrases, with "the" before
    object 2, which the training captions never have. 22: every phrase for a blue circle and a red
    square. Raises ValueError for another name.
    """
    if str(name) not in PROMPT_SETS:
        raise ValueError(f"prompt set {name!r} is not one of {', '.join(PROMPT_SETS)}")
    of_relation = [[p for p, r in zip(PHRASES, PHRASE_RELATION) if r == i]
                   for i in range(len(RELATIONS))]
    phrases = [p[k] for k in range(3) for p in of_relation if k < len(p)]  # relations take turns
    shapes = list(permutations(SHAPES, 2))
    orders = [(i + i // 6) % 2 for i in range(12)]         # each relation meets both early
    colors = [COLORS[::-1] if order else COLORS for order in orders]
    objects = [(f"{c} {s}", f"{d} {t}") for (s, t), (c, d) in zip(shapes * 2, colors)]
    article = ""
    if str(name) == "96":
        spoken = {"above", "below", "to the left of", "to the right of"}
        phrases = [p for p in phrases if p in spoken or " and to the " in p]
        article = "the "
    elif str(name) == "22":
        objects = [("blue circle", "red square")]
    n = len(phrases)                                       # a Latin square of phrases and objects
    pairs = ((phrases[k % n], objects[(k % n + k // n) % len(objects)])
             for k in range(n * len(objects)))
    return [f"{one} is {phrase} {article}{two}" for phrase, (one, two) in pairs]


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise ValueError unless every prompt can be scored: two shapes and a relation, and no picture
    in which one object fits both descriptions. To be asked before pictures are drawn."""
    _wanted(prompts)


def _wanted(prompts: Sequence[str]) -> pd.DataFrame:
    """What each prompt asks for, one row each: indices s1, s2, c1, c2 (-1 = any), relation, and
    its labels. Raises ValueError as `check_prompts` does."""
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"prompts is {prompts!r}; give a list of at least one")
    rows = {}
    for prompt in dict.fromkeys(prompts):
        said = parse(prompt)
        (s1, s2), (c1, c2) = said.shape, said.color
        if said.relation is None or said.phrase is None or s1 is None or s2 is None:
            raise ValueError(f"prompt {prompt!r} must name two shapes of {', '.join(SHAPES)} and a "
                             'relation, as in "red circle is above blue square"')
        if s1 == s2 and (c1 is None or c2 is None or c1 == c2):
            raise ValueError(f"prompt {prompt!r} is ambiguous: one {SHAPES[s1]} can be both "
                             "objects; say different shapes, or both colours")
        colors = [-1 if c is None else c for c in (c1, c2)]
        rows[prompt] = (s1, s2, *colors, said.relation, RELATIONS[said.relation],
                        PHRASES[said.phrase], f"{SHAPES[s1]}-{SHAPES[s2]}")
    columns = ["s1", "s2", "c1", "c2", "index", "relation", "phrase", "pair"]
    return pd.DataFrame([rows[p] for p in prompts], columns=columns)


def score(images: torch.Tensor, prompts: Sequence[str], mode: str = "clean",
          threshold: float = ALIGN) -> pd.DataFrame:
    """One row an image: prompt, relation, phrase, pair (of shapes), METRICS (bool), dx and dy (px
    or NaN).

    images: uint8 [B, 3, 128, 128]; prompts: B strings; threshold in px. Raises ValueError for
    images of another type or size (NaN is never scored), another number of prompts, an unknown
    mode, or a prompt that cannot be scored (see `check_prompts`).
    """
    check_mode(mode)
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images for {len(prompts)} prompts; give one prompt each")
    kind, size = getattr(images, "dtype", type(images).__name__), tuple(np.shape(images)[1:])
    if kind != torch.uint8 or size != (3, SIZE, SIZE):
        raise ValueError(f"images must be a uint8 tensor [B, 3, {SIZE}, {SIZE}], got {kind} "
                         f"[B, {', '.join(map(str, size))}]")
    wanted = _wanted(prompts)
    found = [(i, d) for i, blobs in enumerate(detect_batch(images, mode)) for d in blobs]  # N blobs
    image = np.array([i for i, _ in found], dtype=int)                                     # [N]
    shape = np.array([SHAPES.index(d.shape) if d.shape in SHAPES else -1 for _, d in found], int)
    center = np.array([d.center for _, d in found]).reshape(-1, 2)                         # [N, 2]
    color = np.array([d.color for _, d in found]).reshape(-1, 1, 3)                     # [N, 1, 3]
    passes = (np.abs(color - _PURE) < MARGIN).all(2)                      # [N, 2] is it red, blue?
    shape_of = wanted[["s1", "s2"]].to_numpy()[image]                       # [N, 2] blob, object
    color_of = wanted[["c1", "c2"]].to_numpy()[image]
    shape_ok = shape[:, None] == shape_of
    color_ok = (color_of < 0) | np.take_along_axis(passes, color_of.clip(0), 1)
    both_ok = shape_ok & color_ok

    def total(values: np.ndarray) -> np.ndarray:
        """[N, ...] -> [B, ...], the sum over the blobs of each image."""
        out = np.zeros((len(prompts), *values.shape[1:]))
        np.add.at(out, image, values)
        return out

    def candidates(ok: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[N, 2] -> [B] each object has some, [B] each has exactly one, not the same."""
        n, shared = total(ok), total(np.asarray(ok.all(1))) * (mode == "clean")
        return n.prod(1) > shared, (n == 1).all(1) & (shared == 0)

    exist, unique = candidates(both_ok)
    d = total((both_ok[:, :1] * 1.0 - both_ok[:, 1:]) * center)            # [B, 2] x1 - x2, y1 - y2
    d[~unique] = np.nan
    offset = OFFSETS.numpy()[wanted["index"].to_numpy()]                    # [B, 2] -1, 0, 1
    sign = np.sign(d) * (np.abs(d) > threshold)                             # [B, 2] 0 = aligned
    loose = ((offset == 0) | (sign == offset)).all(1) & unique
    if mode == "paper":
        aligned = (sign == 0).all(1)
        sign[aligned, 1] = np.where(d[aligned, 1] < 0, -1, 1)
    strict = (sign == offset).all(1)
    values = (candidates(shape_ok)[0], candidates(color_ok)[0], exist, unique, loose, strict)
    frame = wanted[["relation", "phrase", "pair"]].copy()
    frame.insert(0, "prompt", list(prompts))
    return frame.assign(**dict(zip(METRICS, values)), dx=d[:, 0], dy=d[:, 1])


def axis_and_side(dx: ArrayLike, dy: ArrayLike,
                  relations: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Which pictures [B] show the axis, and which the side too, of their relation [B], its number.

    With offset v = (sign x, sign y) of the relation and s that of the picture (object 1 minus
    object 2, dx and dy [B] in px; 0 within 18 px), it shows the axis if s = v or s = -v, and the
    side too if s = v. NaN (no two objects found) shows neither.
    """
    offset = np.stack([np.asarray(dx), np.asarray(dy)], 1).astype(float)
    shown = np.where(np.abs(offset) > _LEVEL, np.sign(offset), 0)
    named = OFFSETS.numpy()[np.asarray(relations)]
    side = (shown == named).all(1)
    return side | (shown == -named).all(1), side


def _scenes(prompts: Sequence[str], images_per_prompt: int, seed: int, preset: str,
            random_relation: bool = False) -> tuple[Scenes, list[str], torch.Tensor]:
    """Scenes that fit the prompts (unsaid colours are drawn), the prompt of each, and spare coins
    [B, 2]."""
    if images_per_prompt < 1:
        raise ValueError(f"images_per_prompt must be at least 1, got {images_per_prompt}")
    check_prompts(prompts)
    prompts = [p for p in prompts for _ in range(images_per_prompt)]
    wanted = torch.tensor(_wanted(prompts)[["s1", "s2", "c1", "c2", "index"]].to_numpy())   # [B, 5]
    shape, color, relation = wanted[:, :2], wanted[:, 2:4].clone(), wanted[:, 4]
    index = torch.arange(len(prompts))
    u = uniform(seed, index, 16)[:, 12:]  # [B, 4] draws that `sample_scenes` leaves unused
    neither = (color < 0).all(1)
    color[neither, 0] = (u[neither, 0] * 2).long()
    color = torch.where(color < 0, 1 - color.flip(1), color)
    if random_relation:
        relation = (u[:, 1] * len(RELATIONS)).long()
    scenes = sample_scenes(index, seed, preset, relation=relation, shape=shape, color=color)
    return scenes, prompts, u[:, 2:] < 0.5


def _score_scenes(scenes: Scenes, prompts: list[str], mode: str, decode: Decode | None
                  ) -> pd.DataFrame:
    """Render, pass through `decode` (uint8 -> uint8, e.g. a VAE round trip) if given, score."""
    frames = []
    for i in range(0, len(prompts), _CHUNK):
        images = render(scenes[i:i + _CHUNK])
        frames.append(score(decode(images) if decode else images, prompts[i:i + _CHUNK], mode))
    return pd.concat(frames, ignore_index=True)


def ceiling(prompts: Sequence[str], images_per_prompt: int = 4, seed: int = 0,
            preset: str = "clean", mode: str = "clean", decode: Decode | None = None
           ) -> pd.DataFrame:
    """`score` of ground-truth scenes that fit each prompt: what a perfect model of this preset
    would get. ValueError for a prompt that cannot be scored, or an unknown mode or preset."""
    scenes, repeated, _ = _scenes(prompts, images_per_prompt, seed, preset)
    return _score_scenes(scenes, repeated, mode, decode)


def chance(prompts: Sequence[str], images_per_prompt: int = 4, seed: int = 0,
           preset: str = "clean", mode: str = "clean", decode: Decode | None = None
          ) -> pd.DataFrame:
    """`score` of two models that know the objects but not the sentence, told apart by the column
    `baseline`.

    random_relation: the right two objects in a relation drawn from all 8. bag_of_words: the right
    words without their order; the relation's axis is right, but which shape has which colour and
    which object comes first are coin flips, so that binding is 1/2 and loose 1/4 of the ceiling.
    """
    scenes, repeated, _ = _scenes(prompts, images_per_prompt, seed, preset, random_relation=True)
    random_relation = _score_scenes(scenes, repeated, mode, decode)
    scenes, _, coin = _scenes(prompts, images_per_prompt, seed, preset)
    swapped = scenes.replace(color=torch.where(coin[:, :1], scenes.color.flip(1), scenes.color),
                             xy=torch.where(coin[:, 1:, None], scenes.xy.flip(1), scenes.xy))
    bag_of_words = _score_scenes(swapped, repeated, mode, decode)
    frames = [f.assign(baseline=b) for f, b in zip((random_relation, bag_of_words), BASELINES)]
    frame = pd.concat(frames, ignore_index=True)
    return frame[["baseline", *frame.columns[:-1]]]
