"""Carriers: what takes the tag from the relation heads to the object head's query.

In the counterpart's run the relation heads' outputs are those of the clean run, and the object
head's query turns by some share of the way to its clean one: the *tag* that arrives. It may come
straight, through the residual stream, or by MLPs, self-attention and other cross-attention heads
between the two. Holding such a component at what it gives in the counterpart's run removes every
path through it, and nothing else (an interchange intervention on the paths; Goldowsky-Dill et al.
2023, path patching): what is lost of the tag went that way. All at the latents of the clean run.
"""
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from math import comb, prod

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..hooks.core import Hook
from ..hooks.edits import Patch
from ..model.pipeline import Model
from ..model.sampler import STEPS
from .edges import Pairs, paired
from .heads import Head, check_heads, head_masks, head_name, layers_and_heads, parse_head
from .intervals import percentiles, ratio_interval
from .sweep import spread
from .wires import BLOCK_PARTS, position, senders, watched

KIND_WORDS = {"self": "self-attention", "cross": "cross-attention", "mlp": "MLPs"}
_RUNS = 2       # the clean run and the counterpart's, before those with components held


def kind_of(name: str) -> str:
    """"self", "cross" or "mlp" of a component's name."""
    return BLOCK_PARTS[position(name) % 3]


def between(model: Model, relation: Sequence[Head], reader: Head) -> list[str]:
    """Names of the components that lie between the first of the relation heads and the reader, and
    are none of them. Raises ValueError for a head out of range, or none before the reader."""
    check_heads(model, [*relation, reader])
    start = min(position(head_name(*h)) for h in relation) if relation else None
    end = position(head_name(*reader))
    if start is None or start >= end:
        raise ValueError(f"no relation head comes before the reader {head_name(*reader)}, so that "
                         "nothing can be carried to its query")
    own = [head_name(*h) for h in relation]
    return [n for n in senders(model) if start < position(n) < end and n not in own]


def tags(model: Model, prompts: Sequence[str], relation: Sequence[Head], reader: Head,
         held: Mapping[str, Sequence[str]], factor: str = "relation", steps: int = STEPS,
         every: int = 4, seed: int = 1, batch: int = 256) -> pd.DataFrame:
    """The share of the reader's query, on the way from the counterpart's to the clean one, that the
    relation heads turn while the components of each set are held: rows prompts, columns `held`.

    Every set is a row a prompt of one forward; `batch` rows at once. Raises ValueError for a
    component that is not between them, and as `edges.paired` does.
    """
    known = between(model, relation, reader)
    for name, components in held.items():
        if wrong := [c for c in components if c not in known]:
            raise ValueError(f"set {name!r} holds {wrong[0]!r}, which is not between the relation "
                             f"heads and the reader; choose from {', '.join(known) or 'none'}")
    pairs = paired(model, prompts, factor, reader, steps, every, seed)
    sets, count = list(held.values()), len(prompts)
    size = max(1, batch // count - _RUNS)
    found, whole = torch.zeros(count, len(sets)), torch.zeros(count)
    for i, x, t in pairs.trace:
        for start in range(0, len(sets), size):
            query = _queries(pairs, i, x, t, relation, sets[start:start + size])  # [P, 2 + C, N, d]
            gap = query[:, 0] - query[:, 1]
            if not start:
                whole += gap.square().flatten(1).sum(1).cpu()
            moved = (query[:, _RUNS:] - query[:, 1:2]) * gap[:, None]
            found[:, start:start + size] += moved.flatten(2).sum(2).cpu()
    return pd.DataFrame((found / whole[:, None]).numpy(), list(prompts), list(held))


@torch.no_grad()
def _queries(pairs: Pairs, i: int, x: Tensor, t: Tensor, relation: Sequence[Head],
             sets: Sequence[Sequence[str]]) -> Tensor:
    """The reader's query [P, 2 + C, N, d]: clean, counterpart, and with each set held."""
    count, conditions = len(x), _RUNS + len(sets)
    clean = torch.arange(count).repeat_interleave(conditions) * conditions
    other = clean + 1
    sending = head_masks(pairs.model, [(), (), *[relation] * len(sets)])
    hooks: list[Hook] = [Patch(clean, spread(sending, count), branch="cond")]
    for kind in ("self", "cross"):
        masks = head_masks(pairs.model, [(), (), *(
            [parse_head(c.replace("S", "H")) for c in s if kind_of(c) == kind] for s in sets)])
        if masks.any():
            hooks.append(Patch(other, spread(masks, count), kind=kind, branch="cond"))
    mlps = torch.zeros(conditions, layers_and_heads(pairs.model)[0], dtype=torch.bool)
    for row, components in enumerate(sets, _RUNS):
        for component in components:
            if kind_of(component) == "mlp":
                mlps[row, position(component) // 3] = True
    text = torch.stack([pairs.clean, *[pairs.other] * (conditions - 1)], 1).flatten(0, 1)
    one = replace(pairs, mask=pairs.mask.repeat_interleave(conditions, 0))
    with watched(pairs.model, *hooks) as (wires, session), \
            _held_mlps(wires.blocks, spread(mlps, count), other):
        prediction = one.run(i, session, x.repeat_interleave(conditions, 0), t, text)
        return pairs.seen(wires, prediction).unflatten(0, (count, conditions))


@contextmanager
def _held_mlps(blocks: nn.ModuleList, where: Tensor, source: Tensor) -> Iterator[None]:
    """MLPs of layers [rows, L] give, within the block, what they give at row `source` [rows]."""
    def hook(layer: int):
        def hold(_, args: tuple, out: Tensor) -> Tensor:
            rows = where[:, layer].to(out.device)[:, None, None]
            return torch.where(rows, out[source.to(out.device)], out)
        return hold
    handles = [block.ff.register_forward_hook(hook(layer), prepend=True)
               for layer, block in enumerate(blocks) if where[:, layer].any()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def ways(model: Model, prompts: Sequence[str], relation: Sequence[Head], reader: Head,
         **options) -> pd.DataFrame:
    """`tags` by way, rows prompts: "all paths"; "straight", with every component between held;
    "without" and "by", for self-attention, cross-attention and MLPs, where there are some: that
    kind held, and all but that kind held."""
    nodes = between(model, relation, reader)
    sets: dict[str, list[str]] = {"all paths": [], "straight": nodes}
    for kind, word in KIND_WORDS.items():
        of_kind = [n for n in nodes if kind_of(n) == kind]
        if of_kind:
            sets |= {f"without {word}": of_kind,
                     f"by {word}": [n for n in nodes if n not in of_kind]}
    return tags(model, prompts, relation, reader, sets, **options)


def carriers(model: Model, prompts: Sequence[str], relation: Sequence[Head], reader: Head,
             limit: int = 3, until: float = 0.5, **options) -> pd.DataFrame:
    """The components between that matter most, greedily: each round holds the one without which
    least of the tag arrives, until less than `until` of it does, `limit` are held, or a further one
    takes nothing. A row a round: name, left (mean share of the tag that still arrives).

    The first row, named "", holds none. Raises ValueError as `tags` does.
    """
    nodes = between(model, relation, reader)
    whole = float(tags(model, prompts, relation, reader, {"": []}, **options)[""].mean())
    rows: list[tuple[str, float]] = [("", 1.0)]
    chosen: list[str] = []
    while len(chosen) < min(limit, len(nodes)) and rows[-1][1] > until:
        sets = {n: [*chosen, n] for n in nodes if n not in chosen}
        left = tags(model, prompts, relation, reader, sets, **options).mean() / whole
        if left.min() >= rows[-1][1]:
            break
        chosen.append(str(left.idxmin()))
        rows.append((chosen[-1], float(left.min())))
    return pd.DataFrame(rows, columns=["name", "left"])


def alike(nodes: Sequence[str], chosen: Sequence[str], draws: int = 1000, seed: int = 1
          ) -> list[list[str]]:
    """Sets with as many components of each kind as `chosen`, out of `nodes`: all of them, if there
    are no more than `draws`, else that many at random."""
    by_kind = {kind: [n for n in nodes if kind_of(n) == kind] for kind in BLOCK_PARTS}
    counts = {kind: sum(kind_of(c) == kind for c in chosen) for kind in BLOCK_PARTS}
    if prod(comb(len(by_kind[k]), counts[k]) for k in BLOCK_PARTS) <= draws:
        sets: list[list[str]] = [[]]
        for kind in BLOCK_PARTS:
            sets = [[*some, *more] for some in sets
                    for more in combinations(by_kind[kind], counts[kind])]
        return sets
    rng = np.random.default_rng(seed)
    return [[str(n) for kind in BLOCK_PARTS if counts[kind]
             for n in rng.choice(by_kind[kind], counts[kind], replace=False)]
            for _ in range(draws)]


def removal(model: Model, prompts: Sequence[str], relation: Sequence[Head], reader: Head,
            chosen: Sequence[str], draws: int = 1000, seed: int = 1, **options) -> dict:
    """What is lost of the tag without the chosen components, beside sets of the same kinds and
    number (`alike`, `beside`): lost and its 95 % interval over prompts are shares of the tag that
    arrives by all paths. Raises ValueError for no component."""
    if not chosen:
        raise ValueError("no component is chosen; give at least one to be held")
    sets = alike(between(model, relation, reader), chosen, draws, seed)
    held = {"": [], "chosen": list(chosen), **{str(i): s for i, s in enumerate(sets)}}
    found = tags(model, prompts, relation, reader, held, seed=seed, **options)
    whole = found[""].to_numpy()
    low, high = ratio_interval(whole - found["chosen"].to_numpy(), whole, seed=seed)
    lost = 1 - found.drop(columns="").mean() / whole.mean()
    return {"chosen": list(chosen), "lost": float(lost["chosen"]), "low": float(low),
            "high": float(high), **beside(float(lost["chosen"]), lost.drop("chosen"), draws)}


def beside(value: float, null: Sequence[float], draws: int) -> dict[str, float]:
    """A value beside those of `alike` sets: their mean (random) and middle 95 % (random_low,
    random_high), their number (sets), and p, the share of sets that reach it: of all of them, or of
    `draws` drawn ones and the set at hand."""
    some = np.asarray(null, dtype=float)
    low, high = percentiles(some)
    reached, more = int((some >= value - 1e-9).sum()), int(len(some) >= draws)
    return {"random": float(some.mean()), "random_low": float(low), "random_high": float(high),
            "sets": len(some), "p": (more + reached) / (more + len(some))}


def straight(edges: pd.DataFrame, relation: Sequence[Head], reader: Head, draws: int = 1000,
             seed: int = 1) -> dict:
    """The straight way taken off: the share of the reader's query that the relation heads write
    there themselves (lost), beside as many other cross-attention heads before it (`beside`).

    `edges`: the table of `edges.edge_attribution` with this reader; exact, since a query reads the
    stream as it is, and shares of the whole change of the query.
    """
    into = edges[edges["receiver"] == f"{head_name(*reader)}.q"].set_index("sender")["score"]
    scores = into[[n for n in into.index if kind_of(n) == "cross"]]
    chosen = [head_name(*h) for h in relation if head_name(*h) in scores.index]
    lost = float(scores[chosen].sum())
    null = [scores[s].sum() for s in alike(list(scores.index), chosen, draws, seed)]
    return {"chosen": chosen, "lost": lost, **beside(lost, null, draws)}
