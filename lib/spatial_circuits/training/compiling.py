"""Compiling: torch.compile where it works, the function as it is where it does not."""
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import pi, sqrt
from typing import Any

import torch
from torch import Tensor, nn


def sigmoid_gelu(x: Tensor) -> Tensor:
    """The tanh approximation of GELU (Hendrycks and Gimpel 2016), written with
    1 + tanh(u) = 2 sigmoid(2 u), which is cheaper in compiled code for CPUs."""
    return x * torch.sigmoid(sqrt(8 / pi) * x * (1 + 0.044715 * x * x))


@contextmanager
def gelu_by_sigmoid(model: nn.Module) -> Iterator[None]:
    """Within the block the model's tanh GELUs, torch's and diffusers', are `sigmoid_gelu`."""
    gelus = [m for m in model.modules() if getattr(m, "approximate", None) == "tanh"]
    names = ["forward" if isinstance(m, nn.GELU) else "gelu" for m in gelus]
    for module, name in zip(gelus, names, strict=True):
        setattr(module, name, sigmoid_gelu)
    try:
        yield
    finally:
        for module, name in zip(gelus, names, strict=True):
            delattr(module, name)


def compiled_or_eager(function: Callable, trial: Callable[[Callable], Any], **options) -> Callable:
    """torch.compile(function, **options) if `trial` of it succeeds, else `function` and a warning.

    It fails without a working C++ compiler, and for some paths (spaces, signs beyond ASCII).
    """
    fast = torch.compile(function, **options)
    try:
        trial(fast)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")[:200]
        warnings.warn("torch.compile does not work here, going on without: "
                      f"{type(error).__name__}: {reason}", stacklevel=2)
        return function
    return fast
