"""Max statistic: which of very many heads tell words apart, by the largest score under shuffles.

Bonferroni multiplies a p by the number of heads, so that 448 heads need 9,000 shuffles to show any
p below .05. The step-down max statistic of Westfall and Young (*Resampling-Based Multiple Testing*,
1993, algorithm 2.8) compares each head with the largest of the null instead: it holds the chance of
any false head at the level, whatever the heads' dependence, with a p as small as 1 / (n + 1).
"""
import numpy as np
import torch
from torch import Tensor

from ..data.captions import ROLES
from .synopsis import attention_scores

_SHUFFLES = 999
_CONTENT = [ROLES.index(role) for role in ("colour1", "shape1", "relation", "colour2", "shape2")]


def stepdown_p(true: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Corrected p [K] of K statistics [K], large ones speaking against the null, from the same
    statistics under n shuffles [n, K].

    Each is first measured in standard deviations of its own null, the true one among it, so that no
    head rules the maximum by being noisy. Raises ValueError for another shape, or no shuffle.
    """
    if null.ndim != 2 or null.shape[1:] != true.shape or not len(null):
        raise ValueError(f"the null has shape {null.shape}; it must be [n, {len(true)}], n from 1")
    both = np.vstack([true, null])
    scaled = (both - both.mean(0)) / np.maximum(both.std(0), 1e-12)
    order = np.argsort(-scaled[0])                                       # the largest first
    ranked = scaled[:, order]
    largest = np.maximum.accumulate(ranked[:, ::-1], axis=1)[:, ::-1]    # of this and all below it
    reached = (largest >= ranked[0] - 1e-9).mean(0)                      # the true one counts
    out = np.empty(len(true))
    out[order] = np.maximum.accumulate(reached)
    return out


def head_p(table: Tensor, held: Tensor, n: int = _SHUFFLES, seed: int = 0) -> dict[str, Tensor]:
    """Corrected p [L, H] of both scores of `attention_scores`, each score a family of its own.

    table: "per token" attention [P, L, H, 3, R] of P prompts, 0 for roles that a prompt lacks;
    held: bool [P, R], which it holds. The null shuffles, within each prompt, which of its content
    words (shape, colour, relation) is which, as `synopsis.ranking` does. Raises ValueError for no
    prompt or n < 1.
    """
    if not len(table) or n < 1:
        raise ValueError(f"{len(table)} prompts and n = {n}; a null needs a prompt and a shuffle")
    rng, shuffled = np.random.default_rng(seed), table.clone()
    words, there = table[..., _CONTENT], held[:, _CONTENT].numpy()
    null: dict[str, list[Tensor]] = {}
    for _ in range(n):
        order = torch.from_numpy(_order(there, rng))[:, None, None, None]
        shuffled[..., _CONTENT] = words.gather(-1, order.expand_as(words))
        for kind, value in attention_scores(shuffled).items():
            null.setdefault(kind, []).append(value.mean(0).flatten())
    found = {}
    for kind, value in attention_scores(table).items():
        mean = value.mean(0)
        p = stepdown_p(mean.flatten().numpy(), torch.stack(null[kind]).numpy())
        found[kind] = torch.from_numpy(p).view_as(mean)
    return found


def _order(there: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each prompt, which word's attention each word gets [P, 5]: those that are there
    [P, 5] exchanged at random, the others left."""
    places = np.argsort(np.where(there, 0.0, -1.0), axis=1, kind="stable")    # the absent first
    shuffled = np.argsort(np.where(there, rng.random(there.shape), -1.0), axis=1, kind="stable")
    order = np.empty_like(places)
    np.put_along_axis(order, places, shuffled, 1)
    return order
