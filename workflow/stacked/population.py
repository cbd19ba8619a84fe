"""Measure every model of the third wave: scores, and which words carry axis and side, in pictures
and in predictions.

    python workflow/stacked/population.py [--prompts 44] [NAME ...]

Writes book/population.json, model by model; a run that was stopped goes on where it was.
"""
import argparse
import json
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open
from stack import Net
from tqdm import tqdm

from spatial_circuits.analyses.token_shares import TokenShares
from spatial_circuits.claims.text_tables import run_exchange
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.files import write_json
from spatial_circuits.model.collections import read_packed
from spatial_circuits.model.noise import Noise
from spatial_circuits.model.pipeline import Model
from spatial_circuits.model.store import load_vae
from spatial_circuits.model.transformer import build_transformer
from spatial_circuits.text.encoders import encoder

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "book" / "population.json"
# Of all its runs whose weights are shipped.
NOISE = Noise(prediction="sample", top=0.2, high=0.4)


@lru_cache
def runs() -> dict[str, dict]:
    """The recipes of the third wave by name."""
    record = json.loads((HERE / "records" / "wave3.json").read_text())
    return {run["run"]["name"]: run["run"] for run in record["runs"]}


def text_of(run: dict) -> dict:
    """Name and options of a run's text encoder."""
    kind, table = run["encoder"], run["table"]
    if run.get("fused"):
        return {"name": "rte-fused", "options": {"dose": run["fused"], "seed": table}}
    if kind.startswith("rte"):
        return {"name": kind, "options": {"seed": table}}
    if kind.startswith("t5-untrained"):
        return {"name": "t5-untrained", "options": {"seed": int(kind.rsplit("-", 1)[1])}}
    return {"name": kind, "options": {}}


@lru_cache
def shipped() -> dict[str, Path]:
    """The file with the weights of each run that has any: 29 of the 38."""
    found = {}
    for path in sorted((HERE / "records").glob("wave3-weights*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {k.split("|")[0]: path for k in file.keys()}  # noqa: SIM118 (it is no dict)
    return {name: found[name] for name in runs() if name in found}


def weights(name: str) -> dict[str, torch.Tensor]:
    """Averaged weights of a run, from the file whose recorded hash is checked.

    ValueError for an unknown name.
    """
    if name not in shipped():
        raise ValueError(f"no weights of a run {name!r}; choose from {', '.join(shipped())}")
    return read_packed(shipped()[name], name)


def load(name: str) -> Model:
    """A model of the third wave, ready to run. ValueError for an unknown name."""
    state, text = weights(name), text_of(runs()[name])
    coder = encoder(text["name"], **text["options"])
    net = build_transformer("tiny", coder.dim, 0)
    net.load_state_dict(state)
    return Model(name, net.eval().requires_grad_(False), NOISE.scheduler(), coder, load_vae(),
                 NOISE, text, HERE)


def first_and_last(name: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A run's caption MLP before its first step and after its last one.

    ValueError for an unknown name.
    """
    here = "caption_projection."
    state = {k.removeprefix(here): v for k, v in weights(name).items() if k.startswith(here)}
    dim = state["linear_1.weight"].shape[1]
    net = Net(din=dim)
    flat = net.init([runs()[name]["seed"]], "cpu", [dim])[3][0]
    parts = zip(net.spec, flat.split(net.sizes), strict=True)
    drawn = {part: x.view(shape) for (part, shape), x in parts}
    first, last = (build_transformer("tiny", dim, 0).caption_projection for _ in range(2))
    last.load_state_dict(state)
    first.load_state_dict({f"linear_{n}.{kind}": drawn[f"c{n}.{kind[0]}"]
                           for n in (1, 2) for kind in ("weight", "bias")})
    return first, last


def measure(model: Model, prompts: list[str]) -> dict:
    """Scores as it is; pictures with the donor's axis and side by kind and tokens."""
    table = run_exchange(model, prompts)
    return {part: table[part] for part in ("scores", "exchange")}


@lru_cache
def questions(text: str) -> TokenShares:
    """The same scenes for all runs of an encoder."""
    given = json.loads(text)
    return TokenShares(encoder(given["name"], **given["options"]), load_vae(), NOISE, count=128)


def shares(model: Model) -> list[dict]:
    """What part of the relation's effect on the prediction each token carries."""
    return questions(json.dumps(model.text)).of(model.transformer).round(5).to_dict("records")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--prompts", type=int, default=44)
    given = parser.parse_args()
    prompts = prompt_set("264")[:given.prompts]
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    chosen = given.names or list(shipped())
    for name in tqdm([n for n in chosen if "shares" not in found.get(n, ())], unit="model"):
        run, model = runs()[name], load(name)
        if name not in found:
            found[name] = {"text": model.text, "seed": run["seed"], "dose": run.get("fused", 0.0),
                           "prompts": len(prompts), **measure(model.fast(), prompts)}
        found[name]["shares"] = shares(model)
        write_json(OUT, found)


if __name__ == "__main__":
    main()
