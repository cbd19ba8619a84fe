"""Patching: what a head carries, by interchange interventions between two prompts.

The two prompts differ in one factor. For each picture the clean prompt and its counterpart run
side by side from the same noise, and in each patched run a head takes one part, its output say,
from the other of the two (an interchange intervention, or activation patching). *Denoising*
patches clean parts into the counterpart's run: how much of the right answer does the part bring?
*Noising* patches the counterpart's into the clean run: how much is lost? All pictures are scored
against the clean prompt, and effects are normalised so that 0 is the counterpart's run and 1 the
clean one.
"""
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..hooks.attach import hooked
from ..hooks.core import Call, Heads, Hook, Reader
from ..hooks.edits import Patch, PathPatch
from ..model.pipeline import Model
from ..model.sampler import STEPS, initial_noise, ready_scheduler
from ..model.transformer import predict
from ..text.counterparts import counterpart
from .heads import Head, head_masks, heads_of, named_heads
from .intervals import N_BOOT, by_prompt, percentiles, ratio_interval
from .sweep import pictures, spread, sweep

PATCH_DIRECTIONS = ("denoising", "noising")
REFERENCE_RUNS = ("clean", "counterpart")  # the first two conditions of every patching sweep
FACTOR_METRIC = {"relation": "loose", "shape": "shape", "colour": "unique_binding"}
# the metric that tells a prompt from its counterpart in that factor
_SAME = 1e-10  # squared difference of two predictions, over their square, that is rounding alone


def _pairs(prompts: Sequence[str], factor: str, direction: str, count: int
           ) -> tuple[list[list[str]], Tensor]:
    """The prompts of each picture's C = 2 + `count` conditions (clean, counterpart, then the
    patched runs), and the condition [C] that each takes from."""
    if direction not in PATCH_DIRECTIONS:
        raise ValueError(f"direction {direction!r} is unknown; "
                         f"choose from {', '.join(PATCH_DIRECTIONS)}")
    run_of, source = (1, 0) if direction == "denoising" else (0, 1)
    both = [(p, counterpart(p, factor)) for p in prompts]
    texts = [[*pair, *[pair[run_of]] * count] for pair in both]
    return texts, torch.tensor([0, 1] + [source] * count)


def _sources(source: Tensor, pictures: int) -> Tensor:
    """Condition [C] that each condition takes from -> sample [pictures * C] that each sample
    does."""
    return (torch.arange(pictures)[:, None] * len(source) + source).flatten()


def _masks(model: Model, sets: Mapping[str, Heads]) -> Tensor:
    """[2 + len(sets), L, H]: no head in the reference runs, then each set."""
    return head_masks(model, [(), (), *sets.values()])


def patch(model: Model, prompts: Sequence[str], factor: str, sets: Mapping[str, Heads],
          direction: str = "denoising", stage: str = "output", per_prompt: int = 1, seed: int = 1,
          branch: str = "cond", scored: Sequence[str] | None = None, **options) -> pd.DataFrame:
    """Scores, against the clean prompts (or those `scored`), of runs in which each set of heads
    takes its `stage` from the other prompt: an interchange intervention on the set.

    Frame as of `sweep` with the conditions "clean", "counterpart" and the sets. `stage`: output,
    pattern (the QK side), value (the OV side), query or key. Raises ValueError, before sampling,
    for an unknown factor, direction, stage or head, or a prompt that has no counterpart.
    """
    texts, source = _pairs(prompts, factor, direction, len(sets))
    count = len(prompts) * per_prompt
    hook = Patch(_sources(source, count), spread(_masks(model, sets), count), stage, branch=branch)
    return sweep(model, texts, [*REFERENCE_RUNS, *sets], [hook], per_prompt, seed,
                 scored=scored or prompts, **options)


def patch_paths(model: Model, prompts: Sequence[str], factor: str, senders: Mapping[str, Heads],
                receivers: Heads, direction: str = "denoising", straight: bool = False,
                per_prompt: int = 1, seed: int = 1, branch: str = "cond",
                scored: Sequence[str] | None = None, **options) -> pd.DataFrame:
    """As `patch`, but only as far as the senders move the receivers' queries; all else stays as in
    the run (path patching).

    By every path between them (MLPs and self-attention pass it on), or with `straight` by the
    residual stream alone.
    """
    texts, source = _pairs(prompts, factor, direction, len(senders))
    count, options = len(prompts) * per_prompt, {"scored": scored or prompts, **options}
    if straight:
        hooks: list[Hook] = []
        for i, heads in enumerate(senders.values()):
            samples = spread(torch.arange(len(source)) == 2 + i, count)
            hooks += [PathPatch(head, receivers, _sources(source, count), samples, branch=branch)
                      for head in heads]
        return sweep(model, texts, [*REFERENCE_RUNS, *senders], hooks, per_prompt, seed, **options)
    # every set has two runs: a hidden one with the senders patched, and one that takes only the
    # receivers' queries from it
    names = [*REFERENCE_RUNS, *(f"hidden {name}" for name in senders), *senders]
    texts = [[*row, *row[2:]] for row in texts]
    nothing = [()] * len(senders)
    sending = head_masks(model, [(), (), *senders.values(), *nothing])
    receiving = head_masks(model, [(), (), *nothing, *[receivers] * len(senders)])
    sources = _sources(torch.cat([source, source[2:]]), count)
    hidden = torch.arange(2 + 2 * len(senders))
    hidden[2 + len(senders):] -= len(senders)
    hooks = [Patch(sources, spread(sending, count), branch=branch),
             Patch(_sources(hidden, count), spread(receiving, count), "query", branch=branch)]
    frame = sweep(model, texts, names, hooks, per_prompt, seed, **options)
    return frame[~frame["condition"].str.startswith("hidden ")].reset_index(drop=True)


@torch.no_grad()
def clean_trace(model: Model, prompts: Sequence[str], steps: int, seed: int
                ) -> list[tuple[int, Tensor, Tensor]]:
    """Each step of the clean runs, one picture a prompt: its number, the latents [B, 4, 16, 16]
    that it starts from, on the CPU, and its time."""
    seeds = pictures(prompts, 1, seed)[1]
    latents = [initial_noise(seeds)]
    model.latents(list(prompts), seeds, steps=steps, batch=len(prompts),
                  on_step=lambda i, x: latents.append(x.cpu()))
    times = ready_scheduler(model.scheduler, steps).timesteps
    return list(zip(range(len(times)), latents, times))


@torch.no_grad()
def prediction_effects(model: Model, prompts: Sequence[str], factor: str,
                       sets: Mapping[str, Heads], direction: str = "denoising",
                       stage: str = "output", steps: int = STEPS, every: int = 1, seed: int = 1,
                       batch: int = 256) -> pd.DataFrame:
    """How far each set of heads, patched from one prompt of a pair, turns the other's predicted
    noise into the first's.

    No sampling but the clean runs: at their latents x_t, `every` so many steps, each condition
    makes one conditional prediction eps, and with denoising (clean parts in the counterpart's run)

        effect = 1 - sum_t |eps_patched - eps_clean|^2 / sum_t |eps_counterpart - eps_clean|^2,

    0 for no effect and 1 if the set is enough to carry the factor. Noising is the reverse: 1 if
    nothing of the factor survives without the set. "both" is the smaller of the two. A continuous
    score, so it sees heads whose share alone turns no picture. Rows: prompts, columns: sets. Raises
    ValueError as `patch` does, and if the model predicts the same for a prompt and its counterpart.
    """
    if every < 1:
        raise ValueError(f"every is {every}; it must be at least 1")
    ways = PATCH_DIRECTIONS if direction == "both" else (direction,)
    parts = [_pairs(prompts, factor, way, len(sets)) for way in ways]
    texts = [sum((rows[i][2:] for rows, _ in parts[1:]), parts[0][0][i])
             for i in range(len(prompts))]               # clean, counterpart, patched ...
    source = torch.cat([parts[0][1], *(s[2:] for _, s in parts[1:])])
    where = head_masks(model, [(), (), *[*sets.values()] * len(ways)])
    trace, net = clean_trace(model, prompts, steps, seed)[::every], model.transformer
    unique = sorted({p for row in texts for p in row})
    text = model.encoder.encode(unique)
    device, dtype = next((p.device, p.dtype) for p in net.parameters())
    size = max(1, batch // len(source))                 # pictures at once
    errors, squares = torch.zeros(len(prompts), len(source)), torch.zeros(len(prompts))
    for start in range(0, len(prompts), size):
        rows = torch.tensor([unique.index(p) for row in texts[start:start + size] for p in row])
        count = len(rows) // len(source)
        here = slice(start, start + count)
        embeddings, mask = text.embeddings[rows].to(device, dtype), text.mask[rows].to(device)
        hook = Patch(_sources(source, count), spread(where, count), stage, branch="cond")
        with hooked(net, hook) as session:
            for i, x, t in trace:
                session.at(i, ("cond",))
                latents = x[here].repeat_interleave(len(source), 0).to(device, dtype)
                times = t.expand(len(rows)).to(device)
                eps = predict(net, latents, times, embeddings, mask).float().cpu()
                eps = eps.view(count, len(source), -1)
                errors[here] += (eps - eps[:, source]).square().sum(-1)
                errors[here, 0] += (eps[:, 0] - eps[:, 1]).square().sum(-1)
                squares[here] += eps[:, 0].square().sum(-1)
        same = (errors[here, 0] <= _SAME * squares[here]).nonzero().flatten().tolist()
        if same:
            clean, other = texts[start + same[0]][:2]
            raise ValueError(f"the model predicts the same for {clean!r} and {other!r}: it does "
                             f"not read the {factor}, so no head carries it (is it trained?)")
    effects = (1 - errors[:, 2:] / errors[:, :1]).view(len(prompts), len(ways), -1).amin(1)
    return pd.DataFrame(effects.numpy(), index=list(prompts), columns=list(sets))


class _Query(Reader):
    """The query [B, N, d] of one head and its pattern [B, N, T], of the last call, on the CPU."""

    def __init__(self, receiver: Head):
        super().__init__([receiver])
        self.head = receiver[1]

    def read(self, call: Call) -> None:
        self.query = call.query[:, self.head].float().cpu()
        self.pattern = call.pattern[:, self.head].float().cpu()


@torch.no_grad()
def query_shares(model: Model, prompts: Sequence[str], factor: str, senders: Heads, receiver: Head,
                 seed: int = 1) -> pd.DataFrame:
    """How far the senders, patched from the clean prompt, turn the receiver's query at the first
    step: 0 not at all, 1 fully.

    A row a prompt and a column a path, "all paths" and "straight"; the share is that of the clean
    query's difference from the counterpart's which the patched query has covered, and so for the
    pattern ("pattern, straight" ...). Raises ValueError as `patch_paths` does.
    """
    rows, source = _pairs(prompts, factor, "denoising", 1)
    texts, count = [p for row in rows for p in row], len(prompts)
    sources, patched = _sources(source, count), spread(torch.arange(3) == 2, count)
    where = spread(_masks(model, {"senders": senders}), count)
    ways: dict[str, list[Hook]] = {
        "all paths": [Patch(sources, where, branch="cond")],
        "straight": [PathPatch(h, [receiver], sources, patched, branch="cond") for h in senders]}
    noise = initial_noise([s for s in pictures(prompts, 1, seed)[1] for _ in range(3)])
    text, net = model.encoder.encode(texts), model.transformer
    device, dtype = next((p.device, p.dtype) for p in net.parameters())
    first = ready_scheduler(model.scheduler, STEPS).timesteps[0]
    times = first.expand(len(texts)).to(device)
    out = {}
    for way, hooks in ways.items():
        reader = _Query(receiver)
        with hooked(net, *hooks, reader) as session:
            session.at(0, ("cond",))
            predict(net, noise.to(device, dtype), times, text.embeddings.to(device, dtype),
                    text.mask.to(device))
        for kind, x in ((way, reader.query), (f"pattern, {way}", reader.pattern)):
            clean, other, new = x.unflatten(0, (count, 3)).flatten(2).unbind(1)
            full = clean - other
            out[kind] = (((new - other) * full).sum(1) / full.square().sum(1)).numpy()
    return pd.DataFrame(out, index=list(prompts))


def greedy_patching(model: Model, prompts: Sequence[str], factor: str, target: float = 0.9,
                    limit: int = 6, without: Heads = (), first: pd.DataFrame | None = None,
                    **options) -> pd.DataFrame:
    """A small set of heads, found greedily, that carries a factor alone and without which nothing
    of it is left.

    Each round adds the head that brings most by `prediction_effects`, the smaller of denoising and
    noising. Ends when the mean effect reaches `target`, when no further head raises it, when the
    set has `limit` heads, or none is left; heads in `without` are not considered. `first` are the
    effects of single heads in both directions, if known. A row a round: factor, name, head,
    effect, low, high (95 % bootstrap over prompts). Raises ValueError for limit < 1, or as
    `prediction_effects` does.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}; it must be at least 1")
    chosen: list[Head] = []
    rows: list[dict] = []
    rng = np.random.default_rng(0)
    while len(chosen) < limit and (not rows or rows[-1]["effect"] < target):
        left = [h for h in heads_of(model) if h not in chosen and h not in without]
        if not left:
            break
        sets = {name: [*chosen, *head] for name, head in named_heads(left).items()}
        if first is not None and not chosen:
            found = first[list(sets)]
        else:
            found = prediction_effects(model, prompts, factor, sets, "both", **options)
        best = found.mean().idxmax()
        effect = float(found[best].mean())
        if rows and effect <= rows[-1]["effect"]:
            break
        chosen.append(sets[best][-1])
        drawn = rng.integers(0, len(found), (N_BOOT, len(found)))    # rows, as in recorded tables
        low, high = percentiles(found[best].to_numpy()[drawn].mean(1))
        rows.append({"factor": factor, "name": best, "head": chosen[-1], "effect": effect,
                     "low": low, "high": high})
    return pd.DataFrame(rows, columns=["factor", "name", "head", "effect", "low", "high"])


def normalised(frame: pd.DataFrame, metric: str, seed: int = 0, n_boot: int = N_BOOT
               ) -> pd.DataFrame:
    """Each condition's score of a metric on the scale from counterpart (0) to clean (1): mean, low,
    high (95 % bootstrap over prompts), and raw, the mean as it is.

    Raises ValueError if the two differ by less than .1, since nothing can be told then.
    """
    cells = by_prompt(frame, [metric])[metric]                                           # [P, C]
    clean, other = cells["clean"].mean(), cells["counterpart"].mean()
    if abs(clean - other) < 0.1:
        raise ValueError(f"{metric} is {clean:.3f} for the clean prompts and {other:.3f} for the "
                         "others: it does not tell them apart")
    above = cells.sub(cells["counterpart"], axis=0)
    low, high = ratio_interval(above.to_numpy(), above["clean"].to_numpy(), None, n_boot, seed)
    out = pd.DataFrame({"mean": above.mean() / above["clean"].mean(), "low": low, "high": high,
                        "raw": cells.mean()})
    return out.loc[list(dict.fromkeys(frame["condition"]))]
