"""Screening: ramps of direction words in any model, as `weight_maps.screen_words` has them, a layer
and a prompt at a time: memory grows with neither; finished layers may be kept (`chunks.Chunks`).

What the screen reads is one block, the position embedding and words after the caption MLP. So each
layer is screened as a model of that block alone, on one text that holds every word once.
"""
import re
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor, nn

from ..model.pipeline import Model
from ..text.batch import TextBatch
from ..text.prepared import Prepared
from .chunks import Chunks, Part
from .heads import head_name, layers_and_heads
from .weight_maps import screen_words, words

NUMBERS_OF_RAMPS = ("cosine", "projection", "energy", "control")


def word_means(model: Model, prompts: Sequence[str]) -> dict[str, Tensor]:
    """`weight_maps.words` of all prompts, read one by one: mean vectors [D], after the caption MLP,
    of every word over its occurrences."""
    total: dict[str, Tensor] = {}
    count: dict[str, int] = {}
    for prompt in prompts:
        for word, vector in words(model.transformer, model.encoder, [prompt]).items():
            times = max(1, len(re.findall(rf"\b{re.escape(word)}\b", prompt.lower())))
            total[word] = total.get(word, 0) + times * vector
            count[word] = count.get(word, 0) + times
    return {word: vector / count[word] for word, vector in total.items()}


def screen_layers(model: Model, prompts: Sequence[str], chunks: Chunks | None = None,
                  progress: bool = False) -> pd.DataFrame:
    """The frame of `weight_maps.screen_words`: a row a head and direction word.

    `chunks` keeps each layer. Raises ValueError as that does, and for chunks of another run.
    """
    layers, heads = layers_and_heads(model)
    kept = (chunks or Chunks()).open("screen", model, prompts=list(prompts))
    means = word_means(model, prompts)
    text = TextBatch(torch.stack(list(means.values()))[None] if means else torch.zeros(1, 0, 1),
                     torch.ones(1, len(means), dtype=torch.bool), [list(means)],
                     [["filler"] * len(means)])
    encoder = Prepared([" ".join(means)], text)
    said = list(dict.fromkeys(_screened(model, encoder, 0)["word"]))
    jobs = [(f"{layer:04}", partial(_columns, model, encoder, layer)) for layer in range(layers)]
    rows, places = [], [(head, word) for head in range(heads) for word in said]
    for layer, part in enumerate(kept.parts(jobs, "screen", progress)):
        rows += [(head_name(layer, head), layer, head, word, *each)
                 for (head, word), each in zip(places, part["numbers"].tolist())]
    return pd.DataFrame(rows, columns=["name", "layer", "head", "word", *NUMBERS_OF_RAMPS])


def _screened(model: Model, encoder: Prepared, layer: int) -> pd.DataFrame:
    """`screen_words` of one layer, as if it were the only one."""
    net = model.transformer
    alone = SimpleNamespace(
        pos_embed=net.pos_embed, transformer_blocks=[net.transformer_blocks[layer]],
        caption_projection=nn.Identity(), device="cpu", dtype=torch.float32)
    return screen_words(cast(Any, alone), encoder, list(encoder.rows))


def _columns(model: Model, encoder: Prepared, layer: int) -> Part:
    """One layer's numbers [H * words, 4], in double precision, as a frame holds them."""
    table = _screened(model, encoder, layer)[list(NUMBERS_OF_RAMPS)]
    return {"numbers": torch.from_numpy(table.to_numpy(copy=True))}
