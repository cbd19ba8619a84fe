"""Edits: what can be changed inside a running model, and readers of what happens there. See `hooks` for where and when.

Ablate       put zero or a mean in place of heads' outputs
MaskKeys     hide text tokens from chosen heads (the rest of the pattern is renormalised)
Patch        take a stage of chosen heads from another sample of the same batch: its output, pattern (QK), value (OV), query, key
Replace      put a given tensor in that place, or add it to what is there
PathPatch    patch a head's output only as later heads' queries see it, straight through the residual stream
AddStream    add a vector to the residual stream; before layer 0 that is the position embedding
PatchStream  take the residual stream from another sample
Patterns     keep the patterns of a few heads, for a figure
Outputs      the mean output of every head, for mean ablation
Inputs       the mean of the residual stream as each cross-attention reads it
Stream       keep the residual stream of a few layers
"""
from collections.abc import Sequence

import torch
from torch import Tensor

from .hooks import HALVES, STAGES, Call, Edit, Heads, Hook, Reader, pick


def _put(call: Call, stage: str, active: Tensor, new: Tensor) -> None:
    old = getattr(call, stage)
    setattr(call, stage, torch.where(active[..., None, None], new.to(old.dtype), old))


def _check_stage(stage: str) -> None:
    allowed = [s for s in STAGES if s != "mask"]
    if stage not in allowed:
        raise ValueError(f"stage {stage!r} cannot be patched; choose from {', '.join(allowed)}")


def _one(half: str) -> str:
    if half not in HALVES:
        raise ValueError(f"half {half!r} is unknown or not one; choose from {', '.join(HALVES)}")
    return half


class Ablate(Edit):
    """Zero ablation of heads' outputs, or mean ablation if `mean` [steps, halves, L, H, N, d] is given (from `Outputs`)."""

    def __init__(self, where: Heads | Tensor | None, mean: Tensor | None = None, half: str = "cond", **scope):
        super().__init__(where, half=half, **scope)
        self.mean = mean

    def act(self, call: Call, active: Tensor) -> None:
        if self.mean is None:
            return _put(call, "output", active, torch.zeros_like(call.output))
        _put(call, "output", active, self.mean.to(active.device)[call.step, call.half, call.layer])


class MaskKeys(Edit):
    """Hide keys [S or 1, T] (True = hidden) from heads; by default in the conditional half, as in the paper."""
    stage = "mask"
    per_sample = ("where", "steps", "keys")

    def __init__(self, keys: Tensor, where: Heads | Tensor | None = None, half: str = "cond", **scope):
        super().__init__(where, half=half, **scope)
        self.keys = keys

    def act(self, call: Call, active: Tensor) -> None:
        hidden = pick(self.keys, call.sample)[:, None, None] & active[..., None, None]      # [B, H, 1, T]
        before = torch.zeros((), dtype=call.query.dtype, device=active.device) if call.mask is None else call.mask
        call.mask = torch.where(hidden, -10_000.0, before)
        if bool((call.mask <= -5_000).all(-1).any()):
            raise ValueError("all tokens of a prompt are hidden; leave at least one")


class Patch(Edit):
    """Take a stage of heads from sample `source` [S] of the same batch: head output, pattern, value, query or key."""
    per_sample = ("where", "steps", "source")

    def __init__(self, source: Tensor, where: Heads | Tensor | None = None, stage: str = "output", **scope):
        _check_stage(stage)
        super().__init__(where, **scope)
        self.source, self.stage = source, stage

    def act(self, call: Call, active: Tensor) -> None:
        _put(call, self.stage, active, getattr(call, self.stage)[call.rows(self.source)])


class Replace(Edit):
    """Put `value`, broadcast over [S, H, N or T, d or T], in place of a stage of heads; with `add`, add it."""
    per_sample = ("where", "steps", "value")

    def __init__(self, value: Tensor, where: Heads | Tensor | None = None, stage: str = "output", add: bool = False, **scope):
        _check_stage(stage)
        super().__init__(where, **scope)
        self.value, self.stage, self.add = value, stage, add

    def act(self, call: Call, active: Tensor) -> None:
        value = pick(self.value, call.sample)
        _put(call, self.stage, active, getattr(call, self.stage) + value if self.add else value)


class PathPatch(Hook):
    """Let `receiver` heads' queries see the `sender` head's output of sample `source` [S], all else unchanged.

    Only the straight path through the residual stream is patched. It is exact for cross-attention, whose queries read
    the stream without a norm (PixArt). Receivers must lie in later layers than the sender. `samples` [S] bool: only there.
    """
    def __init__(self, sender: tuple[int, int], receiver: Heads, source: Tensor, samples: Tensor | None = None, **scope):
        self.change: Tensor | None = None
        self.send, self.receive = _Send(self, sender, source, samples, scope), _Receive(self, sender, receiver, scope)

    def parts(self) -> list[Hook]:
        return [self.send, self.receive]


class _Send(Edit):
    per_sample = ("where", "steps", "source", "samples")

    def __init__(self, path: PathPatch, sender: tuple[int, int], source: Tensor, samples: Tensor | None, scope: dict):
        super().__init__([sender], **scope)
        self.path, self.head, self.source = path, sender[1], source
        self.samples = torch.ones(1, dtype=torch.bool) if samples is None else samples

    def __str__(self) -> str:
        return type(self.path).__name__

    def act(self, call: Call, active: Tensor) -> None:
        own = call.output[:, self.head]                                                     # [B, N, d]
        part = slice(self.head * own.shape[-1], (self.head + 1) * own.shape[-1])
        change = (own[call.rows(self.source)] - own) @ call.module.to_out[0].weight[:, part].T
        here = active[:, self.head] & pick(self.samples, call.sample)
        self.path.change = change * here[:, None, None]


class _Receive(Edit):
    stage = "query"

    def __init__(self, path: PathPatch, sender: tuple[int, int], receiver: Heads, scope: dict):
        super().__init__(receiver, **scope)
        self.path, self.sender = path, sender

    __str__ = _Send.__str__

    def bind(self, model) -> None:
        super().bind(model)
        early = [layer for layer in self.layers() if layer <= self.sender[0]]
        if early:
            raise ValueError(f"a receiver in layer {early[0]} cannot see the sender in layer {self.sender[0]}")

    def act(self, call: Call, active: Tensor) -> None:
        change = self.path.change @ call.module.to_q.weight.T                               # [B, N, D]
        heads = change.view(*change.shape[:2], -1, call.query.shape[-1]).transpose(1, 2)    # [B, H, N, d]
        _put(call, "query", active, call.query + heads)


class AddStream(Edit):
    """Add `vector`, broadcast over [samples, N, D], to the residual stream as `layer` receives it.

    Layer 0 receives patches plus position embedding; layer L (their number) is the final norm.
    """
    per_sample = ("where", "steps", "vector")

    def __init__(self, vector: Tensor, layer: int = 0, half: str = "cond", **scope):
        super().__init__([(layer, 0)], kind="residual", half=half, **scope)
        self.vector = vector if vector.ndim == 3 else vector.view(1, -1, vector.shape[-1])

    def stream(self, x: Tensor, layer: int, session, active: Tensor) -> Tensor:
        return x + pick(self.vector, session.sample).to(x.dtype) * active[:, None, None]


class PatchStream(Edit):
    """Take the residual stream, as `layer` receives it, from sample `source` [S]; at image tokens [N] bool if given."""
    per_sample = ("where", "steps", "source")

    def __init__(self, source: Tensor, layer: int, tokens: Tensor | None = None, **scope):
        super().__init__([(layer, 0)], kind="residual", **scope)
        self.source, self.tokens = source, tokens

    def stream(self, x: Tensor, layer: int, session, active: Tensor) -> Tensor:
        here = active[:, None, None] if self.tokens is None else active[:, None, None] & self.tokens.to(x.device)[:, None]
        return torch.where(here, x[Call.rows(session, self.source)], x)


class Patterns(Reader):
    """Keeps the patterns of a few heads: `maps[layer, head]` is [S, steps, N, T] afterwards, of one half."""

    def __init__(self, where: Heads, kind: str = "cross", steps: Sequence[int] | None = None, half: str = "cond"):
        super().__init__(where, kind, steps, _one(half))
        self.kept: dict = {tuple(head): [] for head in where}

    def read(self, call: Call) -> None:
        rows = call.half == HALVES.index(self.half)
        pattern = call.pattern[rows].float()
        for (layer, head), kept in self.kept.items():
            if layer == call.layer:
                if call.step == 0 or not kept or len(kept[-1]) and call.step <= kept[-1][-1][0]:
                    kept.append([])                                                         # another batch begins
                kept[-1].append((call.step, pattern[:, head]))

    @property
    def maps(self) -> dict[tuple[int, int], Tensor]:
        return {head: torch.cat([torch.stack([p for _, p in batch], 1) for batch in kept])
                for head, kept in self.kept.items()}


class Outputs(Reader):
    """Running mean of every head's output: `mean` [steps, halves, L, H, N, d] afterwards.

    With `group` [S] (numbers from 0) one mean a group, [G, steps, halves, L, H, N, d].
    """
    per_sample = ("where", "steps", "group")

    def __init__(self, kind: str = "cross", group: Tensor | None = None):
        super().__init__(None, kind)
        self.group, self.sums, self.counts = group, {}, {}
        self.groups = 1 if group is None else 1 + int(group.max())

    def read(self, call: Call) -> None:
        group = torch.zeros_like(call.sample) if self.group is None else pick(self.group, call.sample)
        for half in range(len(HALVES)):
            rows, key = call.half == half, (call.step, half, call.layer)
            zero = torch.zeros(self.groups, *call.output.shape[1:], device=call.output.device)
            self.sums.setdefault(key, zero).index_add_(0, group[rows], call.output[rows].float())
            self.counts[key] = self.counts.get(key, 0) + group[rows].bincount(minlength=self.groups)

    @property
    def mean(self) -> Tensor:
        steps, halves, layers = (1 + max(key[i] for key in self.sums) for i in range(3))
        means = torch.stack([self.sums[k] / self.counts[k].view(-1, 1, 1, 1) for k in sorted(self.sums)], 1)
        means = means.unflatten(1, (steps, halves, layers))
        return means[0] if self.group is None else means


class Inputs(Reader):
    """Running mean of the residual stream as each layer's cross-attention reads it: `mean` [L, N, D], at one step."""

    def __init__(self, step: int = 0, half: str = "cond"):
        super().__init__(steps=[step], half=_one(half))
        self.sums, self.count = {}, {}

    def read(self, call: Call) -> None:
        rows = call.half == HALVES.index(self.half)
        self.sums[call.layer] = self.sums.get(call.layer, 0) + call.input[rows].float().sum(0)
        self.count[call.layer] = self.count.get(call.layer, 0) + int(rows.sum())

    @property
    def mean(self) -> Tensor:
        return torch.stack([self.sums[layer] / self.count[layer] for layer in sorted(self.sums)])


class Stream(Reader):
    """Keeps the residual stream as `layer` receives it: `values` [S, steps, N, D] afterwards, of one half."""

    def __init__(self, layer: int, steps: Sequence[int] | None = None, half: str = "cond"):
        super().__init__([(layer, 0)], "residual", steps, _one(half))
        self.kept: list = []

    def stream(self, x: Tensor, layer: int, session, active: Tensor) -> Tensor:
        if not self.kept or self.kept[-1][-1][0] >= session.step:
            self.kept.append([])
        self.kept[-1].append((session.step, x[active].float()))
        return x

    @property
    def values(self) -> Tensor:
        return torch.cat([torch.stack([v for _, v in batch], 1) for batch in self.kept])
