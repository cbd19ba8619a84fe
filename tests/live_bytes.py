"""How many bytes of tensors made within a block are alive at once, by the storages that operations give."""
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class LiveBytes(TorchDispatchMode):
    """`peak`: the most bytes alive at once of all that operations in the block made."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {x.untyped_storage()._cdata for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for made in (x for x in tree_flatten(out)[0] if isinstance(x, torch.Tensor)):
            storage = made.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self.known:
                self.known[storage._cdata] = size = storage.nbytes()
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.forget, storage._cdata, size)
        return out

    def forget(self, key, size):
        self.now -= size
        self.known.pop(key, None)
