"""Dtypes: the number format a model runs in, by name, refused where a device cannot."""
import copy
from dataclasses import replace

import torch
from torch.nn.functional import conv2d, scaled_dot_product_attention

from .pipeline import Model
from .transformer import bf16_copy
from .vae import VAE

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def can_run(name: str, device: str | torch.device) -> bool:
    """Whether a device does a transformer's and a VAE's operations in this format: a GPU that only
    imitates bf16 counts as one that cannot; a format's name as in FORMATS."""
    place, dtype = torch.device(device), FORMATS[name]
    if place.type == "cuda" and name == "bf16":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        x = torch.ones(1, 1, 8, 8, device=place, dtype=dtype)
        scaled_dot_product_attention(x, x, x)
        conv2d(x, x[..., :3, :3])
        return bool((x @ x).isfinite().all())
    except (RuntimeError, NotImplementedError):
        return False


def check_dtype(name: str, device: str | torch.device) -> None:
    """Raises ValueError for an unknown format, or one that the device cannot."""
    if name not in FORMATS:
        raise ValueError(f"dtype {name!r} is unknown; choose from {', '.join(FORMATS)}")
    if not can_run(name, device):
        able = [one for one in FORMATS if can_run(one, device)]
        raise ValueError(f"device {str(device)!r} cannot run in {name}; "
                         f"choose from {', '.join(able)}")


def in_dtype(model: Model, name: str) -> Model:
    """A model of ours in this format: itself in fp32, else a copy of transformer and VAE.

    Raises ValueError for an unknown format.
    """
    if name not in FORMATS:
        raise ValueError(f"dtype {name!r} is unknown; choose from {', '.join(FORMATS)}")
    if name == "fp32":
        return model
    cast = torch.nn.Module.bfloat16 if name == "bf16" else torch.nn.Module.half
    vae = VAE(cast(copy.deepcopy(model.vae.model)), model.vae.mean, model.vae.std)
    transformer = model.transformer
    transformer = bf16_copy(transformer) if name == "bf16" else cast(copy.deepcopy(transformer))
    return replace(model, transformer=transformer, vae=vae)
