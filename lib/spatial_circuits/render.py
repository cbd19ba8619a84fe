"""Render: scenes become 128 x 128 pictures, in batches on any device.

Each shape is a stamp drawn once (16 x supersampled coverage) and blended at the object's integer centroid, so a batch
costs two gathers. Edges are anti-aliased unless `antialias=False`, which cuts the coverage at one half.
"""
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .captions import captions
from .scenes import RADIUS, RELATIONS, SIZE, Scenes

BACKGROUND = 128
RGB = torch.tensor([(255, 0, 0), (0, 0, 255)])  # pure red, pure blue, in the order of COLORS
_HALF, _MARGIN = 20, 4                          # px: a stamp spans centroid - 20 .. centroid + 20


@lru_cache(maxsize=8)
def _stamps(antialias: bool, device: str) -> Tensor:
    """Coverage of circle, square and triangle around their centroid: [3, 41, 41] in 0..1."""
    fine = (torch.arange((2 * _HALF + 1) * 16) + 0.5) / 16 - 0.5 - _HALF    # sub-pixel offsets from the centroid
    y, x = fine[:, None], fine[None]
    height = RADIUS * 3 ** 0.5                                              # equilateral, side 2 RADIUS, apex up
    inside = torch.stack([
        x ** 2 + y ** 2 <= RADIUS ** 2,
        (x.abs() <= RADIUS) & (y.abs() <= RADIUS),
        (y <= height / 3) & (x.abs() <= (y + 2 * height / 3) / 3 ** 0.5),
    ]).float()
    coverage = torch.nn.functional.avg_pool2d(inside[None], 16)[0]
    return (coverage if antialias else (coverage >= 0.5).float()).to(device)


def render(scenes: Scenes, antialias: bool = True) -> Tensor:
    """Scenes (B) -> uint8 [B, 3, 128, 128], RGB on grey; the second object is drawn over the first.

    Raises ValueError for a centroid that is not RADIUS away from the edge.
    """
    device = scenes.xy.device
    if ((scenes.xy < RADIUS) | (scenes.xy >= SIZE - RADIUS)).any():
        raise ValueError(f"xy reaches from {scenes.xy.min()} to {scenes.xy.max()} px; "
                         f"it must lie in {RADIUS}..{SIZE - RADIUS - 1}")
    side = SIZE + 2 * _MARGIN                                                       # room for a stamp at the edge
    image = torch.full((len(scenes), side, side, 3), BACKGROUND, dtype=torch.uint8, device=device)
    stamps = _stamps(antialias, str(device))
    window = torch.arange(-_HALF, _HALF + 1, device=device) + _MARGIN
    rows = torch.arange(len(scenes), device=device)[:, None, None]
    for i in range(2):
        x = (scenes.xy[:, i, 0, None] + window)[:, None, :]                         # [B, 1, 41]
        y = (scenes.xy[:, i, 1, None] + window)[:, :, None]                         # [B, 41, 1]
        cover = stamps[scenes.shape[:, i]][..., None]                               # [B, 41, 41, 1]
        ink = RGB.to(device)[scenes.color[:, i]][:, None, None].float()             # [B, 1, 1, 3]
        below = image[rows, y, x].float()                                           # [B, 41, 41, 3]
        image[rows, y, x] = (below + cover * (ink - below)).round().to(torch.uint8)
    return image[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN].permute(0, 3, 1, 2)


@dataclass
class Scene:
    """One scene that draws itself and says its caption: `Scene(scenes[7])` shows its picture in a notebook."""
    scenes: Scenes

    @property
    def caption(self) -> str:
        return captions(self.scenes[:1])[0]

    @property
    def image(self) -> Image.Image:
        return Image.fromarray(render(self.scenes[:1])[0].permute(1, 2, 0).contiguous().numpy())

    def _repr_png_(self) -> bytes:
        return self.image._repr_png_()

    def __str__(self) -> str:
        return self.caption


def export(scenes: Scenes, folder: str | Path) -> Path:
    """Write PNGs and a metadata.jsonl that `datasets.load_dataset("imagefolder", data_dir=folder)` reads.

    The metadata is written last and atomically. Raises FileExistsError if the folder already holds one.
    """
    folder = Path(folder)
    metadata = folder / "metadata.jsonl"
    if metadata.exists():
        raise FileExistsError(f"{metadata} exists; choose an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    pictures = (p for k in range(0, len(scenes), 1024) for p in render(scenes[k:k + 1024]).permute(0, 2, 3, 1))
    for i, (pixels, text) in enumerate(zip(pictures, captions(scenes))):
        Image.fromarray(pixels.contiguous().numpy()).save(folder / f"{i:06d}.png")
        lines.append(json.dumps({"file_name": f"{i:06d}.png", "text": text, "relation": RELATIONS[scenes.relation[i]],
                                 "xy": scenes.xy[i].tolist()}))
    partial = metadata.with_suffix(".partial")
    partial.write_text("\n".join(lines) + "\n")
    os.replace(partial, metadata)
    return folder
