"""Progress: a bar over notebooks whose time left comes from how long each took the last time."""
import json
import statistics
import time
from pathlib import Path

from tqdm import tqdm

from ..files import write_json

UNKNOWN = 60.0  # seconds expected of a notebook when none has been timed
TRUST = 0.05    # this share of the whole counts as done at the recorded pace: a steadier estimate


def read_durations(*files: Path) -> dict[str, dict[str, float]]:
    """{scale: {notebook: seconds}}; what a later file says replaces what an earlier one said."""
    found: dict[str, dict[str, float]] = {}
    for file in files:
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            for scale, seconds in record.items():
                known = {name: float(value) for name, value in seconds.items()}
                found[scale] = {**found.get(scale, {}), **known}
        except (OSError, ValueError, AttributeError):
            continue
    return found


class Progress:
    """A bar in expected seconds. `expected` holds those of every notebook of the run."""

    def __init__(self, names: list[str], known: dict[str, float], jobs: int):
        typical = statistics.median(known.values()) if known else UNKNOWN
        self.expected = {name: max(known.get(name, typical), 0.1) for name in names}
        self.jobs, self.next = jobs, 0.0
        self.taken: dict[str, float] = {}
        self.since: dict[str, float] = {}
        self.bar = tqdm(total=sum(self.expected.values()),
                        bar_format="{percentage:3.0f}%|{bar:20}| {elapsed}{postfix}")

    def start(self, name: str) -> None:
        self.since[name] = time.monotonic()

    def finish(self, name: str) -> None:
        self.taken[name] = round(time.monotonic() - self.since.pop(name), 1)

    def left(self) -> float:
        """Seconds left: what is expected, at the pace of what is done or late, over the jobs."""
        now = time.monotonic()
        running = {name: now - since for name, since in self.since.items()}
        late = {name: spent for name, spent in running.items() if spent > self.expected[name]}
        pace = max(self._pace(self.taken), self._pace({**self.taken, **late}))
        rest = {name: pace * seconds for name, seconds in self.expected.items()
                if name not in self.taken}
        for name, spent in running.items():
            rest[name] = max(rest[name] - spent, 0.1 * rest[name])
        return max(sum(rest.values()) / self.jobs, *rest.values(), 0.0)

    def _pace(self, told: dict[str, float]) -> float:
        """Seconds taken for each that was expected, over these notebooks."""
        steady = TRUST * sum(self.expected.values())
        return (steady + sum(told.values())) / (steady + sum(self.expected[name] for name in told))

    def show(self) -> None:
        """Draw the bar anew, at most once in a second."""
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + 1
        done = sum(self.expected[name] for name in self.taken)
        done += sum(min(now - since, 0.9 * self.expected[n]) for n, since in self.since.items())
        self.bar.n = min(done, self.bar.total)
        count = f"{len(self.taken)} of {len(self.expected)} notebooks"
        running = ", ".join(self.since)
        self.bar.set_postfix_str(f"{tqdm.format_interval(self.left())} left, {count}; {running}")

    def close(self, file: Path, scale: str) -> None:
        """End the bar and keep the times in `file`, where that can be written."""
        self.bar.close()
        record = read_durations(file)
        record[scale] = {**record.get(scale, {}), **self.taken}
        try:
            write_json(file, record)
        except (OSError, ValueError):
            return
