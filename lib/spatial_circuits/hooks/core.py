"""The vocabulary of hooks: what a call is, and what acts on it where and when."""
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..model.forward import BRANCHES, Forward
from ..model.transformer import padded

STAGES = ("query", "key", "mask", "pattern", "value", "output")
Heads = Sequence[tuple[int, int]]


@dataclass
class Rows:
    """What the B rows of the forward at hand are: `forward`, and the same on the model's device."""
    forward: Forward
    sample: Tensor         # [B] number of each row's sample in its run
    branch: Tensor         # [B] index into BRANCHES

    @property
    def step(self) -> int:
        return self.forward.step


@dataclass
class Call(Rows):
    """One attention call of one step, B rows. Edits assign to its fields, readers look at them."""
    module: Attention
    kind: str              # cross | self
    layer: int
    input: Tensor          # [B, N, D] what queries are made from; if cross, the residual stream
    query: Tensor          # [B, H, N, d]
    key: Tensor            # [B, H, T, d]
    value: Tensor          # [B, H, T, d]
    mask: Tensor | None    # [B, H or 1, 1, T], added to the scores
    replaced: Tensor | None = None    # [B, H, N, T], put by an edit in place of the softmax
    made: Tensor | None = None        # [B, H, N, d], the output once it was asked for or put

    @property
    def pattern(self) -> Tensor:
        """[B, H, N, T]: each image token's attention over the keys, sums to 1. Made if asked."""
        if self.replaced is not None:
            return self.replaced
        scores = self.query @ self.key.transpose(-1, -2) * self.query.shape[-1] ** -0.5
        return (scores if self.mask is None else scores + self.mask).softmax(-1)

    @pattern.setter
    def pattern(self, value: Tensor) -> None:
        self.replaced = value

    @property
    def output(self) -> Tensor:
        """Heads' outputs [B, H, N, d] before their projection, by the kernel of plain diffusers
        unless a pattern was put."""
        if self.made is None and self.replaced is not None:
            self.made = self.replaced @ self.value
        if self.made is None:
            query, key, value, mask = padded(self.query, self.key, self.value, self.mask)
            self.made = scaled_dot_product_attention(query, key, value, mask)
        return self.made

    @output.setter
    def output(self, value: Tensor) -> None:
        self.made = value


class Hook:
    """Where and when something acts; the base of readers and edits.

    where: None (all heads), a list of (layer, head), or a bool tensor [S, L, H], a row per sample.
    kind: "cross", "self" or "residual". branch: "cond", "uncond" or "both".
    steps: None (all), step numbers, or a bool tensor [S, steps].
    """
    branch = "both"
    per_sample: tuple[str, ...] = ("where", "steps")  # may be tensors with a row for each sample
    decides: tuple[str, ...] = ("where", "steps", "source")  # stay on the CPU; the others move
    shared: tuple[str, ...] = ()     # tensors that move to the model's device, too
    hidden: Tensor | None = None     # [B, L, H, T] on the CPU: the keys that a hook hides now

    def __init__(self, where: Heads | Tensor | None = None, kind: str = "cross",
                 steps: Sequence[int] | Tensor | None = None, branch: str | None = None):
        if kind not in ("cross", "self", "residual"):
            raise ValueError(f"kind {kind!r} is unknown; choose from cross, self, residual")
        if branch not in (None, "both", *BRANCHES):
            raise ValueError(f"branch {branch!r} is unknown; choose from cond, uncond, both")
        self.where = _checked_heads(where)
        self.steps: Any = _checked_steps(steps)
        self.kind, self.branch = kind, branch or self.branch
        self.attached = self.fired = False
        self.run: object = None
        self.start()

    def start(self) -> None:
        """Forget what an earlier context left; called whenever a context opens."""

    def parts(self) -> list["Hook"]:
        """The hooks this one consists of."""
        return [self]

    def bind(self, model: PixArtTransformer2DModel) -> None:
        """Check heads and samples against the model. ValueError for the first that does not fit."""
        blocks, device = model.transformer_blocks, next(model.parameters()).device
        if self.kind == "cross" and any(block.attn2 is None for block in blocks):
            raise ValueError("the model has no cross-attention in some block; "
                             "cross-attention hooks do not apply")
        if self.kind == "residual" and type(self).stream is Hook.stream:
            raise ValueError(f"{self} acts on attention, not on the residual stream")
        stream = self.kind == "residual"
        shape = (len(blocks) + 1, 1) if stream else (len(blocks), blocks[0].attn1.heads)
        self.chosen = head_mask(self.where, *shape).cpu()               # [S or 1, L, H]
        if len(self.sizes()) > 1:
            sizes = " now ".join(map(str, sorted(self.sizes())))
            raise ValueError(f"{self} describes now {sizes} samples")
        for name in (*self.per_sample, *self.shared):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                setattr(self, name, value.to("cpu" if name in self.decides else device))
        self.fired, self.run = False, None
        self.start()

    def fit(self, count: int | None, steps: int | None) -> None:
        """Raises ValueError if this does not fit a run of so many samples or steps, where known."""
        if count is not None and self.sizes() - {count}:
            raise ValueError(f"{self} describes {max(self.sizes())} samples "
                             f"but {count} are to be drawn")
        if steps is None or self.steps is None:
            return
        whole = isinstance(self.steps, Tensor)                          # tells all steps of a run
        last = len(self.steps[0]) - 1 if whole else max(self.steps, default=0)
        if last >= steps or whole and last != steps - 1:
            raise ValueError(f"{self} acts at step {last}; the run has steps 0 to {steps - 1}")

    def prepare(self, rows: Rows) -> list[int]:
        """Before each forward, on the CPU: the layers at which to act; for which rows and heads is
        in `acting` [B, L, H], on the model's device `now`."""
        forward = rows.forward
        self.fit(None, forward.steps)
        for size in self.sizes():
            if max(forward.samples) >= size:
                raise ValueError(f"{self} describes {size} samples but the run has more")
            if None not in (self.run, forward.run) and self.run is not forward.run:
                raise ValueError(f"{self} describes {size} samples of one run; "
                                 "open one context for each run")
        self.run = forward.run
        samples = torch.tensor(forward.samples)
        acting = pick(self.chosen, samples)                             # [b or 1, L, H]
        if isinstance(self.steps, Tensor):
            if forward.step >= self.steps.shape[1]:
                raise ValueError(f"{self} describes {self.steps.shape[1]} steps from 0, "
                                 f"but the model is at step {forward.step}")
            acting = acting & pick(self.steps, samples)[:, forward.step, None, None]
        elif self.steps is not None and forward.step not in self.steps:
            return []
        here = torch.zeros(len(rows.sample), *acting.shape[1:], dtype=torch.bool)
        for branch in forward.branches:
            if self.branch in (branch, "both"):
                here[forward.rows(branch)] = acting
        self.acting, self.now = here, here.to(rows.sample.device, non_blocking=True)
        return here.any(0).any(1).nonzero().flatten().tolist()

    def stream(self, x: Tensor, layer: int, rows: Rows, active: Tensor) -> Tensor:
        """The residual stream that a layer shall receive for x [B, N, D]; `active` [B]."""
        raise NotImplementedError

    def sizes(self) -> set[int]:
        """How many samples this hook was made for; empty if it treats all alike."""
        given = [getattr(self, name) for name in self.per_sample]
        return {len(v) for v in given if isinstance(v, Tensor)} - {1}

    def __str__(self) -> str:
        return type(self).__name__


class Reader(Hook):
    """A hook whose `read(call)` sees each call at its layers, after all edits.

    What it keeps belongs in `start`, so that the same reader can serve again.
    """

    def read(self, call: Call) -> None:
        raise NotImplementedError


class Edit(Hook):
    """A hook whose `act(call, active)` changes the call's `stage`, for the rows and heads of
    `active` [B, H]; or, of kind "residual", whose `stream` changes the residual stream."""
    stage = "output"

    def act(self, call: Call, active: Tensor) -> None:
        raise NotImplementedError


def _checked_heads(where: Heads | Tensor | None) -> Heads | Tensor | None:
    if where is None or isinstance(where, Tensor):
        return where
    try:
        return [(int(layer), int(head)) for layer, head in where]
    except (TypeError, ValueError):
        raise ValueError(f"heads are {where!r}; "
                         "give a list of pairs (layer, head), such as [(1, 3)]") from None


def _checked_steps(steps: Sequence[int] | Tensor | None) -> list[int] | Tensor | None:
    if isinstance(steps, Tensor):
        if steps.dtype != torch.bool or steps.ndim != 2:
            raise ValueError(f"steps must be numbers or a bool tensor [samples, steps], got "
                             f"{steps.dtype} {tuple(steps.shape)}")
        return steps
    if steps is None:
        return None
    if isinstance(steps, Integral):
        raise ValueError(f"steps is the number {steps}; give a list, such as [{steps}]")
    for step in steps:
        if not isinstance(step, Integral) or step < 0:
            raise ValueError(f"step {step!r} is not a whole number of at least 0")
    return [int(step) for step in steps]


def check_finite(name: str, value: Tensor) -> None:
    """Raises ValueError naming the input if it holds NaN or an infinite number."""
    if not value.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinite numbers; all must be finite")


def head_mask(where: Heads | Tensor | None, layers: int, heads: int) -> Tensor:
    """Heads as a bool tensor [S or 1, L, H]. ValueError naming the first out of range."""
    if where is None:
        return torch.ones(1, layers, heads, dtype=torch.bool)
    if isinstance(where, Tensor):
        if where.dtype != torch.bool or where.shape[1:] != (layers, heads):
            raise ValueError(f"a mask of heads must be a bool tensor [samples, {layers}, {heads}], "
                             f"got {where.dtype} {tuple(where.shape)}")
        return where
    mask = torch.zeros(1, layers, heads, dtype=torch.bool)
    for layer, head in where:
        if not 0 <= layer < layers:
            raise ValueError(f"layer {layer} is out of range; "
                             f"the model has layers 0 to {layers - 1}")
        if not 0 <= head < heads:
            raise ValueError(f"head {head} is out of range; "
                             f"the model has heads 0 to {heads - 1} in each layer")
        mask[0, layer, head] = True
    return mask


def pick(values: Tensor, sample: Tensor) -> Tensor:
    """The rows of `values` [S or 1, ...] for these samples; a single row serves all."""
    return values if len(values) == 1 else values[sample]
