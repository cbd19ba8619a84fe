"""Placed injection: a relation written by hand into any model's pictures of any two things, scored
by a locator, in bounded memory.

As in `injection`: what relation heads write for the opposite relation, minus what they write for
the prompt's own, each a mean over prompts, noise and the first steps, is added to the residual
stream; the control is the same turned by a random rotation. Means are held out: of prompts, and
their counterparts, that tell of other things than the prompt that is scored, drawn from other
noise. Unless such are given, each half of the prompts is scored with the means of the other.
"""
from collections.abc import Sequence
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from ..hooks.core import BRANCHES, Call, Heads, Hook, Reader
from ..hooks.edits import AddResidual
from ..hooks.run import run
from ..model.pipeline import Model
from ..model.sampler import STEPS
from ..text.parser import opposed, read_spatial
from .chunks import Chunks, Part
from .heads import INTACT, check_heads, layers_and_heads
from .injection import rotation
from .locate import Locator
from .placed import asked, check_when, judge_pictures
from .sweep import pictures

EARLY = STEPS // 2      # steps over which a relation's vector is averaged: while places are open


class Writes(Reader):
    """Sums what heads write into the residual stream, in the conditional branch, over samples and
    steps: `total` [N, D]."""

    def __init__(self, heads: Heads, steps: Sequence[int]):
        super().__init__(heads, steps=steps, branch=BRANCHES[1])
        self.heads = heads

    def start(self) -> None:
        self.total: Tensor | float = 0.0

    def read(self, call: Call) -> None:
        own = call.output[call.forward.rows(self.branch)].float().sum(0)                 # [H, N, d]
        weight = call.module.to_out[0].weight.float().unflatten(1, (len(own), -1))       # [D, H, d]
        for head in (head for layer, head in self.heads if layer == call.layer):
            self.total = self.total + own[head] @ weight[:, head].T


def _written(model: Model, texts: list[str], seeds: list[int], heads: Heads, early: int,
             options: dict) -> Part:
    """The sum over pictures and early steps of what heads write."""
    reader = Writes(heads, range(early))
    run(model, texts, seeds, reader, **options)
    assert isinstance(reader.total, Tensor)                             # `hooked` saw it act
    return {"total": reader.total.cpu()}


def means_sources(prompts: Sequence[str], means_from: Sequence[str] | None = None
                  ) -> tuple[dict[str, int], list[list[str]]]:
    """For each prompt the number of the list of which its means are taken, and these lists, without
    counterparts: `means_from` for all; else the other half of the prompts. Those that tell of the
    same things by a relation or its opposite are in one half.

    Raises ValueError for a prompt without an opposite; for a relation that only one pair of things
    is said to have; and for means_from that hold a prompt or counterpart of the prompts, or lack a
    relation.
    """
    half: dict[str, int] = {}
    told: dict[frozenset[str], dict[frozenset[str], int]] = {}     # things by relations: their half
    for prompt in prompts:
        said = read_spatial(prompt)
        sides = frozenset((said.relation, read_spatial(opposed(prompt)).relation))
        halves = told.setdefault(sides, {})
        half[prompt] = halves.setdefault(frozenset(said.nouns), len(halves) % 2)
    if means_from is None:
        for sides in (sides for sides, halves in told.items() if len(halves) < 2):
            raise ValueError(f"only one pair of things is {' or '.join(sorted(sides))}, and means "
                             "are to be of others; give prompts about two at least, or further "
                             "ones for the means")
        return half, [[p for p in half if half[p] != own] for own in (0, 1)]
    known = {p: read_spatial(p).relation for q in means_from for p in (q, opposed(q))}
    for prompt in half:
        if prompt in known or opposed(prompt) in known:
            raise ValueError(f"{prompt!r} is scored, and it or its opposite is among the prompts "
                             "for the means, which are to be others")
    for relation in sorted(frozenset().union(*told) - set(known.values())):
        raise ValueError(f"the prompts for the means do not say {relation}")
    return dict.fromkeys(half, 0), [list(means_from)]


def relation_means(model: Model, prompts: Sequence[str], heads: Heads, early: int = EARLY,
                   per_prompt: int = 1, seed: int = 2, chunk: int = 4, progress: bool = False,
                   kept: Chunks | None = None, name: str = "mean", **options) -> dict[str, Tensor]:
    """[N, D] for each relation that the prompts say: what heads write, averaged over its prompts,
    noise and the first `early` steps. `chunk` pictures at a time; open chunks keep each, by
    `name`."""
    drawn: dict[str, list[tuple[str, int]]] = {}
    for text, number in zip(*pictures(prompts, per_prompt, seed)):
        drawn.setdefault(read_spatial(text).relation, []).append((text, number))
    jobs, owners = [], []
    for relation, each in drawn.items():
        for start in range(0, len(each), chunk):
            texts, seeds = (list(column) for column in zip(*each[start:start + chunk]))
            owners.append(relation)
            jobs.append((f"{name}-{relation}-{start:06}",
                         partial(_written, model, texts, seeds, heads, early, options)))
    means: dict[str, Tensor] = {}
    for relation, part in zip(owners, (kept or Chunks()).parts(jobs, "means", progress)):
        share = part["total"] / (len(drawn[relation]) * early)
        means[relation] = means.get(relation, 0) + share
    return means


def placed_injection(model: Model, prompts: Sequence[str], heads: Heads, locate: Locator,
                     scales: Sequence[float] = (1.0,), layer: int | None = None,
                     per_prompt: int = 1, seed: int = 1, early: int = EARLY, chunk: int = 4,
                     progress: bool = False, chunks: Chunks | None = None,
                     means_from: Sequence[str] | None = None, **options) -> pd.DataFrame:
    """Pictures with the opposite relation written in, times each scale, and with a random vector of
    the same size: the frame of `placed.judge`, plus prompt and condition, "intact" first. `placed`
    says whether the picture shows the opposite of its prompt.

    `heads` are those whose mean is taken, `means_from` further prompts of which it is, by default
    the other half (`means_sources`); `layer` is where it is added, by default the one after the
    last of the heads. One condition and `chunk` pictures at a time; `chunks` keeps each. Raises
    ValueError, before sampling, for no head, one out of range, a layer or number of early steps
    that does not exist, no finite scale, and as `placed.placed_ablation` does.
    """
    if not heads:
        raise ValueError("heads is empty; name at least one whose mean output is to be written in")
    check_heads(model, heads)
    last, number = layers_and_heads(model)[0], layer
    if number is None:
        number = 1 + max(layer for layer, _ in heads)
    if not 0 <= number <= last:
        raise ValueError(f"layer {number} is out of range; choose 0 (the position embedding) to "
                         f"{last} (the final norm)")
    if not len(scales) or not torch.isfinite(torch.tensor(scales, dtype=torch.float)).all():
        raise ValueError(f"scales is {list(scales)}; give at least one finite number")
    if early < 1:
        raise ValueError(f"early is {early}; a mean needs at least one step")
    check_when(model, [early - 1], options.get("steps", STEPS))
    source, lists = means_sources(prompts, means_from)
    told = [list(dict.fromkeys([*some, *map(opposed, some)])) for some in lists]
    for texts in told:                                    # refuses them before anything is drawn
        asked(model, texts, lambda images, nouns: images, per_prompt, seed, chunk, **options)
    drawn = asked(model, prompts, locate, per_prompt, seed, chunk, **options)
    own = [said.relation for said in drawn.said]
    drawn.said = [read_spatial(opposed(text)) for text in drawn.texts]
    kept = (chunks or Chunks()).open(
        "inject", model, prompts=list(prompts), heads=list(heads), scales=list(scales),
        layer=number, per_prompt=per_prompt, seed=seed, early=early, chunk=chunk, means_from=lists,
        options=options)
    means = [relation_means(model, texts, heads, early, per_prompt, seed + 1, chunk, progress, kept,
                            f"mean-{i}", **options) for i, texts in enumerate(told)]
    turn = rotation(model.transformer.inner_dim, seed)
    kinds = [(kind, scale) for scale in scales for kind in ("relation", "random")]
    names = [INTACT, *(f"{kind} {scale:g}" for kind, scale in kinds)]

    def hooks(condition: int, part: slice) -> list[Hook]:
        if names[condition] == INTACT:
            return []
        kind, scale = kinds[condition - 1]
        taken = [(means[source[text]], before, said.relation) for text, before, said in
                 zip(drawn.texts[part], own[part], drawn.said[part])]
        delta = torch.stack([mean[after] - mean[before] for mean, before, after in taken])
        return [AddResidual(scale * (delta @ turn.T if kind == "random" else delta), number)]
    return judge_pictures(model, drawn, names, hooks, locate, chunk, kept, progress, options)
