"""Heads: their names, lists and masks. A head is a pair (layer, head), both counted from 0."""
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..model.pipeline import Model

INTACT = "intact"  # the condition without any intervention
Head = tuple[int, int]


def head_name(layer: int, head: int) -> str:
    """The field's name of a head, e.g. "L2H3"."""
    return f"L{layer}H{head}"


def parse_head(text: str) -> Head:
    """"L2H3" -> (2, 3). Raises ValueError for another form."""
    found = re.fullmatch(r"L(\d+)H(\d+)", text, re.ASCII)
    if not found:
        raise ValueError(f"head {text!r} is not of the form L2H3 (layer 2, head 3)")
    return int(found[1]), int(found[2])


def layers_and_heads(model: Model) -> tuple[int, int]:
    """How many layers L the model has, and heads H in each layer's cross-attention."""
    blocks = model.transformer.transformer_blocks
    return len(blocks), blocks[0].attn1.heads


def heads_of(model: Model) -> list[Head]:
    """Every cross-attention head, layer by layer, in the order of a flattened [L, H]."""
    layers, heads = layers_and_heads(model)
    return [(layer, head) for layer in range(layers) for head in range(heads)]


def other_heads(model: Model, heads: Sequence[Head]) -> list[Head]:
    """All cross-attention heads but these."""
    return [h for h in heads_of(model) if h not in heads]


def named_heads(heads: Sequence[Head]) -> dict[str, list[Head]]:
    """Sets of one head each, by the head's name: {"L0H0": [(0, 0)], ...}."""
    return {head_name(*h): [h] for h in heads}


def listed(heads: Sequence[Head]) -> str:
    """Heads in words: "L0H1, L2H3", or "none"."""
    return ", ".join(head_name(*h) for h in heads) or "none"


def check_heads(model: Model, heads: Sequence[Head]) -> None:
    """Raise ValueError naming the first head that the model does not have."""
    layers, width = layers_and_heads(model)
    for layer, head in heads:
        if not (0 <= layer < layers and 0 <= head < width):
            raise ValueError(f"head {head_name(layer, head)} is out of range; the model has L0H0 "
                             f"to {head_name(layers - 1, width - 1)}")


def head_masks(model: Model, sets: Sequence[Sequence[Head]]) -> Tensor:
    """Sets of heads as a bool tensor [C, L, H]. Raises ValueError for a head out of range."""
    masks = torch.zeros(len(sets), *layers_and_heads(model), dtype=torch.bool)
    for mask, heads in zip(masks, sets):
        check_heads(model, heads)
        for layer, head in heads:
            mask[layer, head] = True
    return masks


def head_conditions(model: Model, sets: Mapping[str, Sequence[Head]]) -> tuple[list[str], Tensor]:
    """Names of conditions, the intact model first, and the heads of each as a mask [1 + C, L, H].
    Raises ValueError for a head out of range, or a set that is called "intact"."""
    if INTACT in sets:
        raise ValueError(f"no set of heads may be called {INTACT!r}: so is the model as it is")
    return [INTACT, *sets], head_masks(model, [(), *sets.values()])
