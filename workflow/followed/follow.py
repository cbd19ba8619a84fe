"""Follow what each token carries along training runs, and fork a run onto another run's data.

    python workflow/followed/follow.py train runs/minilm-2 --encoder minilm --seed 2 --until 3200
    python workflow/followed/follow.py train runs/t5-0.5-2 --encoder t5-untrained \
        --option seed=0 --option bias=0.5 --seed 2 --until 1600
    python workflow/followed/follow.py fork runs/minilm-2 --step 480 --seed 3 --until 1920
    python workflow/followed/follow.py measure runs/minilm-2 runs/minilm-2-480-3 ...

All checkpoints are kept. `fork` takes weights, averages and optimizer states of one and goes on
with the scenes, captions and noise of another seed, which it has not seen. `measure` writes
book/followed.json, run by run. A command that was stopped goes on where it was.
"""
import argparse
import json
import shutil
from functools import lru_cache
from pathlib import Path

import torch
from tqdm import tqdm

from spatial_circuits.analyses.token_shares import TokenShares
from spatial_circuits.files import write_json
from spatial_circuits.model.noise import Noise
from spatial_circuits.model.store import load_vae
from spatial_circuits.model.transformer import build_transformer
from spatial_circuits.parameters import parse_parameters
from spatial_circuits.text.encoders import encoder, text_record
from spatial_circuits.training.checkpoint import load_average
from spatial_circuits.training.log import read_log
from spatial_circuits.training.loop import train
from spatial_circuits.training.monitor import monitor
from spatial_circuits.training.recipe import NOISE_FIRST, Recipe, override_recipe

OUT = Path(__file__).resolve().parents[2] / "book" / "followed.json"
EVERY, EVALUATE = 160, 800      # steps between two checkpoints, and two evaluations
PARENT = "parent.json"          # in a fork's folder: the run that it left, and at which step


def recipe_of(folder: Path) -> Recipe:
    """The recipe of a run's folder."""
    record = json.loads((folder / "recipe.json").read_text())
    return Recipe(**{**record, "noise": Noise(**record["noise"])})


def text_of(folder: Path) -> dict:
    """Name and options of the text encoder of a run's folder."""
    run = json.loads((folder / "run.json").read_text())
    return {"name": run["encoder"], "options": run["encoder_options"]}


@lru_cache
def questions(name: str, options: str, noise: Noise) -> TokenShares:
    """The same scenes for all runs of an encoder."""
    return TokenShares(encoder(name, **json.loads(options)), load_vae(), noise, count=128)


def follow(folder: Path, recipe: Recipe, text: dict, until: int) -> None:
    """Train in a folder, or go on there, to a step."""
    coder, vae = encoder(text["name"], **text["options"]), load_vae()
    train(recipe, coder, vae, folder, resume=True, text=text,
          evaluate=monitor(recipe.noise, coder, vae), evaluate_every=EVALUATE,
          checkpoint_every=EVERY, stop_at=until, keep=True)
    print(f"wrote {folder}")


def fork(folder: Path, step: int, seed: int, until: int) -> None:
    """Go on from a run's checkpoint with another seed's data."""
    source = folder / f"checkpoint-{step:08d}.safetensors"
    if not source.exists():
        raise SystemExit(f"{folder} holds no checkpoint of step {step}")
    out = folder.with_name(f"{folder.name}-{step}-{seed}")
    if not (out / "recipe.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, out)
        left = {"run": folder.name, "step": step, "images": step * recipe_of(folder).batch}
        write_json(out / PARENT, left)
        shutil.copy(folder / "run.json", out)
        recipe = json.loads((folder / "recipe.json").read_text())
        write_json(out / "recipe.json", {**recipe, "seed": seed})
    follow(out, recipe_of(out), text_of(out), until)


def measure(folder: Path) -> dict:
    """What each token carries at every checkpoint of a run, its scores, and its start."""
    recipe, text = recipe_of(folder), text_of(folder)
    asked = questions(text["name"], json.dumps(text["options"]), recipe.noise)
    found = sorted(folder.glob("checkpoint-*.safetensors"))
    net = build_transformer(recipe.size, asked.dim, recipe.seed).eval()
    shares = []
    for path in tqdm(found, desc=folder.name, unit="checkpoint"):
        step = load_average(path, net)
        rows = asked.of(net).round(5).to_dict("records")
        shares += [{"images": step * recipe.batch, **row} for row in rows]
    scores = [{"images": r["images"], "loose": r["loose"], "gain": r["text_gain"]["order"]["0.9"]}
              for r in read_log(folder / "log.jsonl") if "loose" in r]
    left = folder / PARENT
    parent = json.loads(left.read_text()) if left.exists() else None
    return {"text": text, "seed": recipe.seed, "parent": parent, "scores": scores, "shares": shares}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    commands = parser.add_subparsers(dest="command", required=True)
    training, forking = (commands.add_parser(name) for name in ("train", "fork"))
    for one in (training, forking):
        one.add_argument("run", type=Path)
        one.add_argument("--seed", type=int, required=True)
        one.add_argument("--until", type=int, required=True)
    training.add_argument("--encoder", required=True)
    training.add_argument("--option", action="append", default=[])
    forking.add_argument("--step", type=int, required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("runs", type=Path, nargs="+")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.command == "fork":
        fork(given.run, given.step, given.seed, given.until)
    elif given.command == "train":
        recipe = override_recipe(NOISE_FIRST, {"seed": given.seed})
        text = text_record(given.encoder, parse_parameters(given.option))
        follow(given.run, recipe, text, given.until)
    else:
        for folder in given.runs:
            found = json.loads(OUT.read_text()) if OUT.exists() else {}
            write_json(OUT, {**found, folder.name: measure(folder)})


if __name__ == "__main__":
    main()
