"""Ablation: what fails without a head, or with a word hidden from it.

All conditions of a sweep run as one batch, each sample with its own edit (see `sweep`). Effects are
paired differences from the intact model (`sweep.effects`).
"""
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from ..hooks.edits import Ablate, MaskKeys
from ..hooks.readers import MeanOutputs
from ..hooks.run import run
from ..model.pipeline import Model
from ..model.sampler import STEPS
from ..text.roles import role_mask
from .heads import INTACT, Head, head_conditions, heads_of, layers_and_heads, named_heads
from .sweep import pictures, spread, sweep


def ablate(model: Model, prompts: Sequence[str], sets: Mapping[str, Sequence[Head]],
           per_prompt: int = 1, seed: int = 1, mean: Tensor | None = None, branch: str = "cond",
           when: Sequence[int] | None = None, **options) -> pd.DataFrame:
    """Scores without each set of heads at the steps `when` (all): zero ablation, or mean ablation
    with `mean` [steps, branches, L, H, N, d] of `mean_outputs`.

    Frame as of `sweep`, condition "intact" first. Raises ValueError, before sampling, for a head
    or step out of range, a mean of another model or number of steps, or a prompt that cannot be
    encoded or scored.
    """
    names, where = head_conditions(model, sets)
    steps = _steps(when)
    if mean is not None:
        wanted, got = (options.get("steps", STEPS), 2, *layers_and_heads(model)), tuple(mean.shape)
        if got[:4] != wanted:
            raise ValueError(f"the mean is of [steps, branches, layers, heads] {list(got[:4])}; "
                             f"the run has {list(wanted)}")
        mean = mean.to(model.transformer.device)
    hooks = []
    if where.any():
        hooks.append(Ablate(spread(where, len(prompts) * per_prompt), mean, branch, steps=steps))
    return sweep(model, prompts, names, hooks, per_prompt, seed, **options)


def mask_roles(model: Model, prompts: Sequence[str], groups: Mapping[str, tuple],
               per_prompt: int = 1, seed: int = 1, branch: str = "cond",
               when: Sequence[int] | None = None, **options) -> pd.DataFrame:
    """Scores with the tokens of a role hidden: `groups` name conditions (role, heads or None for
    all), or (role, heads, steps) where the steps are not `when`.

    Frame as of `sweep`, condition "intact" first. Raises ValueError, before sampling, for a role
    that a prompt does not hold, or as `ablate` does.
    """
    if not groups:
        raise ValueError("groups is empty; name at least one role to hide")
    everywhere, default = heads_of(model), _steps(when)
    keys, sets, windows = [], {}, []
    for name, (role, heads, *own) in groups.items():
        keys.append(role_mask(model.encoder, prompts, role))                             # [P, T]
        sets[name] = everywhere if heads is None else heads
        windows.append(_steps(own[0]) if own else default)
    names, where = head_conditions(model, sets)
    hidden = torch.stack([torch.zeros_like(keys[0]), *keys], 1)                          # [P, C, T]
    hidden = hidden.repeat_interleave(per_prompt, 0).flatten(0, 1)                  # [P * n * C, T]
    hooks = []
    for steps in dict.fromkeys(windows):                 # a hook for each window of steps
        chosen = torch.tensor([False, *(w == steps for w in windows)])
        heads_then = spread(where & chosen[:, None, None], len(prompts) * per_prompt)
        hooks.append(MaskKeys(hidden, heads_then, branch, steps=steps))
    return sweep(model, prompts, names, hooks, per_prompt, seed, **options)


def _steps(when: Sequence[int] | None) -> tuple[int, ...] | None:
    """Steps as a tuple, None for all. Raises ValueError for an empty list, which is no step."""
    if when is not None and not len(when):
        raise ValueError("no step is named; name at least one, or None for all")
    return None if when is None else tuple(when)


def greedy_ablation(model: Model, prompts: Sequence[str], mean: Tensor | None = None,
                    candidates: Sequence[Head] | None = None, rounds: int = 4,
                    lost: float = 1 / 3, **options) -> pd.DataFrame:
    """Heads taken away greedily: each round the one without which, besides those gone already, most
    pictures have both objects but in the wrong places (unique binding minus loose).

    Ends after `rounds`, or when loose has lost the share `lost` of the intact model's. A row a
    round, of the heads gone so far: name, head, misplaced, shape, unique_binding, loose, lost.
    `candidates` are all heads by default. Raises ValueError for rounds < 1, or a model that places
    nothing right.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; it must be at least 1")
    gone: list[Head] = []
    rows: list[dict] = []
    while len(rows) < rounds and (not rows or rows[-1]["lost"] < lost):
        left = [h for h in candidates or heads_of(model) if h not in gone]
        if not left:
            break
        sets = {name: [*gone, *head] for name, head in named_heads(left).items()}
        frame = ablate(model, prompts, sets, mean=mean, **options)
        table = frame.groupby("condition", sort=False)[["shape", "unique_binding", "loose"]].mean()
        table.insert(0, "misplaced", table["unique_binding"] - table["loose"])
        intact = intact_score(table["loose"])
        best = table.drop(INTACT)["misplaced"].idxmax()
        gone = sets[best]
        share = 1 - table.loc[best, "loose"] / intact
        rows.append({"name": best, "head": gone[-1], **table.loc[best], "lost": share})
    return pd.DataFrame(rows)


def intact_score(scores: pd.Series) -> float:
    """The intact model's score of a Series by condition. Raises ValueError if it is 0, since then
    nothing can be lost."""
    if not scores[INTACT] > 0:
        raise ValueError(f"the intact model's {scores.name} is {scores[INTACT]:g} on these "
                         "prompts: no head can be seen to carry it (is the model trained?)")
    return float(scores[INTACT])


def mean_outputs(model: Model, prompts: Sequence[str], per_prompt: int = 1, seed: int = 2,
                 steps: int = STEPS, **options) -> Tensor:
    """Every cross-attention head's output averaged over prompts and seeds, on the CPU: [steps,
    branches, L, H, N, d], for mean ablation.

    The prompts should be balanced, so that the mean tells nothing of a single one.
    """
    reader = MeanOutputs()
    run(model, *pictures(prompts, per_prompt, seed), reader, steps=steps, **options)
    return reader.mean.cpu()
