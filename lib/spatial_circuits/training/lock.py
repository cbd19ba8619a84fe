"""Lock: one process at a time writes to a run's folder, or encodes scenes."""
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(path: Path, busy: str = "") -> Iterator[None]:
    """Hold a file or folder for this process. Waits for another holder, or, given `busy`, raises
    BlockingIOError with that text. The lock ends with the process, however that ends."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        yield
    except BlockingIOError as error:
        raise BlockingIOError(busy) from error
    finally:
        os.close(descriptor)


@contextmanager
def claimed(folder: Path, main: bool = True, wait: bool = False) -> Iterator[None]:
    """Make the folder and lock it, in the main process. Left empty by a failure, it goes again.

    Where another run holds it, `wait` waits for its end; else BlockingIOError.
    """
    if not main:
        yield
        return
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        busy = f"{folder} is in use by another training run; wait for it or choose another folder"
        with locked(folder, "" if wait else busy):
            yield
    finally:
        if made:
            with suppress(OSError):
                folder.rmdir()
