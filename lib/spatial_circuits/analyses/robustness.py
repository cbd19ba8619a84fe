"""Robustness: the same scene said in other words, to see what a model's reading hangs on.

Each family turns a parsed prompt into another wording (paper: templates T0 to T4). A picture is
scored against the original prompt, so a family may use any words; whether an encoder knows them is
asked before sampling (`wordings.supported`).
"""
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from diffusers import PixArtTransformer2DModel as Transformer
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..data.scenes import OFFSETS, RELATIONS
from ..model.pipeline import Model
from ..text.batch import Encoder
from ..text.wordings import FAMILIES, reworded, supported
from .factors import token_vectors
from .heads import head_name
from .intervals import bootstrap_means, percentiles
from .sweep import sweep
from .weight_maps import qk_maps, ramps


def robustness(model: Model, prompts: Sequence[str], families: Sequence[str] | None = None,
               per_prompt: int = 1, seed: int = 1, **options) -> pd.DataFrame:
    """Scores of every family against the original prompts: `metrics.score`'s frame plus condition
    (the family) and seed. All families by default, less those that the encoder cannot read.

    Raises ValueError for an unknown family, an incomplete prompt, or if no family can be read. Give
    T0 first, as the reference of `sweep.effects`.
    """
    unread = supported(model.encoder, prompts)
    known = [f for f in families or FAMILIES if f not in unread]
    if not known:
        raise ValueError(f"the encoder can read none of the families; {list(unread.values())[0]}")
    told = [list(words) for words in zip(*(reworded(prompts, f) for f in known))]
    return sweep(model, told, known, (), per_prompt, seed, scored=prompts, **options)


def shifts(encoder: Encoder, prompts: Sequence[str], family: str, role: str,
           transformer: Transformer | None = None) -> Tensor:
    """[n, D]: by how much a family moves each prompt's token of that role; with a transformer,
    after its caption MLP. Raises ValueError for an unknown family, or a reworded prompt without
    such a token (a misspelt word has no role)."""
    new, old = (token_vectors(encoder, told, role, transformer)
                for told in (reworded(prompts, family), prompts))
    return new - old


def alignment(moved: Tensor, effects: Tensor, vectors: Tensor, n_boot: int = 1000,
              seed: int = 0) -> pd.DataFrame:
    """Cosine of the mean shift [n, D] with each relation's effect [8, D], and a null (C15).

    By relation: cosine, low, high (95 % bootstrap over prompts); null: the 97.5th percentile of
    |cosine| for random directions with the covariance of the tokens' own `vectors` [n, D]; within:
    the share of the shift's square that lies in the span of the effects; size: its length over the
    effects' mean length.
    """
    moved, effects, vectors = (x.float().cpu() for x in (moved, effects, vectors))
    mean = moved.mean(0)

    def cosine(x: Tensor) -> Tensor:
        return cosine_similarity(x[..., None, :], effects, dim=-1)

    means = torch.from_numpy(bootstrap_means(moved.numpy(), n_boot=n_boot, seed=seed)).float()
    low, high = percentiles(cosine(means).numpy())
    normal = torch.randn(n_boot, len(vectors), generator=torch.Generator().manual_seed(seed))
    random = normal @ (vectors - vectors.mean(0))
    null = np.percentile(cosine(random).abs().numpy(), 97.5, axis=0)
    span = torch.linalg.svd(effects - effects.mean(0), full_matrices=False)[2][:len(effects) - 1]
    within = float((span @ mean).square().sum() / mean.square().sum().clamp_min(1e-12))
    size = float(mean.norm() / effects.norm(dim=1).mean())
    return pd.DataFrame({"cosine": cosine(mean).numpy(), "low": low, "high": high, "null": null,
                         "within": within, "size": size}, pd.Index(RELATIONS, name="relation"))


def shifted_ramps(transformer: Transformer, effects: Tensor, shift: Tensor) -> pd.DataFrame:
    """The heads' ramps for relation effects [8, D] (after the caption MLP), before and after the
    shift [D] is added to each of them.

    The shift adds the same map to every relation; it is no ramp in the mean, but turns some
    relations' maps. A row a head: name; means over relations of the cosine before and after; worst
    (that of the relation whose cosine falls most); projection.
    """
    effects, shift = effects.float().cpu(), shift.float().cpu()
    directions, count = torch.as_tensor(OFFSETS).float(), len(effects)
    both = torch.cat([effects, effects + shift, torch.zeros(1, effects.shape[1])])
    maps = qk_maps(transformer, both)
    maps = maps[:, :, :-1] - maps[:, :, -1:]                                # without the key's bias
    old, new = (ramps(part, directions, center=False) for part in maps.split(count, 2))
    projection = old["projection"].mean(-1)                                                 # [L, H]
    sign = projection.sign()
    worst = sign * (sign[..., None] * new["cosine"]).amin(-1)
    columns = {"before": old["cosine"].mean(-1), "after": new["cosine"].mean(-1), "worst": worst,
               "projection": projection}
    layers, heads = projection.shape
    names = [head_name(i, j) for i in range(layers) for j in range(heads)]
    table = pd.DataFrame({"name": names, **{k: v.flatten().tolist() for k, v in columns.items()}})
    return table.sort_values("projection", key=abs, ascending=False, ignore_index=True)
