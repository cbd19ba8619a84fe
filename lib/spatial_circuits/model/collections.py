"""Collections: models that lie in a checkout's workflow folder beside those of the package.

A model of a collection is called COLLECTION/NAME. It is a folder as `store.save_model` writes it,
or packed: one of many in a safetensors file, whose tensors are called NAME|WEIGHT. models.json of
a packed collection has an entry for each model: file, text, recipe, log and tables, as they stand
in the files of a folder; sha256.json has the hash of each safetensors file.
"""
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

WORKFLOW = Path(__file__).resolve().parents[3] / "workflow"


def collected() -> list[str]:
    """COLLECTION/NAME of every model in the collections; none where there is no checkout."""
    folders = [p.parent for p in WORKFLOW.glob("*/*/text.json") if "." not in p.parent.name]
    packed = [f"{index.parent.name}/{name}" for index in WORKFLOW.glob("*/models.json")
              for name in json.loads(index.read_text())]
    return sorted([p.relative_to(WORKFLOW).as_posix() for p in folders] + packed)


def collection_of(name: str | Path) -> list[str]:
    """COLLECTION/NAME of every model in the collection that a name points into; else none."""
    return [known for known in collected() if known.startswith(f"{Path(name).parent}/")]


def packed_entry(name: str | Path) -> dict[str, Any] | None:
    """The entry of a packed model COLLECTION/NAME; None if there is no such model."""
    collection, _, own = str(name).rpartition("/")
    index = WORKFLOW / collection / "models.json"
    if not collection or not index.exists():
        return None
    return json.loads(index.read_text()).get(own)


def packed_weights(name: str) -> dict[str, torch.Tensor]:
    """The weights of a packed model, in fp32.

    Raises ValueError for an unknown name and for a file whose hash is not the recorded one.
    """
    entry = packed_entry(name)
    if entry is None:
        raise ValueError(f"no packed model {name!r}; choose from {', '.join(collected())}")
    collection, _, own = name.rpartition("/")
    return read_packed(WORKFLOW / collection / entry["file"], own)


def read_packed(path: Path, own: str) -> dict[str, torch.Tensor]:
    """The weights of the model `own` in a file of several, in fp32.

    Raises ValueError for a file whose hash is not the one in sha256.json beside it.
    """
    wanted = json.loads((path.parent / "sha256.json").read_text())[path.name]
    if hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
        raise ValueError(f"{path} is damaged: its sha256 is not the recorded one; restore the file")
    with safe_open(path, "pt") as file:
        keys = [k for k in file.keys() if k.startswith(f"{own}|")]  # noqa: SIM118 (it is no dict)
        return {k.split("|", 1)[1]: file.get_tensor(k).float() for k in keys}
