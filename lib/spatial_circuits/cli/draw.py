"""Commands that draw pictures."""
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..files import check_file, writing
from .options import Count, Device, Name, SeedOption, open_model


def _sample(prompt: str, model: Name = "rte", count: Count = 4, seed: SeedOption = 0,
           out: Annotated[Path, typer.Option(help="a PNG file")] = Path("sample.png"),
           device: Device = "auto") -> None:
    """Draw pictures of one prompt, side by side."""
    if not prompt.strip():
        raise ValueError("the prompt is empty; try 'red square is above blue circle'")
    if out.suffix.lower() != ".png":
        raise ValueError(f"{out} must end in .png")
    check_file(out)
    net = open_model(model, device)
    from PIL import Image
    images = net.images([prompt] * count, list(range(seed, seed + count))).cpu()
    row = images.permute(2, 0, 3, 1).flatten(1, 2).contiguous().numpy()
    with writing(out) as partial:
        Image.fromarray(row).save(partial, format="png")
    print(f"wrote {out}")


def _export(folder: Path, count: Count = 1000, seed: SeedOption = 0,
           preset: Literal["clean", "paper"] = "clean") -> None:
    """Write scenes as PNG files and a metadata.jsonl, into a new folder."""
    import torch

    from ..data.render import export
    from ..data.scenes import sample_scenes
    scenes = sample_scenes(torch.arange(count), seed, preset)
    print(f"wrote {count:,} scenes to {export(scenes, folder)}")


DRAWING = (_sample, _export)
