"""Predicted: activation patching between a prompt and its counterpart in any model, by what the
model itself predicts; so no detector is asked, and pictures may have any size.

Both prompts are drawn once from the same noise, by the model's own sampler or pipeline, and what
its transformer was called with at the clean prompt's latents is kept: latents, times, text and size
conditions. At those calls a head's output is then taken from the other prompt's forward, and

    denoising = 1 - sum_t |eps_patched - eps_clean|^2 / sum_t |eps_counterpart - eps_clean|^2,

with the clean output in the counterpart's forward: 1 if that head is enough to turn the prediction
into the clean one. Noising puts the counterpart's output into the clean forward: 1 if nothing of
the difference is left without the head. So `patching.prediction_effects` has it for the book's
models; here a layer of a pair and `batch` rows at a time, and finished ones may be kept.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from ..hooks.attach import hooked
from ..hooks.edits import Patch
from ..model.forward import BRANCHES, TOLD
from ..model.pipeline import Model
from ..model.sampler import STEPS
from ..text.parser import opposed
from .chunks import Chunks, Part
from .edit_files import check_edits, edit_hooks
from .heads import Head, check_heads, head_masks, head_name, heads_of
from .intervals import mean_interval
from .patching import PATCH_DIRECTIONS
from .placed import check_when
from .sweep import pictures

_SAME = 1e-10  # squared difference of two predictions, over their square, that is rounding alone


@dataclass
class Called:
    """What the transformer was called with at one step, for a pair's two prompts: tensors [2, ...]
    by the name of the argument, and other arguments as they were."""
    step: int
    latents: Tensor
    given: dict[str, Any]

    def rows(self, chosen: list[int]) -> tuple[Tensor, dict[str, Any]]:
        """The clean latents once a row, and the arguments of these rows, 0 clean, 1 counterpart."""
        return self.latents[[0] * len(chosen)], _picked(self.given, chosen)


def _picked(value: Any, rows: list[int] | slice) -> Any:
    """Rows of all tensors in a dictionary, and in those within it."""
    if isinstance(value, dict):
        return {name: _picked(one, rows) for name, one in value.items()}
    return value[rows] if isinstance(value, Tensor) else value


@torch.no_grad()
def calls(model: Model, pair: Sequence[str], seed: int, every: int = 1, steps: int = STEPS,
          **options) -> list[Called]:
    """The conditional calls, at every so many steps, while both prompts are drawn from the noise of
    one seed. Options as of `model.latents`."""
    kept: list[Called] = []

    def keep(module: nn.Module, args: tuple, kwargs: dict) -> None:
        forward = TOLD.get()
        if forward is None or forward.step % every:
            return
        given = dict(zip(("hidden_states", "encoder_hidden_states", "timestep"), args)) | kwargs
        given = _picked(given, forward.rows(BRANCHES[1]))
        kept.append(Called(forward.step, given.pop("hidden_states"), given))
    handle = model.transformer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        model.latents(list(pair), [seed, seed], steps=steps, **options)
    finally:
        handle.remove()
    return kept


def patched_predictions(model: Model, prompts: Sequence[str], others: Sequence[str] | None = None,
                        heads: Sequence[Head] | None = None, every: int = 1, seed: int = 1,
                        batch: int = 16, steps: int = STEPS, progress: bool = False,
                        chunks: Chunks | None = None, **options) -> pd.DataFrame:
    """Each head (all by default) patched alone between each prompt and its counterpart, those of
    `others` or the opposite relation: rows prompt, name, layer, head, denoising, noising and both,
    the smaller of them.

    `batch` rows are predicted at once, among them the pair itself. `chunks` keeps each layer of
    each pair. Raises ValueError, before sampling, for a prompt without an opposite, one counterpart
    too few or too many, a head out of range, numbers that cannot be, and chunks of another run; and
    on the way for a pair that the model predicts the same for.
    """
    given = [opposed(prompt) for prompt in prompts] if others is None else list(others)
    if len(given) != len(prompts):
        raise ValueError(f"{len(given)} counterparts for {len(prompts)} prompts; give one each")
    if every < 1 or batch < 3:
        raise ValueError(f"every is {every}, batch is {batch}; they must be at least 1 and 3: a "
                         "patched row stands beside its pair")
    chosen = list(heads_of(model) if heads is None else heads)
    check_heads(model, chosen)
    check_when(model, None, steps)
    for prompt in (*prompts, *given):
        model.encoder.encode([prompt])                  # refuses what is too long, or unknown
    check_edits(model, [*prompts, *given], steps)
    seeds, layers = pictures(prompts, 1, seed)[1], sorted({layer for layer, _ in chosen})
    kept = (chunks or Chunks()).open("patch", model, prompts=list(prompts), others=given,
                                     heads=chosen, every=every, seed=seed, steps=steps,
                                     options=options)

    @lru_cache(maxsize=1)
    def trace(number: int) -> list[Called]:
        pair = prompts[number], given[number]
        return calls(model, pair, seeds[number], every, steps, **options)
    places = [(number, [head for head in chosen if head[0] == layer])
              for number in range(len(prompts)) for layer in layers]
    jobs = [(f"{number:06}-{own[0][0]:04}",
             partial(_errors, model, (prompts[number], given[number]), partial(trace, number), own,
                     batch)) for number, own in places]
    rows = []
    for (number, own), part in zip(places, kept.parts(jobs, "patching", progress)):
        effects = 1 - part["errors"] / part["whole"]                                     # [2, K]
        ends = zip(*effects.tolist(), effects.amin(0).tolist())
        rows += [(prompts[number], head_name(*head), *head, *each)
                 for head, each in zip(own, ends)]
    columns = ["prompt", "name", "layer", "head", *PATCH_DIRECTIONS, "both"]
    return pd.DataFrame(rows, columns=columns)


@torch.no_grad()
def _errors(model: Model, pair: Sequence[str], trace: Any, heads: Sequence[Head], batch: int
            ) -> Part:
    """Squared errors [2, K] of K heads' patched predictions, denoising first, and the pair's whole
    difference [], both summed over the calls."""
    net, edits = model.transformer, getattr(model, "edits", ())
    runs = [(run, 1 - run, head) for run in (1, 0) for head in heads]   # text, source, head
    found, whole, square = [], torch.zeros(()), torch.zeros(())
    for start in range(0, len(runs), batch - 2):
        some = runs[start:start + batch - 2]
        rows = [0, 1, *(run for run, _, _ in some)]
        source = torch.tensor([0, 1, *(other for _, other, _ in some)])
        where = head_masks(model, [(), (), *([head] for _, _, head in some)])
        errors, whole, square = torch.zeros(len(some)), torch.zeros(()), torch.zeros(())
        own = edit_hooks(edits, model, [pair[row] for row in rows])
        with hooked(net, *own, Patch(source, where, branch="cond")) as session:
            for call in trace():
                latents, given = call.rows(rows)
                session.at(call.step, ("cond",))
                eps = net(latents, **given)[0][:, :latents.shape[1]].float().cpu()
                errors += (eps[2:] - eps[source[2:]]).square().flatten(1).sum(1)
                whole += (eps[0] - eps[1]).square().sum()
                square += eps[0].square().sum()
        found.append(errors)
    if whole <= _SAME * square:
        raise ValueError(f"the model predicts the same for {pair[0]!r} and {pair[1]!r}, so that no "
                         "head carries what they differ in (is it trained?)")
    return {"errors": torch.cat(found).view(2, -1), "whole": whole}


def head_effects(frame: pd.DataFrame) -> pd.DataFrame:
    """All heads of `patched_predictions`, the strongest first: name, layer, head, means over
    prompts of denoising, noising and both, and low, high of both (95 % bootstrap over prompts)."""
    wide = frame.pivot_table("both", "prompt", "name", sort=False)
    low, high = mean_interval(wide.to_numpy())
    means = frame.groupby(["name", "layer", "head"], sort=False)[[*PATCH_DIRECTIONS, "both"]].mean()
    table = means.reset_index().assign(low=low, high=high)
    return table.sort_values("both", ascending=False, ignore_index=True)
