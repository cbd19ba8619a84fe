"""Geometry of text embeddings: what a token's vector says of its word, position and context."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import LeaveOneGroupOut
from torch import Tensor
from torch.nn.functional import normalize

from ..data.captions import PHRASE_RELATION, all_captions, captions, parse
from ..data.scenes import FIRST_PHRASE, REVERSE, Scenes
from ..text.batch import Encoder
from ..text.roles import of_role
from .intervals import mean_interval

CAPTION_POSITIONS = 12  # tokens of the longest caption; the position code is described over these


def cosines(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Cosines between the rows of x [N, D] and of y [M, D] (default x): [N, M]."""
    return normalize(x, dim=-1) @ normalize(x if y is None else y, dim=-1).T


def position_parts(code: Tensor) -> pd.Series:
    """A position code [T, D] over the positions of captions: how much is common to all of them.

    norm: mean norm; common: norm of the mean; specific: mean norm of what is left; share: of the
    squared norm that depends on the position; neighbour, farthest: mean cosine of adjacent
    positions, cosine of the first and last.
    """
    code = code[:CAPTION_POSITIONS]
    mean, cosine = code.mean(0), cosines(code)
    rest = code - mean
    return pd.Series({
        "norm": code.norm(dim=1).mean().item(), "common": mean.norm().item(),
        "specific": rest.norm(dim=1).mean().item(),
        "share": (rest.square().sum() / code.square().sum()).item(),
        "neighbour": cosine.diagonal(1).mean().item(), "farthest": cosine[0, -1].item()})


def retellings(scenes: Scenes) -> dict[str, tuple[Scenes, str]]:
    """The same scenes told with one change, and the role that the word of shape2 has then.

    relation reversed: the opposite phrase of the same wording and length. other shape: object 1
    takes the third shape. colour dropped: object 1's colour word is left out, so that what follows
    moves up one place. objects swapped: object 2 is told first.
    """
    wording = scenes.phrase - FIRST_PHRASE[scenes.relation]
    opposite = FIRST_PHRASE[REVERSE[scenes.relation]] + wording
    third = torch.stack([3 - scenes.shape.sum(1), scenes.shape[:, 1]], 1)                   # [B, 2]
    unsaid = scenes.named & torch.tensor([False, True])
    swapped = {name: getattr(scenes, name).flip(1) for name in ("shape", "color", "named")}
    return {"relation reversed": (scenes.replace(phrase=opposite), "shape2"),
            "other shape": (scenes.replace(shape=third), "shape2"),
            "colour dropped": (scenes.replace(named=unsaid), "shape2"),
            "objects swapped": (scenes.replace(**swapped), "shape1")}


def displacement(encoder: Encoder, scenes: Scenes) -> pd.DataFrame:
    """How far the word of shape2 moves when the rest of its caption changes: a row a scene, a
    column a change. Distance over the word's mean norm; 0: the same vector, 1.4: an unrelated one.
    """
    before = of_role(encoder.encode(captions(scenes)), "shape2")                            # [B, D]
    norm = before.norm(dim=1).mean()
    moved = {name: of_role(encoder.encode(captions(told)), role) - before
             for name, (told, role) in retellings(scenes).items()}
    return pd.DataFrame({name: (x.norm(dim=1) / norm).numpy() for name, x in moved.items()})


def corpus() -> pd.DataFrame:
    """Every different training caption with its relation, pair of shapes (3 s1 + s2) and wording
    (which of its relation's phrases)."""
    told = pd.DataFrame({"caption": all_captions()}).drop_duplicates()
    said = [parse(c) for c in told["caption"]]
    told[["first", "second"]] = [p.shape for p in said]
    told["relation"] = [p.relation for p in said]
    told["pair"] = 3 * told.pop("first") + told.pop("second")
    starts = [PHRASE_RELATION.index(relation) for relation in told["relation"]]
    told["wording"] = [p.phrase for p in said] - np.array(starts)
    return told.reset_index(drop=True)


@dataclass
class Reading:
    """Accuracy of a linear probe on held-out groups, and 95 % bootstrap interval over examples."""
    accuracy: float
    low: float
    high: float


def linear_probe(x: Tensor, label: Tensor, group: Tensor, ridge: float = 0.1,
                 seed: int = 0) -> Reading:
    """Read `label` [N] from x [N, D] by ridge regression on one-hot labels, each group [N] held out
    in turn (scikit-learn's RidgeClassifier and LeaveOneGroupOut).

    `ridge` is relative to the mean square of x. Raises ValueError for unequal lengths, fewer than
    two groups or labels, or an x that is not finite.
    """
    for name, values in (("groups", group), ("labels", label)):
        if len(values) != len(x):
            raise ValueError(f"{len(values)} {name} for {len(x)} vectors; give one each")
        if len(values.unique()) < 2:
            raise ValueError(f"probe needs at least 2 {name}, got {len(values.unique())}")
    if not torch.isfinite(x).all():
        raise ValueError("x holds a number that is not finite (NaN or infinite)")
    inputs, wanted, held = x.double().cpu().numpy(), label.cpu().numpy(), group.cpu().numpy()
    hit = np.zeros(len(inputs))
    for train, test in LeaveOneGroupOut().split(inputs, wanted, held):
        penalty = ridge * inputs[train].var(0).sum() * len(train) / inputs.shape[1]
        probe = RidgeClassifier(alpha=penalty).fit(inputs[train], wanted[train])
        hit[test] = probe.predict(inputs[test]) == wanted[test]
    low, high = mean_interval(hit, seed=seed)
    return Reading(float(hit.mean()), float(low), float(high))
