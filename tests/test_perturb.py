"""Rewordings say the same scene, and are scored against it."""
import pytest

from spatial_circuits.analyses.robustness import robustness
from spatial_circuits.data.captions import parse
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.model.store import load
from spatial_circuits.text.encoders import encoder
from spatial_circuits.text.wordings import FAMILIES, reworded, supported


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


def test_the_shift_of_the_article_is_measured_where_the_token_stands(rte):
    from spatial_circuits.analyses.robustness import shifts
    moved = shifts(rte, prompt_set("22"), "T3 the", "shape2")
    assert moved.std(0).max() > 0 and moved.norm(dim=1).min() > 0.1                            # the position code of one place later
    assert shifts(rte, prompt_set("22"), "T3 the", "shape1").norm() < 1e-5
    with pytest.raises(ValueError, match="holds no token of role shape2"):
        shifts(encoder("minilm"), prompt_set("22"), "typo", "shape2")


def test_alignment_knows_a_planted_direction():
    import torch

    from spatial_circuits.analyses.robustness import alignment
    generator = torch.Generator().manual_seed(0)
    effects, vectors = torch.randn(8, 64, generator=generator), torch.randn(100, 64, generator=generator)
    effects = effects - effects.mean(0)
    table = alignment(effects[3] + 0.1 * torch.randn(100, 64, generator=generator), effects, vectors)
    assert table["cosine"].idxmax() == table.index[3] and table["cosine"].iloc[3] > 0.9 > table["null"].iloc[3]
    rest = table.drop(table.index[3])                                                          # at a cosine of 1 the interval lies below
    assert (rest["low"] <= rest["cosine"]).all() and (rest["cosine"] <= rest["high"]).all() and table["within"].iloc[0] > 0.9
    across = torch.linalg.qr(torch.cat([effects, torch.randn(1, 64, generator=generator)]).T).Q[:, -1]
    assert alignment(across.expand(50, -1), effects, vectors)["cosine"].abs().max() < 1e-4


def test_a_shift_leaves_the_mean_projection_and_turns_single_ramps(lively):
    import torch

    from spatial_circuits.analyses.robustness import shifted_ramps
    model, generator = lively(), torch.Generator().manual_seed(0)
    effects = torch.randn(8, 16, generator=generator)
    same = shifted_ramps(model, effects, torch.zeros(16))
    assert (same["before"] - same["after"]).abs().max() < 1e-5
    moved = shifted_ramps(model, effects, 5 * torch.randn(16, generator=generator))
    assert moved.set_index("name")["projection"].to_dict() == pytest.approx(same.set_index("name")["projection"].to_dict(), abs=1e-4)
    assert (moved["before"] - moved["after"]).abs().max() > 0.05


def test_a_family_that_cannot_be_read_is_not_drawn_as_nothing(tiny, rte):
    with pytest.raises(ValueError, match="can read none of the families; .*crimson"):
        robustness(tiny, prompt_set("22")[:1], ["synonyms"], steps=1)
    with pytest.raises(ValueError, match="'square is above blue circle' does not say"):
        supported(rte, ["square is above blue circle"])
