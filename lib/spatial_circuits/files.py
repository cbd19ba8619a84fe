"""Files: all is written as a whole or not at all, and nothing that is not ours is removed."""
import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError


def write_text(path: str | Path, text: str) -> None:
    """Write a text file (UTF-8) as `writing` does."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, record: Any) -> None:
    """Write strict JSON, NaN and infinity as null, as `writing` does."""
    strict = json.loads(json.dumps(record), parse_constant=lambda _: None)
    write_text(path, json.dumps(strict, indent=1) + "\n")


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """A temporary sibling, NAME.XXXXXXXX.partial, takes the place of the file after the block.

    Folders on the way are made. A kill at any moment leaves the old file or the new one. On an
    error the temporary goes and the old file stays; an OSError then names `path`.
    """
    check_file(path)
    target = Path(os.path.realpath(path))
    with _temporary(path, target) as temporary:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """A temporary sibling folder that takes the place of the folder after the block.

    The block writes the files and a manifest.json that lists them all: by it the folder is known as
    ours when its turn comes to be replaced. Raises what `check_folder` raises, before and after the
    block. A kill at any moment leaves the old folder or the new one: where it falls between the two
    renames, the old one waits as .NAME.replaced until `recover_folder` puts it back.
    """
    check_folder(path)
    target = Path(os.path.realpath(path))
    with _temporary(path, target) as temporary:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            _sync(file)
        check_folder(path)
        if target.exists():
            os.rename(target, _replaced(target))
        try:
            os.rename(temporary, target)
        finally:
            recover_folder(path)


def recover_folder(path: str | Path) -> None:
    """End a replacement that was cut short: the old folder comes back if there is no new one."""
    target = Path(os.path.realpath(path))
    old = _replaced(target)
    if old.exists() and not target.exists():
        os.rename(old, target)
    elif old.exists() and not _strangers(old):
        shutil.rmtree(old)


def check_file(path: str | Path) -> None:
    """Raises ValueError, naming `path`, where no file can be written. Ask before long work."""
    if Path(path).is_dir():
        raise ValueError(f"{str(path)!r} is a folder; name a file in it")
    _check_parent(Path(path))


def check_folder(path: str | Path) -> None:
    """Raises ValueError where `replacing_folder` would remove what no manifest of ours lists.

    So it does for a file, for the working folder and those above it, and where none can be made.
    """
    target = Path(os.path.realpath(path))
    if target in (Path.cwd(), *Path.cwd().parents):
        raise ValueError(f"{str(path)!r} is the working folder or holds it; name another folder")
    if target.exists() and not target.is_dir():
        raise ValueError(f"{str(path)!r} is a file; name a folder")
    _check_parent(target)
    recover_folder(path)
    for folder in (target, _replaced(target)):
        if folder.exists() and (found := _strangers(folder)):
            raise ValueError(f"{folder} holds {found[0]!r}, which its manifest.json does not list; "
                             "move what is yours, or name another folder")


def _check_parent(path: Path) -> None:
    above = next(p for p in path.absolute().parents if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(f"{str(path)!r} cannot be written: {above} is no folder one may write to")


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")


def _strangers(folder: Path) -> list[str]:
    """What is in the folder, but neither listed in its manifest.json nor on the way to what is."""
    try:
        listed = set(json.loads((folder / "manifest.json").read_text()))
    except (OSError, ValueError, TypeError):
        listed = set()
    if any((folder / name).is_file() for name in listed):
        listed.add("manifest.json")                      # else it is another program's
    listed |= {above.as_posix() for name in listed for above in Path(name).parents}
    found = (p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")))
    return [name for name in found if name not in listed]


@contextmanager
def _temporary(path: str | Path, target: Path) -> Iterator[Path]:
    temporary = target.with_name(f"{target.name}.{uuid4().hex[:8]}.partial")
    try:
        yield temporary
    except (OSError, SafetensorError) as error:
        where = getattr(error, "filename", None)
        if where and str(temporary) not in str(where):
            raise                                        # another file's
        number, reason = getattr(error, "errno", None), getattr(error, "strerror", None)
        raise OSError(number or errno.EIO, reason or str(error), str(path)) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    if path.is_file():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
