"""When the lottery falls: fork a training run onto another run's data, and follow what its tokens carry.

    spatial-circuits train --encoder minilm -p seed=2 --checkpoint-every 160 --evaluate-every 160 --keep-checkpoints
    python workflow/lottery/follow.py fork runs/minilm-2 --step 480 --seed 3 --until 1600
    python workflow/lottery/follow.py measure runs/minilm-2 runs/minilm-2-480-3 ...

`fork` takes weights, averages and optimizer states of a checkpoint and goes on with the scenes, captions and noise of
another seed, which it has not seen. `measure` writes book/lottery.json, run by run: it keeps what it has.
"""
import argparse
import json
import shutil
from pathlib import Path

import torch
from tqdm import tqdm

from spatial_circuits.analyses.token_shares import TokenShares
from spatial_circuits.files import write_json
from spatial_circuits.model.noise import Noise
from spatial_circuits.model.store import load_vae
from spatial_circuits.model.transformer import build_transformer
from spatial_circuits.text.encoders import encoder
from spatial_circuits.training.checkpoint import load_average
from spatial_circuits.training.log import read_log
from spatial_circuits.training.loop import train
from spatial_circuits.training.monitor import monitor
from spatial_circuits.training.recipe import Recipe

OUT = Path(__file__).resolve().parents[2] / "book" / "lottery.json"
EVERY = 160             # steps between two evaluations, and two checkpoints
PARENT = "parent.json"  # in a fork's folder: the run that it left, and at which step


def recipe_of(folder: Path) -> Recipe:
    """The recipe of a run's folder."""
    record = json.loads((folder / "recipe.json").read_text())
    return Recipe(**{**record, "noise": Noise(**record["noise"])})


def encoder_of(folder: Path):
    """The text encoder of a run's folder, and its record."""
    run = json.loads((folder / "run.json").read_text())
    text = {"name": run["encoder"], "options": run["encoder_options"]}
    return encoder(text["name"], **text["options"]), text


def fork(folder: Path, step: int, seed: int, until: int) -> Path:
    """Go on from a run's checkpoint with another seed's data; a fork that was stopped goes on where it was."""
    source = folder / f"checkpoint-{step:08d}.safetensors"
    if not source.exists():
        raise ValueError(f"{folder} holds no checkpoint of step {step}; train it with --keep-checkpoints")
    out = folder.with_name(f"{folder.name}-{step}-{seed}")
    if not (out / "recipe.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, out)
        write_json(out / PARENT, {"run": folder.name, "step": step})
        shutil.copy(folder / "run.json", out)
        write_json(out / "recipe.json", {**json.loads((folder / "recipe.json").read_text()), "seed": seed})
    recipe, (coder, text), vae = recipe_of(out), encoder_of(out), load_vae()
    train(recipe, coder, vae, out, resume=True, text=text, evaluate=monitor(recipe.noise, coder, vae),
          evaluate_every=EVERY, checkpoint_every=EVERY, stop_at=until, keep=True)
    return out


def measure(folder: Path, asked: TokenShares) -> dict:
    """What each token carries at every checkpoint of a run, beside its log and what it was started with."""
    recipe, (coder, text) = recipe_of(folder), encoder_of(folder)
    net = build_transformer(recipe.size, coder.dim, recipe.seed).eval()
    shares = []
    for path in tqdm(sorted(folder.glob("checkpoint-*.safetensors")), desc=folder.name, unit="checkpoint"):
        step = load_average(path, net)
        shares += [{"images": step * recipe.batch, **row} for row in asked.of(net).round(5).to_dict("records")]
    log = [r for r in read_log(folder / "log.jsonl") if "loose" in r]
    scores = [{"images": r["images"], "loose": r["loose"], "gain": r["text_gain"]["order"]["0.9"]} for r in log]
    parent = json.loads((folder / PARENT).read_text()) if (folder / PARENT).exists() else None
    return {"text": text, "seed": recipe.seed, "parent": parent, "steps": recipe.steps, "batch": recipe.batch,
            "scores": scores, "shares": shares}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    commands = parser.add_subparsers(dest="command", required=True)
    forking = commands.add_parser("fork")
    forking.add_argument("run", type=Path)
    for name in ("step", "seed", "until"):
        forking.add_argument(f"--{name}", type=int, required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("runs", type=Path, nargs="+")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.command == "fork":
        print(f"wrote {fork(given.run, given.step, given.seed, given.until)}")
        return
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    coder = encoder_of(given.runs[0])[0]
    asked = TokenShares(coder, load_vae(), recipe_of(given.runs[0]).noise, count=128)
    for folder in given.runs:
        found[folder.name] = measure(folder, asked)
        write_json(OUT, found)


if __name__ == "__main__":
    main()
