"""Attribution: against differences by hand, and against exact patching."""
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from spatial_circuits.analyses.attribution import attribute, components
from spatial_circuits.analyses.heads import heads_of, named_heads
from spatial_circuits.analyses.patching import prediction_effects
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.model.store import load

PROMPTS = [p for p in prompt_set("264") if "square is" in p][:6]


def test_every_component_has_a_column(tiny):
    found = attribute(tiny, PROMPTS[:2], "relation", steps=2, points=1)
    assert list(found) == components(tiny) and len(found.columns) == 2 * 2 * 2 + 2 + 1
    assert list(found.index) == PROMPTS[:2] and found.notna().all(axis=None)
    assert (found[["L0S0", "L0S1"]].abs() < 1e-6).all(axis=None)     # the text has not come in yet


@pytest.mark.parametrize("factor", ["relation", "shape"])
def test_the_text_carries_all_of_it(tiny, factor):
    """The integral over the way from one text to the other is the whole difference."""
    found = attribute(tiny, PROMPTS, factor, steps=4, every=2, points=16)
    assert found["text"].between(0.97, 1.03).all()


@pytest.mark.parametrize("factor", ["relation", "shape"])
def test_it_ranks_the_heads_of_a_trained_model_as_patching_does(factor, one_thread):
    net = load("rte-biased")
    sets = named_heads(heads_of(net))
    exact = prediction_effects(net, PROMPTS, factor, sets, every=4).mean()
    found = attribute(net, PROMPTS, factor, every=4).mean()[list(sets)]
    assert found.idxmax() == exact.idxmax() and spearmanr(exact, found)[0] > 0.8
    assert exact.corr(found) > 0.9


def test_the_same_twice_and_in_any_company(tiny):
    one = attribute(tiny, PROMPTS, "relation", steps=2, points=2)
    two = attribute(tiny, PROMPTS[:3], "relation", steps=2, points=2)
    pd.testing.assert_frame_equal(one.iloc[:3], two, atol=1e-5)


def test_nothing_stays_on_the_model(tiny):
    before = [len(b.ff._forward_hooks) for b in tiny.transformer.transformer_blocks]
    attribute(tiny, PROMPTS[:1], "relation", steps=1)
    assert before == [len(b.ff._forward_hooks) for b in tiny.transformer.transformer_blocks]
    assert not torch.is_grad_enabled() or all(p.grad is None
                                              for p in tiny.transformer.parameters())


@pytest.mark.parametrize("options, message", [
    ({"every": 0}, "every and points are 0 and 4"), ({"points": 0}, "1 and 0; both must be"),
    ({"factor": "size"}, "factor 'size' is unknown")])
def test_wrong_values_are_refused(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        attribute(tiny, PROMPTS[:1], **{"factor": "relation", "steps": 1} | options)


def test_texts_of_unequal_length_are_refused_by_name(tiny, monkeypatch):
    monkeypatch.setattr("spatial_circuits.analyses.attribution.counterpart",
                        lambda p, factor: "red circle is to the upper left of blue square")
    with pytest.raises(ValueError, match="differ in their number of tokens"):
        attribute(tiny, ["red circle is above blue square"], "relation", steps=1)
