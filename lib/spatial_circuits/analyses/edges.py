"""Edges: how much of a factor each component hands to each input of each later one.

Path patching lets one receiver see one sender's output as in the clean run, all else being the
counterpart's (Goldowsky-Dill et al. 2023): a forward an edge. Edge attribution patching (Syed et
al. 2023) takes the gradient at every receiver's input instead: with d_u what sender u writes in the
clean run minus what it writes in the counterpart's, and m the distance to the clean prediction,

    score(u -> r) = - d_u . dm / d(input of r),

all edges from one forward and one backward pass. The gradient is averaged over texts between the
two prompts (EAP-IG; Hanna et al. 2024). Inputs are what queries, keys and values of heads and MLPs
read of the residual stream, so that a score counts the straight path alone; keys and values of
cross-attention read the text, whose tokens are senders by their roles. Scores are shares of the
distance from the counterpart's prediction to the clean one, |.|^2. As gradients fall with the
distance, an edge of share s, patched *alone*, brings 1 - (1 - s)^2 of it. With a `reader`, a head,
m is not the prediction's but the share of that head's query that is still to be turned, and alone
is s; what reaches its query straight adds up to 1, since queries read the stream as it is.

The null asks whether a sender's change fits this prompt's receiver better than the change of
another prompt does: the pairing of changes and gradients is permuted over prompts, and the best of
all edges kept, each in units of its own null, so that p is corrected for the number of edges. An
edge that hands on the relation alone, alike for all prompts that say it, fits many other prompts as
well: its z is at most the root of the number of prompts, and takes some forty to pass.
"""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..data.captions import ROLES
from ..hooks.attach import Session
from ..model.pipeline import Model
from ..model.sampler import STEPS
from ..model.transformer import predict
from ..text.counterparts import counterpart
from ..text.roles import mask_of_role
from .heads import Head, check_heads, head_name
from .intervals import mean_interval
from .patching import clean_trace
from .wires import Wires, position, senders, watched

ROLES_OF_TEXT = ROLES[:-1]          # all but pads
TEXT = "text "                      # "text shape2" is the sender of that role's tokens


@dataclass
class Pairs:
    """Prompts and their counterparts, word for word of equal length, ready to run; [P, ...]."""
    model: Model
    clean: Tensor
    other: Tensor
    mask: Tensor
    roles: list[list[str]]
    trace: list[tuple[int, Tensor, Tensor]]
    reader: Head | None

    def run(self, step: int, session: Session, latents: Tensor, t: Tensor, text: Tensor,
            times: int = 1) -> Tensor:
        """Predictions [times * P, ...] for texts at the latents of a step, float32."""
        session.at(step, ("cond",))
        net = self.model.transformer
        return predict(net, latents.repeat(times, 1, 1, 1), t.expand(len(text)).to(text.device),
                       text, self.mask.repeat(times, 1)).float()

    def seen(self, wires: Wires, prediction: Tensor) -> Tensor:
        """What is to become the clean run's: the prediction, or the reader's query [B, N, d]."""
        if self.reader is None:
            return prediction
        return wires.cross.calls[self.reader[0]].query[:, self.reader[1]].float()


def paired(model: Model, prompts: Sequence[str], factor: str, reader: Head | None, steps: int,
           every: int, seed: int) -> Pairs:
    """The prompts and their counterparts in a factor, at the latents of the clean runs. Raises
    ValueError for every < 1, a head out of range, a prompt without a counterpart, or a pair of
    another number of tokens."""
    if every < 1:
        raise ValueError(f"every is {every}; it must be at least 1")
    if reader is not None:
        check_heads(model, [reader])
    others = [counterpart(p, factor) for p in prompts]
    text = model.encoder.encode([*prompts, *others])
    count = len(prompts)
    uneven = (text.mask[:count] != text.mask[count:]).any(1).nonzero().flatten().tolist()
    if uneven:
        raise ValueError(f"{prompts[uneven[0]]!r} and {others[uneven[0]]!r} differ in their number "
                         "of tokens, so that no token of one stands for one of the other")
    device, dtype = next((p.device, p.dtype) for p in model.transformer.parameters())
    clean, other = text.embeddings.to(device, dtype).split(count)
    trace = [(i, x.to(device, dtype), t)
             for i, x, t in clean_trace(model, prompts, steps, seed)[::every]]
    return Pairs(model, clean, other, text.mask[:count].to(device), text.roles[:count], trace,
                 reader)


def edge_attribution(model: Model, prompts: Sequence[str], factor: str = "relation",
                     reader: Head | None = None, steps: int = STEPS, every: int = 3, seed: int = 1,
                     points: int = 2, draws: int = 1000) -> pd.DataFrame:
    """All edges, strongest first: sender, receiver, score (mean over prompts), low, high (95 %
    bootstrap over prompts), alone, z (how well the prompt's own pairing fits, in units of the
    null), null (the z that a twentieth of the permutations reach with their best edge) and p.

    `every` so many steps, `points` backward passes each. Raises ValueError for numbers below 1,
    fewer than two prompts, as `paired` does, and where the model does not read the factor.
    """
    if points < 1 or draws < 1 or len(prompts) < 2:
        raise ValueError(f"points, draws and prompts are {points}, {draws} and {len(prompts)}; "
                         "edges need at least 1, 1 and 2")
    pairs = paired(model, prompts, factor, reader, steps, every, seed)
    names, scores = _pair_scores(pairs, points)                                       # [P, P, E]
    own = scores.diagonal().T.numpy()                                                    # [P, E]
    z, best = _fits(scores, draws, seed)
    reached = np.searchsorted(np.sort(best), np.abs(z))         # permutations below each edge
    low, high = mean_interval(own, seed=seed)
    alone = own.mean(0) if reader is not None else (1 - (1 - own) ** 2).mean(0)
    table = pd.DataFrame(names, columns=["sender", "receiver"]).assign(
        score=own.mean(0), low=low, high=high, alone=alone, z=z, null=np.quantile(best, 0.95),
        p=(1 + draws - reached) / (draws + 1))
    return table.sort_values("score", key=abs, ascending=False, ignore_index=True)


def _fits(scores: Tensor, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How well each edge's own pairing fits [E], in units of its null, and the best of all edges
    under each permutation [draws]; of scores [P, P, E].

    Every prompt's changes, and its gradients, are first brought to one size, so that a few loud
    prompts do not decide; sizes do not hang on the pairing, so that the test stays exact.
    """
    tiny, count = 1e-30, len(scores)
    square = scores.double().square()
    sizes = square.mean(1, keepdim=True) * square.mean(0, keepdim=True)              # [P, P, E]
    even = scores.double() / (sizes / square.mean((0, 1)).clamp_min(tiny)).sqrt().clamp_min(tiny)
    orders = np.random.default_rng(seed).permuted(np.tile(np.arange(count), (draws, 1)), axis=1)
    picks = torch.zeros(draws, count, count, dtype=torch.double)
    picks[torch.arange(draws)[:, None], torch.from_numpy(orders), torch.arange(count)] = 1 / count
    null = (picks.flatten(1) @ even.flatten(0, 1)).numpy()                           # [draws, E]
    unit = np.maximum(np.sqrt((null ** 2).mean(0)), tiny)
    own = even.diagonal().mean(1).numpy()
    return own / unit, np.abs(null / unit).max(1)


def _pair_scores(pairs: Pairs, points: int) -> tuple[list[tuple[str, str]], Tensor]:
    """Names of edges, and scores [P, P, E] of prompt i's changes at prompt j's receivers."""
    count, model = len(pairs.clean), pairs.model
    total: dict[int, Tensor] = {}
    whole = torch.zeros(count)
    caption = model.transformer.caption_projection
    with watched(model) as (wires, session):
        for i, x, t in pairs.trace:
            latents = x.requires_grad_()
            with torch.no_grad():
                wanted = pairs.seen(wires, pairs.run(i, session, latents, t, pairs.clean))
                writes = wires.writes()
                gap = wanted - pairs.seen(wires, pairs.run(i, session, latents, t, pairs.other))
                moves = (writes - wires.writes()).float().flatten(2)                 # [U, P, N D]
                words = _slots(pairs, (caption(pairs.clean) - caption(pairs.other)).float())
                whole += gap.square().flatten(1).sum(1).cpu()
            for k in range(points):
                text = pairs.other + (k + 0.5) / points * (pairs.clean - pairs.other)
                with torch.enable_grad():
                    seen = pairs.seen(wires, pairs.run(i, session, latents, t,
                                                       text.detach().requires_grad_()))
                    left = (seen - wanted).square().sum() if pairs.reader is None \
                        else -(seen * gap).sum()
                    grads = torch.autograd.grad(left, wires.leaves(), allow_unused=True,
                                                materialize_grads=True)
                names: list[tuple[str, str]] = []
                for n, (some, part) in enumerate(_by_block(pairs, wires, grads, moves, words)):
                    names += some
                    total[n] = total.get(n, 0) - part.cpu() / points
    if not (whole > 0).all():
        what = "prediction" if pairs.reader is None else f"query of {head_name(*pairs.reader)}"
        raise ValueError(f"the {what} is the same for a prompt and its counterpart, so that no "
                         "edge carries the factor there (is the model trained?)")
    return names, torch.cat([total[n] for n in sorted(total)], 2) / whole[:, None]


def _by_block(pairs: Pairs, wires: Wires, grads: Sequence[Tensor], moves: Tensor, words: Tensor
              ) -> Iterator[tuple[list[tuple[str, str]], Tensor]]:
    """Names and products [P, P, E] of the senders' moves and the receivers' gradients."""
    names = senders(pairs.model)
    for inputs, g in wires.receivers(grads):
        if reads_text(inputs[0]):
            sent = [TEXT + role for role in ROLES_OF_TEXT]
            product = torch.einsum("iuxd,rjuxd->ijur", words, _slots(pairs, g.float()))
        else:
            sent = [s for s in names if position(s) < position(inputs[0])]
            product = torch.einsum("uix,rjx->ijur", moves[:len(sent)], g.float().flatten(2))
        yield [(u, r) for u in sent for r in inputs], product.flatten(2)


def reads_text(receiver: str) -> bool:
    """Whether an input reads the text, not the residual stream: keys and values "L0H0.k"."""
    return receiver.endswith((".k", ".v")) and "H" in receiver


def _slots(pairs: Pairs, x: Tensor) -> Tensor:
    """[..., P, T, D] -> [..., P, R, X, D]: the tokens of each role in their order, zero where a
    prompt has fewer than X of them. So the tokens of two prompts can be compared."""
    masks = torch.stack([mask_of_role(pairs.roles, r) for r in ROLES_OF_TEXT], 1)    # [P, R, T]
    order = masks.cumsum(-1) * masks                       # 1, 2 ... at the tokens of each role
    slot = torch.arange(1, int(order.max()) + 1)[:, None]
    chosen = (order[:, :, None] == slot).to(x)                                       # [P, R, X, T]
    return torch.einsum("prxt,...ptd->...prxd", chosen, x)
