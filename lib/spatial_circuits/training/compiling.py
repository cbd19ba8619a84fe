"""Compiling: torch.compile where it works, the function as it is where it does not."""
import warnings
from collections.abc import Callable
from typing import Any

import torch


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
