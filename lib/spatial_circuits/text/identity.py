"""Identity: by what a saved model knows its text encoder again."""
import hashlib

import torch
from torch import Tensor

from .batch import Encoder


def tensors_hash(tensors: dict[str, Tensor]) -> str:
    """sha256 over types, shapes and bits; whatever their order, their names and their device."""
    each = []
    for value in tensors.values():
        value = value.detach().cpu().contiguous()
        bits = hashlib.sha256(f"{value.dtype} {tuple(value.shape)}".encode())
        bits.update(value.flatten().view(torch.uint8).numpy().data)
        each.append(bits.hexdigest())
    return hashlib.sha256(" ".join(sorted(each)).encode()).hexdigest()


def fingerprint(encoder: Encoder) -> dict:
    """What text.json keeps of an encoder's weights or tables; {} for one without `tensors`.

    sha256: of every bit. sketch, where the tensors were drawn from a seed: sixteen weighted sums
    over their norm. Another processor draws other last digits, and is forgiven.
    """
    if not hasattr(encoder, "tensors"):
        return {}
    tensors = encoder.tensors()
    record: dict = {"sha256": tensors_hash(tensors)}
    if getattr(encoder, "drawn", False):
        flat = [x.detach().cpu().double().flatten() for x in tensors.values()]
        steps = torch.arange(1, 17, dtype=torch.float64)[:, None]
        sums = sum((steps * torch.arange(len(x))).cos() @ x for x in flat) / torch.cat(flat).norm()
        record["sketch"] = [round(x, 7) for x in sums.tolist()]
    return record


def same(one: dict, two: dict) -> bool:
    """Whether two fingerprints are of the same encoder, as far as both tell."""
    if "sha256" not in one or "sha256" not in two or one["sha256"] == two["sha256"]:
        return True
    if "sketch" not in one or "sketch" not in two:
        return False
    return max(abs(a - b) for a, b in zip(one["sketch"], two["sketch"])) < 1e-4
