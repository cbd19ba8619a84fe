"""Rewordings say the same scene, and are scored against it."""
import pytest

from spatial_circuits.captions import parse
from spatial_circuits.metrics import prompt_set
from spatial_circuits.perturb import FAMILIES, reworded, robustness, supported
from spatial_circuits.pretrained import load
from spatial_circuits.text import encoder


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("typo", "swapped clauses")])
def test_another_wording_says_the_same_scene(family):
    for prompt, other in zip(prompt_set("264"), reworded(prompt_set("264"), family)):
        one, two = parse(prompt), parse(other)
        assert (one.shape, one.color, one.phrase) == (two.shape, two.color, two.phrase), other


def test_families_differ():
    prompt = ["red square is to the left of blue circle"]
    assert len({reworded(prompt, f)[0] for f in FAMILIES}) == len(FAMILIES)


def test_what_an_encoder_cannot_read_is_told_with_its_reason(rte):
    reasons = supported(rte, prompt_set("22"))
    assert "crimson" in reasons["synonyms"] and not {"T0", "T1 no is", "T4 the, the", "capitals"} & set(reasons)
    assert supported(encoder("minilm"), prompt_set("22")) == {}


def test_pictures_are_scored_against_the_original():
    frame = robustness(load("rte"), prompt_set("22")[:2], ["T0", "T3 the", "typo"], steps=2)
    assert list(frame["condition"]) == ["T0", "T3 the"] * 2
    assert set(frame["prompt"]) == set(prompt_set("22")[:2]) and frame["seed"].nunique() == 2


def test_an_unknown_family_or_an_incomplete_prompt_is_refused():
    with pytest.raises(ValueError, match="'T9' is unknown; choose from T0"):
        reworded(prompt_set("22"), "T9")
    with pytest.raises(ValueError, match="does not say"):
        reworded(["square is above blue circle"], "T0")
