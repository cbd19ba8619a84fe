"""Chunks: finished parts of a long analysis in a folder, so that it goes on after a kill, and that
several processes may share it.

The folder holds run.json, which says what is computed (the model by a hash of its weights, and all
arguments), and a safetensors file for each finished part, written as a whole or not at all. Who
computes a part locks NAME.lock beside it (flock), in which it says who it is. All processes that
see the folder, started by `accelerate launch` or one by one, so do whatever no other is at, and
then read it all. The system takes a lock from a process that dies: the others compute its part and
say whose it was. A process that hangs is named after ten minutes without a new part; once it is
ended, the others go on.
"""
import fcntl
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from socket import gethostname

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from .. import __version__
from ..files import check_file, write_json, writing
from ..model.pipeline import Model
from ..text.identity import fingerprint, tensors_hash

Part = dict[str, Tensor]
Job = tuple[str, Callable[[], Part]]     # a part's name, and what computes it
MANIFEST = "run.json"
_GLANCE = 0.2    # seconds between two looks for parts of other processes
_PATIENCE = 600  # seconds without a new part after which the process that is waited for is named


def process() -> tuple[int, int]:
    """The number of this process, from 0, and of all that `accelerate launch` or torchrun started
    together; (0, 1) where neither did."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


class Chunks:
    """Parts of one run in a folder; without a folder, nothing is kept.

    said: what else the results hang on, in words that tell it from others, such as the locator.
    """

    def __init__(self, folder: str | Path | None = None, **said: str):
        self.folder, self.said = None if folder is None else Path(folder), said

    def open(self, analysis: str, model: Model, **arguments) -> "Chunks":
        """Say what is computed, before the first part; gives itself. Raises ValueError, naming the
        folder, if it holds something else or parts of another run."""
        if self.folder is None:
            return self
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
        return self

    def parts(self, jobs: Sequence[Job], name: str = "", progress: bool = False
              ) -> Iterator[Part]:
        """The part of each job in order, read if it was finished, else computed and kept; with
        `progress`, under a bar of that name. All are made before the first is given, if there is a
        folder; each process begins at another place.

        Raises ValueError for a damaged file, before any part is computed, and for several processes
        without a folder; OSError for several in one whose file system has no locks. Warns of a
        process that died at a part, or hangs there.
        """
        number, count = process()
        if self.folder is None and count > 1:
            raise ValueError(f"{count} processes share an analysis by its chunks; name a folder "
                             "for them")
        left = [job for job in jobs if not self._finished(job[0])]
        start = number * len(left) // count
        with tqdm(total=len(left), desc=name, disable=not progress or number > 0) as bar:
            if self.folder is None:
                for _, compute in left:
                    yield compute()
                    bar.update()
                return
            self._make([*left[start:], *left[:start]], bar)
        yield from (self._read(part) for part, _ in jobs)

    def _make(self, left: list[Job], bar: tqdm) -> None:
        """Compute what no other process is at, until nothing is left."""
        since = time.monotonic()
        while left:
            held: dict[Job, str] = {}
            for job in left:
                if other := self._keep(*job):
                    held[job] = other
                else:
                    bar.update()
            if len(held) < len(left):
                since = time.monotonic()
            elif time.monotonic() - since > _PATIENCE:
                (part, _), other = next(iter(held.items()))
                warnings.warn(f"no part came for {_PATIENCE // 60} minutes; at {part} is {other}: "
                              "if it hangs, end it, and its part is computed here", stacklevel=3)
                since = time.monotonic()
            else:
                time.sleep(_GLANCE)
            left = list(held)

    def _keep(self, part: str, compute: Callable[[], Part]) -> str:
        """Compute and keep a part that is not there. Says what other process is at it, if any."""
        path, lock = self._path(part), self._path(part).with_suffix(".lock")
        number, count = process()
        if path.exists():
            return ""
        with open(lock, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                return file.read() or "another process"
            except OSError as error:                        # one process needs no lock
                if count > 1:
                    raise OSError(error.errno, "the file system has no locks, by which processes "
                                  "share chunks", str(self.folder)) from error
            file.seek(0)
            before = file.read()
            if not path.exists():                           # nor was made just now
                if before:
                    warnings.warn(f"{before} is gone and left part {part} to others", stacklevel=4)
                file.truncate(0)
                file.write(f"process {number} of {count}, pid {os.getpid()} of {gethostname()}")
                file.flush()
                made = {key: value.contiguous() for key, value in compute().items()}
                with writing(path) as partial:
                    save_file(made, str(partial))
            lock.unlink(missing_ok=True)
        return ""

    def _path(self, name: str) -> Path:
        return (self.folder or Path()) / f"{name}.safetensors"

    def _finished(self, name: str) -> bool:
        """Whether a part is there. ValueError for a damaged one."""
        return self.folder is not None and self._path(name).exists() and bool(self._read(name))

    def _read(self, name: str) -> Part:
        try:
            return load_file(self._path(name))
        except SafetensorError as error:
            raise ValueError(f"{self._path(name)} is damaged ({error}); remove it, and it is "
                             "computed anew") from error


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
