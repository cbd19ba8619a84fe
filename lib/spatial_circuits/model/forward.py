"""Forward: what the rows of a forward are. Who calls the model says it, and hooks act by it.

The sampler tells it before each forward, so that nobody guesses a step from the time or a branch
from the number of rows: solvers with two evaluations a step, rising times (inversion), sampling
without guidance and batches of any size are told alike.
"""
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

BRANCHES = ("uncond", "cond")   # the branches of classifier-free guidance (CFG), in this order


@dataclass(frozen=True)
class Forward:
    """Branch by branch, the rows hold all samples in order: len(branches) * len(samples) rows.

    `step` numbers the model's evaluations in a run, from 0; a second-order solver makes two a step.
    """
    step: int
    samples: tuple[int, ...]          # numbers of the samples, from 0 in each run
    branches: tuple[str, ...]
    steps: int | None = None          # evaluations in the whole run, if known
    run: object = None                # the same object in all forwards of a run, if known

    def __post_init__(self):
        if not isinstance(self.step, int) or self.step < 0:
            raise ValueError(f"step {self.step!r} is not a whole number of at least 0")
        for branch in self.branches:
            if branch not in BRANCHES:
                raise ValueError(f"branch {branch!r} is unknown; choose from {', '.join(BRANCHES)}")
        if not self.branches or len(set(self.branches)) < len(self.branches):
            raise ValueError(f"branches are {self.branches}; name each of the batch's once")
        if len(set(self.samples)) < len(self.samples) or min(self.samples, default=0) < 0:
            raise ValueError(f"samples are {self.samples}; give each a number of its own from 0")

    def rows(self, branch: str) -> slice:
        """The rows of one branch; none if the batch does not hold it."""
        if branch not in self.branches:
            return slice(0, 0)
        start = self.branches.index(branch) * len(self.samples)
        return slice(start, start + len(self.samples))

    def rows_of(self, wanted: list[int]) -> list[int]:
        """[B]: the row which holds, in the same branch, the sample that `wanted` names for each
        sample. Raises ValueError if that sample is in another batch."""
        place = {sample: row for row, sample in enumerate(self.samples)}
        for sample in wanted:
            if sample not in place:
                raise ValueError(
                    f"a sample takes from sample {sample}, which is not in its batch of samples "
                    f"{min(self.samples)} to {max(self.samples)}; keep both in one batch")
        starts = range(0, len(self.branches) * len(self.samples), len(self.samples))
        return [start + place[sample] for start in starts for sample in wanted]


TOLD: ContextVar[Forward | None] = ContextVar("forward", default=None)  # the one at hand


@contextmanager
def tell(forward: Forward) -> Iterator[None]:
    """Around a forward: say what its rows are, to this thread's hooks."""
    token = TOLD.set(forward)
    try:
        yield
    finally:
        TOLD.reset(token)
