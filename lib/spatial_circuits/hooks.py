"""Hooks: read and edit a diffusers PixArt transformer while it samples. The model itself stays as it is.

    with hooked(model.transformer, Patterns([(2, 1)]), Ablate([(3, 0)])):
        model.images(prompts, seeds)

`hooked` swaps the attention processors that a hook asks for, and puts the old ones back. A *reader* sees each attention
call and reduces it there; an *edit* changes one of its stages, query -> key -> mask -> pattern -> value -> output, or the
residual stream between blocks. What a hook acts on is a mask over [sample, layer, head], so that a sweep over all heads is
one batch in which every sample carries its own edit. Readers alone leave the output bit-identical to plain diffusers.
The hooks themselves are in `edits`.
"""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .dit import padded

HALVES = ("uncond", "cond")   # the order of the two halves of a batch under classifier-free guidance
STAGES = ("query", "key", "mask", "pattern", "value", "output")
Heads = Sequence[tuple[int, int]]


@dataclass
class Call:
    """One attention call of one step, B rows (both halves). Edits assign to its fields, readers look at them."""
    module: nn.Module
    kind: str              # cross | self
    layer: int
    step: int
    sample: Tensor         # [B] number of each row's sample, counted from the start of the context
    half: Tensor           # [B] index into HALVES
    input: Tensor          # [B, N, D] what the queries are made from; in cross-attention the residual stream itself
    local: Tensor          # [B] row of the batch at which each row's half begins, minus the first sample's number
    query: Tensor          # [B, H, N, d]
    key: Tensor            # [B, H, T, d]
    value: Tensor          # [B, H, T, d]
    mask: Tensor | None    # [B, H or 1, 1, T], added to the scores
    output: Tensor | None = None      # [B, H, N, d], before the output projection
    replaced: Tensor | None = None    # [B, H, N, T], a pattern that an edit put in place of the softmax

    @property
    def pattern(self) -> Tensor:
        """[B, H, N, T]: each image token's attention over the keys, rows sum to 1. Computed when asked for."""
        if self.replaced is not None:
            return self.replaced
        scores = self.query @ self.key.transpose(-1, -2) * self.query.shape[-1] ** -0.5
        return (scores if self.mask is None else scores + self.mask).softmax(-1)

    @pattern.setter
    def pattern(self, value: Tensor) -> None:
        self.replaced = value

    def attend(self) -> Tensor:
        """The heads' outputs [B, H, N, d], by the same kernel as plain diffusers unless the pattern was replaced."""
        if self.replaced is not None:
            return self.replaced @ self.value
        return scaled_dot_product_attention(*padded(self.query, self.key, self.value, self.mask))

    def rows(self, source: Tensor) -> Tensor:
        """[B] row of the batch that holds, in the same half, the sample which `source` [S] names for each row's sample.
        Raises ValueError if that sample is in another batch."""
        wanted, first = source[self.sample], self.sample.min()
        outside = wanted[(wanted < first) | (wanted > self.sample.max())]
        if len(outside):
            raise ValueError(f"a sample takes from sample {int(outside[0])}, which is not in its batch of samples "
                             f"{int(first)} to {int(self.sample.max())}; keep both in one batch")
        return wanted + self.local


class Hook:
    """Where and when something acts; the base of readers and edits.

    where: None (all heads), a list of (layer, head), or a bool tensor [S, L, H] with a row for each sample.
    kind: "cross", "self" or "residual". steps: None (all), step numbers, or a bool tensor [S, steps].
    half: "cond", "uncond" or "both".
    """
    half = "both"
    per_sample = ("where", "steps")  # attributes that may be tensors with a row for each sample

    def __init__(self, where: Heads | Tensor | None = None, kind: str = "cross",
                 steps: Sequence[int] | Tensor | None = None, half: str | None = None):
        if kind not in ("cross", "self", "residual"):
            raise ValueError(f"kind {kind!r} is unknown; choose from cross, self, residual")
        if half not in (None, "both", *HALVES):
            raise ValueError(f"half {half!r} is unknown; choose from cond, uncond, both")
        self.where, self.kind, self.steps, self.half, self.fired = where, kind, steps, half or self.half, False

    def parts(self) -> list["Hook"]:
        """The hooks this one consists of."""
        return [self]

    def bind(self, model: nn.Module) -> None:
        """Check heads, steps and samples against the model. Raises ValueError naming the first that does not fit."""
        blocks, device = model.transformer_blocks, next(model.parameters()).device
        if self.kind == "cross" and any(block.attn2 is None for block in blocks):
            raise ValueError("the model has no cross-attention in some block; cross-attention hooks do not apply")
        if self.kind == "residual" and not hasattr(self, "stream"):
            raise ValueError(f"{self} acts on attention, not on the residual stream")
        shape = (len(blocks) + 1, 1) if self.kind == "residual" else (len(blocks), blocks[0].attn1.heads)
        self.chosen, self.fired = head_mask(self.where, *shape).to(device), False          # [S or 1, L, H]
        bad = [] if isinstance(self.steps, Tensor) else [s for s in self.steps or [] if not isinstance(s, int) or s < 0]
        if bad:
            raise ValueError(f"step {bad[0]!r} is not a whole number of at least 0")
        if len(self.sizes()) > 1:
            raise ValueError(f"{self} describes now {' now '.join(map(str, sorted(self.sizes())))} samples")
        for name in self.per_sample:
            value = getattr(self, name)
            setattr(self, name, value.to(device) if isinstance(value, Tensor) else value)

    def layers(self) -> list[int]:
        """The layers at which this hook may act."""
        return self.chosen.any(0).any(1).nonzero().flatten().tolist()

    def active(self, layer: int, step: int, sample: Tensor, half: Tensor) -> Tensor:
        """[B, H] bool: whether to act on each row's head of this layer at this step."""
        chosen = pick(self.chosen, sample)[:, layer]                                       # [B or 1, H]
        if isinstance(self.steps, Tensor):
            chosen = chosen & pick(self.steps, sample)[:, step, None]
        elif self.steps is not None and step not in self.steps:
            chosen = torch.zeros_like(chosen)
        if self.half != "both":
            chosen = chosen & (half == HALVES.index(self.half))[:, None]
        chosen = chosen.expand(len(sample), -1)
        self.fired = self.fired or bool(chosen.any())
        return chosen

    def sizes(self) -> set[int]:
        """How many samples this hook was made for; empty if it treats all alike."""
        given = [getattr(self, name) for name in self.per_sample]
        return {len(v) for v in given if isinstance(v, Tensor)} - {1}

    def __str__(self) -> str:
        return type(self).__name__


class Reader(Hook):
    """A hook whose `read(call)` sees each call at its layers, after all edits."""

    def read(self, call: Call) -> None:
        raise NotImplementedError


class Edit(Hook):
    """A hook whose `act(call, active)` changes the call's stage; `active` [B, H] says for which rows and heads."""
    stage = "output"

    def act(self, call: Call, active: Tensor) -> None:
        raise NotImplementedError


def head_mask(where: Heads | Tensor | None, layers: int, heads: int) -> Tensor:
    """Heads as a bool tensor [S or 1, L, H]. Raises ValueError naming the first layer or head out of range."""
    if where is None:
        return torch.ones(1, layers, heads, dtype=torch.bool)
    if isinstance(where, Tensor):
        if where.dtype != torch.bool or where.shape[1:] != (layers, heads):
            raise ValueError(f"a mask of heads must be a bool tensor [samples, {layers}, {heads}], got "
                             f"{where.dtype} {tuple(where.shape)}")
        return where
    mask = torch.zeros(1, layers, heads, dtype=torch.bool)
    for layer, head in where:
        if not 0 <= layer < layers:
            raise ValueError(f"layer {layer} is out of range; the model has layers 0 to {layers - 1}")
        if not 0 <= head < heads:
            raise ValueError(f"head {head} is out of range; the model has heads 0 to {heads - 1} in each layer")
        mask[0, layer, head] = True
    return mask


def pick(values: Tensor, sample: Tensor) -> Tensor:
    """The rows of `values` [S or 1, ...] for these samples; a single row serves all."""
    if len(values) == 1:
        return values
    if int(sample.max()) >= len(values):
        raise ValueError(f"a hook describes {len(values)} samples but the run has more; open one context for each run")
    return values[sample]


def _to(value, device):
    return value.to(device) if isinstance(value, Tensor) else value


class _Session:
    """What the processors share: the step, and which samples the batch at hand holds."""

    def __init__(self, halves: Sequence[str]):
        self.halves, self.next, self.count, self.step, self.time = [HALVES.index(h) for h in halves], 0, 0, 0, None

    def begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Before each forward: steps go on while the time falls; a time that does not fall begins another batch."""
        latents = args[0] if args else kwargs["hidden_states"]
        time, many = float(kwargs["timestep"].flatten()[0]), len(self.halves)
        if len(latents) % many:
            raise ValueError(f"a batch of {len(latents)} rows does not consist of {many} halves {HALVES}; name its halves")
        if self.time is not None and time < self.time and len(latents) == self.count * many:
            self.step += 1
        else:
            self.next, self.count, self.step = self.next + self.count, len(latents) // many, 0
        self.time = time
        order = torch.arange(self.count, device=latents.device)
        self.sample = (order + self.next).repeat(many)                                     # [B]
        self.half = torch.tensor(self.halves, device=latents.device).repeat_interleave(self.count)
        start = torch.arange(many, device=latents.device).repeat_interleave(self.count) * self.count
        self.local = start - self.next


class _Processor:
    """diffusers' AttnProcessor2_0 for PixArt's attention, opened at every stage for the hooks of one layer."""

    def __init__(self, session: _Session, kind: str, layer: int, hooks: list[Hook]):
        self.session, self.kind, self.layer = session, kind, layer
        self.edits = [h for stage in STAGES for h in hooks if isinstance(h, Edit) and h.stage == stage]
        self.readers = [h for h in hooks if isinstance(h, Reader)]

    def __call__(self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                 attention_mask: Tensor | None = None, **_) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        mask, (rows, tokens) = attention_mask, context.shape[:2]
        if mask is not None:                                            # [B, 1, T] -> [B, H, 1, T], as diffusers does
            mask = attn.prepare_attention_mask(mask, tokens, rows).view(rows, attn.heads, -1, mask.shape[-1])
        query, key, value = (x.view(rows, -1, attn.heads, x.shape[-1] // attn.heads).transpose(1, 2)
                             for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)))
        s = self.session
        call = Call(attn, self.kind, self.layer, s.step, s.sample, s.half, hidden_states, s.local, query, key, value,
                    mask)
        for edit in self.edits:
            if edit.stage == "output" and call.output is None:
                call.output = call.attend()
            active = edit.active(self.layer, s.step, s.sample, s.half)
            if active.any():
                edit.act(call, active)
        call.output = call.attend() if call.output is None else call.output
        for reader in self.readers:
            if reader.active(self.layer, s.step, s.sample, s.half).any():
                reader.read(call)
        return attn.to_out[1](attn.to_out[0](call.output.transpose(1, 2).reshape(rows, -1, attn.heads * query.shape[-1])))


@contextmanager
def hooked(model: nn.Module, *hooks: Hook, halves: Sequence[str] = HALVES) -> Iterator[None]:
    """Attach readers and edits to a PixArtTransformer2DModel within the block; afterwards it is as it was before.

    Steps and samples are counted as the model runs: a batch of B prompts under guidance has 2 B rows, the halves in
    the order of `halves`. Edits of one stage act in the order given. Raises ValueError for a head, layer or step out of
    range or a model without cross-attention, at once; RuntimeError after the block if a hook never acted.
    """
    if not hasattr(model, "transformer_blocks"):
        raise ValueError(f"{type(model).__name__} is no diffusers transformer with blocks of attention")
    parts = [part for hook in hooks for part in hook.parts()]
    for part in parts:
        part.bind(model)
    session, handles, before = _Session(halves), [], []
    try:
        handles.append(model.register_forward_pre_hook(session.begin, with_kwargs=True))
        for layer, block in enumerate(model.transformer_blocks):
            for kind, module in (("self", block.attn1), ("cross", block.attn2)):
                here = [p for p in parts if p.kind == kind and layer in p.layers()]
                if here:
                    before.append((module, module.processor))
                    module.processor = _Processor(session, kind, layer, here)
        streams = [*model.transformer_blocks, model.norm_out]  # the residual stream as each of these receives it
        for part in sorted((p for p in parts if p.kind == "residual"), key=lambda p: isinstance(p, Reader)):
            for layer in part.layers():
                handles.append(streams[layer].register_forward_pre_hook(_on_stream(session, part, layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, processor in before:
            module.processor = processor
    idle = [str(p) for p in parts if not p.fired]
    if idle:
        raise RuntimeError(f"{idle[0]} never acted: no forward ran, or none at its layers, steps and half")


def _on_stream(session: _Session, part: Hook, layer: int):
    def hook(module: nn.Module, args: tuple) -> tuple:
        active = part.active(layer, session.step, session.sample, session.half)[:, 0]     # [B]
        return (part.stream(args[0], layer, session, active), *args[1:]) if active.any() else args
    return hook


def run(model, prompts: Sequence[str], seeds: Sequence[int], *hooks: Hook, steps: int = 14, **options) -> Tensor:
    """Latents [B, 4, 16, 16] of a `pretrained.Model` sampled under hooks; options as in `sample.sample`.

    Raises ValueError, before sampling, for a hook made for another number of samples or a step that does not exist.
    """
    for part in (p for hook in hooks for p in hook.parts()):
        if part.sizes() - {len(prompts)}:
            raise ValueError(f"{part} describes {max(part.sizes())} samples but {len(prompts)} are to be drawn")
        last = part.steps.shape[1] - 1 if isinstance(part.steps, Tensor) else max(part.steps or [0])
        if last >= steps or isinstance(part.steps, Tensor) and last != steps - 1:
            raise ValueError(f"{part} acts at step {last}; the run has steps 0 to {steps - 1}")
    with hooked(model.transformer, *hooks):
        return model.latents(list(prompts), list(seeds), steps=steps, **options)
