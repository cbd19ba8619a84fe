"""Edits: what can be changed inside a running model. See `core.Hook` for where and when.

Ablate         put zero or a mean in place of heads' outputs
MaskKeys       hide text tokens from chosen heads (the rest of the pattern is renormalised)
Patch          interchange intervention: take a stage of heads from another sample of the batch
Replace        put a given tensor in that place, or add it to what is there
PathPatch      patch a head's output only as later heads' queries see it, straight through the
               residual stream
AddResidual    add a vector to the residual stream; before layer 0 that is the position embedding
PatchResidual  take the residual stream from another sample
"""
import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor

from .core import BRANCHES, STAGES, Call, Edit, Heads, Hook, Rows, check_finite, pick


def _put(call: Call, stage: str, active: Tensor, new: Tensor) -> None:
    old = getattr(call, stage)
    setattr(call, stage, torch.where(active[..., None, None], new.to(old.dtype), old))


def _check_stage(stage: str) -> None:
    allowed = [s for s in STAGES if s != "mask"]
    if stage not in allowed:
        raise ValueError(f"stage {stage!r} cannot be patched; choose from {', '.join(allowed)}")


class Ablate(Edit):
    """Zero ablation of heads' outputs, or mean ablation with `mean` [steps, branches, L, H, N, d]
    of `MeanOutputs`. Raises ValueError for a mean that is not finite, of other heads or steps."""
    shared = ("mean",)

    def __init__(self, where: Heads | Tensor | None, mean: Tensor | None = None,
                 branch: str = "cond", **scope):
        super().__init__(where, branch=branch, **scope)
        self.mean = mean
        if mean is not None and mean.ndim == 6:
            used = slice(None) if branch == "both" else BRANCHES.index(branch)
            check_finite("the mean of Ablate", mean[:, used])

    def bind(self, model: PixArtTransformer2DModel) -> None:
        super().bind(model)
        if self.mean is None:
            return
        wanted = len(BRANCHES), *self.chosen.shape[1:]
        if self.mean.ndim != 6 or self.mean.shape[1:4] != wanted:
            raise ValueError(f"the mean of Ablate has shape {tuple(self.mean.shape)}; this model "
                             "needs [steps, {}, {}, {}, N, d]".format(*wanted))

    def fit(self, count: int | None, steps: int | None) -> None:
        super().fit(count, steps)
        if self.mean is not None and steps is not None and len(self.mean) != steps:
            raise ValueError(f"the mean of Ablate is of {len(self.mean)} steps; "
                             f"the run has {steps}")

    def act(self, call: Call, active: Tensor) -> None:
        if self.mean is None:
            return _put(call, "output", active, torch.zeros_like(call.output))
        if call.step >= len(self.mean):
            raise ValueError(f"the mean of Ablate has no step {call.step}")
        _put(call, "output", active, self.mean[call.step, call.branch, call.layer])


class MaskKeys(Edit):
    """Hide keys [S or 1, T] (True = hidden) from heads; by default in the conditional branch, as in
    the paper. Raises ValueError, at the first step, if a head has no key left."""
    stage = "mask"
    per_sample = ("where", "steps", "keys")

    def __init__(self, keys: Tensor, where: Heads | Tensor | None = None, branch: str = "cond",
                 **scope):
        super().__init__(where, branch=branch, **scope)
        if keys.ndim != 2 or keys.dtype != torch.bool:
            raise ValueError(f"keys must be a bool tensor [samples, tokens], got {keys.dtype} "
                             f"{tuple(keys.shape)}")
        self.keys, self.known = keys, keys.cpu()

    def prepare(self, rows: Rows) -> list[int]:
        layers, self.hidden = super().prepare(rows), None
        if layers:
            samples = torch.tensor(rows.forward.samples).repeat(len(rows.forward.branches))
            self.hidden = pick(self.known, samples)[:, None, None] & self.acting[..., None]
        return layers

    def act(self, call: Call, active: Tensor) -> None:
        hidden = pick(self.keys, call.sample)[:, None, None] & active[..., None, None]
        before = call.query.new_zeros(()) if call.mask is None else call.mask
        call.mask = torch.where(hidden, -10_000.0, before)              # [B, H, 1, T]


class _FromSample(Edit):
    """An edit that takes from sample `source` [S] of the same batch: `taken` [B] are the rows."""
    per_sample: tuple[str, ...] = ("where", "steps", "source")

    def __init__(self, source: Tensor, *where, **scope):
        super().__init__(*where, **scope)
        if source.ndim != 1 or source.dtype.is_floating_point or source.dtype == torch.bool:
            raise ValueError(f"source must hold the number of a sample for each sample, got "
                             f"{source.dtype} {tuple(source.shape)}")
        self.source = source

    def prepare(self, rows: Rows) -> list[int]:
        layers, forward = super().prepare(rows), rows.forward
        if layers:
            wanted = pick(self.source, torch.tensor(forward.samples)).expand(len(forward.samples))
            taken = torch.tensor(forward.rows_of(wanted.tolist()))
            self.taken = taken.to(rows.sample.device, non_blocking=True)
        return layers


class Patch(_FromSample):
    """Interchange intervention: take a stage of heads (output, pattern, value, query or key) from
    sample `source` [S] of the same batch; with `basis` [d, k], orthonormal, only the part of it in
    that subspace. Raises ValueError for a basis that is no matrix of at most d columns."""

    def __init__(self, source: Tensor, where: Heads | Tensor | None = None, stage: str = "output",
                 basis: Tensor | None = None, **scope):
        _check_stage(stage)
        super().__init__(source, where, **scope)
        if basis is not None and (basis.ndim != 2 or basis.shape[1] > basis.shape[0]):
            raise ValueError(f"the basis of Patch has shape {tuple(basis.shape)}; it must be "
                             "[d, k] with k at most d")
        self.stage, self.basis = stage, basis

    def act(self, call: Call, active: Tensor) -> None:
        old = getattr(call, self.stage)
        new = old[self.taken]
        if self.basis is not None:
            basis = self.basis.to(old)
            new = old + (new - old) @ basis @ basis.T
        _put(call, self.stage, active, new)


class Replace(Edit):
    """Put `value`, broadcast over [S, H, N or T, d or T], in place of a stage of heads; with `add`,
    add it. Raises ValueError for one that is not finite or has another number of axes."""
    per_sample = ("where", "steps", "value")

    def __init__(self, value: Tensor, where: Heads | Tensor | None = None, stage: str = "output",
                 add: bool = False, **scope):
        _check_stage(stage)
        super().__init__(where, **scope)
        if value.ndim != 4:
            raise ValueError(f"the value of Replace has shape {tuple(value.shape)}; it must "
                             "broadcast to [S, H, N or T, d or T]")
        check_finite("the value of Replace", value)
        self.value, self.stage, self.add = value, stage, add

    def act(self, call: Call, active: Tensor) -> None:
        value = pick(self.value, call.sample)
        _put(call, self.stage, active, getattr(call, self.stage) + value if self.add else value)


class PathPatch(Hook):
    """Let `receiver` heads' queries see the `sender` head's output of sample `source` [S], all else
    unchanged.

    Only the straight path through the residual stream is patched. It is exact for cross-attention,
    whose queries read the stream without a norm (PixArt). Receivers must lie in later layers than
    the sender. `samples` [S] bool: only there.
    """

    def __init__(self, sender: tuple[int, int], receiver: Heads, source: Tensor,
                 samples: Tensor | None = None, **scope):
        self.change: Tensor | None = None
        self.send = _Send(self, sender, source, samples, scope)
        self.receive = _Receive(self, sender, receiver, scope)

    def parts(self) -> list[Hook]:
        return [self.send, self.receive]


class _Send(_FromSample):
    per_sample = ("where", "steps", "source", "samples")

    def __init__(self, path: PathPatch, sender: tuple[int, int], source: Tensor,
                 samples: Tensor | None, scope: dict):
        super().__init__(source, [sender], **scope)
        self.path, self.head = path, sender[1]
        self.samples = torch.ones(1, dtype=torch.bool) if samples is None else samples

    def __str__(self) -> str:
        return type(self.path).__name__

    def act(self, call: Call, active: Tensor) -> None:
        own = call.output[:, self.head]                                 # [B, N, d]
        part = slice(self.head * own.shape[-1], (self.head + 1) * own.shape[-1])
        change = (own[self.taken] - own) @ call.module.to_out[0].weight[:, part].T
        here = active[:, self.head] & pick(self.samples, call.sample)
        self.path.change = change * here[:, None, None]                 # [B, N, D]


class _Receive(Edit):
    stage = "query"

    def __init__(self, path: PathPatch, sender: tuple[int, int], receiver: Heads, scope: dict):
        super().__init__(receiver, **scope)
        self.path, self.sender = path, sender

    __str__ = _Send.__str__

    def bind(self, model: PixArtTransformer2DModel) -> None:
        super().bind(model)
        early = [layer for layer in self.chosen.any(0).any(1).nonzero().flatten().tolist()
                 if layer <= self.sender[0]]
        if early:
            raise ValueError(f"a receiver in layer {early[0]} cannot see the sender in layer "
                             f"{self.sender[0]}")

    def act(self, call: Call, active: Tensor) -> None:
        assert self.path.change is not None                             # the sender is earlier
        change = self.path.change @ call.module.to_q.weight.T           # [B, N, D]
        heads = change.unflatten(-1, (call.query.shape[1], -1)).transpose(1, 2)
        _put(call, "query", active, call.query + heads)                 # [B, H, N, d]


class AddResidual(Edit):
    """Add `vector`, broadcast over [S, N, D], to the residual stream as `layer` receives it.

    Layer 0 receives patches plus position embedding; layer L (their number) is the final norm.
    Raises ValueError for a vector that is not finite or of another width.
    """
    per_sample = ("where", "steps", "vector")

    def __init__(self, vector: Tensor, layer: int = 0, branch: str = "cond", **scope):
        super().__init__([(layer, 0)], kind="residual", branch=branch, **scope)
        check_finite("the vector of AddResidual", vector)
        self.vector = vector if vector.ndim == 3 else vector.view(1, -1, vector.shape[-1])

    def bind(self, model: PixArtTransformer2DModel) -> None:
        super().bind(model)
        if self.vector.shape[-1] != model.inner_dim:
            raise ValueError(f"the vector of AddResidual has width {self.vector.shape[-1]}; "
                             f"the residual stream has {model.inner_dim}")

    def stream(self, x: Tensor, layer: int, rows: Rows, active: Tensor) -> Tensor:
        return x + pick(self.vector, rows.sample).to(x.dtype) * active[:, None, None]


class PatchResidual(_FromSample):
    """Take the residual stream, as `layer` receives it, from sample `source` [S]; at image tokens
    [N] bool if given."""
    shared = ("tokens",)

    def __init__(self, source: Tensor, layer: int, tokens: Tensor | None = None, **scope):
        super().__init__(source, [(layer, 0)], kind="residual", **scope)
        self.tokens = tokens

    def stream(self, x: Tensor, layer: int, rows: Rows, active: Tensor) -> Tensor:
        here = active[:, None, None]
        if self.tokens is not None:
            here = here & self.tokens[:, None]
        return torch.where(here, x[self.taken], x)
