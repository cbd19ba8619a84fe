"""Second judge: the metrics of `data.metrics` by other means, to see how far they hang on the
detector.

It shares no rule with `data.detect`: objects are connected saturated pixels (scipy), shapes are
told by a random forest (scikit-learn) that was trained on renders whose truth is known, colours by
the mean hue, and the metrics are decided object by object in plain Python.
"""
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor

from ..data.captions import parse
from ..data.metrics import METRICS, check_prompts, score
from ..data.render import render
from ..data.scenes import COLORS, OFFSETS, SHAPES, sample_scenes
from ..model.pipeline import Model

SATURATED = 80       # of 255: least difference of a pixel's largest and smallest channel
SMALLEST = 80        # px of an object
SIDE = 16            # px of the crop that the forest sees
CERTAIN = 0.6        # share of the trees that must agree on a shape
ASIDE = 5.0          # px, as in the definition of loose and strict
_CHUNK = 128         # pictures sampled and decoded at once
_EIGHT = np.ones((3, 3))  # pixels that touch at a corner are connected


class Thing(NamedTuple):
    """An object of a picture: shape and colour, None where uncertain, and centre of mass in px."""
    shape: str | None
    color: str | None
    x: float
    y: float


def _regions(image: np.ndarray) -> list[np.ndarray]:
    """Masks, bool [H, W], of the connected saturated regions of a uint8 picture [3, H, W], red and
    blue apart where they touch."""
    values = image.astype(int)
    saturated = values.max(0) - values.min(0) > SATURATED
    found = []
    for channel in range(3):
        labels, count = ndimage.label(saturated & (values.argmax(0) == channel), _EIGHT)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        found += [labels == i for i in range(1, count + 1) if sizes[i] >= SMALLEST]
    return found


def _crop(mask: np.ndarray) -> np.ndarray:
    """[SIDE * SIDE + 2]: the mask in its bounding box at one size, height over width, filling."""
    rows, columns = ndimage.find_objects(mask.astype(int))[0]
    part = mask[rows, columns].astype(float)
    small = ndimage.zoom(part, (SIDE / part.shape[0], SIDE / part.shape[1]), order=1)
    return np.append(small.ravel(), [part.shape[0] / part.shape[1], part.mean()])


@lru_cache(maxsize=1)
def shape_forest(scenes: int = 600, seed: int = 97) -> RandomForestClassifier:
    """The forest, trained on the objects of that many renders, by the scene's own shapes."""
    drawn = sample_scenes(torch.arange(scenes), seed)
    features, labels = [], []
    for image, xy, shape in zip(render(drawn).numpy(), drawn.xy.numpy(), drawn.shape.numpy()):
        for mask in _regions(image):
            y, x = ndimage.center_of_mass(mask)
            nearest = np.abs(xy - [x, y]).sum(1).argmin()
            features.append(_crop(mask))
            labels.append(SHAPES[shape[nearest]])
    return RandomForestClassifier(100, random_state=seed).fit(np.stack(features), labels)


def things(images: Tensor) -> list[list[Thing]]:
    """The objects of each picture of a uint8 tensor [B, 3, H, W]."""
    masks = [_regions(image) for image in images.cpu().numpy()]
    crops = [_crop(mask) for each in masks for mask in each]
    forest = shape_forest()
    votes = iter(forest.predict_proba(np.stack(crops)) if crops else [])
    return [[_thing(image, mask, next(votes), forest.classes_) for mask in each]
            for image, each in zip(images.cpu().numpy(), masks)]


def _thing(image: np.ndarray, mask: np.ndarray, votes: np.ndarray, classes: np.ndarray) -> Thing:
    red, green, blue = image[:, mask].mean(1)
    color = COLORS[0] if red > blue else COLORS[1]
    pure = max(red, blue) > 170 and min(red, blue) < 90 and green < 90
    y, x = ndimage.center_of_mass(mask)
    return Thing(str(classes[votes.argmax()]) if votes.max() >= CERTAIN else None,
                 color if pure else None, float(x), float(y))


def second_scores(images: Tensor, prompts: Sequence[str]) -> pd.DataFrame:
    """METRICS (bool) of pictures, uint8 [B, 3, 128, 128], for their prompts. Raises ValueError for
    a prompt that cannot be scored."""
    check_prompts(prompts)
    rows = [_verdicts(found, prompt) for found, prompt in zip(things(images), prompts)]
    return pd.DataFrame(rows, columns=list(METRICS))


def _verdicts(found: list[Thing], prompt: str) -> tuple[bool, ...]:
    """The six metrics of one picture, as chapter 5 defines them."""
    said = parse(prompt)
    shapes = [None if s is None else SHAPES[s] for s in said.shape]
    colors = [None if c is None else COLORS[c] for c in said.color]

    def two(fits) -> bool:
        """Whether two different objects fit the two descriptions."""
        return any(a is not b and fits(a, 0) and fits(b, 1) for a, b in product(found, found))

    def is_shape(thing: Thing, i: int) -> bool:
        return thing.shape == shapes[i]

    def is_color(thing: Thing, i: int) -> bool:
        return colors[i] is None or thing.color == colors[i]

    def is_both(thing: Thing, i: int) -> bool:
        return is_shape(thing, i) and is_color(thing, i)
    one, other = ([t for t in found if is_both(t, i)] for i in (0, 1))
    unique = len(one) == len(other) == 1 and one[0] is not other[0]
    loose = strict = False
    if unique:
        gap = (one[0].x - other[0].x, one[0].y - other[0].y)
        wanted = OFFSETS[said.relation].tolist()
        loose = all(o == 0 or o * d > ASIDE for o, d in zip(wanted, gap))
        strict = loose and all(o != 0 or abs(d) <= ASIDE for o, d in zip(wanted, gap))
    return two(is_shape), two(is_color), two(is_both), unique, loose, strict


def judges_agree(images: Tensor, prompts: Sequence[str]) -> pd.DataFrame:
    """Both judges on the same pictures: a row a metric with the share of each, the share of equal
    verdicts, and Cohen's kappa (NaN where both always say the same)."""
    first, second = score(images, prompts)[list(METRICS)], second_scores(images, prompts)
    rows = {}
    for metric in METRICS:
        a, b = first[metric].to_numpy(bool), second[metric].to_numpy(bool)
        same, by_chance = (a == b).mean(), a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean())
        kappa = (same - by_chance) / (1 - by_chance) if by_chance < 1 else np.nan
        rows[metric] = {"detector": a.mean(), "second judge": b.mean(), "same": same,
                        "kappa": kappa}
    return pd.DataFrame(rows).T.rename_axis("metric")


def sampled_agreement(model: Model, prompts: Sequence[str], seeds: Sequence[int]) -> pd.DataFrame:
    """`judges_agree` on pictures that a model draws for B prompts and B seeds."""
    parts = [slice(i, i + _CHUNK) for i in range(0, len(prompts), _CHUNK)]
    images = [model.images(list(prompts[p]), list(seeds[p])) for p in parts]
    return judges_agree(torch.cat(images), prompts)
