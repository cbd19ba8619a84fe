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


def _share(prompt: Annotated[str, typer.Option(help="it must say a relation")] =
           "red square is above blue circle",
           model: Name = "rte", seed: SeedOption = 0,
           head: Annotated[str | None, typer.Option(help="e.g. L0H0; default: the one with the "
                                                    "largest ramp for the prompt's words")] = None,
           out: Annotated[Path, typer.Option(help="a GIF or WebP file")] = Path("share.gif"),
           device: Device = "auto") -> None:
    """Write a short film of a denoising, beside where a relation head looks."""
    if out.suffix.lower() not in (".gif", ".webp"):
        raise ValueError(f"{out} must end in .gif or .webp")
    check_file(out)
    from ..text.counterparts import relations_said
    relations_said([prompt])
    from ..analyses.heads import parse_head
    chosen = None if head is None else parse_head(head)
    from ..book.share import film, save_film
    frames = film(open_model(model, device), prompt, seed, chosen)
    print(f"wrote {save_film(frames, out)}")


def _export(folder: Path, count: Count = 1000, seed: SeedOption = 0,
           preset: Literal["clean", "paper"] = "clean") -> None:
    """Write scenes as PNG files and a metadata.jsonl, into a new folder."""
    import torch

    from ..data.render import export
    from ..data.scenes import sample_scenes
    scenes = sample_scenes(torch.arange(count), seed, preset)
    print(f"wrote {count:,} scenes to {export(scenes, folder)}")


DRAWING = (_sample, _share, _export)
