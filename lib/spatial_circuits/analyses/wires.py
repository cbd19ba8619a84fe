"""Wires: what each component of a running model writes, and what each of its inputs reads.

All components write into one residual stream and read from it (Elhage et al. 2021). In a block

    self-attention   x += gate . sum_h W_o out_h      query, key, value read  scale . LN(x) + shift
    cross-attention  x += sum_h W_o out_h             the query reads x as it is; key, value text
    MLP              x += gate . MLP(.)               reads  scale . LN(x) + shift

so an edge from sender u to receiver r carries what u writes, as r reads it. `Wires` opens the last
forward of a model: the writes of all senders, and, for gradients, the inputs of all receivers.
"""
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..hooks.attach import Session, hooked
from ..hooks.core import Call, Hook, Reader
from ..model.pipeline import Model
from .heads import head_name, layers_and_heads

AT_END = "picture"     # the receiver at the end: final norm and projection to the prediction
BLOCK_PARTS = ("self", "cross", "mlp")    # a block's parts, in the order in which they write


class Calls(Reader):
    """The attention calls of one kind in the last forward, by layer: `calls`."""

    def start(self) -> None:
        self.calls: dict[int, Call] = {}

    def read(self, call: Call) -> None:
        self.calls[call.layer] = call


def component_name(kind: str, layer: int, head: int = 0) -> str:
    """"L0S1" of self-attention, "L0H1" of cross-attention, "L0MLP"."""
    if kind == "mlp":
        return f"L{layer}MLP"
    return head_name(layer, head).replace("H", "S" if kind == "self" else "H")


def position(name: str) -> int:
    """Where in the model a component or input stands; a sender reaches a receiver if its number is
    smaller. "L2S0.q" and "L2S0" -> 6, cross-attention 7, MLP 8. Raises ValueError for no such
    name."""
    if name == AT_END:
        return 10 ** 6
    found = re.match(r"L(\d+)([SHM])", name)
    if not found:
        raise ValueError(f"{name!r} is no component; they are called L0S0 (self-attention), L0H0 "
                         f"(cross-attention), L0MLP, and {AT_END!r} at the end")
    return 3 * int(found[1]) + "SHM".index(found[2])


def senders(model: Model) -> list[str]:
    """Names of all components that write into the stream, in the order in which they do."""
    layers, heads = layers_and_heads(model)
    return [component_name(kind, layer, h) for layer in range(layers) for kind in BLOCK_PARTS
            for h in range(1 if kind == "mlp" else heads)]


class Wires:
    """The last forward of a model under `watched`."""

    def __init__(self, model: Model):
        self.blocks = model.transformer.transformer_blocks
        self.cross, self.own = Calls(), Calls(kind="self")
        self.streams: dict[tuple[str, int], Tensor] = {}     # what a block's part reads [B, N, D]
        self.inputs: dict[int, Tensor] = {}                  # of the MLPs, after norm [B, N, D]
        self.outputs: dict[int, Tensor] = {}                 # of the MLPs, before the gate
        self.modulation: dict[int, tuple[Tensor, ...]] = {}  # six a block, [B, 1, D]

    def writes(self) -> Tensor:
        """[U, B, N, D]: what every sender added to the residual stream."""
        parts: list[Tensor] = []
        for layer in range(len(self.blocks)):
            gate, mlp_gate = self.modulation[layer][2], self.modulation[layer][5]
            parts += [self._heads(self.own.calls[layer]) * gate,
                      self._heads(self.cross.calls[layer]),
                      (self.outputs[layer] * mlp_gate)[None]]
        return torch.cat(parts)

    @staticmethod
    def _heads(call: Call) -> Tensor:
        """[H, B, N, D]: outputs of a call's heads, after their part of the output projection."""
        weight = call.module.to_out[0].weight.unflatten(1, (call.output.shape[1], -1))
        return torch.einsum("bhnd,Dhd->hbnD", call.output, weight)

    def reads(self, kind: str, layer: int) -> Callable[[Tensor], Tensor]:
        """How that part of a block reads a stream [B, N, D]."""
        if kind == "cross":
            return lambda x: x
        first = 0 if kind == "self" else 3
        shift, scale = (x.detach() for x in self.modulation[layer][first:first + 2])
        norm = self.blocks[layer].norm1 if kind == "self" else self.blocks[layer].norm2
        return lambda x: norm.forward(x) * (1 + scale) + shift      # no hook sees this one

    def leaves(self) -> list[Tensor]:
        """The inputs of all receivers, to take gradients of; order as `receivers` wants it."""
        out = []
        for layer in range(len(self.blocks)):
            for call in (self.own.calls[layer], self.cross.calls[layer]):
                out += [call.query, call.key, call.value]
            out.append(self.inputs[layer])
        return [*out, self.streams["out", 0]]

    def receivers(self, grads: Sequence[Tensor]) -> Iterator[tuple[list[str], Tensor]]:
        """Names of receivers, and the gradients [R, B, N or T, D] with respect to what each reads
        of the stream, or, for the keys and values of cross-attention, of the text after the caption
        MLP; from the gradients of `leaves`. A block at a time."""
        for layer in range(len(self.blocks)):
            own, cross, mlp = grads[7 * layer:7 * layer + 3], grads[7 * layer + 3:7 * layer + 6], \
                grads[7 * layer + 6]
            heads = own[0].shape[1]

            def named(kind: str, parts: str, layer: int = layer, heads: int = heads) -> list[str]:
                return [f"{component_name(kind, layer, h)}.{p}" for p in parts
                        for h in range(heads)]
            calls = self.own.calls[layer], self.cross.calls[layer]
            yield named("self", "qkv"), self._read_back("self", layer, torch.cat(
                [_to_input(g, calls[0], p) for g, p in zip(own, "qkv")]))
            yield named("cross", "q"), _to_input(cross[0], calls[1], "q")
            yield named("cross", "kv"), torch.cat(
                [_to_input(g, calls[1], p) for g, p in zip(cross[1:], "kv")])
            yield [f"L{layer}MLP"], self._read_back("mlp", layer, mlp[None])
        yield [AT_END], grads[-1][None]

    def _read_back(self, kind: str, layer: int, grads: Tensor) -> Tensor:
        """Gradients [R, B, N, D] behind the norm -> before it."""
        stream = self.streams[kind, layer].detach()
        _, pull = torch.func.vjp(self.reads(kind, layer), stream)
        return torch.func.vmap(lambda g: pull(g)[0])(grads)


def _to_input(grad: Tensor, call: Call, part: str) -> Tensor:
    """Gradients [B, H, N, d] of queries, keys or values -> of what each head reads [H, B, N, D]."""
    weight = getattr(call.module, f"to_{part}").weight.unflatten(0, (grad.shape[1], -1))
    return torch.einsum("bhnd,hdD->hbnD", grad, weight)


@contextmanager
def watched(model: Model, *hooks: Hook) -> Iterator[tuple[Wires, Session]]:
    """Attach `Wires` to a model, with further hooks, within the block."""
    wires = Wires(model)

    def enter(layer: int):
        def hook(block, args: tuple, kwargs: dict) -> None:
            wires.streams["self", layer] = args[0] if args else kwargs["hidden_states"]
            times = kwargs["timestep"].unflatten(1, (6, -1))
            wires.modulation[layer] = (block.scale_shift_table[None] + times).chunk(6, dim=1)
        return hook

    def mlp(layer: int):
        def hook(_, args: tuple, out: Tensor) -> None:
            wires.inputs[layer], wires.outputs[layer] = args[0], out
        return hook

    def keep(kind: str, layer: int):
        return lambda _, args: wires.streams.__setitem__((kind, layer), args[0])
    with hooked(model.transformer, wires.cross, wires.own, *hooks) as session:
        handles = [model.transformer.norm_out.register_forward_pre_hook(keep("out", 0))]
        for i, block in enumerate(wires.blocks):
            handles += [block.register_forward_pre_hook(enter(i), with_kwargs=True),
                        block.norm2.register_forward_pre_hook(keep("mlp", i)),
                        block.ff.register_forward_hook(mlp(i))]
        try:
            yield wires, session
        finally:
            for handle in handles:
                handle.remove()
