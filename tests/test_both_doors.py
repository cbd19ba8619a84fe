"""`rte` through our loader, and the same weights saved as a stock diffusers pipeline: the same latents and tables."""
import pandas as pd
import pytest
import tiny_pixart
import torch

from spatial_circuits.analyses.ablation import ablate, mask_roles, mean_outputs
from spatial_circuits.analyses.evaluation import evaluate
from spatial_circuits.analyses.heads import named_heads
from spatial_circuits.analyses.locate import by_detector
from spatial_circuits.analyses.patching import prediction_effects
from spatial_circuits.analyses.placed_injection import placed_injection
from spatial_circuits.analyses.predicted import patched_predictions
from spatial_circuits.analyses.synopsis import synopsis
from spatial_circuits.claims.tables import run_ablate, run_screen, run_synopsis
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.model.store import load

PROMPTS = prompt_set("264")[:4]


@pytest.fixture(scope="module")
def doors(tmp_path_factory):
    ours = load("rte")
    return ours, load(tiny_pixart.as_pipeline(ours, tmp_path_factory.mktemp("door") / "rte"))


def test_latents_are_equal_bit_by_bit_and_pictures_but_for_rounding(doors):
    ours, stock = doors
    one, two = (model.latents(PROMPTS, list(range(4)), batch=4) for model in doors)
    assert torch.equal(one, two)
    off = (ours.vae.decode(one).int() - stock.vae.decode(two).int()).abs()
    assert off.max() <= 1 and (off > 0).float().mean() < 0.01
    for guidance in (None, 2.0):
        one, two = (model.latents(PROMPTS[:2], [1, 2], guidance=guidance, batch=2, steps=3) for model in doors)
        assert torch.equal(one, two)


def test_tables_are_equal(doors):
    scores = [evaluate(model, PROMPTS, 1) for model in doors]
    assert scores[0]["loose"].any()
    pd.testing.assert_frame_equal(*scores, atol=0.05)                    # centres in px
    seen, effects, screens = ([make(model) for model in doors] for make in (
        lambda m: run_synopsis(m, PROMPTS, 1), run_screened,
        lambda m: run_ablate(m, PROMPTS[:2], heads=["L1H3"], kind="zero")["effects"]))
    assert seen[0]["images"] == seen[1]["images"] > 0
    pd.testing.assert_frame_equal(*(pd.DataFrame(s["heads"]).sort_values(["score", "name"], ignore_index=True) for s in seen), atol=2e-4, rtol=1e-3)
    pd.testing.assert_frame_equal(*map(pd.DataFrame, effects))
    pd.testing.assert_frame_equal(*map(pd.DataFrame, screens))


def test_patching_and_injection_are_equal(doors):
    heads = [(2, 1), (3, 0), (5, 3)]
    patched = [patched_predictions(model, PROMPTS[:2], heads=heads, every=5) for model in doors]
    assert patched[0]["both"].max() > 0.4
    pd.testing.assert_frame_equal(*patched, atol=1e-4)
    book = prediction_effects(doors[0], PROMPTS[:2], "relation", named_heads(heads), "both", every=5)
    pd.testing.assert_series_equal(patched[1].groupby("name")["both"].mean(), book.mean().rename("both"), check_names=False, check_dtype=False, atol=1e-4)
    injected = [placed_injection(model, PROMPTS[:2], [(2, 0), (2, 1), (2, 2)], by_detector) for model in doors]
    assert injected[0].loc[injected[0]["condition"] == "relation 1", "placed"].any()
    pd.testing.assert_frame_equal(*injected, atol=0.01)                  # centres in shares of the picture


def run_screened(model):
    return run_screen(model, PROMPTS)["heads"]


def test_the_books_analyses_run_on_a_pipeline_of_our_size(tmp_path):
    tiny_pixart.pipeline(kind="alpha", scheduler="euler", size=16).save_pretrained(tmp_path / "pipe")
    model = load(tmp_path / "pipe")
    assert len(evaluate(model, PROMPTS[:2], 1, steps=2)) == 2
    found = synopsis(model, PROMPTS[:2], 1, steps=2)
    assert found.tokens.shape == (2, 8) and int(found.tokens.sum()) == 240 and int(found.failed.sum()) == 2
    frame = mask_roles(model, PROMPTS[:2], {"no relation": ("relation", None)}, steps=2)
    assert list(frame["condition"]) == ["intact", "no relation"] * 2
    mean = mean_outputs(model, PROMPTS[:2], steps=2)
    assert len(ablate(model, PROMPTS[:1], {"L0H0": [(0, 0)]}, mean=mean, steps=2)) == 2
