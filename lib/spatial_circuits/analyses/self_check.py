"""Self-check of a loaded model: do readers tell the truth, do they leave the pictures alone, and
how much memory will an analysis take?"""
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.captions import ROLES
from ..hooks.core import Call, Reader
from ..hooks.run import run
from ..model.pipeline import Model
from ..model.sampler import STEPS
from .heads import layers_and_heads

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # of the largest value


class KernelError(Reader):
    """Keeps `error`: the largest difference between the explicit pattern times the values and the
    kernel's output, over that output's largest value."""

    def start(self) -> None:
        self.error = 0.0

    def read(self, call: Call) -> None:
        explicit, output = call.pattern @ call.value, call.output
        difference = (explicit - output).abs().max() / output.abs().max().clamp_min(1e-12)
        self.error = max(self.error, float(difference))


@dataclass
class SelfCheck:
    """What `self_check` found; `memory` in bytes, see `memory_of`."""
    pattern_error: float
    tolerance: float
    bit_identical: bool
    memory: dict[str, int]

    @property
    def passed(self) -> bool:
        return self.bit_identical and self.pattern_error <= self.tolerance


def self_check(model: Model, prompt: str = "red square is above blue circle", seed: int = 0,
               steps: int = 2, **options) -> SelfCheck:
    """Draw one picture without and with a reader on every cross-attention head, and compare.

    Options as of `model.latents`. Raises ValueError for an option out of range.
    """
    reader = KernelError()
    plain = model.latents([prompt], [seed], steps=steps, **options)
    read = run(model, [prompt], [seed], reader, steps=steps, **options)
    dtype = next(model.transformer.parameters()).dtype
    return SelfCheck(reader.error, TOLERANCE[dtype], torch.equal(plain, read),
                     memory_of(model, plain))


def memory_of(model: Model, latents: Tensor, steps: int = STEPS) -> dict[str, int]:
    """Bytes that readers keep over `steps` forwards, for latents [B, C, h, w] of one batch.

    pattern: one layer's patterns at hand, both branches. patterns: one head, every step, float32.
    mean outputs: all heads (mean ablation). heatmap: all heads, one word. roles: all heads and
    roles, every step (the book's synopsis). places: the same summed over three places.
    """
    (layers, heads), count = layers_and_heads(model), len(latents)
    patch, width = model.transformer.config["patch_size"], model.transformer.inner_dim
    places = latents.shape[-2] // patch * (latents.shape[-1] // patch)
    tokens = model.encoder.encode([""]).mask.shape[1]
    every = 2 * steps * layers * heads * len(ROLES)
    return {"pattern": 2 * count * heads * places * tokens * latents.element_size(),
            "patterns": 4 * count * steps * places * tokens,
            "mean outputs": 4 * 2 * steps * layers * places * width,
            "heatmap": 4 * count * layers * heads * places,
            "roles": 2 * count * every * places, "places": 2 * count * every * 3}
