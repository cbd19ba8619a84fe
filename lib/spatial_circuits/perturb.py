"""Perturb: the same scene said in other words, to see what a model's reading hangs on (paper: templates T0 to T4).

Each family turns a parsed prompt into another wording. A picture is scored against the original prompt, so a
family may use any words; whether an encoder knows them is asked before sampling (`supported`).
"""
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from .ablation import sweep
from .captions import PHRASES, parse
from .factors import token_vectors
from .scenes import COLORS, OFFSETS, RELATIONS, SHAPES
from .text import Encoder
from .weights import qk_maps, ramps

_SYNONYM = {"red": "crimson", "blue": "navy"}


def _said(prompt: str) -> tuple[str, str, str, str, str]:
    """(colour 1, shape 1, phrase, colour 2, shape 2). Raises ValueError if the prompt leaves one out."""
    found = parse(prompt)
    if None in (*found.shape, *found.color) or found.phrase is None:
        raise ValueError(f"prompt {prompt!r} does not say both shapes, both colours and a relation")
    (s1, s2), (c1, c2) = ([SHAPES[s] for s in found.shape], [COLORS[c] for c in found.color])
    return c1, s1, PHRASES[found.phrase], c2, s2


FAMILIES: dict[str, Callable[[str, str, str, str, str], str]] = {
    "T0": lambda c1, s1, r, c2, s2: f"{c1} {s1} is {r} {c2} {s2}",
    "T1 no is": lambda c1, s1, r, c2, s2: f"{c1} {s1} {r} {c2} {s2}",
    "T2 no is, the": lambda c1, s1, r, c2, s2: f"{c1} {s1} {r} the {c2} {s2}",
    "T3 the": lambda c1, s1, r, c2, s2: f"{c1} {s1} is {r} the {c2} {s2}",
    "T4 the, the": lambda c1, s1, r, c2, s2: f"the {c1} {s1} is {r} the {c2} {s2}",
    "no is, the, the": lambda c1, s1, r, c2, s2: f"the {c1} {s1} {r} the {c2} {s2}",
    "I1 inverted": lambda c1, s1, r, c2, s2: f"{r} {c2} {s2} is {c1} {s1}",
    "I2 inverted, the": lambda c1, s1, r, c2, s2: f"{r} {c2} {s2} is the {c1} {s1}",
    "I3 inverted, the": lambda c1, s1, r, c2, s2: f"{r} the {c2} {s2} is {c1} {s1}",
    "synonyms": lambda c1, s1, r, c2, s2: f"{_SYNONYM[c1]} {s1} is {r} {_SYNONYM[c2]} {s2}",
    "capitals": lambda c1, s1, r, c2, s2: f"{c1} {s1} is {r} {c2} {s2}".upper(),
    "full stop": lambda c1, s1, r, c2, s2: f"{c1} {s1} is {r} {c2} {s2}.",
    "double space": lambda c1, s1, r, c2, s2: f"{c1} {s1}  is {r}  {c2} {s2}",
    "lead-in": lambda c1, s1, r, c2, s2: f"in the picture {c1} {s1} is {r} {c2} {s2}",
    "typo": lambda c1, s1, r, c2, s2: f"{c1} {s1} is {r} {c2} {s2[:2]}{s2[3]}{s2[2]}{s2[4:]}",
    "swapped clauses": lambda c1, s1, r, c2, s2: f"there is {c2} {s2} and {c1} {s1} is {r} it",
}


def reworded(prompts: Sequence[str], family: str) -> list[str]:
    """The prompts in the words of a family. Raises ValueError for an unknown family or an incomplete prompt."""
    if family not in FAMILIES:
        raise ValueError(f"family {family!r} is unknown; choose from {', '.join(FAMILIES)}")
    return [FAMILIES[family](*_said(p)) for p in prompts]


def supported(encoder: Encoder, prompts: Sequence[str]) -> dict[str, str]:
    """Families that the encoder cannot read, with the reason; asked of these prompts."""
    out = {}
    for family in FAMILIES:
        try:
            encoder.encode(reworded(prompts, family))
        except ValueError as error:
            out[family] = str(error)
    return out


def robustness(model, prompts: Sequence[str], families: Sequence[str] | None = None, per_prompt: int = 1, seed: int = 1,
               **options) -> pd.DataFrame:
    """Scores of every family against the original prompts: `metrics.score`'s frame plus condition (the family) and seed.

    All families by default, but for those the encoder cannot read. T0 comes first, as the reference of `ablation.effects`.
    """
    known = [f for f in families or FAMILIES if f not in supported(model.encoder, prompts)]
    told = [list(words) for words in zip(*(reworded(prompts, f) for f in known))]
    return sweep(model, told, known, (), per_prompt, seed, scored=prompts, **options)


def shifts(encoder: Encoder, prompts: Sequence[str], family: str, role: str, transformer=None) -> Tensor:
    """[n, D]: by how much a family moves each prompt's token of that role; with a transformer, after its caption MLP.

    Raises ValueError for an unknown family, or if a reworded prompt holds no such token (a misspelt word has no role).
    """
    return token_vectors(encoder, reworded(prompts, family), role, transformer) - token_vectors(encoder, prompts, role, transformer)


def alignment(moved: Tensor, effects: Tensor, vectors: Tensor, n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Cosine of the mean shift [n, D] with each relation's effect [8, D], 95 % bootstrap over prompts; and a null (C15).

    Columns by relation: cosine, low, high; null: the 97.5th percentile of |cosine| for random directions with the covariance of the
    tokens' own `vectors` [n, D]; within: the share of the shift's square that lies in the span of the effects; size: its length over the
    effects' mean length.
    """
    generator = torch.Generator().manual_seed(seed)
    mean, n = moved.mean(0), len(moved)
    drawn = torch.randint(n, (n_boot, n), generator=generator)
    means = torch.stack([moved[rows].mean(0) for rows in drawn])                              # [boots, D]
    cosine = lambda x: cosine_similarity(x[..., None, :], effects, dim=-1)
    low, high = np.percentile(cosine(means).numpy(), [2.5, 97.5], axis=0)
    random = torch.randn(n_boot, len(vectors), generator=generator) @ (vectors - vectors.mean(0))
    null = np.percentile(cosine(random).abs().numpy(), 97.5, axis=0)
    span = torch.linalg.svd(effects - effects.mean(0), full_matrices=False)[2][:len(effects) - 1]
    within = float((span @ mean).square().sum() / mean.square().sum().clamp_min(1e-12))
    return pd.DataFrame({"cosine": cosine(mean).numpy(), "low": low, "high": high, "null": null, "within": within,
                         "size": float(mean.norm() / effects.norm(dim=1).mean())}, pd.Index(RELATIONS, name="relation"))


def shifted_ramps(transformer, effects: Tensor, shift: Tensor) -> pd.DataFrame:
    """The heads' ramps for relation effects [8, D] (after the caption MLP), and once the shift [D] is added to each of them.

    The shift adds the same map to every relation; it is no ramp in the mean, but turns some relations' maps. A row a head:
    name, then cosine and projection, each before, after, and worst (the relation whose cosine falls most).
    """
    directions = torch.as_tensor(OFFSETS).float()
    both = torch.cat([effects, effects + shift, torch.zeros(1, effects.shape[1])])
    maps = qk_maps(transformer, both.to(transformer.device)).cpu()
    maps = maps - maps[:, :, -1:]                                                             # without the key's bias
    old, new = (ramps(maps[:, :, part], directions, center=False) for part in (slice(0, 8), slice(8, 16)))
    sign = old["projection"].mean(-1).sign()
    rows = [(f"L{i}H{j}", float(old["cosine"][i, j].mean()), float(new["cosine"][i, j].mean()),
             float(sign[i, j] * (sign[i, j] * new["cosine"][i, j]).min()), float(old["projection"][i, j].mean()))
            for i in range(maps.shape[0]) for j in range(maps.shape[1])]
    table = pd.DataFrame(rows, columns=["name", "before", "after", "worst", "projection"])
    return table.sort_values("projection", key=abs, ascending=False, ignore_index=True)
