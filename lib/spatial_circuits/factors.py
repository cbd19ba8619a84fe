"""Factors: how much of a token's embedding is relation, own object, other shape; and the vector of each level.

Additive model over n prompts (after the paper's section on variance partition): X = mean + sum_f Z_f B_f + residual, Z_f the
levels of factor f. With P the projector of all factors and P_-f that of all but f,

    partial R2 = tr(Xc' (P - P_-f) Xc) / tr(Xc' Xc),   partial eta2 = SS_f / (SS_f + SS_error),

by thin QR: only n x levels matrices are formed, the permutations of a factor's labels included. Effects sum to zero over
the levels of a factor, whether or not the prompts are balanced.
"""
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .captions import parse
from .scenes import COLORS, OFFSETS, RELATIONS, SHAPES
from .text import Encoder
from .weights import captioned, qk_maps, ramps, templates

FACTORS = {"shape2": ("relation", "own object", "other shape"), "shape1": ("relation", "own object", "other shape"),
           "relation": ("relation", "object 1", "object 2")}  # by the token's role


@dataclass
class Partition:
    """Variance shares (a row a factor) and effect vectors {factor: {level: [D]}} of one token role."""
    table: pd.DataFrame
    effects: dict[str, dict[str, Tensor]]
    mean: Tensor
    r2: float


def labels(prompts: Sequence[str], role: str = "shape2") -> dict[str, list[str]]:
    """The levels of the factors that explain a role's token. Raises ValueError for an unknown role or an incomplete prompt."""
    if role not in FACTORS:
        raise ValueError(f"no factors for role {role!r}; choose from {', '.join(FACTORS)}")
    said = [parse(p) for p in prompts]
    for prompt, s in zip(prompts, said):
        if None in (*s.shape, *s.color, s.relation):
            raise ValueError(f"prompt {prompt!r} does not say both shapes, both colours and a relation")
    objects = [[f"{COLORS[c]} {SHAPES[s]}" for s, c in zip(x.shape, x.color)] for x in said]
    relation = [RELATIONS[x.relation] for x in said]
    if role == "relation":
        return dict(zip(FACTORS[role], (relation, [o[0] for o in objects], [o[1] for o in objects])))
    own = int(role == "shape2")
    return dict(zip(FACTORS[role], (relation, [o[own] for o in objects], [SHAPES[x.shape[1 - own]] for x in said])))


def token_vectors(encoder: Encoder, prompts: Sequence[str], role: str, transformer=None) -> Tensor:
    """[n, D]: the mean embedding of each prompt's tokens of that role; with a transformer, after its caption MLP.

    Raises ValueError naming the first prompt without the role.
    """
    text = encoder.encode(list(prompts))
    mask = torch.tensor([[r == role for r in row] for row in text.roles])
    if not mask.any(1).all():
        raise ValueError(f"prompt {prompts[int((~mask.any(1)).nonzero()[0])]!r} holds no token of role {role}")
    vectors = text.embeddings if transformer is None else captioned(transformer, text.embeddings.to(transformer.device)).cpu()
    return (vectors * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def coded(levels: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Level names and sum-to-zero columns [n, levels - 1]: 1 at the level, -1 in every column at the last."""
    names = list(dict.fromkeys(levels))
    index = np.array([names.index(x) for x in levels])
    return names, np.vstack([np.eye(len(names) - 1), -np.ones(len(names) - 1)])[index]


def _basis(z: np.ndarray) -> np.ndarray:
    """An orthonormal basis [n, rank] of the columns."""
    u, s, _ = np.linalg.svd(z, full_matrices=False)
    return u[:, s > 1e-10 * max(s[0], 1e-300)] if len(s) else u


def partition(x: Tensor, factors: dict[str, Sequence[str]], n_perm: int = 1000, seed: int = 0) -> Partition:
    """Partition the variance of x [n, D] over factors (levels of n prompts each).

    table, by factor: levels, partial_r2, partial_eta2, marginal_r2, p (permutation of that factor's labels with the others kept, at
    least 1 / (n_perm + 1)). Raises ValueError for labels of another length, a factor of one level, or no variance.
    """
    for name, levels in factors.items():
        if len(levels) != len(x):
            raise ValueError(f"factor {name} has {len(levels)} labels for {len(x)} vectors")
        if len(set(levels)) < 2:
            raise ValueError(f"factor {name} has the single level {levels[0]!r}; it explains nothing")
    full = x.double().numpy()
    mean = full.mean(0)
    u, s, _ = np.linalg.svd(full - mean, full_matrices=False)
    kept = s > 1e-9 * max(s[0], 1e-300)
    if s[0] < 1e-9 * max(1.0, np.abs(mean).max()):
        raise ValueError("the vectors do not vary: there is no variance to partition")
    small = u[:, kept] * s[kept]                                                              # [n, r], same inner products
    total = float((small ** 2).sum())
    names, z = zip(*(coded(levels) for levels in factors.values()))
    one = np.ones((len(full), 1))
    explained = lambda columns: float(((_basis(columns - columns.mean(0)).T @ small) ** 2).sum())
    whole = explained(np.hstack(z))
    rng, rows = np.random.default_rng(seed), []
    for i, factor in enumerate(factors):
        other = _basis(np.hstack([one, *(z[j] for j in range(len(z)) if j != i)]))            # [n, k], the constant included
        order = np.stack([np.arange(len(full)), *(rng.permutation(len(full)) for _ in range(n_perm))])
        own = z[i][order]                                                                     # [1 + perms, n, levels - 1]
        own = own - other @ (other.T @ own)
        gram, cross = own.transpose(0, 2, 1) @ own, own.transpose(0, 2, 1) @ small
        w, v = np.linalg.eigh(gram)                                                           # what is nested in others is no direction
        inverse = np.where(w > 1e-9 * (z[i] ** 2).sum(), 1 / np.where(w > 0, w, 1), 0)
        ss = (inverse[..., None] * (v.transpose(0, 2, 1) @ cross) ** 2).sum((1, 2))
        p = (1 + (ss[1:] >= ss[0] * (1 - 1e-9)).sum()) / (n_perm + 1)
        rows.append((factor, len(names[i]), ss[0] / total, ss[0] / max(ss[0] + total - whole, 1e-12 * total), explained(z[i]) / total, p))
    table = pd.DataFrame(rows, columns=["factor", "levels", "partial_r2", "partial_eta2", "marginal_r2", "p"]).set_index("factor")
    solved = np.linalg.lstsq(np.hstack([one, *z]), full, rcond=1e-10)[0]
    effects, start = {}, 1
    for factor, levels, columns in zip(factors, names, z):
        b = solved[start:start + columns.shape[1]]
        start += columns.shape[1]
        effects[factor] = dict(zip(levels, torch.from_numpy(np.vstack([b, -b.sum(0)])).float()))
    return Partition(table, effects, torch.from_numpy(solved[0]).float(), whole / total)


def relation_effects(found: Partition) -> Tensor:
    """[8, D]: the effect of each relation, in the order of `scenes.RELATIONS`."""
    return torch.stack([found.effects["relation"][r] for r in RELATIONS])


def screen(transformer, effects: Tensor, n_perm: int = 1000, seed: int = 0) -> pd.DataFrame:
    """All heads by the ramps that relation effects [8, D], after the caption MLP, draw on the bare position embedding (C12).

    A row a head: name, layer, head, cosine, projection, energy (means over the relations, see `weights.ramps`; negative: the side
    opposite to the named one) and p, from permutations of the relations' names, each head in units of its own null, corrected for
    the number of heads.
    """
    directions = torch.as_tensor(OFFSETS).float()
    maps = qk_maps(transformer, effects.to(transformer.device)).cpu()                                # [L, H, 8, S, S]
    found = {k: v.mean(-1) for k, v in ramps(maps, directions).items()}                              # [L, H]
    fits = (maps - maps.mean(2, keepdim=True)).flatten(3) @ templates(directions, maps.shape[-1]).flatten(1).T   # [L, H, 8 maps, 8 ramps]
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(8, generator=generator) for _ in range(n_perm)])            # [perms, 8]
    drawn = fits[:, :, torch.arange(8), orders].mean(-1).abs()                                       # [L, H, perms]
    unit = drawn.square().mean(-1).sqrt().clamp_min(1e-12)                                           # of each head, so that all heads count
    null, seen = (drawn / unit[..., None]).amax((0, 1)), found["projection"].abs() / unit            # the best head of each permutation
    layers, heads = seen.shape
    rows = [(f"L{i}H{j}", i, j, *(float(v[i, j]) for v in found.values()), (1 + int((null >= seen[i, j]).sum())) / (n_perm + 1))
            for i in range(layers) for j in range(heads)]
    table = pd.DataFrame(rows, columns=["name", "layer", "head", *found, "p"])
    return table.sort_values("projection", key=abs, ascending=False, ignore_index=True)
