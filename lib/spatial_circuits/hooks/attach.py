"""Attach: read and edit a diffusers PixArt transformer while it samples. It stays as it is.

    with hooked(model.transformer, Patterns([(2, 1)]), Ablate([(3, 0)])):
        model.images(prompts, seeds)

`hooked` puts an attention processor of its own into each block, and the old ones back. A *reader*
sees each attention call and reduces it there; an *edit* changes one of its stages, query -> key ->
mask -> pattern -> value -> output, or the residual stream between blocks. What a hook acts on is a
mask over [sample, layer, head], so that a sweep over all heads is one batch in which every sample
carries its own edit. Readers alone leave the output bit-identical to plain diffusers. Masks are
made on the CPU before each forward, so that no layer waits for a GPU.

Contexts nest: the outer one's edits come first within a stage, readers see all edits. They may
close in any order. Each thread has contexts of its own; another thread's forwards stay plain.
"""
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from diffusers import PixArtTransformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ..model.forward import BRANCHES, TOLD, Forward
from .core import STAGES, Call, Edit, Hook, Reader, Rows


class Session:
    """An open context; `at` says what a forward by hand is."""

    def __init__(self, contexts: "_Contexts", parts: list[Hook]):
        self.contexts, self.parts = contexts, parts

    def at(self, step: int, branches: Sequence[str] = BRANCHES,
           samples: Sequence[int] | None = None) -> None:
        """Say what the next forward is: its step, the branches of its rows (branch by branch, each
        with all samples) and the numbers of its samples (default: 0, 1 ...). Holds for one forward;
        the sampler needs no such word. Raises ValueError for what cannot be."""
        numbers = None if samples is None else tuple(samples)
        Forward(step, numbers or (), tuple(branches))                   # refuses what is wrong
        self.contexts.next = step, tuple(branches), numbers


class _Contexts:
    """The contexts of one thread on one model, outermost first, and the forward that runs."""
    rows: Rows

    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.next: tuple[int, tuple[str, ...], tuple[int, ...] | None] | None = None
        self.live: dict[tuple[str, int], list[Hook]] = {}               # kind, layer

    def begin(self, latents: Tensor, mask: Tensor | None) -> None:
        """Before each forward: what its rows are, and which hooks act at which layers."""
        forward, self.next = self._forward(len(latents)), None
        sample = torch.tensor(forward.samples * len(forward.branches))
        numbers = [BRANCHES.index(branch) for branch in forward.branches]
        branch = torch.tensor(numbers).repeat_interleave(len(forward.samples))
        device = latents.device
        self.rows = Rows(forward, sample.to(device, non_blocking=True),
                         branch.to(device, non_blocking=True))
        self.live = {}
        parts = [part for session in self.sessions for part in session.parts]
        for part in parts:
            for layer in part.prepare(self.rows):
                self.live.setdefault((part.kind, layer), []).append(part)
        for acting in self.live.values():
            acting.sort(key=_order)
        _refuse_blind(parts, mask)

    def _forward(self, rows: int) -> Forward:
        """What the caller said it is. Raises ValueError if nothing was said, or something else."""
        forward = TOLD.get()
        if forward is None and self.next is not None:
            step, branches, samples = self.next
            if samples is None:
                samples = tuple(range(rows // len(branches)))
            forward = Forward(step, samples, branches)
        if forward is None:
            raise ValueError("the model runs under hooks and nobody said at which step; call "
                             "session.at(step, branches) before each forward by hand, where "
                             "`with hooked(...) as session`")
        if rows != len(forward.samples) * len(forward.branches):
            raise ValueError(f"a batch of {rows} rows does not consist of {len(forward.branches)} "
                             f"branches {forward.branches} of {len(forward.samples)} samples")
        return forward


def _order(part: Hook) -> int:
    """Edits act stage by stage; readers see what they left."""
    return STAGES.index(part.stage) if isinstance(part, Edit) else len(STAGES)


def _refuse_blind(parts: list[Hook], mask: Tensor | None) -> None:
    """ValueError if hooks together hide all keys of a head; `mask` [B, T] or bias [B, 1, T]."""
    for kind in ("cross", "self"):
        hidden = [p.hidden for p in parts if p.kind == kind and p.hidden is not None]
        if not hidden:
            continue
        shown = torch.ones(1, 1, 1, hidden[0].shape[-1], dtype=torch.bool)
        if kind == "cross" and mask is not None:
            shown = mask[:, 0] > -5_000 if mask.ndim == 3 else mask > 0.5
            shown = shown[:, None, None].cpu()                          # one wait, not one a layer
        for keys in hidden:                                             # [B, L, H, T]
            if keys.shape[-1] != shown.shape[-1]:
                raise ValueError(f"a hook describes {keys.shape[-1]} tokens but the text has "
                                 f"{shown.shape[-1]}")
            shown = shown & ~keys
        if not shown.any(-1).all():
            raise ValueError("all tokens of a prompt are hidden; leave at least one")


class _Processor:
    """diffusers' AttnProcessor2_0 for PixArt's attention, opened at every stage for the hooks of
    one layer; where no hook acts, the processor that was there."""

    def __init__(self, mine: "_Attached", kind: str, layer: int, before):
        self.mine, self.kind, self.layer, self.before = mine, kind, layer, before

    def __call__(self, attn: Attention, hidden_states: Tensor,
                 encoder_hidden_states: Tensor | None = None,
                 attention_mask: Tensor | None = None, **rest) -> Tensor:
        contexts = self.mine.contexts()
        acting = contexts.live.get((self.kind, self.layer))
        if not acting:
            return self.before(attn, hidden_states, encoder_hidden_states, attention_mask, **rest)
        rows = contexts.rows
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        mask, (count, tokens) = attention_mask, context.shape[:2]
        if mask is not None:                                # [B, 1, T] -> [B, H, 1, T] as diffusers
            mask = attn.prepare_attention_mask(mask, tokens, count)
            mask = mask.view(count, attn.heads, -1, mask.shape[-1])
        made = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in made)
        call = Call(rows.forward, rows.sample, rows.branch, attn, self.kind, self.layer,
                    hidden_states, query, key, value, mask)
        for part in acting:
            part.fired = True
            if isinstance(part, Reader):
                part.read(call)
            elif isinstance(part, Edit):
                part.act(call, part.now[:, self.layer])
        return attn.to_out[1](attn.to_out[0](call.output.transpose(1, 2).flatten(2)))


class _Attached:
    """What hangs on a model while contexts are open: processors, hooks, each thread's contexts."""

    def __init__(self, model: PixArtTransformer2DModel):
        self.threads: dict[int, _Contexts] = {}
        self.before = []
        self.handles = [model.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for layer, block in enumerate(model.transformer_blocks):
            for kind, module in (("self", block.attn1), ("cross", block.attn2)):
                if module is not None:
                    self.before.append((module, module.processor))
                    module.processor = _Processor(self, kind, layer, module.processor)
        for layer, module in enumerate([*model.transformer_blocks, model.norm_out]):
            self.handles.append(module.register_forward_pre_hook(self._stream(layer)))

    def contexts(self) -> _Contexts:
        """This thread's; without any hooks if it opened none."""
        return self.threads.get(threading.get_ident(), _Contexts())

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        latents = args[0] if args else kwargs["hidden_states"]
        contexts = self.contexts()
        if contexts.sessions:
            contexts.begin(latents, kwargs.get("encoder_attention_mask"))

    def _stream(self, layer: int):
        """The residual stream as this layer receives it; the last is the final norm."""
        def hook(module: nn.Module, args: tuple) -> tuple:
            x, contexts = args[0], self.contexts()
            for part in contexts.live.get(("residual", layer), ()):
                part.fired = True
                x = part.stream(x, layer, contexts.rows, part.now[:, layer, 0])
            return (x, *args[1:])
        return hook

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        for module, processor in self.before:
            module.processor = processor


_attached: WeakKeyDictionary[nn.Module, _Attached] = WeakKeyDictionary()
_lock = threading.Lock()


def _open(model: PixArtTransformer2DModel, parts: list[Hook]) -> Session:
    with _lock:
        for i, part in enumerate(parts):
            if part.attached or part in parts[:i]:
                raise ValueError(f"{part} is in an open context already; make another one")
        for part in parts:
            part.bind(model)
        if model not in _attached:
            _attached[model] = _Attached(model)
        contexts = _attached[model].threads.setdefault(threading.get_ident(), _Contexts())
        session = Session(contexts, parts)
        contexts.sessions.append(session)
        for part in parts:
            part.attached = True
        return session


def _close(model: PixArtTransformer2DModel, session: Session) -> None:
    with _lock:
        for part in session.parts:
            part.attached = False
        session.contexts.sessions.remove(session)
        session.contexts.live = {}                                      # until the next forward
        attached = _attached[model]
        attached.threads = {k: c for k, c in attached.threads.items() if c.sessions}
        if not attached.threads:
            _attached.pop(model).remove()


@contextmanager
def hooked(model: PixArtTransformer2DModel, *hooks: Hook) -> Iterator[Session]:
    """Attach readers and edits to a model within the block, not longer.

    The sampler says which step, samples and branches each forward holds; who calls the model by
    hand says it with `session.at`. Edits of one stage act in the order given. Raises ValueError for
    a head, layer or step out of range, a model without cross-attention or a hook in use, at once;
    RuntimeError after the block if a hook never acted.
    """
    if not hasattr(model, "transformer_blocks"):
        raise ValueError(f"{type(model).__name__} is no diffusers transformer "
                         "with blocks of attention")
    parts = [part for hook in hooks for part in hook.parts()]
    session = _open(model, parts)
    try:
        yield session
    finally:
        _close(model, session)
    idle = [str(p) for p in parts if not p.fired]
    if idle:
        raise RuntimeError(f"{idle[0]} never acted: no forward ran, "
                           "or none at its layers, steps and branch")
