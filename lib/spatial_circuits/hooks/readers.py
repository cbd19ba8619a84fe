"""Readers: what can be kept of a running model, reduced where it is computed.

Patterns      the patterns of a few heads
MeanOutputs   the mean output of every head, for mean ablation
MeanResidual  the mean of the residual stream as each cross-attention reads it
Residual      the residual stream of one layer

A reader starts afresh in each context. Results stay on the model's device.
"""
from collections.abc import Sequence

import torch
from torch import Tensor

from .core import BRANCHES, Call, Heads, Reader, Rows, pick


def _one(branch: str) -> str:
    if branch not in BRANCHES:
        raise ValueError(f"branch {branch!r} is unknown or not one; "
                         f"choose from {', '.join(BRANCHES)}")
    return branch


class _Kept:
    """Rows of one branch, step by step, batch after batch."""

    def __init__(self) -> None:
        self.values: dict[int, list[Tensor]] = {}
        self.samples: dict[int, list[int]] = {}

    def add(self, rows: Rows, values: Tensor) -> None:
        step = rows.forward.step
        self.values.setdefault(step, []).append(values)
        self.samples.setdefault(step, []).extend(rows.forward.samples)

    def stacked(self) -> Tensor:
        """[S, steps, ...], in the order of steps. ValueError if one saw other samples."""
        steps = sorted(self.values)
        for step in steps:
            if self.samples[step] != self.samples[steps[0]]:
                raise ValueError(f"step {step} saw other samples than step {steps[0]}; "
                                 "run all steps with the same ones")
        return torch.stack([torch.cat(self.values[step]) for step in steps], 1)


class Patterns(Reader):
    """Keeps the patterns of a few heads: `maps[layer, head]` is [S, steps, N, T] afterwards, of one
    branch; samples in the order in which they came."""

    def __init__(self, where: Heads, kind: str = "cross", steps: Sequence[int] | None = None,
                 branch: str = "cond"):
        self.heads: list[tuple[int, int]] = []
        super().__init__(where, kind, steps, _one(branch))
        self.heads = [(layer, head) for layer, head in self.where or ()]
        self.start()

    def start(self) -> None:
        self.kept = {head: _Kept() for head in self.heads}

    def read(self, call: Call) -> None:
        pattern = call.pattern[call.forward.rows(self.branch)].float()
        for (layer, head), kept in self.kept.items():
            if layer == call.layer:
                kept.add(call, pattern[:, head])

    @property
    def maps(self) -> dict[tuple[int, int], Tensor]:
        return {head: kept.stacked() for head, kept in self.kept.items()}


class MeanOutputs(Reader):
    """Running mean of every head's output: `mean` [steps, branches, L, H, N, d] afterwards, NaN
    where none was seen.

    With `group` [S] (numbers from 0) one mean a group, [G, steps, branches, L, H, N, d].
    """
    per_sample = ("where", "steps", "group")

    def __init__(self, kind: str = "cross", group: Tensor | None = None):
        self.group = group
        if group is not None and (group.ndim != 1 or group.dtype != torch.int64 or group.min() < 0):
            raise ValueError("group must hold a whole number from 0 for each sample")
        self.known = torch.zeros(1, dtype=torch.long) if group is None else group.cpu()
        self.groups = 1 + int(self.known.max())
        super().__init__(None, kind)

    def start(self) -> None:
        self.sums: dict[tuple[int, int, int], Tensor] = {}              # step, branch, layer
        self.counts: dict[tuple[int, int, int], Tensor] = {}            # [G], on the CPU

    def read(self, call: Call) -> None:
        forward = call.forward
        known = pick(self.known, torch.tensor(forward.samples)).expand(len(forward.samples))
        group = torch.zeros_like(call.sample)
        if self.group is not None:
            group = pick(self.group, call.sample).expand_as(call.sample)
        for name in forward.branches:
            rows, key = forward.rows(name), (call.step, BRANCHES.index(name), call.layer)
            own = call.output[rows].float()
            total = self.sums.setdefault(key, own.new_zeros(self.groups, *own.shape[1:]))
            total.index_add_(0, group[rows], own)
            self.counts[key] = self.counts.get(key, 0) + known.bincount(minlength=self.groups)

    @property
    def mean(self) -> Tensor:
        steps, layers = (1 + max(key[i] for key in self.sums) for i in (0, 2))
        some = next(iter(self.sums.values()))                           # [G, H, N, d]
        means = some.new_full((steps, len(BRANCHES), layers, *some.shape), torch.nan)
        for key, total in self.sums.items():
            means[key] = total / self.counts[key].to(total.device).view(-1, 1, 1, 1)
        means = means.movedim(3, 0)                                     # groups first
        return means[0] if self.group is None else means


class MeanResidual(Reader):
    """Running mean of the residual stream as each layer's cross-attention reads it: `mean`
    [L, N, D], at one step."""

    def __init__(self, step: int = 0, branch: str = "cond"):
        super().__init__(steps=[step], branch=_one(branch))

    def start(self) -> None:
        self.sums: dict[int, Tensor] = {}
        self.count: dict[int, int] = {}

    def read(self, call: Call) -> None:
        own = call.input[call.forward.rows(self.branch)].float()
        self.sums[call.layer] = self.sums.get(call.layer, 0) + own.sum(0)
        self.count[call.layer] = self.count.get(call.layer, 0) + len(own)

    @property
    def mean(self) -> Tensor:
        return torch.stack([self.sums[layer] / self.count[layer] for layer in sorted(self.sums)])


class Residual(Reader):
    """Keeps the residual stream as `layer` receives it: `values` [S, steps, N, D] afterwards, of
    one branch; samples in the order in which they came."""

    def __init__(self, layer: int, steps: Sequence[int] | None = None, branch: str = "cond"):
        super().__init__([(layer, 0)], "residual", steps, _one(branch))

    def start(self) -> None:
        self.kept = _Kept()

    def stream(self, x: Tensor, layer: int, rows: Rows, active: Tensor) -> Tensor:
        self.kept.add(rows, x[rows.forward.rows(self.branch)].float())
        return x

    @property
    def values(self) -> Tensor:
        return self.kept.stacked()
