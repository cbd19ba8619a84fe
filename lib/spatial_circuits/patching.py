"""Patching: what a head carries, by swapping it between two prompts that differ in one factor.

For each picture the clean prompt and its counterpart run side by side from the same noise, and each patched run takes one
part from the other of the two. *Denoising* patches clean parts into the counterpart's run: how much of the right answer
does the part bring? *Noising* patches the counterpart's into the clean run: how much is lost? All pictures are scored
against the clean prompt, and effects are normalised so that 0 is the counterpart's run and 1 the clean one.
"""
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .ablation import conditions, heads_of, name, pictures, spread, sweep
from .captions import PHRASES, parse
from .dit import predict
from .edits import Patch, PathPatch
from .hooks import Call, Heads, Reader, hooked
from .sample import initial_noise
from .scenes import COLORS, SHAPES

FACTORS = ("relation", "shape", "colour")
DIRECTIONS = ("denoising", "noising")
BASES = ("clean", "counterpart")
METRIC = {"relation": "loose", "shape": "shape", "colour": "unique_binding"}  # what tells the two prompts apart
_OPPOSITE = {"above": "below", "up": "down", "upper": "lower", "higher": "lower", "left": "right"}
_OPPOSITE |= {b: a for a, b in _OPPOSITE.items() if a not in ("upper", "higher")}


def opposite(phrase: str) -> str:
    """The training phrase of the opposite relation, of equal length. Raises ValueError for an unknown phrase."""
    if phrase not in PHRASES:
        raise ValueError(f"phrase {phrase!r} is unknown; choose from {', '.join(PHRASES)}")
    lower = "higher" if phrase == "lower than" else "upper"
    return " ".join(lower if w == "lower" else _OPPOSITE.get(w, w) for w in phrase.split())


def counterpart(prompt: str, factor: str) -> str:
    """The prompt with one factor changed, word for word of the same length.

    relation: the opposite phrase. shape: object 1 becomes the shape that neither object has. colour: the two colours
    change places. Raises ValueError for an unknown factor or a prompt without it.
    """
    if factor not in FACTORS:
        raise ValueError(f"factor {factor!r} is unknown; choose from {', '.join(FACTORS)}")
    said = parse(prompt)
    spans = {role: (start, end) for start, end, role in said.spans}
    if factor == "relation":
        wanted = {"relation": opposite(PHRASES[said.phrase])} if said.phrase is not None else {}
    elif factor == "shape":
        free = [s for i, s in enumerate(SHAPES) if i not in said.shape]
        wanted = {"shape1": free[0]} if None not in said.shape else {}
    else:
        wanted = {f"colour{i}": COLORS[1 - c] for i, c in enumerate(said.color, 1)} if None not in said.color else {}
    if not wanted:
        raise ValueError(f"prompt {prompt!r} does not say its {factor}")
    for role in sorted(wanted, key=lambda r: -spans[r][0]):
        prompt = prompt[:spans[role][0]] + wanted[role] + prompt[spans[role][1]:]
    return prompt


def _pairs(prompts: Sequence[str], factor: str, direction: str, count: int) -> tuple[list[list[str]], Tensor]:
    """Prompts of each picture's conditions (clean, counterpart, then `count` patched runs), and the row each takes from."""
    if direction not in DIRECTIONS:
        raise ValueError(f"direction {direction!r} is unknown; choose from {', '.join(DIRECTIONS)}")
    run_of, source = (1, 0) if direction == "denoising" else (0, 1)
    both = [(p, counterpart(p, factor)) for p in prompts]
    return [[*pair, *[pair[run_of]] * count] for pair in both], torch.tensor([0, 1] + [source] * count)


def _sources(source: Tensor, pictures: int) -> Tensor:
    return (torch.arange(pictures)[:, None] * len(source) + source).flatten()


def patch(model, prompts: Sequence[str], factor: str, sets: dict[str, Heads], direction: str = "denoising", stage: str = "output",
          per_prompt: int = 1, seed: int = 1, half: str = "cond", scored: Sequence[str] | None = None, **options) -> pd.DataFrame:
    """Scores, against the clean prompts (or those `scored`), of runs in which each set of heads takes its `stage` from the other prompt.

    Frame as of `ablation.sweep` with the conditions "clean", "counterpart" and the sets. `stage`: output, pattern (the QK
    side), value (the OV side), query or key. Raises ValueError for an unknown factor, direction, stage or head.
    """
    told, source = _pairs(prompts, factor, direction, len(sets))
    names, where = conditions(model, sets)
    where = torch.cat([torch.zeros_like(where[:1]), where])
    count = len(prompts) * per_prompt
    hook = Patch(_sources(source, count), spread(where, count), stage, half=half)
    return sweep(model, told, [*BASES, *sets], [hook], per_prompt, seed, scored=scored or prompts, **options)


def patch_paths(model, prompts: Sequence[str], factor: str, senders: dict[str, Heads], receivers: Heads,
                direction: str = "denoising", straight: bool = False, per_prompt: int = 1, seed: int = 1, half: str = "cond",
                scored: Sequence[str] | None = None, **options) -> pd.DataFrame:
    """As `patch`, but only as far as the senders move the receivers' queries; all else stays as in the run.

    By every path between them (MLPs and self-attention pass it on), or with `straight` by the residual stream alone.
    """
    told, source = _pairs(prompts, factor, direction, len(senders))
    count, options = len(prompts) * per_prompt, {"scored": scored or prompts, **options}
    if straight:
        sources, hooks = _sources(source, count), []
        for i, heads in enumerate(senders.values()):
            samples = spread(torch.arange(len(source)) == 2 + i, count)
            hooks += [PathPatch(head, receivers, sources, samples, half=half) for head in heads]
        return sweep(model, told, [*BASES, *senders], hooks, per_prompt, seed, **options)
    # every set has two runs: a hidden one with the senders patched, and one that takes only the receivers' queries from it
    names = [*BASES, *(f"hidden {name}" for name in senders), *senders]
    told = [[*row, *row[2:]] for row in told]
    _, sending = conditions(model, senders)
    _, receiving = conditions(model, {name: receivers for name in senders})
    nothing = torch.zeros_like(sending[:1])
    sending = torch.cat([nothing, nothing, sending[1:], torch.zeros_like(sending[1:])])
    receiving = torch.cat([nothing, nothing, torch.zeros_like(receiving[1:]), receiving[1:]])
    sources = _sources(torch.cat([source, source[2:]]), count)
    hidden = torch.arange(2 + 2 * len(senders))
    hidden[2 + len(senders):] -= len(senders)
    hooks = [Patch(sources, spread(sending, count), half=half),
             Patch(_sources(hidden, count), spread(receiving, count), "query", half=half)]
    frame = sweep(model, told, names, hooks, per_prompt, seed, **options)
    return frame[~frame["condition"].str.startswith("hidden ")].reset_index(drop=True)


@torch.no_grad()
def prediction_effects(model, prompts: Sequence[str], factor: str, sets: dict[str, Heads], direction: str = "denoising",
                       stage: str = "output", steps: int = 14, every: int = 1, seed: int = 1, batch: int = 256) -> pd.DataFrame:
    """How far each set of heads, patched from one prompt of a pair, turns the other's predicted noise into the first's.

    No sampling but the clean runs: at their latents x_t, `every` so many steps, each condition makes one conditional
    prediction eps, and with denoising (clean parts in the counterpart's run)

        effect = 1 - sum_t |eps_patched - eps_clean|^2 / sum_t |eps_counterpart - eps_clean|^2,

    0 for no effect and 1 if the set is enough to carry the factor. Noising is the reverse: 1 if nothing of the factor
    survives without the set. "both" is the smaller of the two. A continuous score, so it sees heads whose share alone turns no
    picture. Rows: prompts, columns: sets. Raises ValueError as `patch` does.
    """
    ways = DIRECTIONS if direction == "both" else (direction,)
    parts = [_pairs(prompts, factor, way, len(sets)) for way in ways]                         # clean, counterpart, patched ...
    told = [sum((rows[i][2:] for rows, _ in parts[1:]), parts[0][0][i]) for i in range(len(prompts))]
    source = torch.cat([parts[0][1], *(s[2:] for _, s in parts[1:])])
    _, where = conditions(model, sets)
    where = torch.cat([torch.zeros_like(where[:1]), where[:1], *[where[1:]] * len(ways)])
    trace: list[Tensor] = [initial_noise(seeds := pictures(prompts, 1, seed)[1])]
    model.latents(list(prompts), seeds, steps=steps, batch=len(prompts), on_step=lambda i, x: trace.append(x.cpu()))
    scheduler, net = type(model.scheduler).from_config(model.scheduler.config), model.transformer
    scheduler.set_timesteps(steps)
    unique = sorted({p for row in told for p in row})
    text = model.encoder.encode(unique)
    device, dtype = next((p.device, p.dtype) for p in net.parameters())
    size = max(1, batch // len(source))                                                       # pictures at once
    errors = torch.zeros(len(prompts), len(source))
    for start in range(0, len(prompts), size):
        rows = torch.tensor([unique.index(p) for row in told[start:start + size] for p in row])
        count = len(rows) // len(source)
        embeddings, mask = text.embeddings[rows].to(device, dtype), text.mask[rows].to(device)
        hook = Patch(_sources(source, count), spread(where, count), stage, half="cond")
        with hooked(net, hook, halves=("cond",)):
            for x, t in list(zip(trace, scheduler.timesteps))[::every]:
                latents = x[start:start + count].repeat_interleave(len(source), 0).to(device, dtype)
                eps = predict(net, latents, t.expand(len(rows)).to(device), embeddings, mask).float().cpu()
                eps = eps.view(count, len(source), -1)
                errors[start:start + count] += (eps - eps[:, source]).square().sum(-1)
                errors[start:start + count, 0] += (eps[:, 0] - eps[:, 1]).square().sum(-1)
    effects = (1 - errors[:, 2:] / errors[:, :1]).view(len(prompts), len(ways), -1).amin(1)
    return pd.DataFrame(effects.numpy(), index=list(prompts), columns=list(sets))


class _Query(Reader):
    """The query [B, N, d] of one head and its pattern [B, N, T], of the last call."""

    def read(self, call: Call) -> None:
        head = int(self.chosen[0, call.layer].nonzero())
        self.query, self.pattern = call.query[:, head].float().cpu(), call.pattern[:, head].float().cpu()


@torch.no_grad()
def query_shares(model, prompts: Sequence[str], factor: str, senders: Heads, receiver: tuple[int, int], seed: int = 1) -> pd.DataFrame:
    """How far the senders, patched from the clean prompt, turn the receiver's query at the first step: 0 not at all, 1 fully.

    A row a prompt and a column a path, "all paths" and "straight"; the share is that of the clean query's difference from
    the counterpart's which the patched query has covered, and so for the pattern ("pattern, straight" ...).
    """
    told, source = _pairs(prompts, factor, "denoising", 1)
    told, count = [p for row in told for p in row], len(prompts)
    sources, patched = _sources(source, count), spread(torch.arange(3) == 2, count)
    where = torch.cat([torch.zeros(2, *conditions(model, {})[1].shape[1:], dtype=torch.bool), conditions(model, {"": senders})[1][1:]])
    ways = {"all paths": [Patch(sources, spread(where, count), half="cond")],
            "straight": [PathPatch(h, [receiver], sources, patched, half="cond") for h in senders]}
    noise = initial_noise([s for s in pictures(prompts, 1, seed)[1] for _ in range(3)])
    scheduler, text = type(model.scheduler).from_config(model.scheduler.config), model.encoder.encode(told)
    scheduler.set_timesteps(14)
    device, dtype = next((p.device, p.dtype) for p in model.transformer.parameters())
    out = {}
    for way, hooks in ways.items():
        reader = _Query([receiver])
        with hooked(model.transformer, *hooks, reader, halves=("cond",)):
            predict(model.transformer, noise.to(device, dtype), scheduler.timesteps[0].expand(len(told)).to(device),
                    text.embeddings.to(device, dtype), text.mask.to(device))
        for kind, x in ((way, reader.query), (f"pattern, {way}", reader.pattern)):
            clean, other, new = x.unflatten(0, (count, 3)).flatten(2).unbind(1)
            full = clean - other
            out[kind] = (((new - other) * full).sum(1) / full.square().sum(1)).numpy()
    return pd.DataFrame(out, index=list(prompts))


def grow(model, prompts: Sequence[str], factor: str, target: float = 0.9, limit: int = 6, without: Heads = (),
         first: pd.DataFrame | None = None, **options) -> pd.DataFrame:
    """A small set of heads, found greedily, that carries a factor alone and without which nothing of it is left.

    Each round adds the head that brings most by `prediction_effects`, the smaller of denoising and noising.

    Ends when the mean effect reaches `target`, the set has `limit` heads, or none is left; heads in `without` are not
    considered. `first` are the effects of single heads in both directions, if known. A row a round: factor, name, head,
    effect, low, high (95 % bootstrap over prompts).
    """
    chosen: list[tuple[int, int]] = []
    rows, rng = [], np.random.default_rng(0)
    while len(chosen) < limit and (not rows or rows[-1]["effect"] < target):
        sets = {name(*h): [*chosen, h] for h in heads_of(model) if h not in chosen and h not in without}
        if not sets:
            break
        known = first is not None and not chosen
        found = first[list(sets)] if known else prediction_effects(model, prompts, factor, sets, "both", **options)
        best = found.mean().idxmax()
        chosen.append(sets[best][-1])
        draws = found[best].to_numpy()[rng.integers(0, len(found), (2000, len(found)))].mean(1)
        low, high = np.percentile(draws, [2.5, 97.5])
        rows.append({"factor": factor, "name": best, "head": chosen[-1], "effect": float(found[best].mean()), "low": low, "high": high})
    return pd.DataFrame(rows, columns=["factor", "name", "head", "effect", "low", "high"])


def colourless(prompts: Sequence[str]) -> list[str]:
    """The prompts without their colours: scored so, a picture is right if the shapes are in their places."""
    return [" ".join(w for w in p.split() if w not in COLORS) for p in prompts]


def normalised(frame: pd.DataFrame, metric: str, seed: int = 0, n_boot: int = 2000) -> pd.DataFrame:
    """Each condition's score of a metric on the scale from counterpart (0) to clean (1): mean, low, high (95 % bootstrap
    over prompts), raw mean. Raises ValueError if the two differ by less than .1, since nothing can be told then."""
    cell = frame.groupby(["prompt", "condition"], sort=False)[metric].mean().unstack("condition").astype(float)
    weights = np.random.default_rng(seed).multinomial(len(cell), np.full(len(cell), 1 / len(cell)), size=n_boot) / len(cell)
    clean, other = cell["clean"].mean(), cell["counterpart"].mean()
    if abs(clean - other) < 0.1:
        raise ValueError(f"{metric} is {clean:.3f} for the clean prompts and {other:.3f} for the others: it does not tell them apart")
    draws = weights @ cell.to_numpy()                                                         # [n_boot, C]
    base = draws[:, [list(cell).index("counterpart")]]
    share = (draws - base) / (draws[:, [list(cell).index("clean")]] - base)
    low, high = np.percentile(share, [2.5, 97.5], axis=0)
    order = [c for c in dict.fromkeys(frame["condition"])]
    out = pd.DataFrame({"mean": (cell.mean() - other) / (clean - other), "low": low, "high": high, "raw": cell.mean()})
    return out.loc[order]
