"""Curves: how good a ranking of heads is, as faithfulness over the size of the circuit.

Heads are kept, best first, all others being ablated; or taken away, best first. With m(k) a score
of the circuit of the first k of n heads, its faithfulness is

    f(k) = (m(k) - m(0)) / (m(n) - m(0)),

0 with every head off and 1 for the whole model. CPR is the area under f over k / n (1 would be a
ranking whose first head does everything), CMD the area between f and 1 (Mueller et al. 2025,
arXiv 2504.13151). Ordered weakening is the area between the curve of heads taken away worst first
and the one best first: large where the order matters. Completeness is the area over the curve of
heads taken away best first: how soon nothing is left without the circuit, 1 at once; minimality
what the least needed member of one circuit is worth (`minimality`; both after Wang et al. 2023).
Random orders of the same heads are the null: to take k of them away is to keep n - k, so that they
are kept only, and give a null for completeness, too.
"""
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..data.metrics import METRICS, prompt_set
from ..hooks.edits import Patch
from ..model.pipeline import Model
from ..text.counterparts import PROMPT_FACTORS
from .ablation import ablate
from .attribution import attribute
from .heads import INTACT, Head, head_masks, head_name, heads_of, named_heads, other_heads
from .intervals import LEVELS, N_BOOT, bootstrap_weights, by_prompt, percentiles
from .patching import prediction_effects
from .sweep import spread, sweep
from .synopsis import attention_scores, synopsis
from .weight_maps import screen_words

NUMBERS = ("CPR", "CMD", "ordered weakening", "completeness")
KINDS_OF_ABLATION = ("mean", "zero", "resample")
WAYS = ("keep", "remove")
RANDOM = "random"   # names of random orders: "random 1", ...


def curve_sizes(heads: int, most: int = 12) -> list[int]:
    """Sizes 0 ... n at which a curve is taken, at most `most` of them (at least 3), denser at both
    ends and the same counted from either: what is kept and what is taken away are then the same
    sets."""
    if heads < 2 or most < 3:
        raise ValueError(f"{heads} heads and {most} sizes; a curve needs 2 heads and 3 sizes")
    near = np.unique(np.geomspace(1, heads / 2, (most - 1) // 2).round().astype(int))
    return sorted({0, heads, *near.tolist(), *(heads - near).tolist()})


def rankings(model: Model, prompts: Sequence[str], seed: int = 1, every: int = 2, **options
             ) -> dict[str, list[Head]]:
    """All heads, best first, by four methods, each by the largest of its scores for the factors
    relation, shape and colour (as a share of the factor's largest): "patching" (exact, both
    directions), "attribution" (by gradient), "synopsis" (attention; relation and object), "screen"
    (ramps from the weights; the relation alone).

    Options as of `sample_latents`. Raises ValueError as these analyses do.
    """
    heads = heads_of(model)
    sets = named_heads(heads)
    names = list(sets)
    told = {"steps": options["steps"]} if "steps" in options else {}
    exact = {f: prediction_effects(model, prompts, f, sets, "both", every=every, seed=seed,
                                   **told).mean() for f in PROMPT_FACTORS}
    slopes = {f: attribute(model, prompts, f, every=every, seed=seed, **told).mean()[names]
              for f in PROMPT_FACTORS}
    table = synopsis(model, prompts, 1, seed, **options).table("per token").nan_to_num()
    looks = {kind: pd.Series(x.mean(0).flatten().tolist(), names)
             for kind, x in attention_scores(table).items()}
    words = screen_words(model.transformer, model.encoder, prompt_set("264"))
    ramps = words["projection"].abs().groupby(words["name"]).mean().reindex(names)
    found = {"patching": exact, "attribution": slopes, "synopsis": looks, "screen": {"": ramps}}
    return {method: _ordered(pd.DataFrame(scores), heads) for method, scores in found.items()}


def _ordered(scores: pd.DataFrame, heads: Sequence[Head]) -> list[Head]:
    """Heads by the largest of their scores, each column as a share of its largest."""
    best = (scores / scores.max()).max(axis=1).to_numpy()
    return [heads[i] for i in np.argsort(-best, kind="stable")]


def random_orders(model: Model, count: int, seed: int = 1) -> dict[str, list[Head]]:
    """That many orders of all heads: "random 1", ..."""
    rng, heads = np.random.default_rng(seed), heads_of(model)
    return {f"{RANDOM} {i + 1}": [heads[k] for k in rng.permutation(len(heads))]
            for i in range(count)}


def keep_and_remove(model: Model, prompts: Sequence[str], orders: Mapping[str, Sequence[Head]],
                    sizes: Sequence[int], kind: str = "mean", mean: Tensor | None = None,
                    ways: Sequence[str] = WAYS, seed: int = 1, **options) -> pd.DataFrame:
    """Scores with the first k heads of each order kept, or taken away, for every size k between 0
    and all; and once with every head on, and off.

    Frame as of `sweep` plus order, way and size; on and off have no order and are "remove" 0 and
    all. kind: "mean" (needs `mean` of `ablation.mean_outputs`), "zero", or "resample": outputs as
    in the run of the next prompt, from the same noise. Raises ValueError for an unknown kind or
    way, a size out of range, or an order that does not hold every head once.
    """
    everyone = heads_of(model)
    if wrong_ways := [way for way in ways if way not in WAYS]:
        raise ValueError(f"way {wrong_ways[0]!r} is unknown; choose from {', '.join(WAYS)}")
    for name, order in orders.items():
        if sorted(order) != everyone:
            raise ValueError(f"order {name!r} does not hold every head of the model once")
    wrong = [k for k in sizes if not 0 <= k <= len(everyone)]
    if wrong:
        raise ValueError(f"size {wrong[0]} is out of range; the model has {len(everyone)} heads")
    between = [k for k in sizes if 0 < k < len(everyone)]
    rows = {f"{name} {way} {k}": (name, way, k)
            for name in orders for way in ways for k in between}
    sets = {label: list(orders[name][:k]) if way == "remove"
            else other_heads(model, orders[name][:k]) for label, (name, way, k) in rows.items()}
    rows |= {INTACT: ("", "remove", 0), "nothing": ("", "remove", len(everyone))}
    sets["nothing"] = everyone
    frame = _ablated(model, prompts, sets, kind, mean, seed, **options)
    order, way, size = zip(*(rows[c] for c in frame["condition"]))
    return frame.assign(order=order, way=way, size=size)


def _ablated(model: Model, prompts: Sequence[str], sets: Mapping[str, Sequence[Head]], kind: str,
             mean: Tensor | None, seed: int, **options) -> pd.DataFrame:
    """Scores with each set of heads ablated by a kind; frame as of `sweep`."""
    if kind not in KINDS_OF_ABLATION:
        raise ValueError(f"kind {kind!r} is unknown; choose from {', '.join(KINDS_OF_ABLATION)}")
    if (kind == "mean") != (mean is not None):
        raise ValueError(f"kind {kind!r} and mean {'given' if mean is not None else 'not given'}; "
                         "mean outputs go with kind 'mean'")
    if kind == "resample":
        return _resampled(model, prompts, sets, seed, **options)
    return ablate(model, prompts, sets, seed=seed, mean=mean, **options)


def _resampled(model: Model, prompts: Sequence[str], sets: Mapping[str, Sequence[Head]],
               seed: int, **options) -> pd.DataFrame:
    """Each set of heads speaks as in the run of another prompt from the same noise."""
    donors = [*prompts[1:], prompts[0]]                # neighbours say different relations
    texts = [[donor, *[prompt] * (1 + len(sets))] for prompt, donor in zip(prompts, donors)]
    where = head_masks(model, [(), (), *sets.values()])
    first = torch.arange(len(prompts)) * (2 + len(sets))
    source = first.repeat_interleave(2 + len(sets))
    hook = Patch(source, spread(where, len(prompts)), branch="cond")
    names = ["donor", INTACT, *sets]
    frame = sweep(model, texts, names, [hook], 1, seed, scored=prompts, **options)
    return frame[frame["condition"] != "donor"].reset_index(drop=True)


def faithfulness(frame: pd.DataFrame, metric: str = "loose", seed: int = 0, n_boot: int = N_BOOT
                 ) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Curves and their numbers, with 95 % bootstrap intervals over prompts, of a frame of
    `keep_and_remove`.

    Curves: order, way, size, f, low, high. Numbers: order, number (NUMBERS), value, low, high. For
    random orders f is the mean over them and low and high are their 2.5 and 97.5 percentiles; they
    are called "random" together. Raises ValueError for an unknown metric, or if the intact model
    does no better than with every head off.
    """
    f = _faithful(frame, metric, seed, n_boot)                                   # [1 + n_boot, C]
    place = frame.drop_duplicates("condition").set_index("condition")[["order", "way", "size"]]
    heads = int(place["size"].max())
    curves: list[tuple] = []
    numbers: list[tuple] = []
    drawn: dict[str, list[np.ndarray]] = {}             # by way or number, of the random orders
    for order in [o for o in place["order"].unique() if o]:
        ways, sizes = _ways(f, place, order, heads)
        values = _numbers(order, ways, np.array(sizes) / heads)
        if order.startswith(RANDOM):
            for name, draws in {**ways, **values}.items():
                drawn.setdefault(name, []).append(draws[0])
            continue
        for way, curve in ways.items():
            rows = zip(curve[0], *_ends(curve[1:]))
            curves += [(order, way, k, *row) for k, row in zip(sizes, rows)]
        numbers += [(order, n, value[0], *_ends(value[1:])) for n, value in values.items()]
    for name, each in drawn.items():
        some = np.array(each)
        low, high = percentiles(some)
        if name in WAYS:
            rows = zip(some.mean(0), low, high)
            curves += [(RANDOM, name, k, *row) for k, row in zip(sizes, rows)]
        else:
            numbers.append((RANDOM, name, some.mean(), low, high))
    return (pd.DataFrame(curves, columns=["order", "way", "size", "f", "low", "high"]),
            pd.DataFrame(numbers, columns=["order", "number", "value", "low", "high"]))


def _faithful(frame: pd.DataFrame, metric: str, seed: int, n_boot: int = N_BOOT) -> pd.DataFrame:
    """Every condition's faithfulness [1 + n_boot, C]: of all prompts, then of their resamples."""
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is unknown; choose from {', '.join(METRICS)}")
    cells = by_prompt(frame, [metric])[metric]                                           # [P, C]
    weights = np.vstack([np.ones(len(cells)), bootstrap_weights(len(cells), n_boot, seed)])
    means = pd.DataFrame(weights @ cells.to_numpy() / len(cells), columns=cells.columns)
    whole, nothing = means[INTACT], means["nothing"]                             # [1 + n_boot]
    if not whole[0] > nothing[0]:
        raise ValueError(f"{metric} is {whole[0]:.2f} with all heads and {nothing[0]:.2f} with "
                         "none: there is nothing that a circuit could keep")
    gap = (whole - nothing).where(whole > nothing)
    return means.sub(nothing, axis=0).div(gap, axis=0)


def circuit_size(curves: pd.DataFrame, order: str, until: float = 0.9) -> int:
    """The smallest size at which an order's circuit, kept alone, reaches a faithfulness of `until`;
    all heads if none smaller does. Raises ValueError for an order without such a curve."""
    kept = curves[(curves["order"] == order) & (curves["way"] == "keep")].sort_values("size")
    if kept.empty:
        raise ValueError(f"there is no curve of order {order!r} kept; choose from "
                         f"{', '.join(curves['order'].unique())}")
    return int(kept[kept["f"] >= until]["size"].min())


def minimality(model: Model, prompts: Sequence[str], circuit: Sequence[Head], kind: str = "mean",
               mean: Tensor | None = None, metric: str = "loose", seed: int = 1, **options
               ) -> pd.DataFrame:
    """What each member of a circuit is worth: the faithfulness that the circuit, kept alone, loses
    without it, all other heads ablated by `kind`.

    Rows: name, loss, low, high (95 % bootstrap over prompts), least lost first, the circuit's own
    faithfulness last, named "". Raises ValueError as `keep_and_remove` and `faithfulness` do.
    """
    kept = {"": list(circuit), **{head_name(*out): [h for h in circuit if h != out]
                                  for out in circuit}}
    sets = {f"kept {name}": other_heads(model, some) for name, some in kept.items()}
    sets["nothing"] = heads_of(model)
    frame = _ablated(model, prompts, sets, kind, mean, seed, **options)
    f = _faithful(frame, metric, seed)
    lost = {name: (f["kept "] - f[f"kept {name}"]).to_numpy() for name in kept if name}
    rows = [(name, x[0], *_ends(x[1:])) for name, x in lost.items()]
    rows = sorted(rows, key=lambda row: row[1])
    rows.append(("", f["kept "][0], *_ends(f["kept "][1:].to_numpy())))
    return pd.DataFrame(rows, columns=["name", "loss", "low", "high"])


def _ways(f: pd.DataFrame, place: pd.DataFrame, order: str, heads: int
          ) -> tuple[dict[str, np.ndarray], list[int]]:
    """An order's curves [1 + n_boot, K] by way, and their sizes [K], from 0 to all heads."""
    own = place[place["order"] == order]
    sizes = [0, *sorted(own["size"].unique().tolist()), heads]
    ends = {"keep": (0.0, 1.0), "remove": (1.0, 0.0)}    # of no head, of all heads
    out = {}
    for way in own["way"].unique():
        columns = own[own["way"] == way].sort_values("size").index
        first, last = (np.full((len(f), 1), end) for end in ends[way])
        out[way] = np.hstack([first, f[columns].to_numpy(), last])
    return out, sizes


def _numbers(order: str, ways: dict[str, np.ndarray], share: np.ndarray
             ) -> dict[str, np.ndarray]:
    """NUMBERS [1 + n_boot] of an order, as far as its ways allow."""
    values = {}
    if "keep" in ways:
        values["CPR"] = _area(ways["keep"], share)
        values["CMD"] = _area(np.abs(1 - ways["keep"]), share)
    if len(ways) == len(WAYS):
        worst_first = ways["keep"][:, ::-1]              # n - k kept: the k worst taken away
        values["ordered weakening"] = _area(worst_first - ways["remove"], share)
    if order.startswith(RANDOM) and "remove" not in ways:
        ways = {**ways, "remove": ways["keep"][:, ::-1]}
    if "remove" in ways:
        values["completeness"] = _area(1 - ways["remove"], share)
    return values


def _area(curve: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Area under curves [B, K] over the share of heads [K], by trapezoids."""
    return ((curve[:, 1:] + curve[:, :-1]) / 2 * np.diff(share)).sum(1)


def _ends(draws: np.ndarray) -> np.ndarray:
    """95 % interval of draws [n_boot, ...] without those in which nothing could be kept."""
    return np.nanpercentile(draws, LEVELS, axis=0)
