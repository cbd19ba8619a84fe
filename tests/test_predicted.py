"""Patching by a model's own predictions: the book's numbers, any pipeline's, in chunks, and what is refused before drawing."""
import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import tiny_pixart
import torch

from spatial_circuits.analyses.chunks import Chunks
from spatial_circuits.analyses.edit_files import EditSpec, under_edits
from spatial_circuits.analyses.heads import head_name, heads_of, named_heads
from spatial_circuits.analyses.patching import prediction_effects
from spatial_circuits.analyses.predicted import calls, head_effects, patched_predictions
from spatial_circuits.cli import main
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.hooks.attach import hooked
from spatial_circuits.hooks.edits import Patch
from spatial_circuits.model.stock import StockModel
from spatial_circuits.model.store import load

PROMPTS = ["a cat on the left of a dog", "a dog is above a red cat"]
OTHERS = ["a cat on the right of a dog", "a dog is below a red cat"]


@pytest.fixture(scope="module", params=["sigma", "alpha"])
def folder(request, tmp_path_factory):
    """Unlike the book's in every number: 24 x 24 latents, 2 layers of 3 heads of 4; of alpha also with size conditions."""
    conditions = {"use_additional_conditions": request.param == "alpha"}
    return tiny_pixart.saved(tmp_path_factory, kind=request.param, size=24, layers=2, heads=3, head_dim=4, **conditions)


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


def wide(frame, column="both"):
    return frame.pivot_table(column, "prompt", "name", sort=False)


def test_on_the_books_model_it_is_the_books_patching():
    ours, prompts = load("rte"), prompt_set("264")[:2]
    heads = [(1, 0), (2, 1), (3, 0), (5, 3)]
    frame = patched_predictions(ours, prompts, heads=heads, every=7)
    for direction in ("denoising", "noising", "both"):
        wanted = prediction_effects(ours, prompts, "relation", named_heads(heads), direction, every=7)
        np.testing.assert_allclose(wide(frame, direction).loc[prompts, list(wanted)], wanted, atol=1e-5)
    table = head_effects(frame)
    assert table.loc[0, "name"] == "L3H0" and table.loc[0, "both"] > 0.5 and (table["low"] <= table["both"]).all()


def test_at_the_first_step_it_is_what_the_pipeline_itself_predicts(model):
    """All rows of a batch start from the same noise, so that a patch can be put while the pipeline draws."""
    frame = patched_predictions(model, PROMPTS[:1], every=14, seed=2)
    seen = {}

    def keep(module, args, out):
        seen.setdefault("eps", out[0][3:, :4])                          # of 6 rows, the last 3 are conditional
    with hooked(model.transformer, Patch(torch.tensor([0, 1, 0]), torch.tensor([False, False, True])[:, None, None] & torch.tensor(
            [[False, False, False], [False, True, False]]), branch="cond")):
        handle = model.transformer.register_forward_hook(keep)
        model.latents([PROMPTS[0], OTHERS[0], OTHERS[0]], [2_000_000] * 3, batch=3)
        handle.remove()
    clean, other, patched = seen["eps"]
    wanted = 1 - (patched - clean).square().sum() / (other - clean).square().sum()
    assert float(wide(frame, "denoising").loc[PROMPTS[0], "L1H1"]) == pytest.approx(float(wanted), abs=1e-4)
    assert abs(wanted) > 0.01


def test_what_is_kept_are_the_conditional_calls_of_the_clean_latents(model):
    found = calls(model, [PROMPTS[0], OTHERS[0]], 5, every=5)
    assert [call.step for call in found] == [0, 5, 10]
    for call in found:
        assert call.latents.shape == (2, 4, 24, 24) and len(call.given["encoder_hidden_states"]) == 2
        latents, given = call.rows([0, 1, 1])
        assert torch.equal(latents[0], latents[2]) and torch.equal(latents[0], call.latents[0])
        assert torch.equal(given["timestep"], call.given["timestep"][[0, 1, 1]])
        size = given["added_cond_kwargs"]["resolution"]
        assert (size.shape == (3, 2)) if model.transformer.use_additional_conditions else size is None


@pytest.fixture
def drawn(monkeypatch):
    """Numbers of pictures, a drawing each."""
    rows, plain = [], StockModel.latents
    monkeypatch.setattr(StockModel, "latents", lambda self, texts, seeds, **o: rows.append(len(texts)) or plain(
        self, texts, seeds, **o))
    return rows


def test_neither_batch_nor_chunks_change_a_number_and_a_part_is_made_once(model, drawn, tmp_path):
    analyse = partial(patched_predictions, model, PROMPTS, every=7)
    wanted = analyse()
    assert drawn == [2, 2] and len(wanted) == 2 * 6
    drawn.clear()
    pd.testing.assert_frame_equal(analyse(batch=3, chunks=Chunks(tmp_path / "kept")), wanted, atol=1e-4)
    parts = sorted((tmp_path / "kept").glob("*.safetensors"))
    assert drawn == [2, 2] and len(parts) == 4                          # a layer of a pair each
    parts[3].unlink()
    pd.testing.assert_frame_equal(analyse(chunks=Chunks(tmp_path / "kept")), wanted, atol=1e-4)
    assert drawn == [2, 2, 2]                                           # the second pair again
    analyse(chunks=Chunks(tmp_path / "kept"))
    assert len(drawn) == 3
    with pytest.raises(ValueError, match="chunks of another run: every was 7 and is 14"):
        patched_predictions(model, PROMPTS, every=14, chunks=Chunks(tmp_path / "kept"))


def test_a_head_that_is_silent_carries_nothing(model):
    silent = under_edits(model, [EditSpec("zero", ["L0H2"])])
    frame = wide(patched_predictions(silent, PROMPTS[:1], every=7))
    assert float(frame.loc[PROMPTS[0], "L0H2"]) == pytest.approx(0, abs=1e-6)
    assert (frame.drop(columns="L0H2").abs() > 1e-4).all(None)


def test_counterparts_of_ones_own(model):
    near = ["a cat near a dog"]
    with pytest.raises(ValueError, match="'near' in 'a cat near a dog' has no opposite"):
        patched_predictions(model, near)
    frame = patched_predictions(model, near, ["a red cat near the dog of a cat"], every=14)
    assert list(frame["name"]) == [head_name(*h) for h in heads_of(model)] and frame["both"].notna().all()
    with pytest.raises(ValueError, match="the model predicts the same for 'a cat near a dog' and 'a cat near a dog'"):
        patched_predictions(model, near, near, every=14)


@pytest.mark.parametrize(("options", "message"), [
    ({"heads": [(0, 0), (2, 0)]}, "head L2H0 is out of range; the model has L0H0 to L1H2"),
    ({"others": ["a"]}, "1 counterparts for 2 prompts"), ({"every": 0}, "every is 0, batch is 16"), ({"batch": 2}, "batch is 2"),
    ({"steps": 0}, "steps is 0; it must be an integer of at least 1"),
    ({"others": [OTHERS[0], "cat " * 400]}, "has [0-9]+ tokens; at most [0-9]+ fit"),
])
def test_what_cannot_be_patched_is_refused_before_drawing(options, message, model, monkeypatch, tmp_path):
    monkeypatch.setattr(StockModel, "latents", None)
    with pytest.raises(ValueError, match=message):
        patched_predictions(model, PROMPTS, chunks=Chunks(tmp_path / "kept"), **options)
    assert not (tmp_path / "kept").exists()


def test_the_command_patches_a_pipeline(folder, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    line = ["patch", "--model", str(folder), "--prompts-file", str(prompts), "--heads", "L0H1", "L1H2", "--every", "7"]
    assert main([*line, "--chunks", str(tmp_path / "kept"), "--json", str(tmp_path / "out.json")]) == 0
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["prompts"] == 2 and record["every"] == 7
    frame = head_effects(patched_predictions(load(folder), PROMPTS, heads=[(0, 1), (1, 2)], every=7))
    assert [row["name"] for row in record["heads"]] == list(frame["name"])
    np.testing.assert_allclose([row["both"] for row in record["heads"]], frame["both"], atol=1e-5)
    capsys.readouterr()
    assert main([*line, "--batch", "2"]) == 2 and "3" in capsys.readouterr().err
