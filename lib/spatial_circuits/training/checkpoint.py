"""Checkpoint: the state of a run in safetensors, replaced as a whole, so that a kill is harmless.

accelerate.save_state is not used, since it pickles optimizer, scaler and random states.
"""
import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import writing

SNAPSHOTS = "snapshots"     # folder within a run's


def tensor_hash(tensors: dict[str, Tensor], more: str = "") -> str:
    """sha256 of names, shapes, types and bytes of tensors, and of a text."""
    digest = hashlib.sha256(more.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_state(folder: Path, step: int, model: torch.nn.Module, ema, optimizers: list,
               scaler=None, keep: bool = False) -> Path:
    """Write folder/checkpoint-STEP.safetensors: weights, EMA, optimizer states, fp16's loss scale.

    Its metadata hold a hash of it all. Unless `keep`, older checkpoints go when it is there. Raises
    OSError, naming the path, where it cannot be written; the old one is then intact.
    """
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"ema.{i}": v for i, v in enumerate(ema.shadow_params)}
    for n, optimizer in enumerate(optimizers):
        for i, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{n}.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    state = {"step": step, "ema_step": ema.optimization_step,
             "scaler": scaler.state_dict() if scaler else None}
    record = json.dumps(state)
    path = folder / f"checkpoint-{step:08d}.safetensors"
    with writing(path) as temporary:
        save_file(tensors, temporary, {"state": record, "sha256": tensor_hash(tensors, record)})
    for old in folder.glob("checkpoint-*"):
        if old != path and not (keep and old.suffix == path.suffix):
            old.unlink()
    return path


def restore(folder: Path, model: torch.nn.Module, ema, optimizers: list, scaler=None) -> int:
    """Load the newest complete checkpoint in place and return its step; 0 if there is none.

    Raises ValueError, naming the file, if it is damaged or from an older version.
    """
    found = sorted(folder.glob("checkpoint-*.safetensors"))
    if not found:
        return 0
    state, tensors = _read(found[-1])
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    for i, shadow in enumerate(ema.shadow_params):
        shadow.copy_(tensors[f"ema.{i}"])
    ema.optimization_step = state["ema_step"]
    for n, optimizer in enumerate(optimizers):
        states: dict[int, dict] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{n}."):
                _, _, number, name = key.split(".")
                states.setdefault(int(number), {})[name] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": states, "param_groups": groups})
    if scaler and state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    return state["step"]


def _read(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """What a checkpoint holds, if it is whole."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (it is no dict)
    except Exception as error:
        raise ValueError(f"checkpoint {path} is damaged: {error}") from error
    if "sha256" not in metadata:
        raise ValueError(f"checkpoint {path} is damaged or old: it carries no sha256")
    if (digest := tensor_hash(tensors, metadata["state"])) != metadata["sha256"]:
        raise ValueError(f"checkpoint {path} is damaged: sha256 {digest}, "
                         f"expected {metadata['sha256']}")
    return json.loads(metadata["state"]), tensors


def load_average(path: Path, model: torch.nn.Module) -> int:
    """Load a checkpoint's EMA weights into a model of its size, in place, and return its step.

    Raises ValueError as `restore` does, and for a model of another size.
    """
    state, tensors = _read(path)
    parameters = list(model.parameters())
    found = [tensors[f"ema.{i}"] for i in range(sum(k.startswith("ema.") for k in tensors))]
    if [p.shape for p in parameters] != [x.shape for x in found]:
        raise ValueError(f"checkpoint {path} holds the weights of a model of another size")
    with torch.no_grad():
        for parameter, average in zip(parameters, found, strict=True):
            parameter.copy_(average)
    return state["step"]


def save_snapshot(folder: Path, step: int, model: torch.nn.Module) -> Path:
    """Write what weight-space scores need, cross-attention and caption MLP in fp16, to
    folder/snapshots/STEP.safetensors."""
    path = folder / SNAPSHOTS / f"{step:08d}.safetensors"
    kept = {k: v.detach().half().cpu().contiguous() for k, v in model.state_dict().items()
            if ".attn2." in k or k.startswith("caption_projection.")}
    with writing(path) as temporary:
        save_file(kept, temporary, {"step": str(step)})
    return path
