"""Circuit: which heads belong to it, and three tests of it: faithful, complete, minimal (as for IOI in GPT-2).

Members are found by patching alone: a small greedy set that carries the shape, one that carries the colour, and one that
carries the relation without these two, since the relation ends in *which* shape and colour go where. To carry is both: to
be enough, and to leave nothing behind that would do. Every other cross-attention head is mean-ablated in the tests.
"""
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from torch import Tensor

from .ablation import INTACT, ablate, name, others
from .patching import grow, query_shares
from .synopsis import scores, synopsis

ROLES = ("relation", "object", "colour")
Head = tuple[int, int]


@dataclass
class Circuit:
    """Heads (layer, head) by what they carry, strongest first, and how they were found (`patching.grow`)."""
    relation: list[Head]
    object: list[Head]
    colour: list[Head]
    trace: pd.DataFrame = field(repr=False)

    @property
    def heads(self) -> list[Head]:
        return sorted({*self.relation, *self.object, *self.colour})

    def __str__(self) -> str:
        return "; ".join(f"{role}: {', '.join(name(*h) for h in getattr(self, role)) or 'none'}" for role in ROLES)


def scout(model, prompts: Sequence[str], share: float = 0.5, turn: float = 0.1, seed: int = 1,
          **options) -> tuple[list[Head], Head, pd.DataFrame]:
    """Relation heads and the object head by where they look and, for the relation, whether it is used: no picture is patched.

    The object head has the best object score of the synopsis. Relation heads have at least `share` of the best relation
    score, and their output under the opposite relation turns at least `turn` of the object head's query (see
    `patching.query_shares`); if there is none, the head with the best relation score. The table has a row a head: relation,
    object, turns (NaN for a head that does not come before the object head).
    """
    found = scores(synopsis(model, prompts, 1, seed, **options).table("per token").nan_to_num())   # [P, L, H] each
    table = pd.DataFrame({kind: x.mean(0).flatten().tolist() for kind, x in found.items()}, index=[name(*h) for h in others(model, [])])
    where = dict(zip(table.index, others(model, [])))
    reader = where[table["object"].idxmax()]
    table["turns"] = pd.Series({n: query_shares(model, prompts, "relation", [h], reader, seed)["all paths"].mean()
                                for n, h in where.items() if h[0] < reader[0]}, dtype=float)
    table = table.sort_values("relation", ascending=False)
    chosen = table[(table["relation"] >= share * table["relation"].max()) & (table["turns"] >= turn)]
    return [where[n] for n in (chosen.index if len(chosen) else table.index[:1])], reader, table


def find(model, prompts: Sequence[str], target: float = 0.9, limit: int = 6, first: dict[str, pd.DataFrame] | None = None,
         **options) -> Circuit:
    """The circuit of a model, from paired prompts alone; `target` is the effect at which a set is complete, measured at every
    other step. `first` holds the effects of single heads by factor, in both directions, if they are known already."""
    options, first = {"every": 2, **options}, first or {}
    shape = grow(model, prompts, "shape", target, limit, first=first.get("shape"), **options)
    colour = grow(model, prompts, "colour", target, limit, first=first.get("colour"), **options)
    output = [*shape["head"], *colour["head"]]
    relation = grow(model, prompts, "relation", target, limit, without=output, first=first.get("relation"), **options)
    return Circuit(list(relation["head"]), list(shape["head"]), list(colour["head"]),
                   pd.concat([shape, colour, relation], ignore_index=True))


def tests(model, prompts: Sequence[str], circuit: Sequence[Head], mean: Tensor | None = None, random: int = 5, seed: int = 1,
          **options) -> pd.DataFrame:
    """Scores of every condition that the three tests need, in one sweep; frame as of `ablation.ablate`.

    "circuit alone" (faithfulness), "without the circuit" (completeness), "circuit without L0H0" for each member
    (minimality), "nothing", and "random 1" ...: as many heads as the circuit has, drawn at random, alone.
    """
    rng, everyone = np.random.default_rng(seed), others(model, [])
    sets = {"circuit alone": others(model, circuit), "without the circuit": list(circuit), "nothing": everyone}
    sets |= {f"circuit without {name(*h)}": others(model, [c for c in circuit if c != h]) for h in circuit}
    for i in range(random):
        drawn = [everyone[k] for k in rng.permutation(len(everyone))[:len(circuit)]]
        sets[f"random {i + 1}"] = others(model, drawn)
    return ablate(model, prompts, sets, mean=mean, seed=seed, **options)


def prune(model, prompts: Sequence[str], circuit: Sequence[Head], mean: Tensor | None = None, metric: str = "loose", until: float = 0.5,
          **options) -> pd.DataFrame:
    """The circuit made smaller: each round takes out the member that the rest, alone, misses least by `metric`.

    Ends when the rest is below `until` of the intact model, or one head is left. A row a round: out (the name of the head
    taken out), left (the heads that remain), share of the intact model's score.
    """
    left, rows = list(circuit), []
    while len(left) > 1 and (not rows or rows[-1]["share"] >= until):
        sets = {name(*h): others(model, [c for c in left if c != h]) for h in left}
        table = ablate(model, prompts, sets, mean=mean, **options).groupby("condition", sort=False)[metric].mean()
        out = table.drop(INTACT).idxmax()
        left = [h for h in left if name(*h) != out]
        rows.append({"out": out, "left": left, "share": table[out] / max(table[INTACT], 1e-9)})
    return pd.DataFrame(rows, columns=["out", "left", "share"])


def shares(frame: pd.DataFrame, metric: str = "loose", seed: int = 0, n_boot: int = 2000) -> pd.DataFrame:
    """Each condition's score as a share of the intact model's: mean, low, high (95 % bootstrap over prompts), n_prompts."""
    cell = frame.groupby(["prompt", "condition"], sort=False)[metric].mean().unstack("condition").astype(float)
    weights = np.random.default_rng(seed).multinomial(len(cell), np.full(len(cell), 1 / len(cell)), size=n_boot)
    draws = weights @ cell.to_numpy()
    base = draws[:, [list(cell).index(INTACT)]]
    known = base[:, 0] > 0
    low, high = np.percentile(draws[known] / base[known], [2.5, 97.5], axis=0) if known.any() else (np.nan, np.nan)
    out = pd.DataFrame({"mean": cell.mean() / cell[INTACT].mean(), "low": low, "high": high, "n_prompts": len(cell)})
    return out.loc[list(dict.fromkeys(frame["condition"]))]


def agreement(scores: pd.DataFrame) -> pd.DataFrame:
    """How far the columns of a table of heads agree: Spearman's rank correlation, its p, and whether the top head is the same."""
    rows = []
    for i, a in enumerate(scores.columns):
        for b in scores.columns[i + 1:]:
            rho, p = spearmanr(scores[a], scores[b])
            rows.append((a, b, float(rho), float(p), scores[a].idxmax() == scores[b].idxmax(), len(scores)))
    return pd.DataFrame(rows, columns=["first", "second", "rank correlation", "p", "same top head", "heads"])
