"""Circuit: which heads belong to it, and three tests of it: faithful, complete, minimal (as for IOI
in GPT-2, arXiv 2211.00593).

Members are found by patching alone: a small greedy set that carries the shape, one that carries
the colour, and one that carries the relation without these two, since the relation ends in *which*
shape and colour go where. To carry is both: to be enough, and to leave nothing behind that would
do. Every other cross-attention head is mean-ablated in the tests.
"""
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from torch import Tensor

from ..model.pipeline import Model
from .ablation import ablate, intact_score
from .heads import INTACT, Head, head_name, heads_of, listed, other_heads
from .intervals import N_BOOT, by_prompt, ratio_interval
from .patching import greedy_patching, query_shares
from .synopsis import attention_scores, synopsis

CIRCUIT_ROLES = ("relation", "object", "colour")


@dataclass
class Circuit:
    """Heads (layer, head) by what they carry, strongest first, and how they were found: `trace`,
    the rows of `patching.greedy_patching`."""
    relation: list[Head]
    object: list[Head]
    colour: list[Head]
    trace: pd.DataFrame = field(repr=False)

    @property
    def heads(self) -> list[Head]:
        """All members, layer by layer."""
        return sorted({*self.relation, *self.object, *self.colour})

    def __str__(self) -> str:
        return "; ".join(f"{role}: {listed(getattr(self, role))}" for role in CIRCUIT_ROLES)


def heads_by_attention(model: Model, prompts: Sequence[str], share: float = 0.5, turn: float = 0.1,
                       seed: int = 1, **options) -> tuple[list[Head], Head, pd.DataFrame]:
    """Relation heads and the object head by where they look and, for the relation, whether it is
    used: no picture is patched.

    The object head has the best object score of the synopsis. Relation heads have at least `share`
    of the best relation score, and their output under the opposite relation turns at least `turn`
    of the object head's query (see `patching.query_shares`); if there is none, the head with the
    best relation score. The table has a row a head: relation, object, turns (NaN for a head that
    does not come before the object head). Options as of `synopsis`. Raises ValueError if no
    picture shows both objects.
    """
    table = synopsis(model, prompts, 1, seed, **options).table("per token").nan_to_num()
    if not len(table):
        raise ValueError("no picture shows both objects, so no head can be seen to look at them "
                         "(is the model trained?)")
    where = {head_name(*h): h for h in heads_of(model)}
    found = {kind: x.mean(0).flatten().tolist() for kind, x in attention_scores(table).items()}
    scores = pd.DataFrame(found, index=list(where))
    reader = where[scores["object"].idxmax()]
    turns = {name: query_shares(model, prompts, "relation", [h], reader, seed)["all paths"].mean()
             for name, h in where.items() if h[0] < reader[0]}
    scores["turns"] = pd.Series(turns, dtype=float)
    scores = scores.sort_values("relation", ascending=False)
    looks = scores["relation"] >= share * scores["relation"].max()
    chosen = scores.index[looks & (scores["turns"] >= turn)]
    names = chosen if len(chosen) else scores.index[:1]
    return [where[n] for n in names], reader, scores


def find_circuit(model: Model, prompts: Sequence[str], target: float = 0.9, limit: int = 6,
                 first: Mapping[str, pd.DataFrame] | None = None, **options) -> Circuit:
    """The circuit of a model, from paired prompts alone; `target` is the effect at which a set is
    complete, measured at every other step.

    `first` holds the effects of single heads by factor, in both directions, if they are known.
    Raises ValueError for a model that does not read a factor, as an untrained one.
    """
    options, first = {"every": 2, **options}, first or {}

    def carriers(factor: str, without: Sequence[Head] = ()) -> pd.DataFrame:
        return greedy_patching(model, prompts, factor, target, limit, without, first.get(factor),
                               **options)
    shape, colour = carriers("shape"), carriers("colour")
    relation = carriers("relation", [*shape["head"], *colour["head"]])
    return Circuit(list(relation["head"]), list(shape["head"]), list(colour["head"]),
                   pd.concat([shape, colour, relation], ignore_index=True))


def tests(model: Model, prompts: Sequence[str], circuit: Sequence[Head], mean: Tensor | None = None,
          random: int = 5, seed: int = 1, **options) -> pd.DataFrame:
    """Scores of every condition that the three tests need, in one sweep; frame as of `ablate`.

    "circuit alone" (faithfulness), "without the circuit" (completeness), "circuit without L0H0" for
    each member (minimality), "nothing", and "random 1" ...: as many heads as the circuit has, drawn
    at random, alone. `mean` as of `mean_outputs` (without it heads are set to zero).
    """
    rng, everyone = np.random.default_rng(seed), heads_of(model)
    sets = {"circuit alone": other_heads(model, circuit), "without the circuit": list(circuit),
            "nothing": everyone}
    for out in circuit:
        rest = [h for h in circuit if h != out]
        sets[f"circuit without {head_name(*out)}"] = other_heads(model, rest)
    for i in range(random):
        drawn = [everyone[k] for k in rng.permutation(len(everyone))[:len(circuit)]]
        sets[f"random {i + 1}"] = other_heads(model, drawn)
    return ablate(model, prompts, sets, mean=mean, seed=seed, **options)


def prune(model: Model, prompts: Sequence[str], circuit: Sequence[Head], mean: Tensor | None = None,
          metric: str = "loose", until: float = 0.5, **options) -> pd.DataFrame:
    """The circuit made smaller: each round takes out the member that the rest, alone, misses least
    by `metric`.

    Ends when the rest is below `until` of the intact model, or one head is left. A row a round:
    out (the name of the head taken out), left (the heads that remain), share of the intact model's
    score. Raises ValueError if the intact model scores 0.
    """
    left = list(circuit)
    rows: list[dict] = []
    while len(left) > 1 and (not rows or rows[-1]["share"] >= until):
        rests = {head_name(*out): [h for h in left if h != out] for out in left}
        sets = {name: other_heads(model, rest) for name, rest in rests.items()}
        frame = ablate(model, prompts, sets, mean=mean, **options)
        scores = frame.groupby("condition", sort=False)[metric].mean()
        intact = intact_score(scores)
        out = scores.drop(INTACT).idxmax()
        left = rests[out]
        rows.append({"out": out, "left": left, "share": scores[out] / intact})
    return pd.DataFrame(rows, columns=["out", "left", "share"])


def shares(frame: pd.DataFrame, metric: str = "loose", seed: int = 0, n_boot: int = N_BOOT
           ) -> pd.DataFrame:
    """Each condition's score as a share of the intact model's: mean, low, high (95 % bootstrap over
    prompts), n_prompts. NaN, with a warning, where the intact model scores 0."""
    cells = by_prompt(frame, [metric])[metric]                                           # [P, C]
    intact = cells[INTACT]
    if not intact.mean() > 0:
        warnings.warn(f"the intact model's {metric} is 0 on all prompts: shares of it are NaN",
                      stacklevel=2)
    low, high = ratio_interval(cells.to_numpy(), intact.to_numpy(), n_boot=n_boot, seed=seed)
    out = pd.DataFrame({"mean": cells.mean() / intact.mean(), "low": low, "high": high,
                        "n_prompts": len(cells)})
    return out.loc[list(dict.fromkeys(frame["condition"]))]


def agreement(scores: pd.DataFrame) -> pd.DataFrame:
    """How far the columns of a table of heads agree, a row a pair: first, second, Spearman's rank
    correlation and its p, whether the top head is the same, and the number of heads."""
    rows = []
    for i, a in enumerate(scores.columns):
        for b in scores.columns[i + 1:]:
            rho, p = spearmanr(scores[a], scores[b])
            same = scores[a].idxmax() == scores[b].idxmax()
            rows.append((a, b, float(rho), float(p), same, len(scores)))
    columns = ["first", "second", "rank correlation", "p", "same top head", "heads"]
    return pd.DataFrame(rows, columns=columns)
