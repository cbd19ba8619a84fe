"""Commands that draw pictures."""
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..files import check_file, writing
from .options import AnyHeads, Count, Device, Dtype, EditFile, Name, SeedOption, open_model


def _sample(prompt: str, model: Name = "rte", count: Count = 4, seed: SeedOption = 0,
           out: Annotated[Path, typer.Option(help="a PNG file")] = Path("sample.png"),
           edit: EditFile = None, device: Device = "auto", dtype: Dtype = None) -> None:
    """Draw pictures of one prompt, side by side."""
    if not prompt.strip():
        raise ValueError("the prompt is empty; try 'red square is above blue circle'")
    if out.suffix.lower() != ".png":
        raise ValueError(f"{out} must end in .png")
    check_file(out)
    net = open_model(model, device, edit=edit, dtype=dtype)
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
           device: Device = "auto", dtype: Dtype = None) -> None:
    """Write a short film of a denoising, beside where a relation head looks."""
    if out.suffix.lower() not in (".gif", ".webp"):
        raise ValueError(f"{out} must end in .gif or .webp")
    check_file(out)
    from ..text.counterparts import relations_said
    relations_said([prompt])
    from ..analyses.heads import parse_head
    chosen = None if head is None else parse_head(head)
    from ..book.share import film, save_film
    from ..model.store import is_pipeline
    if is_pipeline(model):
        raise ValueError(f"{model} is a pipeline of diffusers, which does not show its guesses on "
                         "the way; choose a model of this library")
    frames = film(open_model(model, device, dtype=dtype), prompt, seed, chosen)
    print(f"wrote {save_film(frames, out)}")


def _export(folder: Path, count: Count = 1000, seed: SeedOption = 0,
           preset: Literal["clean", "paper"] = "clean") -> None:
    """Write scenes as PNG files and a metadata.jsonl, into a new folder."""
    import torch

    from ..data.render import export
    from ..data.scenes import sample_scenes
    scenes = sample_scenes(torch.arange(count), seed, preset)
    print(f"wrote {count:,} scenes to {export(scenes, folder)}")


def _heatmap(
    prompt: Annotated[str, typer.Option(help="what to draw")],
    word: Annotated[str, typer.Option(help="a word of the prompt, or several in a row")],
    model: Name = "rte",
    heads: AnyHeads = None,
    seed: SeedOption = 0, out: Annotated[Path, typer.Option(help="a folder")] = Path("heatmap"),
    edit: EditFile = None, device: Device = "auto", dtype: Dtype = None,
) -> None:
    """Where heads look at a word: maps.npy, picture.png, overlay.png, and heads.png with all."""
    if not prompt.strip():
        raise ValueError("the prompt is empty; try 'red square is above blue circle'")
    check_file(out / "maps.npy")
    net = open_model(model, device, edit=edit, dtype=dtype)
    import numpy as np
    from PIL import Image

    from ..analyses.heads import head_name, layers_and_heads, parse_head
    from ..analyses.heatmap import heatmap
    from ..book.head_figures import attention_rows
    from ..files import writing
    chosen = [parse_head(h) for h in heads] if heads and heads != ["all"] else None
    found = heatmap(net, prompt, word, chosen, seed)
    rows, titles = {word: found.maps}, [head_name(*head) for head in found.heads]
    if chosen is None:
        layers, count = layers_and_heads(net)
        rows = {f"L{i}": maps for i, maps in enumerate(found.maps.chunk(layers))}
        titles = [f"H{i}" for i in range(count)]
    with writing(out / "maps.npy") as path, open(path, "wb") as file:
        np.save(file, found.maps.numpy())
    for name, image in (("picture", found.picture), ("overlay", found.overlay())):
        with writing(out / f"{name}.png") as path:
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, format="png")
    with writing(out / "heads.png") as path:
        attention_rows(rows, titles, f"attention to {word}").savefig(path, format="png")
    print(f"wrote maps.npy, picture.png, overlay.png and heads.png to {out}")


def _check(
    model: Name = "rte", device: Device = "auto", dtype: Dtype = None,
    pictures: Annotated[int, typer.Option(min=1, help="how many an analysis shall draw")] = 16,
) -> None:
    """Do readers of this model tell the truth and change nothing, and what memory and time do
    analyses take?"""
    net = open_model(model, device, dtype=dtype)
    from ..analyses.costs import estimates, model_bytes, sizes_of
    from ..analyses.self_check import self_check
    found = self_check(net)
    print(f"explicit pattern against the kernel: {found.pattern_error:.1e}, at most "
          f"{found.tolerance:.0e}\nbit-identical with a reader: {found.bit_identical}")
    for name, size in found.memory.items():
        print(f"memory of {name}: {size / 2 ** 20:,.1f} MiB")
    parts = model_bytes(net)
    for name, size in parts.items():
        print(f"memory of the {name}: {size / 2 ** 20:,.1f} MiB")
    print(f"drawing, the device did {found.rate / 1e9:,.1f} billion operations a second; so for "
          f"{pictures} pictures, a prompt each (a heatmap is one, screen none):")
    for one in estimates(sizes_of(net), pictures):
        memory = sum(size for name, size in parts.items() if name != "decoding") + max(
            one.memory, parts["decoding"])
        print(f"{one.analysis}: {one.forwards:,} forwards, {one.operations:.2e} operations, "
              f"{one.operations / found.rate:,.1f} s, at most {memory / 2 ** 20:,.1f} MiB")
    if not found.passed:
        raise ValueError(f"{model} does not pass the check; its analyses cannot be trusted")


DRAWING = (_sample, _share, _export, _heatmap, _check)
