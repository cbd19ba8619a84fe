"""Locate: where in a picture two named things are. Our detector, colours or a mask given by hand, a
zero-shot detector of transformers; or any function of one's own that follows `Locator`."""
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..data.detect import detect_batch, masks
from ..data.scenes import COLORS, SHAPES, SIZE

Nouns = Sequence[tuple[str, str]]
_CHANNELS = ("red", "green", "blue")
_EDGES = ("xmin", "ymin", "xmax", "ymax")


class Locator(Protocol):
    """uint8 [B, 3, H, W] and B pairs of noun phrases -> bool [B, 2, H, W], all False for a thing
    that is not found. Raises ValueError for nouns it cannot find; asked with B = 0, it only checks
    those."""

    def __call__(self, images: Tensor, nouns: Nouns) -> Tensor: ...


def by_detector(images: Tensor, nouns: Nouns) -> Tensor:
    """A `Locator`: our detector (`data.detect`) on the picture at 128 px, for nouns such as
    "red square" or "circle"; a thing that is there twice is not found."""
    known = [*SHAPES, *(f"{color} {shape}" for color in COLORS for shape in SHAPES)]
    for noun in (noun for pair in nouns for noun in pair if noun not in known):
        raise ValueError(f"our detector does not know {noun!r}; choose another locator, or from "
                         f"{', '.join(known)}")
    found = torch.zeros(len(images), 2, SIZE, SIZE)
    small = interpolate(images.float(), (SIZE, SIZE), mode="area").round().to(torch.uint8)
    for i, blobs in enumerate(detect_batch(small)):
        for k, noun in enumerate(nouns[i]):
            named = [f"{_CHANNELS[int(np.argmax(b.color))]} {b.shape}" for b in blobs]
            fits = [b for b, name in zip(blobs, named) if noun in (name, b.shape)]
            if len(fits) == 1:
                found[i, k] = masks(fits, SIZE, SIZE)[0]
    return interpolate(found, images.shape[-2:]) > 0.5


def by_colors(colors: dict[str, tuple[int, int, int]], margin: int = 80) -> Locator:
    """Pixels whose channels are all within `margin` of the noun's colour (RGB, 0 to 255); a noun
    without one has that of its last word."""
    def locate(images: Tensor, nouns: Nouns) -> Tensor:
        found = torch.zeros(len(images), 2, *images.shape[-2:], dtype=torch.bool)
        for i, pair in enumerate(nouns):
            for k, noun in enumerate(pair):
                color = colors.get(noun, colors.get(noun.split()[-1]))
                if color is None:
                    raise ValueError(f"no colour is given for {noun!r}; known: {', '.join(colors)}")
                off = (images[i:i + 1].int() - torch.tensor(color)[:, None, None]).abs()
                found[i:i + 1, k] = (off <= margin).all(1)
        return found
    return locate


def by_mask(given: Tensor) -> Locator:
    """The same two masks, bool [2, H, W], for every picture, at any size."""
    if given.ndim != 3 or len(given) != 2:
        raise ValueError(f"the masks have shape {tuple(given.shape)}; they must be [2, H, W]")
    return lambda images, nouns: interpolate(
        given[None].float(), images.shape[-2:]).expand(len(images), -1, -1, -1) > 0.5


def by_model(name: str, threshold: float = 0.1) -> Locator:
    """The best box of a zero-shot detector of transformers, by folder or hub name, e.g.
    "google/owlvit-base-patch32". Raises ValueError for one that cannot be read."""
    from PIL import Image
    from transformers import pipeline
    try:
        detect = pipeline("zero-shot-object-detection", model=name,
                          model_kwargs={"use_safetensors": True})
    except Exception as error:                          # a damaged folder raises whatever it likes
        raise ValueError(f"no zero-shot detector {name!r} can be read: {error}") from error

    def locate(images: Tensor, nouns: Nouns) -> Tensor:
        found = torch.zeros(len(images), 2, *images.shape[-2:], dtype=torch.bool)
        for i, image in enumerate(images):
            boxes = detect(Image.fromarray(image.permute(1, 2, 0).numpy()),
                           candidate_labels=list(nouns[i]), threshold=threshold)
            for best in sorted(boxes, key=lambda b: b["score"]):        # the last is the best
                left, top, right, bottom = (max(0, best["box"][s]) for s in _EDGES)
                place = found[i, nouns[i].index(best["label"])]
                place.zero_()[top:bottom, left:right] = True
        return found
    return locate


_KINDS: dict[str, Callable[[str], Locator]] = {
    "detector": lambda _: by_detector, "model": by_model,
    "mask": lambda file: by_mask(torch.from_numpy(np.load(Path(file)))),
    "colours": lambda text: by_colors(dict(_color(part) for part in text.split(";"))),
}


def _color(text: str) -> tuple[str, tuple[int, int, int]]:
    noun, _, rgb = text.partition("=")
    try:
        red, green, blue = map(int, rgb.split(","))
        bytes((red, green, blue))                                       # refuses all but 0 to 255
    except ValueError:
        raise ValueError(f"colour {text!r} is not of the form cat=255,0,0, each number 0 to 255"
                         ) from None
    return noun.strip(), (red, green, blue)


def named_locator(text: str) -> Locator:
    """"detector", "model:NAME", "mask:FILE.npy", or "colours:cat=255,0,0;red dog=0,0,255".

    Raises ValueError for another form.
    """
    kind, _, rest = text.partition(":")
    if kind not in _KINDS:
        raise ValueError(f"locator {text!r} is unknown; choose detector, model:NAME, "
                         "mask:FILE.npy or colours:NOUN=R,G,B;NOUN=R,G,B")
    return _KINDS[kind](rest)


def locator_identity(text: str) -> str:
    """The text of `named_locator`, with the hash of a mask's file: what a locator's results hang
    on. OSError for a mask that cannot be read."""
    kind, _, rest = text.partition(":")
    if kind != "mask":
        return text
    return f"{text} {hashlib.sha256(Path(rest).read_bytes()).hexdigest()}"
