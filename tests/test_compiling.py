"""Sampling compiled: the same pictures as uncompiled, whatever the batch and the prompts' lengths."""
import pytest
import torch
from typer.testing import CliRunner

from spatial_circuits.cli import app
from spatial_circuits.data.metrics import prompt_set, score
from spatial_circuits.model.compiling import compiled
from spatial_circuits.model.store import load

LONG = "red triangle is diagonally down and to the left of blue circle"
pytestmark = pytest.mark.filterwarnings("error:torch.compile does not work")


def test_compiled_sampling_gives_the_same_pictures_and_verdicts():
    model, prompts = load("nano"), prompt_set("264")[::12]
    fast = compiled(model, prompts, batch=16)
    seeds = list(range(len(prompts)))                   # 22: a whole batch and one filled up
    plain, latents = (m.latents(prompts, seeds, batch=16) for m in (model, fast))
    assert not torch.equal(plain, latents)              # another code, indeed
    assert torch.allclose(plain, latents, atol=1e-3)
    verdicts = [score(m.vae.decode(x), prompts) for m, x in ((model, plain), (fast, latents))]
    assert verdicts[0].equals(verdicts[1]) and verdicts[0]["loose"].mean() > 0.5
    short = ["square is above circle"] * 3              # fewer tokens
    assert torch.allclose(model.latents(short, [1, 2, 3]), fast.latents(short, [1, 2, 3]), atol=1e-3)


@pytest.fixture
def fixed(monkeypatch, lively):
    """A model \"compiled\" for batches of 2 short prompts: itself, and the shapes it is given."""
    shapes = []

    def watched(model, **_):
        def call(latents, encoder_hidden_states, timestep, encoder_attention_mask, **rest):
            shapes.append((len(latents), *encoder_attention_mask.shape, len(timestep)))
            return model(latents, encoder_hidden_states, timestep,
                         encoder_attention_mask=encoder_attention_mask, **rest)
        return call
    monkeypatch.setattr(torch, "compile", watched)
    model = load("nano")
    return model, compiled(model, ["square is above circle"], batch=2), shapes


def test_batches_are_filled_up_and_what_does_not_fit_runs_as_written(fixed):
    model, fast, shapes = fixed
    shapes.clear()
    assert torch.allclose(fast.latents(["square"], [0], steps=1), model.latents(["square"], [0], steps=1),
                          atol=1e-5)
    assert len(set(shapes)) == 1 and shapes[0][0] == 4
    shapes.clear()
    for prompts in ([LONG], ["square is above circle"] * 3):
        seeds = list(range(len(prompts)))
        assert torch.equal(fast.latents(prompts, seeds, steps=1), model.latents(prompts, seeds, steps=1))
    assert not shapes


def test_without_a_compiler_sampling_goes_on(monkeypatch):
    def broken(function, **_):
        def fail(*arguments, **options):
            raise RuntimeError("no C++ compiler")
        return fail
    monkeypatch.setattr(torch, "compile", broken)
    model = load("nano")
    with pytest.warns(UserWarning, match="torch.compile does not work here"):
        fast = compiled(model, ["square is above circle"], batch=2)
    assert torch.equal(fast.latents(["square"], [0], steps=1), model.latents(["square"], [0], steps=1))


def test_compile_and_edit_exclude_each_other(tmp_path):
    edit = tmp_path / "edit.json"
    edit.write_text('{"edits": [{"kind": "zero", "heads": ["L1H2"]}]}')
    result = CliRunner().invoke(app, ["evaluate", "--model", "nano", "--limit", "1", "--compile", "--edit", str(edit)])
    assert result.exit_code and "--compile leaves no place for the hooks of --edit" in str(result.exception or result.output)
