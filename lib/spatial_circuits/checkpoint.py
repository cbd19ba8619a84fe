"""Checkpoint: the state of a training run in safetensors, replaced as a whole so that a kill at any moment is harmless."""
import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def save_state(folder: Path, step: int, model: torch.nn.Module, ema, optimizers: list) -> Path:
    """Write folder/checkpoint-STEP.safetensors (weights, EMA, optimizer states) under a temporary name, then rename it.

    Older checkpoints are removed only after the new one is complete.
    """
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"ema.{i}": v for i, v in enumerate(ema.shadow_params)}
    for n, optimizer in enumerate(optimizers):
        for i, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{n}.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
    path = folder / f"checkpoint-{step:08d}.safetensors"
    partial = path.with_suffix(".partial")
    metadata = {"step": str(step), "ema_step": str(ema.optimization_step)}
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, partial, metadata)
    os.replace(partial, path)
    for old in folder.glob("checkpoint-*"):
        if old != path:
            old.unlink()
    return path


def restore(folder: Path, model: torch.nn.Module, ema, optimizers: list) -> int:
    """Load the newest complete checkpoint in place and return its step; 0 if there is none.

    Raises ValueError, naming the file, if it is damaged.
    """
    found = sorted(folder.glob("checkpoint-*.safetensors"))
    if not found:
        return 0
    try:
        with safe_open(found[-1], "pt") as file:
            metadata, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}
    except Exception as error:
        raise ValueError(f"checkpoint {found[-1]} is damaged: {error}") from error
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    for i, shadow in enumerate(ema.shadow_params):
        shadow.copy_(tensors[f"ema.{i}"])
    ema.optimization_step = int(metadata["ema_step"])
    for n, optimizer in enumerate(optimizers):
        state: dict[int, dict] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{n}."):
                _, _, i, name = key.split(".")
                state.setdefault(int(i), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["step"])


def save_snapshot(folder: Path, step: int, model: torch.nn.Module) -> Path:
    """Write what weight-space scores need, cross-attention and caption MLP in fp16, to folder/snapshots/STEP.safetensors."""
    path = folder / "snapshots" / f"{step:08d}.safetensors"
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({k: v.detach().half().cpu().contiguous() for k, v in model.state_dict().items()
               if ".attn2." in k or k.startswith("caption_projection.")}, partial, {"step": str(step)})
    os.replace(partial, path)
    return path
