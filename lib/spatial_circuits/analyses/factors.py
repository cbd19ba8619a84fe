"""Factors: how much of a token's embedding is relation, own object, other shape.

Additive model over n prompts (after the paper's section on variance partition):
X = mean + sum_f Z_f B_f + residual, Z_f the levels of factor f. With P the projector of all factors
and P_-f that of all but f,

    partial R2 = tr(Xc' (P - P_-f) Xc) / tr(Xc' Xc),   partial eta2 = SS_f / (SS_f + SS_error),

by thin QR: only n x levels matrices are formed, the permutations of a factor's labels included (as
statsmodels' type-2 ANOVA, which takes one column of X at a time and has no permutations). Effects
sum to zero over the levels of a factor, whether or not the prompts are balanced.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from diffusers import PixArtTransformer2DModel as Transformer
from scipy.linalg import orth
from torch import Tensor

from ..data.captions import parse_whole
from ..data.scenes import COLORS, OFFSETS, RELATIONS, SHAPES
from ..text.batch import Encoder
from ..text.counterparts import relations_said
from ..text.roles import of_role, role_mask
from .heads import head_name
from .weight_maps import project_captions, qk_maps, ramps, templates

TOKEN_FACTORS = {"shape2": ("relation", "own object", "other shape"),
                 "shape1": ("relation", "own object", "other shape"),
                 "relation": ("relation", "object 1", "object 2")}  # by the token's role


@dataclass
class Partition:
    """Variance shares (a row a factor) and effects {factor: {level: [D]}} of one role's token."""
    table: pd.DataFrame
    effects: dict[str, dict[str, Tensor]]
    mean: Tensor
    r2: float


def labels(prompts: Sequence[str], role: str = "shape2") -> dict[str, list[str]]:
    """The levels of the factors that explain a role's token.

    Raises ValueError for an unknown role or an incomplete prompt.
    """
    if role not in TOKEN_FACTORS:
        raise ValueError(f"no factors for role {role!r}; choose from {', '.join(TOKEN_FACTORS)}")
    said = [parse_whole(p) for p in prompts]
    objects = [[f"{COLORS[c]} {SHAPES[s]}" for s, c in zip(x.shape, x.color)] for x in said]
    own = int(role == "shape2")
    first, second = [o[own] for o in objects], [SHAPES[x.shape[1 - own]] for x in said]
    if role == "relation":
        first, second = [o[0] for o in objects], [o[1] for o in objects]
    relation = [RELATIONS[i] for i in relations_said(prompts)]
    return dict(zip(TOKEN_FACTORS[role], (relation, first, second)))


def token_vectors(encoder: Encoder, prompts: Sequence[str], role: str,
                  transformer: Transformer | None = None) -> Tensor:
    """[n, D]: the mean embedding of each prompt's tokens of that role, on the CPU; with a
    transformer, after its caption MLP. Raises ValueError naming a prompt without the role."""
    role_mask(encoder, prompts, role)
    text = encoder.encode(list(prompts))
    if transformer is not None:
        text = replace(text, embeddings=project_captions(transformer, text.embeddings))
    return of_role(text, role).cpu()


def coded(levels: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Level names and sum-to-zero columns [n, levels - 1]: 1 at the level, all -1 at the last."""
    names = list(dict.fromkeys(levels))
    index = np.array([names.index(x) for x in levels])
    return names, np.vstack([np.eye(len(names) - 1), -np.ones(len(names) - 1)])[index]


def _basis(z: np.ndarray) -> np.ndarray:
    """An orthonormal basis [n, rank] of the columns."""
    return orth(z, rcond=1e-10)


def _checked(x: Tensor, factors: Mapping[str, Sequence[str]]) -> np.ndarray:
    """The vectors in float64. Raises ValueError as `partition` does."""
    full = x.detach().double().cpu().numpy()
    if not factors or not np.isfinite(full).all():
        raise ValueError("there is no factor" if not factors else "the vectors are not all finite")
    for name, levels in factors.items():
        if len(levels) != len(full):
            raise ValueError(f"factor {name} has {len(levels)} labels for {len(full)} vectors")
        if len(set(levels)) < 2:
            raise ValueError(f"factor {name} has the single level "
                             f"{', '.join(map(repr, set(levels)))}; it explains nothing")
    return full


def partition(x: Tensor, factors: Mapping[str, Sequence[str]], n_perm: int = 1000,
              seed: int = 0) -> Partition:
    """Partition the variance of x [n, D] over factors (levels of n prompts each).

    table, by factor: levels, partial_r2, partial_eta2, marginal_r2, p (permutation of that factor's
    labels with the others kept, at least 1 / (n_perm + 1)). Raises ValueError for labels of another
    length, a factor of one level, no variance, or vectors that are not finite.
    """
    full = _checked(x, factors)
    mean = full.mean(0)
    u, s, _ = np.linalg.svd(full - mean, full_matrices=False)
    if s[0] < 1e-9 * max(1.0, np.abs(mean).max()):
        raise ValueError("the vectors do not vary: there is no variance to partition")
    kept = s > 1e-9 * s[0]
    small = u[:, kept] * s[kept]                                    # [n, r], same inner products
    total = float((small ** 2).sum())
    names, z = zip(*(coded(levels) for levels in factors.values()))
    one = np.ones((len(full), 1))

    def explained(columns: np.ndarray) -> float:
        return float(((_basis(columns - columns.mean(0)).T @ small) ** 2).sum())

    error = total - explained(np.hstack(z))
    rng, rows = np.random.default_rng(seed), []
    for i, factor in enumerate(factors):
        other = _basis(np.hstack([one, *z[:i], *z[i + 1:]]))             # [n, k], with the constant
        order = [np.arange(len(full)), *(rng.permutation(len(full)) for _ in range(n_perm))]
        ss = _unique_squares(z[i][np.stack(order)], other, small, 1e-9 * (z[i] ** 2).sum())
        p = (1 + (ss[1:] >= ss[0] * (1 - 1e-9)).sum()) / (n_perm + 1)
        rows.append((factor, len(names[i]), ss[0] / total,
                     ss[0] / max(ss[0] + error, 1e-12 * total), explained(z[i]) / total, p))
    columns = ["factor", "levels", "partial_r2", "partial_eta2", "marginal_r2", "p"]
    table = pd.DataFrame(rows, columns=columns).set_index("factor")
    solved = np.linalg.lstsq(np.hstack([one, *z]), full, rcond=1e-10)[0]
    effects, start = {}, 1
    for factor, levels in zip(factors, names):
        b = solved[start:start + len(levels) - 1]
        start += len(b)
        effects[factor] = dict(zip(levels, torch.from_numpy(np.vstack([b, -b.sum(0)])).float()))
    return Partition(table, effects, torch.from_numpy(solved[0]).float(), 1 - error / total)


def _unique_squares(own: np.ndarray, other: np.ndarray, small: np.ndarray,
                    least: float) -> np.ndarray:
    """[k]: the squares of `small` [n, r] that `own` [k, n, levels - 1] adds to `other` [n, m].

    Directions of less than `least` squares are nested in the others, and explain nothing.
    """
    own = own - other @ (other.T @ own)
    gram, cross = own.transpose(0, 2, 1) @ own, own.transpose(0, 2, 1) @ small
    w, v = np.linalg.eigh(gram)
    inverse = np.where(w > least, 1 / np.where(w > 0, w, 1), 0)
    return (inverse[..., None] * (v.transpose(0, 2, 1) @ cross) ** 2).sum((1, 2))


def relation_effects(found: Partition) -> Tensor:
    """[8, D]: the effect of each relation, in the order of `scenes.RELATIONS`.

    Raises ValueError if the prompts behind the partition left a relation out.
    """
    effects = found.effects.get("relation", {})
    missing = [r for r in RELATIONS if r not in effects]
    if missing:
        raise ValueError(f"no prompt says the relation {missing[0]}: its effect is unknown; "
                         f"give prompts of all {len(RELATIONS)} relations")
    return torch.stack([effects[r] for r in RELATIONS])


def screen_effects(transformer: Transformer, effects: Tensor, n_perm: int = 1000,
                   seed: int = 0) -> pd.DataFrame:
    """All heads by the ramps that relation effects [8, D], after the caption MLP, draw on the bare
    position embedding (C12).

    A row a head: name, layer, head, cosine, projection, energy (means over the relations, see
    `weight_maps.ramps`; negative: the side opposite to the named one) and p, from permutations of
    the relations' names, each head in units of its own null, corrected for the number of heads.
    Raises ValueError for n_perm < 1.
    """
    if n_perm < 1:
        raise ValueError(f"n_perm is {n_perm}; it must be at least 1")
    directions = torch.as_tensor(OFFSETS).float()
    maps = qk_maps(transformer, effects)                                # [L, H, 8, rows, columns]
    found = {k: v.mean(-1) for k, v in ramps(maps, directions).items()}                     # [L, H]
    ideal = templates(directions, maps.shape[-2:]).flatten(1)
    fits = (maps - maps.mean(2, keepdim=True)).flatten(3) @ ideal.T      # [L, H, 8 maps, 8 ramps]
    generator = torch.Generator().manual_seed(seed)
    count = len(directions)
    orders = [torch.randperm(count, generator=generator) for _ in range(n_perm)]
    drawn = fits[:, :, torch.arange(count), torch.stack(orders)].mean(-1).abs()      # [L, H, perms]
    unit = drawn.square().mean(-1).sqrt().clamp_min(1e-12)        # of each head, so that all count
    null = (drawn / unit[..., None]).amax((0, 1))                # the best head of each permutation
    seen = found["projection"].abs() / unit
    reached = (null >= seen[..., None]).sum(-1)                                         # [L, H]
    rows = [(head_name(i, j), i, j, *(float(v[i, j]) for v in found.values()),
             (1 + int(reached[i, j])) / (n_perm + 1))
            for i in range(maps.shape[0]) for j in range(maps.shape[1])]
    table = pd.DataFrame(rows, columns=["name", "layer", "head", *found, "p"])
    return table.sort_values("projection", key=abs, ascending=False, ignore_index=True)
