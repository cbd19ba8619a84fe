"""Arithmetic: change one token's embedding and leave the rest of the prompt alone (claim C13).

    e' = e - V_old + k V_new,      V the effect of a relation on that token (`factors.partition`)

or, with grafting, e' = the same token's embedding in another prompt. The encoder never sees the new relation: what moves
the objects is the vector of one token.
"""
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .ablation import sweep
from .captions import parse
from .injection import restated
from .scenes import RELATIONS
from .text import Encoder, TextBatch


class Prepared:
    """An encoder that knows a list of prepared embeddings by name, the null prompt among them."""

    def __init__(self, names: Sequence[str], text: TextBatch):
        self.rows, self.text, self.dim = {n: i for i, n in enumerate(names)}, text, text.embeddings.shape[-1]

    def encode(self, prompts: list[str]) -> TextBatch:
        """Raises ValueError for a name that was not prepared."""
        unknown = [p for p in prompts if p not in self.rows]
        if unknown:
            raise ValueError(f"{unknown[0]!r} was not prepared; {len(self.rows)} embeddings were")
        return self.text[[self.rows[p] for p in prompts]]


def changed(encoder: Encoder, prompts: Sequence[str], role: str, deltas: Tensor) -> tuple[Prepared, list[str]]:
    """Every prompt [S] with delta [S, D] added to each of its tokens of that role: an encoder of them and their names.

    Raises ValueError for a prompt without the role or unequal lengths.
    """
    if len(deltas) != len(prompts):
        raise ValueError(f"{len(deltas)} vectors for {len(prompts)} prompts; give one each")
    unique = list(dict.fromkeys(["", *prompts]))
    text = encoder.encode(unique)
    rows = [0, *(unique.index(p) for p in prompts)]
    here = torch.tensor([[r == role for r in text.roles[i]] for i in rows])                   # [1 + S, T]
    if not here[1:].any(1).all():
        raise ValueError(f"prompt {prompts[int((~here[1:].any(1)).nonzero()[0])]!r} holds no token of role {role}")
    batch = text[rows]
    added = torch.cat([torch.zeros(1, deltas.shape[-1]), deltas.float()])
    batch.embeddings = batch.embeddings + here[..., None] * added[:, None]
    names = [f"{p} #{i}" for i, p in enumerate(prompts)]
    return Prepared(["", *names], batch), names


def arithmetic(model, prompts: Sequence[str], effects: Tensor, scales: Sequence[float], role: str = "shape2", per_prompt: int = 1,
               seed: int = 1, control: bool = True, **options) -> pd.DataFrame:
    """Each prompt's relation moved to all 8 relations by -V_old + k V_new on one role's token; effects [8, D].

    Scored against the new relation; `metrics.score`'s frame plus condition, seed, old, new, k and vector ("relation", or
    "shuffled": the effects assigned to the relations at random, none to its own).
    """
    old = [parse(p).relation for p in prompts]
    rng = np.random.default_rng(seed)
    order = rng.permutation(8)
    while (order == np.arange(8)).any():
        order = rng.permutation(8)
    kinds = {"relation": effects, **({"shuffled": effects[order]} if control else {})}
    rows = [(kind, k, new) for kind in kinds for k in scales for new in range(8)]
    deltas = torch.stack([k * kinds[kind][new] - effects[o] for o in old for kind, k, new in rows])
    encoder, names = changed(model.encoder, [p for p in prompts for _ in rows], role, deltas)
    told = [names[i:i + len(rows)] for i in range(0, len(names), len(rows))]
    frames = sweep(replace(model, encoder=encoder), told, [f"{kind} {k:g} {RELATIONS[new]}" for kind, k, new in rows], (), per_prompt, seed,
                   scored=[[restated(p, new) for _, _, new in rows] for p in prompts], **options)
    times = len(frames) // len(rows)
    columns = dict(zip(("vector", "k", "new"), zip(*rows)))
    frames = frames.assign(**{name: list(values) * times for name, values in columns.items()})
    return frames.assign(new=[RELATIONS[n] for n in frames["new"]], old=[RELATIONS[o] for o in old for _ in range(per_prompt * len(rows))])


def graft(model, prompts: Sequence[str], donors: Sequence[str], role: str, per_prompt: int = 1, seed: int = 1, **options) -> pd.DataFrame:
    """Each prompt with one role's token taken from its donor, scored against the donor: conditions "own" and "grafted".

    Raises ValueError if a prompt and its donor differ in their number of tokens of that role.
    """
    text = model.encoder.encode([*prompts, *donors])
    place = [[i for i, r in enumerate(row) if r == role] for row in text.roles]
    batch = text[[i for i in range(len(prompts)) for _ in (0, 1)]]
    for i, prompt in enumerate(prompts):
        mine, theirs = place[i], place[len(prompts) + i]
        if not mine or len(mine) != len(theirs):
            raise ValueError(f"{prompt!r} has {len(mine)} tokens of role {role} and its donor {donors[i]!r} {len(theirs)}")
        batch.embeddings[2 * i + 1, mine] = text.embeddings[len(prompts) + i, theirs]
    null = model.encoder.encode(["", *prompts, *donors])[[0]]
    joined = TextBatch(torch.cat([null.embeddings, batch.embeddings]), torch.cat([null.mask, batch.mask]), null.tokens + batch.tokens,
                       null.roles + batch.roles)
    names = [f"{p} #{kind}{i}" for i, p in enumerate(prompts) for kind in ("own", "grafted")]
    told = [names[2 * i:2 * i + 2] for i in range(len(prompts))]
    return sweep(replace(model, encoder=Prepared(["", *names], joined)), told, ["own", "grafted"], (), per_prompt, seed, scored=list(donors),
                 **options)
