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
from .patching import grow

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


def find(model, prompts: Sequence[str], target: float = 0.9, limit: int = 6, **options) -> Circuit:
    """The circuit of a model, from paired prompts alone; `target` is the effect at which a set is complete, measured at every
    other step."""
    options = {"every": 2, **options}
    shape = grow(model, prompts, "shape", target, limit, **options)
    colour = grow(model, prompts, "colour", target, limit, **options)
    output = [*shape["head"], *colour["head"]]
    relation = grow(model, prompts, "relation", target, limit, without=output, **options)
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


def shares(frame: pd.DataFrame, metric: str = "loose", seed: int = 0, n_boot: int = 2000) -> pd.DataFrame:
    """Each condition's score as a share of the intact model's: mean, low, high (95 % bootstrap over prompts), n_prompts."""
    cell = frame.groupby(["prompt", "condition"], sort=False)[metric].mean().unstack("condition").astype(float)
    weights = np.random.default_rng(seed).multinomial(len(cell), np.full(len(cell), 1 / len(cell)), size=n_boot)
    draws = weights @ cell.to_numpy()
    ratio = draws / draws[:, [list(cell).index(INTACT)]]
    low, high = np.percentile(ratio, [2.5, 97.5], axis=0)
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
