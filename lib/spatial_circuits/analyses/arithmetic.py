"""Arithmetic: change one token's embedding and leave the rest of the prompt alone (claim C13).

    e' = e - V_old + k V_new,      V the effect of a relation on that token (`factors.partition`)

or e' = the same token's embedding in another prompt, a donor (an interchange of the input). The
encoder never sees the new relation: what moves the objects is the vector of one token.
"""
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..data.scenes import RELATIONS
from ..model.pipeline import Model
from ..text.batch import Encoder
from ..text.counterparts import relations_said, restated
from ..text.prepared import Prepared, joined
from ..text.roles import occurrences, role_mask
from .sweep import sweep

GRAFTS = ("own", "grafted")  # conditions of a token's exchange


def changed(encoder: Encoder, prompts: Sequence[str], role: str,
            deltas: Tensor) -> tuple[Prepared, list[str]]:
    """Every prompt [S] with delta [S, D] added to each of its tokens of that role: an encoder of
    them, and their names.

    Raises ValueError for a prompt without the role, unequal lengths, or what is not finite.
    """
    if len(deltas) != len(prompts):
        raise ValueError(f"{len(deltas)} vectors for {len(prompts)} prompts; give one each")
    if not torch.isfinite(deltas).all():
        raise ValueError("a vector to add holds a number that is not finite (NaN or infinite)")
    unique = list(dict.fromkeys(prompts))
    rows = [unique.index(p) for p in prompts]
    here = role_mask(encoder, unique, role)[rows]                                           # [S, T]
    text = encoder.encode(["", *unique])
    batch = text[[1 + i for i in rows]]
    batch.embeddings = batch.embeddings + here[..., None] * deltas.to(batch.embeddings)[:, None]
    names = [f"{p} #{i}" for i, p in enumerate(prompts)]
    return Prepared(["", *names], joined(text[[0]], batch)), names


def _derangement(n: int, rng: np.random.Generator) -> np.ndarray:
    """A random order of n things that leaves none in its place."""
    order = rng.permutation(n)
    while (order == np.arange(n)).any():
        order = rng.permutation(n)
    return order


def arithmetic(model: Model, prompts: Sequence[str], effects: Tensor, scales: Sequence[float],
               role: str = "shape2", per_prompt: int = 1, seed: int = 1, control: bool = True,
               **options) -> pd.DataFrame:
    """Each prompt's relation moved to all 8 relations by -V_old + k V_new on one role's token.

    effects [8, D]; scales: the k. Scored against the new relation; `metrics.score`'s frame plus
    condition, seed, old, new, k and vector ("relation", or "shuffled": the effects assigned to the
    relations at random, none to its own). Raises ValueError for no scale, effects of another number
    or not finite, and prompts without a relation or the role.
    """
    if not len(scales) or len(effects) != len(RELATIONS):
        raise ValueError(f"{len(scales)} scales and effects of {len(effects)} relations; "
                         f"give at least one and those of all {len(RELATIONS)}")
    old = relations_said(prompts)
    kinds = {"relation": effects}
    if control:
        kinds["shuffled"] = effects[_derangement(len(effects), np.random.default_rng(seed))]
    rows = [(kind, k, new) for kind in kinds for k in scales for new in range(len(effects))]
    deltas = [k * kinds[kind][new] - effects[o] for o in old for kind, k, new in rows]
    told = [p for p in prompts for _ in rows]
    encoder, names = changed(model.encoder, told, role, torch.stack(deltas))
    frame = sweep(replace(model, encoder=encoder),
                  [names[i:i + len(rows)] for i in range(0, len(names), len(rows))],
                  [f"{kind} {k:g} {RELATIONS[new]}" for kind, k, new in rows], (), per_prompt, seed,
                  scored=[[restated(p, new) for _, _, new in rows] for p in prompts], **options)
    kind, k, new = (list(column) * (len(frame) // len(rows)) for column in zip(*rows))
    return frame.assign(vector=kind, k=k, new=[RELATIONS[r] for r in new],
                        old=[RELATIONS[r] for r in old for _ in range(per_prompt * len(rows))])


def exchanged(encoder: Encoder, prompts: Sequence[str], donors: Sequence[str],
              role: str) -> tuple[Prepared, list[list[str]]]:
    """Each prompt as it is and with one role's token taken from its donor: an encoder of them, and
    their names [P][2].

    Raises ValueError if there are not as many donors as prompts, or a prompt and its donor differ
    in their number of tokens of that role.
    """
    if len(donors) != len(prompts):
        raise ValueError(f"{len(donors)} donors for {len(prompts)} prompts; give one each")
    count, text = len(prompts), encoder.encode(["", *prompts, *donors])
    row, at = occurrences(text, role)
    found = [at[row == i] for i in range(len(text.tokens))]
    own = list(range(1, 1 + count))
    grafted = text[own]
    for i, (prompt, donor) in enumerate(zip(prompts, donors)):
        mine, theirs = found[1 + i], found[1 + count + i]
        if not len(mine) or len(mine) != len(theirs):
            raise ValueError(f"{prompt!r} has {len(mine)} tokens of role {role} "
                             f"and its donor {donor!r} {len(theirs)}")
        grafted.embeddings[i, mine] = text.embeddings[1 + count + i, theirs]
    told = [[f"{p} #{kind}{i}" for kind in GRAFTS] for i, p in enumerate(prompts)]
    names = [pair[k] for k in (0, 1) for pair in told]
    return Prepared(["", *names], joined(text[[0, *own]], grafted)), told


def interchange_token(model: Model, prompts: Sequence[str], donors: Sequence[str], role: str,
                      per_prompt: int = 1, seed: int = 1, **options) -> pd.DataFrame:
    """Each prompt with one role's token taken from its donor, scored against the donor: conditions
    "own" and "grafted". Raises ValueError as `exchanged` does."""
    encoder, told = exchanged(model.encoder, prompts, donors, role)
    return sweep(replace(model, encoder=encoder), told, GRAFTS, (), per_prompt, seed,
                 scored=list(donors), **options)
