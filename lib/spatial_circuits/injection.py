"""Injection: write a relation into the model by hand and watch what the later heads make of it.

Two forms, both with v_r [N, D], the mean over a relation's prompts of what the relation heads write into the residual
stream, minus the mean over all relations. *On the mean stream* no image exists: the object head at layer l reads
x = x_l + alpha v_r, where x_l is the stream as it stands at the first step, averaged over noise and over prompts of all
relations. *In a real run* delta = alpha (v_new - v_old) is added to the position embedding or to the residual stream, and
the picture is scored against the new relation. The control is the same delta turned by a random rotation: of equal norm
at every place, in a direction that means nothing.
"""
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from .ablation import pictures, sweep
from .captions import PHRASE_RELATION, PHRASES, parse
from .edits import AddStream, Inputs, Outputs
from .hooks import HALVES, Heads, run
from .scenes import RELATIONS
from .weights import captioned, cross

SITES = {"position embedding": 0, "residual stream": 1}  # the layer at whose entrance a vector is added


def mean_stream(model, prompts: Sequence[str], per_prompt: int = 1, seed: int = 2, **options) -> Tensor:
    """[L, N, D]: the stream that each cross-attention reads at the first step, averaged over prompts and noise."""
    reader = Inputs()
    run(model, *pictures(prompts, per_prompt, seed), reader, **options)
    return reader.mean


def patterns(model, prompts: Sequence[str], stream: Tensor, layer: int) -> Tensor:
    """Patterns [B, H, N, T] of one layer's cross-attention if its residual stream were `stream` [N, D] or [B, N, D]."""
    w, text = cross(model.transformer), model.encoder.encode(list(prompts))
    keys = torch.einsum("btD,hdD->bhtd", captioned(model.transformer, text.embeddings), w["k"][layer]) + w["bk"][layer, :, None]
    x = stream.float().expand(len(prompts), *stream.shape[-2:])
    queries = torch.einsum("bnD,hdD->bhnd", x, w["q"][layer]) + w["bq"][layer, :, None]
    scores = queries @ keys.transpose(-1, -2) * w["k"].shape[2] ** -0.5
    return scores.masked_fill(~text.mask[:, None, None].to(scores.device), -torch.inf).softmax(-1)


def injected(model, prompts: Sequence[str], stream: Tensor, vectors: Tensor, reader: tuple[int, int],
             alphas: Sequence[float]) -> Tensor:
    """The reading head's pattern [A, B, N, T] on its stream [N, D] plus alpha times each prompt's vector [B, N, D]."""
    layer, head = reader
    return torch.stack([patterns(model, prompts, stream + a * vectors, layer)[:, head] for a in alphas])


def _relations(prompts: Sequence[str]) -> list[int]:
    said = [parse(p).relation for p in prompts]
    if None in said:
        raise ValueError(f"prompt {prompts[said.index(None)]!r} says no relation")
    return said


def relation_vectors(model, prompts: Sequence[str], heads: Heads, per_prompt: int = 1, seed: int = 2, **options) -> Tensor:
    """[8, steps, N, D]: the mean write of these heads for each relation, minus the mean over relations.

    Raises ValueError if a prompt says no relation or the prompts leave one out.
    """
    relation = torch.tensor(_relations(prompts))
    missing = [r for i, r in enumerate(RELATIONS) if not (relation == i).any()]
    if missing:
        raise ValueError(f"no prompt for the relation {missing[0]}; the mean needs prompts of all {len(RELATIONS)}")
    reader = Outputs(group=relation.repeat_interleave(per_prompt))
    run(model, *pictures(prompts, per_prompt, seed), reader, **options)
    w, mean = cross(model.transformer), reader.mean[:, :, HALVES.index("cond")].cpu()         # [8, steps, L, H, N, d]
    written = sum(mean[:, :, layer, head] @ w["o"][layer, head].T.cpu() for layer, head in heads)
    return written - written.mean(0)


def restated(prompt: str, relation: int) -> str:
    """The prompt with its relation phrase replaced by the first phrase of another relation."""
    _relations([prompt])
    start, end = next((s, e) for s, e, role in parse(prompt).spans if role == "relation")
    return prompt[:start] + PHRASES[PHRASE_RELATION.index(relation)] + prompt[end:]


def rotation(width: int, seed: int = 0) -> Tensor:
    """A random rotation [D, D]: keeps every norm and all angles among the vectors it turns."""
    q, r = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed)))
    return q * r.diagonal().sign()


def steer(model, prompts: Sequence[str], targets: Sequence[int], vectors: Tensor, scales: Sequence[float],
          site: str = "residual stream", layer: int | None = None, per_prompt: int = 1, seed: int = 1,
          when: Sequence[int] | None = None, control: bool = True, **options) -> pd.DataFrame:
    """Samples in which the relation's vector is exchanged for the target's, scored against the target relation.

    `targets` [P] number the wanted relations; `vectors` [8, N, D]; `when` are the steps at which to add (default: all).
    Columns of `metrics.score` plus condition, seed, scale and vector ("relation", and unless `control` is off "random").
    Raises ValueError for an unknown site, unequal lengths, or a prompt without a relation.
    """
    if site not in SITES:
        raise ValueError(f"site {site!r} is unknown; choose from {', '.join(SITES)}")
    if len(targets) != len(prompts):
        raise ValueError(f"{len(targets)} targets for {len(prompts)} prompts; give one each")
    delta = vectors[list(targets)] - vectors[_relations(prompts)]                                  # [P, N, D]
    turned = delta @ rotation(delta.shape[-1], seed).T
    rows = [(s, kind) for kind in ("relation", "random")[:1 + control] for s in scales]
    added = torch.stack([s * (delta if kind == "relation" else turned) for s, kind in rows], 1)
    added = added.repeat_interleave(per_prompt, 0).flatten(0, 1)                              # [P * n * C, N, D]
    names = [f"{kind} {s:g}" for s, kind in rows]
    hook = AddStream(added, SITES[site] if layer is None else layer, steps=when)
    frame = sweep(model, prompts, names, [hook], per_prompt, seed,
                  scored=[restated(p, t) for p, t in zip(prompts, targets)], **options)
    times = len(frame) // len(rows)
    return frame.assign(scale=[s for s, _ in rows] * times, vector=[kind for _, kind in rows] * times)
