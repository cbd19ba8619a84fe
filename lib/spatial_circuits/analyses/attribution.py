"""Attribution: what every component carries, from a few backward passes.

Patching runs the model once for each component. Attribution patching (Syed et al., 2023) takes the
gradient instead: how the distance to the clean prediction falls when a component's output moves
from the counterpart's to the clean one's. One gradient is local; averaged over texts between the
two it is an integral (integrated gradients; Hanna et al., 2024), for heads of both attentions, MLPs
and the text at once. An approximation of `patching.prediction_effects`, to be checked against it.
"""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pandas as pd
import torch
from torch import Tensor

from ..hooks.attach import hooked
from ..hooks.core import Call, Reader
from ..model.pipeline import Model
from ..model.sampler import STEPS
from ..model.transformer import predict
from ..text.counterparts import counterpart
from .heads import head_name
from .patching import clean_trace

POINTS = 4          # texts between the counterpart and the clean prompt


class _Outputs(Reader):
    """The outputs [B, H, N, d] of one kind of attention in the last forward, by layer."""

    def start(self) -> None:
        self.seen: dict[int, Tensor] = {}

    def read(self, call: Call) -> None:
        self.seen[call.layer] = call.output


@contextmanager
def _watched(model: Model) -> Iterator:
    """A function that gives every component's output [B, C, ...] of the last forward, by name."""
    cross, own = _Outputs(), _Outputs(kind="self")
    mlp: dict[int, Tensor] = {}

    def keep(layer: int):
        return model.transformer.transformer_blocks[layer].ff.register_forward_hook(
            lambda _, __, out: mlp.__setitem__(layer, out))
    handles = [keep(i) for i in range(len(model.transformer.transformer_blocks))]
    try:
        with hooked(model.transformer, cross, own) as session:
            yield session, lambda: [*cross.seen.values(), *own.seen.values(), *mlp.values()]
    finally:
        for handle in handles:
            handle.remove()


def components(model: Model) -> list[str]:
    """Names of all components: cross heads "L0H0", self heads "L0S0", MLPs "L0MLP", "text"."""
    blocks = model.transformer.transformer_blocks
    heads = range(blocks[0].attn1.heads)
    cross = [head_name(i, h) for i in range(len(blocks)) for h in heads]
    return [*cross, *(name.replace("H", "S") for name in cross),
            *(f"L{i}MLP" for i in range(len(blocks))), "text"]


def attribute(model: Model, prompts: Sequence[str], factor: str, steps: int = STEPS,
              every: int = 1, seed: int = 1, points: int = POINTS) -> pd.DataFrame:
    """How far each component, made the clean prompt's in the counterpart's run, turns the predicted
    noise into the clean one: rows prompts, columns `components`.

    Scaled as `patching.prediction_effects` with denoising: 0 no effect, 1 all of it. At the clean
    run's latents, `every` so many steps; `points` backward passes a step. Raises ValueError for
    numbers below 1, a prompt without a counterpart, and a pair of another number of tokens.
    """
    if every < 1 or points < 1:
        raise ValueError(f"every and points are {every} and {points}; both must be at least 1")
    others = [counterpart(p, factor) for p in prompts]
    text = model.encoder.encode([*prompts, *others])
    count, net = len(prompts), model.transformer
    if not torch.equal(text.mask[:count], text.mask[count:]):
        uneven = (text.mask[:count] != text.mask[count:]).any(1).nonzero()[0, 0]
        raise ValueError(f"{prompts[uneven]!r} and {others[uneven]!r} differ in their number of "
                         "tokens, so there is no text between them")
    device, dtype = next((p.device, p.dtype) for p in net.parameters())
    clean, other = text.embeddings.to(device, dtype).split(count)
    mask = text.mask[:count].to(device)
    moved = torch.zeros(count, len(components(model)))
    whole = torch.zeros(count)
    with _watched(model) as (session, outputs):

        def run(i: int, t: Tensor, latents: Tensor, embeddings: Tensor) -> Tensor:
            session.at(i, ("cond",))
            return predict(net, latents, t.expand(count).to(device), embeddings, mask)
        for i, x, t in clean_trace(model, prompts, steps, seed)[::every]:
            latents = x.to(device, dtype).requires_grad_()
            with torch.no_grad():
                target = run(i, t, latents, clean)
                wanted = [*outputs(), clean]
                change = run(i, t, latents, other) - target
                whole += change.square().flatten(1).sum(1).float().cpu()
                deltas = [w - o for w, o in zip(wanted, [*outputs(), other])]
            for k in range(points):
                between = other + (k + 0.5) / points * (clean - other)
                between = between.detach().requires_grad_()
                with torch.enable_grad():
                    distance = (run(i, t, latents, between) - target).square().sum()
                    parts = [*outputs(), between]
                    grads = torch.autograd.grad(distance, parts)
                moved -= torch.cat([_by_component(g * d) for g, d in zip(grads, deltas)],
                                   1).float().cpu() / points
    return pd.DataFrame((moved / whole[:, None]).numpy(), index=list(prompts),
                        columns=components(model))


def _by_component(product: Tensor) -> Tensor:
    """Sums [B, C] of an output's gradient times its change: a head each, or the whole."""
    heads = product.flatten(2) if product.ndim == 4 else product.flatten(1)[:, None]
    return heads.sum(-1)
