"""Run folder: what it was started with, who may write to it, and how a run is asked to stop."""
import json
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from ..files import write_json
from ..model.store import read_record
from ..model.vae import VAE
from ..text.batch import TextBatch
from .checkpoint import SNAPSHOTS, tensor_hash
from .muon import fast_dtype
from .recipe import Recipe
from .scene_cache import vae_hash

PACKAGES = ("torch", "diffusers", "accelerate")
_COMPARED = {"encoder": "encoder", "encoder_options": "encoder option",
         "captions": "encoding of captions", "vae": "VAE", "precision": "precision",
         "muon": "Muon precision"}


def run_record(captions: TextBatch, vae: VAE, precision: str, device: torch.device,
               text: dict | None) -> dict:
    """What a run depends on beside its recipe; `text` is {"name", "options"} of the encoder."""
    encoded = {"embeddings": captions.embeddings, "mask": captions.mask}
    return {"encoder": text and text["name"], "encoder_options": text and text["options"],
            "captions": tensor_hash(encoded), "vae": vae_hash(vae), "precision": precision,
            "muon": str(fast_dtype(device)).removeprefix("torch."), "snapshots": SNAPSHOTS,
            "versions": {name: version(name) for name in PACKAGES}}


def check_run(folder: Path, recipe: Recipe, record: dict, resume: bool) -> None:
    """Raises FileExistsError if the folder holds a run and `resume` is off; ValueError, naming the
    difference, if that run had another recipe, encoder, VAE or precision. Warns of versions."""
    if not (folder / "recipe.json").exists():
        return
    if not resume:
        raise FileExistsError(f"{folder} holds a run; resume it or choose another folder")
    then, now = read_record(folder / "recipe.json"), json.loads(json.dumps(asdict(recipe)))
    if names := [k for k in {**now, **then} if then.get(k) != now.get(k)]:
        raise ValueError(f"{folder} was started with another recipe; "
                         f"it differs in {', '.join(names)}")
    then, now = read_record(folder / "run.json"), json.loads(json.dumps(record))
    for key, kind in _COMPARED.items():
        unnamed = key.startswith("encoder") and None in (then.get("encoder"), now["encoder"])
        if then.get(key) != now[key] and not unnamed:
            values = f"{_short(then.get(key))}, now {_short(now[key])}"
            raise ValueError(f"{folder} was started with another {kind}: {values}")
    for name, number in now["versions"].items():
        if (old := then.get("versions", {}).get(name)) != number:
            warnings.warn(f"{folder} was started with {name} {old}, now {number}: "
                          "the end may differ from that of a run in one piece", stacklevel=3)


def write_run(folder: Path, recipe: Recipe, record: dict) -> None:
    """Write run.json, then recipe.json, which marks the folder as one that holds a run."""
    if not (folder / "recipe.json").exists():
        write_json(folder / "run.json", record)
        write_json(folder / "recipe.json", asdict(recipe))


def _short(value) -> str:
    return f"sha256 {value[:12]}" if isinstance(value, str) and len(value) == 64 else str(value)


@contextmanager
def stop_asked() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM only sets a flag, which the yielded function tells."""
    asked = []
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    except ValueError:                                   # not the main thread: signals are not ours
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, before)


def leave(folder: Path, step: int) -> None:
    """End the process as SIGTERM asks, with a line that says how to go on."""
    print(f"stopped at step {step:,} with a checkpoint; the same command with --resume goes on "
          f"in {folder}", file=sys.stderr)
    raise SystemExit(128 + signal.SIGTERM)
