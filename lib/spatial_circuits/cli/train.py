"""Commands that train: a model, or the VAE."""
import os
from pathlib import Path
from typing import Annotated

import typer

from ..model.manifest import check_replaced
from ..parameters import parse_parameters
from .options import Count, Device, SeedOption, torch_device

CORES = os.cpu_count() or 1


def _train(
    context: typer.Context,
    encoder: Annotated[str, typer.Option(help="rte, rte-nopos, rte-fused, minilm, t5-untrained, "
                                              "t5, clip, or a hub name or folder of a T5")] = "rte",
    encoder_option: Annotated[list[str] | None, typer.Option(
        metavar="NAME=VALUE", help="an option of the text encoder")] = None,
    recipe: Annotated[str, typer.Option(help="noise-first, biased or paper")] = "noise-first",
    parameter: Annotated[list[str] | None, typer.Option(
        "-p", "--parameter", metavar="NAME=VALUE",
        help="any field of the recipe, e.g. size=micro, steps=20000, noise.high=0.3")] = None,
    vae: Annotated[str | None, typer.Option(help="folder or hub name of another VAE")] = None,
    out: Annotated[Path | None, typer.Option(help="default: runs/ENCODER-SEED")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on where a run stopped")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="wait for a run that is still alive "
                                       "in the folder")] = False,
    evaluate_every: Annotated[int, typer.Option(min=1, metavar="STEPS")] = 1000,
    checkpoint_every: Annotated[int, typer.Option(min=1, metavar="STEPS")] = 500,
    keep: Annotated[bool, typer.Option("--keep-checkpoints", help="keep all of them, 20 MB each "
                                       "for a model of size tiny")] = False,
    threads: Count = CORES,
    device: Device = "auto",
) -> None:
    """Train a model from scratch, or resume it."""
    changes, options = parse_parameters(parameter or []), parse_parameters(encoder_option or [])
    import torch

    from ..model.precision import resolve_precision
    from ..model.store import load_vae, save_model
    from ..text.encoders import encoder as build_encoder
    from ..text.encoders import text_record
    from ..training.loop import train
    from ..training.monitor import monitor
    from ..training.recipe import RECIPES, override_recipe
    torch.set_num_threads(threads)
    place = torch_device(device)
    if recipe not in RECIPES:
        raise ValueError(f"recipe {recipe!r} is unknown; choose from {', '.join(RECIPES)}")
    plan = override_recipe(RECIPES[recipe], changes)
    text = text_record(encoder, options)
    folder = out or Path("runs") / f"{Path(encoder).name}-{plan.seed}"
    check_replaced(folder / "model", "text.json")
    coder, codec = build_encoder(text["name"], **text["options"]), load_vae(vae)
    print(f"training {encoder} ({plan.size}, {plan.steps:,} steps of {plan.batch}) in {folder}")
    model = train(plan, coder, codec, folder, resume=resume, device=place, text=text,
                  evaluate=monitor(plan.noise, coder, codec), evaluate_every=evaluate_every,
                  checkpoint_every=checkpoint_every, wait=wait, keep=keep)
    made = save_model(folder / "model", model.cpu(), text, run=folder, command=context.obj,
                      vae=codec if vae else None,
                      precision=resolve_precision(plan.precision, place))
    print(f"wrote {made}")


def _train_vae(context: typer.Context, steps: Count = 1600, seed: SeedOption = 0,
              out: Path = Path("runs/vae"), device: Device = "auto") -> None:
    """Train the small VAE from scratch (minutes)."""
    check_replaced(out, "config.json")
    place = torch_device(device)
    import torch

    from ..model.precision import resolve_precision
    from ..model.store import save_vae
    from ..training.vae import train_vae
    log: list[dict] = []
    dtype = torch.bfloat16 if resolve_precision("auto", place) == "bf16" else torch.float32
    model = train_vae(steps, seed=seed, log=log, dtype=dtype, device=place)
    print(f"wrote {save_vae(out, model, log, context.obj)}")


TRAINING = (_train, _train_vae)
