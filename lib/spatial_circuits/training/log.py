"""Log: a training run's JSONL, written line by line and read back."""
import json
import time
from pathlib import Path

from ..files import write_text


class Log:
    """A JSONL file, one record a line, flushed at once; records after step `keep` are dropped when
    a run resumes. Raises OSError, naming the file, where it cannot be written."""

    def __init__(self, path: Path, keep: int = 0):
        self.path, self.started = path, time.time()
        records = [r for r in read_log(path) if r["step"] <= keep] if path.exists() and keep else []
        self.before = max((r["seconds"] for r in records), default=0.0)
        write_text(path, "".join(json.dumps(r) + "\n" for r in records))

    def write(self, **record) -> None:
        record["seconds"] = round(self.before + time.time() - self.started, 1)
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def read_log(path: str | Path) -> list[dict]:
    """The records of a training log; a last line cut short by a kill is left out.

    Raises ValueError, naming file and line, for another line that is no JSON.
    """
    records, lines = [], Path(path).read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path} is damaged in line {number}: {error}; restore the file "
                                 "or take the line out") from error
    return records
