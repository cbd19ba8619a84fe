"""Manifest: the sha256 of every file of a folder, in its manifest.json.

A model's tables and card are measured of it and may be written anew; all other files are the model.
"""
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ..files import check_file, check_folder, write_text

CARD, _MANIFEST = "README.md", "manifest.json"
_READ = ("text.json", "recipe.json", "model.json", "config.json", "scheduler_config.json")


def is_measured(name: str) -> bool:
    """Whether a file of a model's folder, by its path there, is a table or the card."""
    return name == CARD or ("/" not in name and name.endswith(".json")
                            and name not in (*_READ, _MANIFEST))


def read_record(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError naming a file that is missing or damaged, or that holds
    something else or an empty one."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is missing or damaged: {error}; restore the file") from error
    if not isinstance(record, dict) or not record:
        raise ValueError(f"{path} is damaged: it holds no JSON object or an empty one; restore it")
    return record


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    found = {p.relative_to(folder).as_posix(): p for p in files}
    found.pop(_MANIFEST, None)
    return {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in found.items()}


def write_manifest(folder: Path) -> None:
    """Record the sha256 of every file under `folder` in its manifest.json."""
    write_text(folder / _MANIFEST, json.dumps(_hashes(folder), indent=1))


def add_measured(folder: Path, names: set[str]) -> None:
    """Record the files of these names in the manifest, beside those that it has; one that is there
    no more leaves it. Files of other names are not ours and stay out."""
    listed = read_record(folder / _MANIFEST).keys() | names
    hashes = {name: mark for name, mark in _hashes(folder).items() if name in listed}
    write_text(folder / _MANIFEST, json.dumps(hashes, indent=1))


def verify(folder: Path, measured: bool = True) -> None:
    """Raises ValueError naming the first file that is missing, not listed, or has another hash;
    `measured`: also a table or card."""
    path = folder / _MANIFEST
    if not path.exists():
        raise ValueError(f"{folder} has no manifest.json; save the model again or restore the file")
    manifest, found = read_record(path), _hashes(folder)
    for name, wanted in manifest.items():
        if is_measured(name) and not measured:
            continue
        if name not in found:
            raise ValueError(f"{folder / name} is missing; restore it")
        if found[name] != wanted:
            raise ValueError(f"{folder / name} is damaged or was changed: sha256 {found[name]}, "
                             f"expected {wanted}")
    for name in found.keys() - manifest.keys():
        if name.endswith(".safetensors") or Path(name).name in _READ:
            raise ValueError(f"{folder / name} is not listed in {path}; restore the manifest")


def check_replaced(folder: str | Path, mark: str) -> None:
    """Raises what `check_folder` raises, and ValueError for a folder of ours of another kind than
    takes its place: one without the file `mark`."""
    check_folder(folder)
    if (Path(folder) / _MANIFEST).exists() and not (Path(folder) / mark).exists():
        raise ValueError(f"{str(folder)!r} holds things of another kind (there is no {mark}), "
                         "which would be lost; name another folder")


def check_table(path: str | Path) -> None:
    """Raises ValueError where no table can be written, and where a file would be lost that belongs
    to a model and is no table."""
    check_file(path)
    target = Path(os.path.realpath(path))
    for folder in target.parents:
        try:
            listed = {*json.loads((folder / _MANIFEST).read_text()), _MANIFEST}
        except (OSError, ValueError, TypeError):
            continue                                     # none, or another program's
        name = target.relative_to(folder).as_posix()
        if name in listed and not (is_measured(name) and name != CARD):
            raise ValueError(f"{str(path)!r} is a file of {folder} and no table of an analysis; "
                             "name another file")
