"""A second device without a GPU: real numbers that refuse to mix with tensors of the CPU.

    with fake_device() as device:
        model.to(device)
        latents = model.latents(prompts, seeds)         # on the fake device
        ... latents.cpu()                               # ordinary again

Every tensor on it holds one of the CPU, on which the operation is done. As on CUDA, an operation on
tensors of both raises RuntimeError, but for what CUDA allows: a CPU number (0 dimensions) among
tensors, indices on the CPU, and copies; `.numpy()` raises TypeError. `waits()` counts how often
Python waited for the device: `.item()`, `int(...)`, `bool(...)`, `.cpu()`, `nonzero`, indexing with
a bool mask.
"""
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

NAME = torch.device("meta")         # a name that a build of torch without CUDA knows, too
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default,
           aten._index_put_impl_.default}
STRICT = {aten.cat.default, aten.stack.default, aten.mm.default, aten.bmm.default,
          aten.addmm.default}       # no CPU numbers either
WAITS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default,
         aten.nonzero.default, aten.masked_select.default, aten.bincount.default,
         aten.repeat_interleave.Tensor, aten._unique2.default, aten.unique_dim.default}


class OnDevice(torch.Tensor):
    """A tensor on the fake device; `held` is its CPU tensor."""
    waits = 0

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=NAME, requires_grad=held.requires_grad)

    def __init__(self, held: torch.Tensor):
        self.held = held

    def __repr__(self):
        return f"OnDevice({self.held!r})"

    def numpy(self, *_, **__):
        raise TypeError("no numpy of a tensor on the fake device; use Tensor.cpu() first")

    __array__ = numpy

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return _call(op, args, kwargs or {})


def waits() -> int:
    """How often Python has waited for the fake device so far."""
    return OnDevice.waits


def _is_plain(x) -> bool:
    return isinstance(x, torch.Tensor) and not isinstance(x, OnDevice)


def _call(op, args, kwargs):
    """The operation on the tensors within; the result is on the device if an argument is."""
    flat = tree_flatten((args, kwargs))[0]
    ours = [x for x in flat if isinstance(x, OnDevice)]
    plain = [x for x in flat if _is_plain(x)]
    if any(x.device.type == NAME.type for x in plain):
        raise RuntimeError(f"{op} got a tensor that was put on the fake device past its watch")
    on_device = bool(ours)
    if ours:
        _refuse_mixing(op, args, ours, plain)
        OnDevice.waits += op in WAITS or op in INDEXED and _by_mask(args[1])
    if kwargs.get("device") is not None:                              # factories and .to
        on_device = torch.device(kwargs["device"]).type == NAME.type
        OnDevice.waits += bool(ours) and not on_device
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif op is aten.copy_.default:
        on_device = isinstance(args[0], OnDevice)
        OnDevice.waits += bool(ours) and not on_device
    args_within, kwargs_within = tree_map_only(OnDevice, lambda x: x.held, (args, kwargs))
    out = op(*args_within, **kwargs_within)
    if args and isinstance(args[0], OnDevice) and out is args_within[0]:
        return args[0]                                                # in place
    return tree_map_only(torch.Tensor, OnDevice, out) if on_device else out


def _by_mask(indices) -> bool:
    return any(i is not None and i.dtype == torch.bool for i in indices)


def _refuse_mixing(op, args, ours, plain) -> None:
    if op in COPIES:
        return
    if op in INDEXED and isinstance(args[0], OnDevice):
        plain = [x for x in args[2:3] if _is_plain(x)]     # the indices may lie on the CPU
    wrong = [x for x in plain if x.ndim or op in STRICT]
    if wrong:
        raise RuntimeError(f"Expected all tensors to be on the same device, but {op} got "
                           f"{[tuple(x.shape) for x in ours]} on the fake device and "
                           f"{[tuple(x.shape) for x in wrong]} on the CPU")


class _Operations(TorchDispatchMode):
    """Sees `torch.zeros(..., device=...)` and `.to(device)`, where no argument is on the device."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return _call(op, args, kwargs or {})


def _listless(index):
    """An index with its lists as CPU tensors."""
    if isinstance(index, tuple):
        return tuple(_listless(part) for part in index)
    return torch.tensor(index) if isinstance(index, list) else index


class _Constants(TorchFunctionMode):
    """What torch does below the dispatcher: `torch.tensor(..., device=...)`, `x[[1, 2]]`."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            args = (args[0], _listless(args[1]), *args[2:])
        return function(*args, **kwargs)


@contextmanager
def fake_device() -> Iterator[torch.device]:
    """The device, to be given to `.to(...)` and `device=...` within the block."""
    with _Operations(), _Constants():
        yield NAME
