"""Options that several commands share."""
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

SEEDS = {"min": -2 ** 31, "max": 2 ** 31 - 1}

Count = Annotated[int, typer.Option(min=1)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N; auto is cuda if possible")]
ChunksFolder = Annotated[Path | None, typer.Option(
    "--chunks", metavar="FOLDER", help="keep finished chunks there and go on from them; the "
    "processes of `accelerate launch` share them. With a locator, where the command takes one")]
Dtype = Annotated[Literal["fp32", "bf16", "fp16"] | None, typer.Option(
    help="number format; default: bf16 where an analysis of our models gains by it, else fp32")]
EditFile = Annotated[Path | None, typer.Option("--edit", metavar="FILE",
                                               help="draw under the interventions of this file")]
HeadNames = Annotated[list[str] | None, typer.Option(metavar="L0H0 ...",
                                                     help="default: the circuit's")]
AnyHeads = Annotated[list[str] | None, typer.Option(metavar="L0H0 ...",
                                                    help="default: all, each alone")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE",
                                              help="write the table to this file")]
Limit = Annotated[int | None, typer.Option(min=1, help="only this many prompts")]
Name = Annotated[str, typer.Option(help="a shipped model's name, or a folder")]
LocatorName = Annotated[str | None, typer.Option(
    "--locator", metavar="LOCATOR", help="where things are: detector, model:NAME (zero-shot), "
    "mask:FILE.npy, colours:cat=255,0,0;dog=...; for models and prompts unlike the book's")]
PerPrompt = Annotated[int, typer.Option(min=1, help="pictures of each prompt")]
Precise = Annotated[bool, typer.Option("--precise", help="fp32 also where bf16 is faster")]
Prompts = Annotated[Literal["264", "96", "22"], typer.Option(help="how many prompts the set has")]
PromptsFile = Annotated[Path | None, typer.Option("--prompts-file", metavar="FILE",
                                                  help="prompts of your own, one a line")]
SeedOption = Annotated[int, typer.Option(**SEEDS)]


def torch_device(name: str) -> str:
    """The device meant. ValueError for one that this machine does not have."""
    import torch
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if name == "auto" and cuda:
        own = os.environ.get("LOCAL_RANK")               # of several processes, each has its own
        return f"cuda:{own}" if own else "cuda"
    if name == "auto":
        return "cpu"
    known = ["auto", "cpu", *(["cuda", *cuda] if cuda else [])]
    if name not in known:
        raise ValueError(f"there is no device {name!r} here; choose from {', '.join(known)}")
    return name


def open_model(name: str, device: str, precise: bool = True, edit: Path | None = None,
               dtype: str | None = None):
    """A model on its device, ready to run, in `dtype`, or fast on request, and under the edits of a
    file. ValueError, before anything is read, for what the device cannot."""
    place = torch_device(device)
    from ..model.dtypes import FORMATS, check_dtype, in_dtype
    if dtype:
        check_dtype(dtype, place)
    from ..analyses.edit_files import load_edits, under_edits
    from ..model.store import is_pipeline, load
    edits = load_edits(edit) if edit else []
    if dtype and is_pipeline(name):
        net = load(name, dtype=str(FORMATS[dtype]).removeprefix("torch.")).to(place)
    elif dtype:
        net = in_dtype(load(name).to(place), dtype)
    else:
        net = load(name).to(place)
        net = net if precise else net.fast()
    return under_edits(net, edits) if edits else net
