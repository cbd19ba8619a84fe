"""Exact edges: path patching of single edges, to check edge attribution against.

A forward an edge and prompt: the counterpart's, in which one receiver reads the stream (or the
text) with the sender's change added, and all else stays (Goldowsky-Dill et al. 2023). For
cross-attention heads on both ends it is `hooks.edits.PathPatch`; here for every kind of sender and
receiver.
"""
import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor

from ..hooks.core import Call, Edit, Hook
from ..hooks.edits import AddResidual
from ..model.pipeline import Model
from ..model.sampler import STEPS
from ..text.roles import mask_of_role
from .edges import TEXT, Pairs, edge_attribution, paired, reads_text
from .heads import Head, layers_and_heads
from .wires import AT_END, BLOCK_PARTS, Wires, position, senders, watched

Edge = tuple[str, str]
_STAGES = {"q": "query", "k": "key", "v": "value"}


class _Added(Edit):
    """Heads' query, key or value as if what they read were moved by `change` [S, N or T, D]."""

    def __init__(self, part: str, change: Tensor, where: Tensor, kind: str):
        super().__init__(where, kind)
        self.stage, self.part, self.change = _STAGES[part], part, change
        self.wires: Wires | None = None                    # of the context in which it acts

    def act(self, call: Call, active: Tensor) -> None:
        assert self.wires is not None
        change = self.change
        if self.kind == "self":
            read, x = self.wires.reads("self", call.layer), self.wires.streams["self", call.layer]
            change = read(x + change) - read(x)
        moved = change @ getattr(call.module, f"to_{self.part}").weight.T
        old = getattr(call, self.stage)
        new = old + moved.unflatten(-1, (old.shape[1], -1)).transpose(1, 2)
        setattr(call, self.stage, torch.where(active[..., None, None], new, old))


def exact_edges(model: Model, prompts: Sequence[str], edges: Sequence[Edge],
                factor: str = "relation", reader: Head | None = None, steps: int = STEPS,
                every: int = 3, seed: int = 1, batch: int = 256) -> pd.DataFrame:
    """The effect of each edge by path patching, scaled as the scores of `edges.edge_attribution`
    with the same options: rows prompts, columns edges "sender -> receiver".

    `batch` rows at once. Raises ValueError for an edge whose sender or receiver does not exist or
    comes later, and as `edges.paired` does.
    """
    known = senders(model)
    for sender, receiver in edges:
        text = reads_text(receiver)
        if text != sender.startswith(TEXT) or not text and (
                sender not in known or receiver != AT_END and receiver.split(".")[0] not in known
                or position(sender) >= position(receiver)):
            raise ValueError(f"there is no edge from {sender!r} to {receiver!r}; a sender is a "
                             "component of an earlier part of the model, or, for keys and values "
                             f"of cross-attention, {TEXT!r} and a role")
    pairs = paired(model, prompts, factor, reader, steps, every, seed)
    count, size = len(prompts), max(1, batch // len(prompts))
    effect, whole = torch.zeros(count, len(edges)), torch.zeros(count)
    for i, x, t in pairs.trace:
        with torch.no_grad():
            wanted, before, moves, words = _bounds(pairs, i, x, t)
            gap = wanted - before
            whole += gap.square().flatten(1).sum(1).cpu()
            for start in range(0, len(edges), size):
                some = edges[start:start + size]
                after = _patched(pairs, i, x, t, some, moves, words).unflatten(0, (-1, count))
                gained = gap.square() - (wanted - after).square() if reader is None \
                    else (after - before) * gap
                effect[:, start:start + size] += gained.flatten(2).sum(2).T.cpu()
    names = [f"{u} -> {r}" for u, r in edges]
    return pd.DataFrame((effect / whole[:, None]).numpy(), list(prompts), names)


def _bounds(pairs: Pairs, i: int, x: Tensor, t: Tensor
            ) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
    """What is seen in the clean run and the counterpart's; senders' moves [P, N, D] by name, and
    the text's [P, T, D]."""
    with watched(pairs.model) as (wires, session):
        wanted = pairs.seen(wires, pairs.run(i, session, x, t, pairs.clean))
        writes = wires.writes()
        before = pairs.seen(wires, pairs.run(i, session, x, t, pairs.other))
        moves = dict(zip(senders(pairs.model), writes - wires.writes()))
    caption = pairs.model.transformer.caption_projection
    return wanted, before, moves, caption(pairs.clean) - caption(pairs.other)


def _patched(pairs: Pairs, i: int, x: Tensor, t: Tensor, edges: Sequence[Edge],
             moves: dict[str, Tensor], words: Tensor) -> Tensor:
    """What is seen [E * P, ...] in the counterpart's run under each edge."""
    count, (layers, heads) = len(x), layers_and_heads(pairs.model)
    nothing = torch.zeros_like(next(iter(moves.values())))
    streams = torch.cat([nothing if reads_text(r) else moves[u]
                         for u, r in edges])                                       # [E P, N, D]
    texts = torch.cat([words * mask_of_role(pairs.roles, u.removeprefix(TEXT))[..., None].to(words)
                       if reads_text(r) else torch.zeros_like(words) for u, r in edges])
    where: dict[tuple[str, str], Tensor] = {}
    at_mlp: dict[int, Tensor] = {}
    at_end = torch.zeros(len(streams), 1, 1)
    for e, (_, receiver) in enumerate(edges):
        rows = slice(e * count, (e + 1) * count)
        if receiver == AT_END:
            at_end[rows] = 1
            continue
        layer, kind = position(receiver) // 3, BLOCK_PARTS[position(receiver) % 3]
        if kind == "mlp":
            at_mlp.setdefault(layer, torch.zeros_like(at_end))[rows] = 1
            continue
        head, part = receiver.split("SH"[kind == "cross"])[1].split(".")
        mask = where.setdefault((kind, part), torch.zeros(len(streams), layers, heads,
                                                          dtype=torch.bool))
        mask[rows, layer, int(head)] = True
    added = [_Added(part, texts if kind == "cross" and part != "q" else streams, mask, kind)
             for (kind, part), mask in where.items()]
    hooks: list[Hook] = [*added]
    if at_end.any():
        hooks.append(AddResidual(streams * at_end.to(streams), layers))
    with watched(pairs.model, *hooks) as (wires, session):
        for edit in added:
            edit.wires = wires
        handles = [wires.blocks[layer].ff.register_forward_pre_hook(
            _moved_input(wires, layer, streams * rows.to(streams)))
            for layer, rows in at_mlp.items()]
        try:
            prediction = pairs.run(i, session, x, t, pairs.other.repeat(len(edges), 1, 1),
                                   len(edges))
        finally:
            for handle in handles:
                handle.remove()
        return pairs.seen(wires, prediction)


def _moved_input(wires: Wires, layer: int, change: Tensor):
    def hook(_, args: tuple) -> tuple:
        read, x = wires.reads("mlp", layer), wires.streams["mlp", layer]
        return (args[0] + read(x + change) - read(x),)
    return hook


def check_edges(model: Model, prompts: Sequence[str], table: pd.DataFrame, sample: int = 24,
                seed: int = 1, **options: Any) -> tuple[pd.DataFrame, dict[str, float]]:
    """A table of `edge_attribution` against exact path patching on the strongest edges and as many
    drawn from the rest, `sample` in all.

    Rows: sender, receiver, score, alone, exact. Numbers: rank correlation (Spearman) and
    correlation of the last two, error (mean absolute difference) and bias (mean of alone minus
    exact), both in shares of the whole effect, and cost ratio: seconds for all edges one by one
    over those for all edges by gradient, both timed here. `options` are those of both analyses.
    Raises ValueError for a sample of fewer than three edges, or of more than there are.
    """
    if not 3 <= sample <= len(table):
        raise ValueError(f"sample is {sample}; it must be 3 to {len(table)}, the number of edges")
    half = sample // 2
    rest = table.iloc[half:].sample(sample - half, random_state=seed)
    chosen = pd.concat([table.iloc[:half], rest], ignore_index=True)
    edges = list(zip(chosen["sender"], chosen["receiver"]))
    start = time.perf_counter()
    exact = exact_edges(model, prompts, edges, seed=seed, **options)
    middle = time.perf_counter()
    edge_attribution(model, prompts, seed=seed, draws=1, **options)
    end = time.perf_counter()
    rows = chosen[["sender", "receiver", "score", "alone"]].assign(exact=exact.mean().to_numpy())
    difference = rows["alone"] - rows["exact"]
    return rows, {"rank correlation": float(spearmanr(rows["alone"], rows["exact"])[0]),
                  "correlation": float(rows["alone"].corr(rows["exact"])),
                  "error": float(difference.abs().mean()), "bias": float(difference.mean()),
                  "cost ratio": (middle - start) / sample * len(table) / (end - middle)}
