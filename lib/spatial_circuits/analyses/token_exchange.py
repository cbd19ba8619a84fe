"""Token exchange: which words carry the relation, its axis and its side told apart.

For a prompt and a donor, tokens of some roles come from the donor and the rest from the prompt (an
interchange intervention on the text; Geiger et al. 2021), every role and every pair of roles. Three
donors a prompt, of the same objects:

    opposite   says the opposite relation: the axis stays, the side turns
    turned     one of the six others, so that the axis changes; they take turns over the prompts of
               a relation, so that all are met alike
    same       another phrase of the same relation: the control, by which nothing should turn

Pictures are scored for the donor's axis and side (`metrics.axis_and_side`), and for the prompt's.
So every prompt meets seven relations in groups of two donors, at 3 x 22 + 1 pictures a prompt; all
seven for each would be 8 x 22 + 1. 88 prompts are 5,896 pictures: 10 minutes at 10 pictures a
second, which two ordinary cores draw. All conditions of a picture are one batch.
"""
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest

from ..data.captions import PHRASE_RELATION, PHRASES, parse
from ..data.metrics import axis_and_side
from ..data.scenes import RELATIONS, REVERSE
from ..model.pipeline import Model
from ..text.batch import Encoder, TextBatch
from ..text.counterparts import relations_said, restated
from ..text.prepared import Prepared
from .sweep import sweep

TURNED = torch.tensor([2, 3, 0, 1, 5, 4, 7, 6])  # above -> left, upper left -> upper right, ...
EXCHANGED = ("relation", "shape2", "shape1", "colour1+colour2", "filler", "end")
TOKEN_SETS = (*EXCHANGED, *("+".join(pair) for pair in combinations(EXCHANGED, 2)))
KINDS_OF_DONOR = ("opposite", "turned", "same")
PARTS_TOLD = ("axis", "side", "side given axis")
_Z = 1.959963984540054      # of a 95 % interval


def donors(prompts: Sequence[str]) -> dict[str, list[str]]:
    """A donor of each kind for every prompt, of its objects. Raises ValueError for a prompt without
    a relation."""
    said = relations_said(prompts)
    found: dict[str, list[str]] = {kind: [] for kind in KINDS_OF_DONOR}
    for i, (prompt, relation) in enumerate(zip(prompts, said)):
        turn, opposite = said[:i].count(relation), int(REVERSE[relation])
        others = [r for r in range(len(RELATIONS)) if r not in (relation, opposite)]
        spoken = parse(prompt).phrase
        phrases = [k for k, r in enumerate(PHRASE_RELATION) if r == relation and k != spoken]
        found["opposite"].append(restated(prompt, opposite))
        found["turned"].append(restated(prompt, others[(turn + relation) % len(others)]))
        found["same"].append(rephrased(prompt, PHRASES[phrases[turn % len(phrases)]]))
    return found


def rephrased(prompt: str, phrase: str) -> str:
    """The prompt, which says a relation, with another phrase in that one's place."""
    start, end = next((s, e) for s, e, role in parse(prompt).spans if role == "relation")
    return prompt[:start] + phrase + prompt[end:]


def hybrids(encoder: Encoder, prompts: Sequence[str], donors: Sequence[str],
            roles: Sequence[str]) -> Prepared:
    """Prompts whose tokens of some roles ("a+b", "all", "none") come from their donors: an encoder
    of the names "0", "1", ... Cross-attention reads a set, so the number of tokens may change."""
    text, row_of = encoded(encoder, [*prompts, *donors])
    rows = [[*picked(text, row_of[prompt], wanted, inside=False),
             *picked(text, row_of[donor], wanted)]
            for prompt, donor, wanted in zip(prompts, donors, roles)]
    return assembled(text, rows)


def encoded(encoder: Encoder, prompts: Sequence[str]) -> tuple[TextBatch, dict[str, int]]:
    """The null prompt and these, each once, and their rows."""
    unique = list(dict.fromkeys(["", *prompts]))
    return encoder.encode(unique), {prompt: i for i, prompt in enumerate(unique)}


def assembled(text: TextBatch, rows: Sequence[Sequence[tuple[int, int]]]) -> Prepared:
    """Texts put together from tokens (row, token) of a batch whose row 0 is the null prompt: an
    encoder of "" and the names "0", "1", ..."""
    rows = [picked(text, 0, "none", inside=False), *rows]
    length = max(map(len, rows))
    embeddings = torch.zeros(len(rows), length, text.embeddings.shape[-1])
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    tokens, said = [], []
    for i, row in enumerate(rows):
        pad, (b, t) = length - len(row), zip(*row)
        embeddings[i, :len(row)] = text.embeddings[list(b), list(t)]
        mask[i, :len(row)] = True
        tokens.append([text.tokens[b][t] for b, t in row] + ["<pad>"] * pad)
        said.append([text.roles[b][t] for b, t in row] + ["pad"] * pad)
    names = ["", *map(str, range(len(rows) - 1))]
    return Prepared(names, TextBatch(embeddings, mask, tokens, said))


def picked(text: TextBatch, row: int, wanted: str, inside: bool = True) -> list[tuple[int, int]]:
    """(row, token) of the attended tokens whose role is among those wanted, or is not."""
    chosen = []
    for t, role in enumerate(text.roles[row]):
        among = wanted == "all" or role in wanted.split("+")
        if text.mask[row, t] and among == inside:
            chosen.append((row, t))
    return chosen


def exchange_tokens(model: Model, prompts: Sequence[str], sets: Sequence[str] = TOKEN_SETS,
                    per_prompt: int = 1, seed: int = 1, **options) -> pd.DataFrame:
    """Every prompt as it is, and with each set of tokens, and all, from each of its donors.

    Frame of `sweep` plus kind (own or one of KINDS_OF_DONOR), tokens, original (the prompt), target
    (the donor's relation; axis and side are scored for it), kept (shows the prompt's own relation),
    and, for opposite and turned, control_axis and control_side: the same scores of the picture with
    the same tokens from the control donor. Raises ValueError for a prompt without a relation.
    """
    found, said = donors(prompts), relations_said(prompts)
    conditions = [("own", "none"), *((kind, t) for kind in KINDS_OF_DONOR for t in (*sets, "all"))]
    count = len(conditions)
    told = [prompt for prompt in prompts for _ in conditions]
    given = [prompt if kind == "own" else found[kind][i]
             for i, prompt in enumerate(prompts) for kind, _ in conditions]
    encoder = hybrids(model.encoder, told, given, [t for _ in prompts for _, t in conditions])
    rows = [[str(i) for i in range(first, first + count)] for first in range(0, len(told), count)]
    scored = [given[first:first + count] for first in range(0, len(told), count)]
    frame = sweep(replace(model, encoder=encoder), rows, [" ".join(c) for c in conditions], (),
                  per_prompt, seed, scored=scored, **options)
    each = len(frame) // count
    own = np.repeat(said, count * per_prompt)
    frame = frame.assign(
        kind=[k for k, _ in conditions] * each, tokens=[t for _, t in conditions] * each,
        original=[p for p in prompts for _ in range(count * per_prompt)],
        target=frame["relation"], kept=axis_and_side(frame["dx"], frame["dy"], own)[1])
    control = np.arange(len(frame)) + [_to_control(conditions, *c) for c in conditions] * each
    target = [RELATIONS.index(relation) for relation in frame["relation"]]
    shown = axis_and_side(frame["dx"].to_numpy()[control], frame["dy"].to_numpy()[control], target)
    turns = frame["kind"].isin(KINDS_OF_DONOR[:2])
    return frame.assign(**{f"control_{part}": np.where(turns, x, np.nan)
                           for part, x in zip(("axis", "side"), shown)})


def _to_control(conditions: Sequence[tuple[str, str]], kind: str, tokens: str) -> int:
    """Rows from a condition to its control's; from one without, to itself."""
    here = conditions.index((kind, tokens))
    return 0 if kind == "own" else conditions.index(("same", tokens)) - here


def exchange_table(frame: pd.DataFrame, by: Sequence[str] = ("kind", "tokens")) -> pd.DataFrame:
    """Token x part: share of the pictures of `exchange_tokens` that show the donor's axis, its side
    (the axis too), and its side among those that show its axis; by columns, "target" among them
    for each relation.

    Rows: `by`, part, share with Wilson's 95 % interval low, high of the original prompts (a prompt
    counts once, by its pictures' mean), control (the control's pictures scored alike), prompts, and
    p: sign test over prompts of share against control, Holm's correction over all rows. NaN where
    there is no control. Raises ValueError for an unknown column.
    """
    missing = [c for c in by if c not in frame]
    if missing:
        raise ValueError(f"frame has no column {missing[0]!r} among {', '.join(frame)}")
    rows = []
    for key, part in frame.groupby(list(by), sort=False):
        for told in PARTS_TOLD:
            rows.append({**dict(zip(by, key)), "part": told, **_told(part, told)})
    table = pd.DataFrame(rows)
    return table.assign(p=holm(table["p"].to_numpy()))


def _told(part: pd.DataFrame, told: str) -> dict[str, float]:
    """A row of `exchange_table` but for its correction."""
    column = "axis" if told == "axis" else "side"
    shown = pd.DataFrame({"ours": part[column], "control": part[f"control_{column}"]}).astype(float)
    if told == "side given axis":
        shown["ours"] = shown["ours"].where(part["axis"].astype(bool))
        shown["control"] = np.nan
    means = shown.groupby(part["original"].to_numpy()).mean()
    ours = means["ours"].dropna()
    low, high = wilson_clusters(ours.to_numpy())
    change = (means["ours"] - means["control"]).dropna()
    up, down = int((change > 0).sum()), int((change < 0).sum())
    p = np.nan if change.empty else binomtest(up, up + down).pvalue if up + down else 1.0
    return {"share": ours.mean(), "low": low, "high": high, "control": means["control"].mean(),
            "prompts": len(ours), "p": p}


def wilson_clusters(means: np.ndarray) -> tuple[float, float]:
    """Wilson's 95 % interval of the share of which the means [K] of K clusters are parts: that of K
    trials, `intervals.wilson` where every mean is 0 or 1; NaN without any."""
    n = len(means)
    if not n:
        return np.nan, np.nan
    middle, whole = means.mean() + _Z ** 2 / (2 * n), 1 + _Z ** 2 / n
    spread = _Z * np.sqrt(means.mean() * (1 - means.mean()) / n + _Z ** 2 / (4 * n ** 2))
    return float((middle - spread) / whole), float((middle + spread) / whole)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's corrected p [R] of R tests (Holm 1979); NaN is no test and stays."""
    out, known = np.full(len(p), np.nan), np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    out[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return out
