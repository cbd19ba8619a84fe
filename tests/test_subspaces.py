"""Subspaces: the whole vector is an exact interchange, a planted direction is found, nulls are not."""
import numpy as np
import pytest
import torch

from spatial_circuits.analyses.patching import prediction_effects
from spatial_circuits.analyses.subspaces import (
    learn_subspace,
    mean_difference_subspace,
    random_subspace,
    subspace_effects,
    subspace_pictures,
    turned,
)
from spatial_circuits.data.captions import PHRASES, parse
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.data.scenes import REVERSE
from spatial_circuits.hooks.edits import Patch
from spatial_circuits.model.store import load

PROMPTS = prompt_set("264")[:6]
OTHERS = prompt_set("264")[44:50]


@pytest.fixture(scope="module")
def net():
    return load("rte-biased")


def test_the_whole_query_is_what_patching_the_query_does(net):
    exact = prediction_effects(net, PROMPTS, "relation", {"q": [(1, 3)]}, "denoising", "query",
                               steps=4, every=2)
    ours = subspace_effects(net, PROMPTS, (1, 3), {"all": None}, steps=4, every=2)
    np.testing.assert_allclose(ours["all"], exact["q"], atol=1e-4)


def test_the_whole_text_is_the_clean_prompt(net):
    """With random tokens a prompt and its opposite differ in the relation word alone."""
    found = subspace_effects(net, PROMPTS, "relation", {"all": None, "none": torch.zeros(128, 1)},
                             steps=4)
    np.testing.assert_allclose(found["all"], 1, atol=1e-4)
    np.testing.assert_allclose(found["none"], 0, atol=1e-4)
    at_shape = subspace_effects(net, PROMPTS, "shape2", {"all": None}, steps=4)
    np.testing.assert_allclose(at_shape["all"], 0, atol=1e-4)


def test_a_learned_direction_beats_a_random_one_on_prompts_not_seen(net):
    basis = learn_subspace(net, PROMPTS, (1, 3), 1, iterations=24, steps=4, every=2)
    assert basis.shape == (32, 1) and basis.norm() == pytest.approx(1, abs=1e-5)
    bases = {"learned": basis, "random": random_subspace(32, 1, 3),
             "means": mean_difference_subspace(net, PROMPTS, (1, 3), 1), "all": None}
    mean = subspace_effects(net, OTHERS, (1, 3), bases, steps=4, every=2).mean()
    assert mean["all"] > 0.1 and mean["learned"] > 0.5 * mean["all"]
    assert mean["random"] < 0.5 * mean["learned"] and mean["means"] > mean["random"]


def test_a_planted_direction_is_found(tiny):
    """A text in which opposite relations differ along one axis alone: the means find it, and a
    learned direction does nearly as much (it need not be the same: this model is not trained)."""
    from dataclasses import replace

    axis = torch.nn.functional.normalize(torch.randn(128, generator=torch.Generator()
                                                     .manual_seed(7)), dim=0)

    class Planted:
        dim = tiny.encoder.dim

        def encode(self, prompts):
            text = tiny.encoder.encode(prompts)
            told = torch.tensor([[r == "relation" for r in row] for row in text.roles])
            said = torch.tensor([20.0 if "above" in p or "left" in p else -20.0 for p in prompts])
            text.embeddings = torch.where(told[..., None], said[:, None, None] * axis,
                                          text.embeddings)
            return text
    model = replace(tiny, encoder=Planted())
    prompts = [f"{a} is {r} {b}" for a, b in (("red square", "blue circle"),
                                              ("blue circle", "red triangle"))
               for r in ("above", "below")]
    basis = learn_subspace(model, prompts, "relation", 1, iterations=160, steps=2, every=1)
    means = mean_difference_subspace(model, prompts, "relation", 1)
    assert abs(float(axis @ means[:, 0])) > 0.999
    found = subspace_effects(model, prompts, "relation", {"learned": basis, "means": means},
                             steps=2, every=1).mean()
    assert found["means"] == pytest.approx(1, abs=1e-3) and found["learned"] > 0.8


def test_the_same_seed_gives_the_same_basis(tiny, one_thread):
    first, second = (learn_subspace(tiny, PROMPTS[:2], "relation", 2, iterations=3, steps=2, every=1)
                     for _ in range(2))
    assert torch.equal(first, second)
    assert torch.allclose(first.T @ first, torch.eye(2), atol=1e-5)


def test_bad_input_is_refused(tiny):
    with pytest.raises(ValueError, match="rank is 9; the site has 1 to 8 dimensions"):
        learn_subspace(tiny, PROMPTS[:2], (1, 0), 9, steps=2)
    with pytest.raises(ValueError, match="L7H0 is out of range"):
        learn_subspace(tiny, PROMPTS[:2], (7, 0), 1, steps=2)
    with pytest.raises(ValueError, match="basis 'x' has 3 dimensions; the site has 8"):
        subspace_effects(tiny, PROMPTS[:2], (1, 0), {"x": torch.zeros(3, 1)}, steps=2)
    with pytest.raises(ValueError, match="every is 0"):
        subspace_effects(tiny, PROMPTS[:2], (1, 0), {"x": None}, steps=2, every=0)
    with pytest.raises(ValueError, match=r"shape \(2, 3\); it must be \[d, k\]"):
        Patch(torch.tensor([0]), [(0, 0)], basis=torch.zeros(2, 3))


def test_turned_prompts_change_the_axis_and_keep_the_number_of_tokens(net):
    prompts = prompt_set("264")[:44]
    found = turned(net.encoder, prompts)
    text = net.encoder.encode([*found, *found.values()])
    lengths = [row.count("relation") for row in text.roles]
    assert lengths[:len(found)] == lengths[len(found):]
    for clean, other in found.items():
        said, new = (parse(p) for p in (clean, other))
        assert (said.shape, said.color) == (new.shape, new.color)
        assert new.relation not in (said.relation, REVERSE[said.relation])
    alone = {parse(p).phrase for p in prompts if p not in found}
    assert {PHRASES[k] for k in alone} == {"above", "below", "to the left of", "to the right of"}
    told = {r for p in found.values() for r in [parse(p).relation]}
    assert told == set(range(8))                       # they take turns


def test_pictures_follow_the_token_that_carries_the_relation(net):
    """With random tokens the whole relation word is the clean prompt, so that the picture is its;
    the second shape brings nothing."""
    bases = {"whole": None, "none": torch.zeros(128, 1)}
    prompts = list(turned(net.encoder, prompt_set("264")[:22]))[1:3]
    for factor in ("relation", "axis"):
        word, shape = (subspace_pictures(net, prompts, site, bases, factor, steps=6)
                       .set_index(["condition", "original"]) for site in ("relation", "shape2"))
        for of, twin in ((word, {"whole": "clean", "none": "counterpart"}),
                         (shape, {"whole": "counterpart", "none": "counterpart"})):
            for condition, like in twin.items():
                np.testing.assert_allclose(of.loc[condition, "dx"], of.loc[like, "dx"], atol=1e-4)
                np.testing.assert_allclose(of.loc[condition, "dy"], of.loc[like, "dy"], atol=1e-4)


def test_a_query_of_which_nothing_is_taken_is_the_counterparts(net):
    bases = {"whole": None, "none": torch.zeros(32, 1)}
    found = subspace_pictures(net, PROMPTS[1:3], (1, 3), bases, steps=6)
    place = found.set_index(["condition", "original"])[["dx", "dy"]]
    assert list(found["condition"].unique()) == ["clean", "counterpart", "whole", "none"]
    np.testing.assert_allclose(place.loc["none"], place.loc["counterpart"], atol=1e-4)
    assert not np.allclose(place.loc["whole"], place.loc["counterpart"], atol=0.1, equal_nan=True)


def test_an_axis_that_cannot_turn_is_refused(net):
    with pytest.raises(ValueError, match="said in as many tokens as that of prompt"):
        subspace_effects(net, ["red square is above blue circle"], "shape2", {"x": None}, "axis")
