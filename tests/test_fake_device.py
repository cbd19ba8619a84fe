"""The fake device behaves as CUDA does where the two could mix."""
import copy

import numpy as np
import pytest
import torch
from fake_device import OnDevice, fake_device, waits


@pytest.mark.parametrize("mix", [
    lambda x, device: x + torch.ones(4), lambda x, device: torch.cat([x, torch.ones(1, 4)]),
    lambda x, device: torch.where(torch.ones(3, 4).bool(), x, 0.0), lambda x,
    device: x @ torch.ones(4, 2),
    lambda x, device: torch.ones(9)[torch.tensor([1, 2], device=device)],
    lambda x, device: torch.nn.functional.embedding(x[0].long(), torch.ones(3, 2)),
    lambda x, device: torch.stack([x[0, 0], torch.tensor(1.0)]),
    lambda x, device: torch.nn.Linear(4, 4)(x), lambda x, device: torch.zeros(3, 4).add_(x),
    lambda x, device: torch.zeros(3, 4).index_add_(0, torch.tensor([1]), x[:1])])
def test_two_devices_do_not_mix(mix):
    with fake_device() as device, pytest.raises(RuntimeError, match="on the same device"):
        mix(torch.ones(3, 4).to(device), device)


@pytest.mark.parametrize("convert", [np.asarray, lambda x: x.numpy(), np.array])
def test_numpy_does_not_take_it(convert):
    with fake_device() as device, pytest.raises(TypeError, match="cpu"):
        convert(torch.ones(3, device=device))


def test_what_cuda_allows_is_allowed():
    with fake_device() as device:
        x = torch.arange(12.0).view(3, 4).to(device)
        assert x.device == device and torch.zeros(2, device=device).device == device
        assert (x * torch.tensor(2.0)).cpu()[1, 0] == 8 and x[torch.tensor([2])].tolist()[0][0] == 8
        y = torch.zeros_like(x)
        y[1] = torch.ones(4)                                            # a copy
        y[:, torch.tensor([0])] = x[:, :1]
        y.index_add_(0, torch.tensor([2], device=device), x[:1])
        assert isinstance(y, OnDevice) and x[[2, 0], 1].tolist() == [9, 1]
        y[[0], 3:] = 0
        assert y.tolist() == [[0, 0, 0, 0], [4, 1, 1, 1], [8, 1, 2, 3]]
        layer = torch.nn.Linear(4, 4)
        moved = copy.deepcopy(layer).to(device)
        assert torch.allclose(moved(x).cpu(), layer(x.cpu())) and moved.weight.device == device


def test_it_counts_what_python_waits_for():
    with fake_device() as device:
        x, mask = torch.ones(3).to(device), torch.ones(3, dtype=torch.bool, device=device)
        asked = [lambda: x[0].item(), lambda: bool(x.any()), lambda: int(x[0]), lambda: x.cpu(),
                 lambda: x[mask], lambda: x.nonzero(), lambda: x + 1, lambda: x.to(device),
                 lambda: x[torch.tensor([0])]]
        counts = []
        for ask in asked:
            before = waits()
            ask()
            counts.append(waits() - before)
    assert counts == [1, 1, 1, 1, 1, 1, 0, 0, 0]
