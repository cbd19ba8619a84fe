"""Geometry of text embeddings: what a token's vector says about its word, its place and the words around it."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .captions import PHRASE_RELATION, all_captions, captions, parse
from .scenes import PHRASES_PER_RELATION, REVERSE, Scenes
from .text import Encoder, TextBatch

CAPTION_POSITIONS = 12  # tokens of the longest caption; the position code is described over these


def cosines(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Cosines between the rows of x [N, D] and of y [M, D] (default x): [N, M]."""
    x, y = (torch.nn.functional.normalize(z, dim=-1) for z in (x, x if y is None else y))
    return x @ y.T


def of_role(batch: TextBatch, role: str) -> Tensor:
    """Each prompt's embedding of a role [B, D], the mean where it has several tokens.

    Raises ValueError, with the tokens, for a prompt without that role.
    """
    weight = torch.tensor([[float(r == role) for r in row] for row in batch.roles])        # [B, T]
    if not weight.any(1).all():
        missing = int((~weight.any(1)).nonzero()[0])
        raise ValueError(f"no token has the role {role!r} in {' '.join(batch.tokens[missing])!r}; "
                         f"its roles: {', '.join(dict.fromkeys(batch.roles[missing]))}")
    weight = weight / weight.sum(1, keepdim=True)
    return (weight[..., None] * batch.embeddings).sum(1)


def place_of_role(batch: TextBatch, role: str) -> Tensor:
    """Index of the role's first token in each prompt [B], counted from 0."""
    return torch.tensor([row.index(role) for row in batch.roles])


def position_parts(code: Tensor) -> pd.Series:
    """A position code [T, D] over the positions of captions: how much of it is common to all of them.

    norm: mean norm; common: norm of the mean; specific: mean norm of what is left; share: of the squared norm that
    depends on the position; neighbour, farthest: mean cosine of adjacent places, cosine of the first and last.
    """
    code = code[:CAPTION_POSITIONS]
    mean = code.mean(0)
    rest, cosine = code - mean, cosines(code)
    return pd.Series({
        "norm": code.norm(dim=1).mean().item(), "common": mean.norm().item(), "specific": rest.norm(dim=1).mean().item(),
        "share": (rest.square().sum() / code.square().sum()).item(),
        "neighbour": cosine.diagonal(1).mean().item(), "farthest": cosine[0, -1].item()})


def edits(scenes: Scenes) -> dict[str, tuple[Scenes, str]]:
    """The same scenes told with one change, and the role that the word of shape2 has then.

    relation reversed: the opposite phrase of the same wording and length. other shape: object 1 takes the third
    shape. colour dropped: object 1's colour word is left out, so that what follows moves up one place. objects
    swapped: object 2 is told first.
    """
    first = PHRASES_PER_RELATION.cumsum(0) - PHRASES_PER_RELATION
    opposite = first[REVERSE[scenes.relation]] + scenes.phrase - first[scenes.relation]
    third = torch.stack([3 - scenes.shape.sum(1), scenes.shape[:, 1]], 1)                   # [B, 2]
    return {
        "relation reversed": (scenes.replace(phrase=opposite), "shape2"),
        "other shape": (scenes.replace(shape=third), "shape2"),
        "colour dropped": (scenes.replace(named=scenes.named & torch.tensor([False, True])), "shape2"),
        "objects swapped": (scenes.replace(shape=scenes.shape.flip(1), color=scenes.color.flip(1),
                                           named=scenes.named.flip(1)), "shape1"),
    }


def displacement(encoder: Encoder, scenes: Scenes) -> pd.DataFrame:
    """How far the word of shape2 moves when the rest of its caption changes: one row a scene, one column an edit.

    Distance over the mean norm of the word's embedding; 0 = the vector is the same, about 1.4 = unrelated.
    """
    def states(told: Scenes, role: str) -> Tensor:
        return of_role(encoder.encode(captions(told)), role)
    before = states(scenes, "shape2")                                                       # [B, D]
    norm = before.norm(dim=1).mean()
    return pd.DataFrame({name: ((states(*edit) - before).norm(dim=1) / norm).numpy()
                         for name, edit in edits(scenes).items()})


def corpus() -> pd.DataFrame:
    """Every different training caption with its relation, pair of shapes (3 s1 + s2) and wording (which of its
    relation's phrases)."""
    told = list(dict.fromkeys(all_captions()))
    said = [parse(c) for c in told]
    return pd.DataFrame({"caption": told, "relation": [p.relation for p in said],
                         "pair": [3 * p.shape[0] + p.shape[1] for p in said],
                         "wording": [p.phrase - PHRASE_RELATION.index(p.relation) for p in said]})


@dataclass
class Reading:
    """Accuracy of a linear probe on held-out groups, with a 95 % bootstrap interval over the groups' examples."""
    accuracy: float
    low: float
    high: float


def probe(x: Tensor, label: Tensor, group: Tensor, ridge: float = 0.1, seed: int = 0) -> Reading:
    """Read `label` [N] from x [N, D] by ridge regression on one-hot labels, each group [N] held out in turn.

    `ridge` is relative to the mean square of x. Raises ValueError for fewer than two groups.
    """
    groups = group.unique()
    if len(groups) < 2:
        raise ValueError(f"probe needs at least 2 groups to hold one out, got {len(groups)}")
    x, target = x.double(), torch.nn.functional.one_hot(label).double()                     # [N, D], [N, K]
    hit = torch.empty(len(x))
    for held in groups:
        train, test = group != held, group == held
        mean, base = x[train].mean(0), target[train].mean(0)
        inputs = x[train] - mean                                                            # [n, D]
        penalty = ridge * inputs.square().sum() / x.shape[1] * torch.eye(x.shape[1], dtype=x.dtype)
        weight = torch.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ (target[train] - base))
        hit[test] = (((x[test] - mean) @ weight + base).argmax(1) == label[test]).float()
    draws = np.random.default_rng(seed).integers(0, len(hit), (2000, len(hit)))
    low, high = np.percentile(hit.numpy()[draws].mean(1), [2.5, 97.5])
    return Reading(hit.mean().item(), float(low), float(high))
