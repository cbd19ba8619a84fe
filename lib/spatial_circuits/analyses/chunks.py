"""Chunks: finished parts of a long analysis in a folder, so that it goes on after a kill.

The folder holds run.json, which says what is computed (the model by a hash of its weights, and all
arguments), and a safetensors file for each finished part, written as a whole or not at all.
"""
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import __version__
from ..files import check_file, write_json, writing
from ..model.pipeline import Model
from ..text.identity import fingerprint, tensors_hash

Part = dict[str, Tensor]
MANIFEST = "run.json"


class Chunks:
    """Parts of one run in a folder; without a folder, nothing is kept.

    said: what else the results hang on, in words that tell it from others, such as the locator.
    """

    def __init__(self, folder: str | Path | None = None, **said: str):
        self.folder, self.said = None if folder is None else Path(folder), said

    def open(self, analysis: str, model: Model, **arguments) -> None:
        """Say what is computed, before the first part. Raises ValueError, naming the folder, if it
        holds something else or parts of another run."""
        if self.folder is None:
            return
        check_file(self.folder / MANIFEST)
        now = {"analysis": analysis, "version": __version__, **model_identity(model), **self.said,
               **arguments}
        now = json.loads(json.dumps(now, default=str), parse_constant=str)     # -inf is no JSON
        path, held = self.folder / MANIFEST, sorted(
            p.name for p in self.folder.glob("*") if p.suffix != ".partial")
        if not path.exists() and held:
            raise ValueError(f"{self.folder} holds {held[0]!r} and no {MANIFEST}; name a folder "
                             "for chunks alone")
        if not path.exists():
            write_json(path, now)
        before = _read(path)
        for key in (k for k in {**before, **now} if before.get(k) != now.get(k)):
            raise ValueError(f"{self.folder} holds chunks of another run: {key} was "
                             f"{_short(before.get(key))} and is {_short(now.get(key))}; "
                             "name another folder")

    def __call__(self, name: str, compute: Callable[..., Part], *args, **kwargs) -> Part:
        """The part of that name, read if it was finished, else compute(*args, **kwargs) and kept.
        Raises ValueError for a damaged file."""
        if self.folder is None:
            return compute(*args, **kwargs)
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            made = compute(*args, **kwargs)
            with writing(path) as partial:
                save_file({key: value.contiguous() for key, value in made.items()}, str(partial))
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); remove it, and it is computed anew"
                             ) from error


def model_identity(model: Model) -> dict:
    """What a model's pictures hang on: hashes of its weights (transformer, VAE, text encoder), its
    precision, its scheduler, and the edits under which it draws."""
    scheduler = {k: v for k, v in model.scheduler.config.items() if not k.startswith("_")}
    return {"transformer": tensors_hash(dict(model.transformer.state_dict())),
            "vae": tensors_hash(model.vae.tensors()), "text": model.text,
            "text encoder": fingerprint(model.encoder).get("sha256"),
            "dtype": str(next(model.transformer.parameters()).dtype),
            "scheduler": {"class": type(model.scheduler).__name__, **scheduler},
            "edits": [asdict(edit) for edit in getattr(model, "edits", ())]}


def _read(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); name another folder") from error


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
