"""Self-check of a loaded model: do readers tell the truth, do they leave the pictures alone, and
how much memory and time will an analysis take?"""
import time
from dataclasses import dataclass, replace

import torch

from ..hooks.core import Call, Reader
from ..hooks.run import run
from ..model.pipeline import Model
from .costs import forward_operations, kept_bytes, sizes_of

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # of the largest value


class KernelError(Reader):
    """Keeps `error`: the largest difference between the explicit pattern times the values and the
    kernel's output, over that output's largest value; one head's patterns at a time. And `rows` of
    all forwards together."""

    def start(self) -> None:
        self.error, self.rows = 0.0, 0

    def read(self, call: Call) -> None:
        self.rows += len(call.sample) if call.layer == 0 else 0
        largest = call.output.abs().max().clamp_min(1e-12)
        for head in range(call.query.shape[1]):
            own = slice(head, head + 1)
            mask = call.mask if call.mask is None or call.mask.shape[1] == 1 else call.mask[:, own]
            one = replace(call, query=call.query[:, own], key=call.key[:, own],
                          value=call.value[:, own], mask=mask, made=None)
            difference = (one.pattern @ one.value - call.output[:, own]).abs().max() / largest
            self.error = max(self.error, float(difference))


@dataclass
class SelfCheck:
    """What `self_check` found; `memory` in bytes, see `costs.kept_bytes`; `rate` in operations a
    second (see `costs`) while it drew, text encoder and scheduler included."""
    pattern_error: float
    tolerance: float
    bit_identical: bool
    memory: dict[str, int]
    rate: float

    @property
    def passed(self) -> bool:
        return self.bit_identical and self.pattern_error <= self.tolerance


def self_check(model: Model, prompt: str = "red square is above blue circle", seed: int = 0,
               steps: int = 2, **options) -> SelfCheck:
    """Draw one picture without and with a reader on every cross-attention head, and compare.

    Options as of `model.latents`. Raises ValueError for an option out of range.
    """
    reader = KernelError()
    read = run(model, [prompt], [seed], reader, steps=steps, **options)      # the slow first time
    began = time.perf_counter()
    plain = model.latents([prompt], [seed], steps=steps, **options)
    same, seconds = torch.equal(plain, read), time.perf_counter() - began
    sizes = sizes_of(model, *plain.shape[-2:])
    operations = sum(forward_operations(sizes, reader.rows).values())
    dtype = next(model.transformer.parameters()).dtype
    return SelfCheck(reader.error, TOLERANCE[dtype], same, kept_bytes(sizes), operations / seconds)
