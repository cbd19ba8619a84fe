"""Render: scenes become 128 x 128 pictures, in batches on any device, and folders of them.

Each shape is a stamp drawn once (16 x supersampled coverage) and blended at the object's integer
centroid, so a batch costs two gathers. Edges are anti-aliased unless `antialias=False`, which cuts
the coverage at one half.
"""
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..files import write_text
from .captions import captions
from .scenes import RADIUS, RELATIONS, SIZE, Scenes

BACKGROUND = 128
RGB = torch.tensor([(255, 0, 0), (0, 0, 255)])  # pure red, pure blue, in the order of COLORS
_REACH, _MARGIN = 20, 4                         # px: a stamp spans centroid - 20 .. centroid + 20
_CHUNK = 1024                                   # pictures drawn at once by `export`


@lru_cache(maxsize=8)
def _stamps(antialias: bool, device: str) -> Tensor:
    """Coverage of circle, square and triangle around their centroid: [3, 41, 41] in 0..1."""
    fine = (torch.arange((2 * _REACH + 1) * 16) + 0.5) / 16 - 0.5 - _REACH   # sub-pixels from there
    y, x = fine[:, None], fine[None]
    height = RADIUS * 3 ** 0.5                           # equilateral, side 2 RADIUS, apex up
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
    side = SIZE + 2 * _MARGIN                            # room for a stamp at the edge
    image = torch.full((len(scenes), side, side, 3), BACKGROUND, dtype=torch.uint8, device=device)
    stamps = _stamps(antialias, str(device))
    window = torch.arange(-_REACH, _REACH + 1, device=device) + _MARGIN
    rows = torch.arange(len(scenes), device=device)[:, None, None]
    for i in range(2):
        x = (scenes.xy[:, i, 0, None] + window)[:, None, :]    # [B, 1, 41]
        y = (scenes.xy[:, i, 1, None] + window)[:, :, None]    # [B, 41, 1]
        cover = stamps[scenes.shape[:, i]][..., None]    # [B, 41, 41, 1]
        ink = RGB.to(device)[scenes.color[:, i]][:, None, None].float()    # [B, 1, 1, 3]
        below = image[rows, y, x].float()    # [B, 41, 41, 3]
        image[rows, y, x] = (below + cover * (ink - below)).round().to(torch.uint8)
    return image[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN].permute(0, 3, 1, 2)


@dataclass
class Scene:
    """One scene that draws itself and says its caption: `Scene(scenes[7])` in a notebook."""
    scenes: Scenes

    @property
    def caption(self) -> str:
        return captions(self.scenes[:1])[0]

    @property
    def image(self) -> Image.Image:
        pixels = render(self.scenes[:1])[0].permute(1, 2, 0)                            # [H, W, 3]
        return Image.fromarray(pixels.cpu().contiguous().numpy())

    def _repr_png_(self) -> bytes | None:
        return self.image._repr_png_()

    def __str__(self) -> str:
        return self.caption


def export(scenes: Scenes, folder: str | Path) -> Path:
    """Write PNGs and a metadata.jsonl that `datasets.load_dataset("imagefolder", data_dir=folder)`
    reads: file_name, text, relation, xy (px).

    The metadata is written last, as a whole; if anything fails, what was written is removed again.
    Raises FileExistsError, before writing, if the folder holds anything.
    """
    folder = Path(folder)
    held = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    if held or folder.exists() and not folder.is_dir():
        what = f"holds {held[0]}" if held else "is a file"
        raise FileExistsError(f"{folder} {what}; choose a new or empty folder")
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:06d}.png" for i in range(len(scenes))]
    try:
        for start in range(0, len(scenes), _CHUNK):
            pictures = render(scenes[start:start + _CHUNK]).permute(0, 2, 3, 1).cpu().contiguous()
            for name, pixels in zip(names[start:], pictures.numpy()):
                Image.fromarray(pixels).save(folder / name)
        rows = zip(names, captions(scenes), scenes.relation.tolist(), scenes.xy.tolist())
        lines = [json.dumps({"file_name": name, "text": text, "relation": RELATIONS[relation],
                             "xy": xy}) for name, text, relation, xy in rows]
        write_text(folder / "metadata.jsonl", "\n".join(lines) + "\n")
    except BaseException as error:
        for name in names:
            (folder / name).unlink(missing_ok=True)
        if new:
            folder.rmdir()
        if isinstance(error, OSError):
            raise OSError(f"cannot write scenes to {folder}: {error.strerror or error}") from error
        raise
    return folder
