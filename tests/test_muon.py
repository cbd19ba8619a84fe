"""Muon: PyTorch's, in fewer and larger products and in the device's own format."""
import pytest
import torch
from torch import nn

from spatial_circuits.model.precision import has_bf16_units
from spatial_circuits.model.transformer import build_transformer
from spatial_circuits.training import muon as module
from spatial_circuits.training.loop import optimizers
from spatial_circuits.training.muon import Muon, fast_dtype, orthogonalised
from spatial_circuits.training.recipe import Recipe

SHAPES = [(8, 8), (8, 8), (32, 8), (8, 32), (8, 8), (32, 8)]


def matrices(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator)) for s in SHAPES]


def walk(optimizer, params, steps: int, start: int = 0) -> None:
    for i in range(start, start + steps):
        generator = torch.Generator().manual_seed(100 + i)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def test_steps_are_those_of_torch_in_full_precision(monkeypatch):
    """torch.optim.Muon casts to bfloat16; told that this is float32, it must agree."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    ours, theirs = matrices(), matrices()
    walk(Muon(ours, **options, dtype=torch.float32), ours, 6)
    walk(torch.optim.Muon(theirs, **options), theirs, 6)
    before = matrices()
    for a, b, p in zip(ours, theirs, before, strict=True):
        assert (a - p).abs().max() > 0.01 and (a - b).abs().max() < 1e-5


def test_singular_values_become_nearly_one():
    stack = torch.randn(3, 16, 48, generator=torch.Generator().manual_seed(0))
    for matrix in (stack, stack.mT):
        values = torch.linalg.svdvals(orthogonalised(matrix, torch.float32))
        assert values.min() > 0.6 and values.max() < 1.25
    assert orthogonalised(torch.zeros(1, 4, 4), torch.float32).abs().max() == 0


def test_a_step_stacks_by_shape(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "orthogonalised", lambda x, _: seen.append(tuple(x.shape)) or x)
    params = matrices()
    walk(Muon(params, 0.1), params, 1)
    assert seen == [(3, 8, 8), (2, 32, 8), (1, 8, 32)]


def test_the_default_model_takes_three_stacks():
    _, muon = optimizers(build_transformer("tiny", 128), Recipe())
    shapes = [tuple(p.shape) for p in muon.param_groups[0]["params"]]
    assert {s: shapes.count(s) for s in shapes} == {(128, 128): 48, (512, 128): 6, (128, 512): 6}


def test_steps_repeat_and_resume_to_the_bit():
    whole, parts = matrices(), matrices()
    walk(Muon(whole, 0.1), whole, 6)
    first = Muon(parts, 0.1)
    walk(first, parts, 3)
    second = Muon(parts, 0.1)
    second.load_state_dict(first.state_dict())
    assert [set(s) for s in second.state.values()] == [{"momentum_buffer"}] * len(SHAPES)
    walk(second, parts, 3, start=3)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_a_matrix_without_gradient_stays():
    params = matrices()
    optimizer = Muon(params, 0.1)
    for p in params[1:]:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.equal(params[0], matrices()[0]) and not torch.equal(params[1], matrices()[1])
    optimizer.zero_grad()
    optimizer.step()


def test_only_matrices_are_taken():
    with pytest.raises(ValueError, match=r"Muon takes matrices; a parameter has shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))])


def test_the_format_is_the_device_s():
    assert fast_dtype(torch.device("cuda")) == torch.bfloat16
    units = has_bf16_units()
    assert fast_dtype(torch.device("cpu")) == (torch.bfloat16 if units else torch.float32)
