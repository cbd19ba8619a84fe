"""Precision: which number format is fast on a device."""
import torch


def resolve_precision(name: str, device: torch.device | str | None = None) -> str:
    """Resolve "auto" for a device: bf16 on a GPU or a CPU with bf16 matrix units (AMX), else "no".

    Without a device: for the GPU where there is one. Raises ValueError for another name.
    """
    if name not in ("auto", "no", "bf16", "fp16"):
        raise ValueError(f"precision {name!r} is unknown; choose from auto, no, bf16, fp16")
    if name != "auto":
        return name
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.device(device).type
    return "bf16" if kind == "cuda" or (kind == "cpu" and has_bf16_units()) else "no"


def has_bf16_units() -> bool:
    """Whether this CPU has matrix units for bf16 (AMX) and PyTorch may use them: with
    ATEN_CPU_CAPABILITY=avx2 in the environment it counts as one without."""
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return amx and torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")
