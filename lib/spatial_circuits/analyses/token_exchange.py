"""Token exchange: which words carry the relation, its axis and its side told apart.

For a prompt and the same prompt with another relation, the donor, tokens of some roles come from
the donor and the rest from the prompt (an interchange intervention on the text). Pictures are
scored for the donor's axis and side (`metrics.axis_and_side`). Toward the opposite relation the
axis stays and the side turns; toward a `turned` one, a quarter turn away, the axis changes.
"""
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import torch

from ..data.scenes import REVERSE
from ..model.pipeline import Model
from ..text.batch import Encoder, TextBatch
from ..text.counterparts import relations_said, restated
from ..text.prepared import Prepared
from .sweep import sweep

TURNED = torch.tensor([2, 3, 0, 1, 5, 4, 7, 6])  # above -> left, upper left -> upper right, ...
TOKEN_SETS = ("relation", "shape2", "shape1", "colour1+colour2", "filler+end",
              "relation+shape2")
KINDS_OF_DONOR = {"opposite": REVERSE, "turned": TURNED}


def hybrids(encoder: Encoder, prompts: Sequence[str], donors: Sequence[str],
            roles: Sequence[str]) -> Prepared:
    """Prompts whose tokens of some roles ("a+b", "all", "none") come from their donors: an encoder
    of the names "0", "1", ... Cross-attention reads a set, so the number of tokens may change."""
    text = encoder.encode(["", *prompts, *donors])
    rows = [_picked(text, 0, "none", inside=False)]
    for i, wanted in enumerate(roles):
        kept = _picked(text, 1 + i, wanted, inside=False)
        given = _picked(text, 1 + len(prompts) + i, wanted)
        rows.append([*kept, *given])
    length = max(map(len, rows))
    embeddings = torch.zeros(len(rows), length, text.embeddings.shape[-1])
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    tokens, said = [], []
    for i, row in enumerate(rows):
        pad = length - len(row)
        for j, (b, t) in enumerate(row):
            embeddings[i, j] = text.embeddings[b, t]
        mask[i, :len(row)] = True
        tokens.append([text.tokens[b][t] for b, t in row] + ["<pad>"] * pad)
        said.append([text.roles[b][t] for b, t in row] + ["pad"] * pad)
    names = ["", *map(str, range(len(prompts)))]
    return Prepared(names, TextBatch(embeddings, mask, tokens, said))


def _picked(text: TextBatch, row: int, wanted: str, inside: bool = True) -> list[tuple[int, int]]:
    """(row, token) of the attended tokens whose role is among those wanted, or is not."""
    chosen = []
    for t, role in enumerate(text.roles[row]):
        among = wanted == "all" or role in wanted.split("+")
        if text.mask[row, t] and among == inside:
            chosen.append((row, t))
    return chosen


def exchange_tokens(model: Model, prompts: Sequence[str], sets: Sequence[str] = TOKEN_SETS,
                    per_prompt: int = 1, seed: int = 1, **options) -> pd.DataFrame:
    """Every prompt as it is, and with each set of tokens from its opposite and its turned donor.

    Frame of `sweep` plus kind (own, opposite, turned), tokens and target; axis and side are the
    donor's, or the prompt's where kind is own. Raises ValueError for a prompt without a relation.
    """
    said = relations_said(prompts)
    conditions = [("own", "none"),
                  *((kind, tokens) for kind in KINDS_OF_DONOR for tokens in (*sets, "all"))]
    told, donors = [], []
    for prompt, relation in zip(prompts, said):
        for kind, _ in conditions:
            target = relation if kind == "own" else int(KINDS_OF_DONOR[kind][relation])
            told.append(prompt)
            donors.append(prompt if kind == "own" else restated(prompt, target))
    roles = [tokens for _ in prompts for _, tokens in conditions]
    encoder = hybrids(model.encoder, told, donors, roles)
    count = len(conditions)
    rows = [[str(i) for i in range(first, first + count)] for first in range(0, len(told), count)]
    scored = [donors[first:first + count] for first in range(0, len(told), count)]
    frame = sweep(replace(model, encoder=encoder), rows, [" ".join(c) for c in conditions], (),
                  per_prompt, seed, scored=scored, **options)
    each = len(frame) // count
    return frame.assign(kind=[k for k, _ in conditions] * each,
                        tokens=[t for _, t in conditions] * each, target=frame["relation"])
