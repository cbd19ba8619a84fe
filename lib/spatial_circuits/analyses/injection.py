"""Injection: write a relation into the model by hand and watch what the later heads make of it.

Two forms, both with v_r [N, D], the mean over a relation's prompts of what the relation heads write
into the residual stream, minus the mean over all relations. *On the mean stream* no image exists:
the object head at layer l reads x = x_l + alpha v_r, where x_l is the stream as it stands at the
first step, averaged over noise and over prompts of all relations. *In a real run*
delta = alpha (v_new - v_old) is added to the position embedding or to the residual stream, and the
picture is scored against the new relation. The control is the same delta turned by a random
rotation: of equal norm at every image token, in a direction that means nothing.
"""
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from ..data.scenes import RELATIONS
from ..hooks.core import BRANCHES, Heads
from ..hooks.edits import AddResidual
from ..hooks.readers import MeanOutputs, MeanResidual
from ..hooks.run import run
from ..model.pipeline import Model
from ..text.counterparts import relations_said, restated
from .sweep import pictures, sweep
from .weight_maps import cross_weights, project_captions

SITES = {"position embedding": 0, "residual stream": 1}  # the layer before which a vector is added


def mean_residual(model: Model, prompts: Sequence[str], per_prompt: int = 1, seed: int = 2,
                  **options) -> Tensor:
    """[L, N, D]: the stream that each cross-attention reads at the first step, averaged over
    prompts and noise."""
    reader = MeanResidual()
    run(model, *pictures(prompts, per_prompt, seed), reader, **options)
    return reader.mean.cpu()


def patterns_on_residual(model: Model, prompts: Sequence[str], stream: Tensor,
                         layer: int) -> Tensor:
    """Patterns [B, H, N, T] of one layer's cross-attention if its residual stream were `stream`
    [N, D] or [B, N, D]."""
    w, text = cross_weights(model.transformer), model.encoder.encode(list(prompts))
    vectors = project_captions(model.transformer, text.embeddings)
    keys = torch.einsum("btD,hdD->bhtd", vectors, w["k"][layer]) + w["bk"][layer, :, None]
    x = stream.float().cpu().expand(len(prompts), *stream.shape[-2:])
    queries = torch.einsum("bnD,hdD->bhnd", x, w["q"][layer]) + w["bq"][layer, :, None]
    scores = queries @ keys.transpose(-1, -2) * w["k"].shape[2] ** -0.5
    return scores.masked_fill(~text.mask[:, None, None].cpu(), -torch.inf).softmax(-1)


def injected_patterns(model: Model, prompts: Sequence[str], stream: Tensor, vectors: Tensor,
                      reader: tuple[int, int], alphas: Sequence[float]) -> Tensor:
    """The reading head's pattern [A, B, N, T] on its stream [N, D] plus alpha times each prompt's
    vector [B, N, D]."""
    layer, head = reader
    stream, vectors = stream.float().cpu(), vectors.float().cpu()
    return torch.stack([patterns_on_residual(model, prompts, stream + a * vectors, layer)[:, head]
                        for a in alphas])


def relation_vectors(model: Model, prompts: Sequence[str], heads: Heads, per_prompt: int = 1,
                     seed: int = 2, **options) -> Tensor:
    """[8, steps, N, D]: the mean write of these heads for each relation, minus that over relations.

    Raises ValueError for no heads, if a prompt says no relation or the prompts leave one out.
    """
    if not len(heads):
        raise ValueError("heads is empty; give at least one (layer, head) whose output is averaged")
    relation = torch.tensor(relations_said(prompts), dtype=torch.long)
    missing = [r for i, r in enumerate(RELATIONS) if not (relation == i).any()]
    if missing:
        raise ValueError(f"no prompt for the relation {missing[0]}; "
                         f"the mean needs prompts of all {len(RELATIONS)}")
    reader = MeanOutputs(group=relation.repeat_interleave(per_prompt))
    run(model, *pictures(prompts, per_prompt, seed), reader, **options)
    mean = reader.mean[:, :, BRANCHES.index("cond")].cpu()                 # [8, steps, L, H, N, d]
    o = cross_weights(model.transformer)["o"]
    written = torch.stack([mean[:, :, i, j] @ o[i, j].T for i, j in heads]).sum(0)
    return written - written.mean(0)


def rotation(width: int, seed: int = 0) -> Tensor:
    """A random rotation [D, D]: keeps every norm and all angles among the vectors it turns."""
    normal = torch.randn(width, width, generator=torch.Generator().manual_seed(seed))
    q, r = torch.linalg.qr(normal)
    return q * r.diagonal().sign()


def steer(model: Model, prompts: Sequence[str], targets: Sequence[int], vectors: Tensor,
          scales: Sequence[float], site: str = "residual stream", layer: int | None = None,
          per_prompt: int = 1, seed: int = 1, when: Sequence[int] | None = None,
          control: bool = True, **options) -> pd.DataFrame:
    """Samples in which the relation's vector is exchanged for the target's, scored against that.

    `targets` [P] number the wanted relations; `vectors` [8, N, D]; `when` are the steps at which to
    add (default: all). Columns of `metrics.score` plus condition, seed, scale and vector
    ("relation", and unless `control` is off "random"). Raises ValueError for an unknown site or
    target, unequal lengths, no scale, what is not finite, or a prompt without a relation.
    """
    if site not in SITES:
        raise ValueError(f"site {site!r} is unknown; choose from {', '.join(SITES)}")
    if len(targets) != len(prompts):
        raise ValueError(f"{len(targets)} targets for {len(prompts)} prompts; give one each")
    if unknown := [t for t in targets if not 0 <= t < len(vectors)]:
        raise ValueError(f"target {unknown[0]} is out of range; choose 0 to {len(vectors) - 1}")
    if not len(scales) or not torch.isfinite(torch.tensor(scales, dtype=torch.float)).all():
        raise ValueError(f"scales is {list(scales)}; give at least one finite number")
    if not torch.isfinite(vectors).all():
        raise ValueError("vectors holds a number that is not finite (NaN or infinite)")
    vectors = vectors.float().cpu()
    delta = vectors[list(targets)] - vectors[relations_said(prompts)]                    # [P, N, D]
    added = {"relation": delta}
    if control:
        added["random"] = delta @ rotation(delta.shape[-1], seed).T
    rows = [(s, kind) for kind in added for s in scales]
    each = torch.stack([s * added[kind] for s, kind in rows], 1)                    # [P, C, N, D]
    each = each.repeat_interleave(per_prompt, 0).flatten(0, 1)                  # [P * n * C, N, D]
    hook = AddResidual(each, SITES[site] if layer is None else layer, steps=when)
    frame = sweep(model, prompts, [f"{kind} {s:g}" for s, kind in rows], [hook], per_prompt, seed,
                  scored=[restated(p, t) for p, t in zip(prompts, targets)], **options)
    scale, vector = zip(*rows)
    times = len(frame) // len(rows)
    return frame.assign(scale=list(scale) * times, vector=list(vector) * times)
