"""One token's embedding changed: which, by how much, and what the picture is scored against."""
import pytest
import torch

from spatial_circuits.analyses.arithmetic import arithmetic, changed, interchange_token
from spatial_circuits.model.store import load

PROMPTS = ["red square is above blue circle", "blue triangle is to the left of red square"]


@pytest.fixture(scope="module")
def model():
    return load("rte-biased")


def test_only_the_tokens_of_the_role_change(rte):
    delta = torch.randn(2, 128)
    prepared, names = changed(rte, PROMPTS, "shape2", delta)
    before, after = rte.encode(PROMPTS), prepared.encode(names)
    moved = (after.embeddings - before.embeddings)
    for i, roles in enumerate(before.roles):
        for j, role in enumerate(roles):
            assert torch.allclose(moved[i, j], delta[i] if role == "shape2" else torch.zeros(128), atol=1e-5)
    assert prepared.encode([""]).mask.sum() == rte.encode([""]).mask.sum()


def test_without_a_vector_the_picture_is_the_same(model):
    frame = arithmetic(model, PROMPTS, torch.zeros(8, 128), [1.0], steps=3, control=False)
    from spatial_circuits.analyses.arithmetic import replace
    from spatial_circuits.analyses.sweep import pictures
    prepared, names = changed(model.encoder, PROMPTS, "shape2", torch.zeros(2, 128))
    told, seeds = pictures(PROMPTS, 1, 1)
    assert torch.allclose(replace(model, encoder=prepared).latents(names, seeds, steps=3), model.latents(told, seeds, steps=3), atol=1e-4)
    assert len(frame) == 2 * 8 and set(frame["old"]) == {"above", "left"}


def test_every_old_and_new_relation_is_scored_against_the_new(model):
    frame = arithmetic(model, PROMPTS[:1], torch.randn(8, 128), [0.0, 2.0], steps=2)
    assert len(frame) == 2 * 2 * 8 and (frame["relation"] == frame["new"]).all()
    assert set(frame["vector"]) == {"relation", "shuffled"} and set(frame["k"]) == {0.0, 2.0}


def test_grafting_a_prompts_own_token_changes_nothing(model):
    frame = interchange_token(model, PROMPTS, PROMPTS, "shape1", steps=2)
    own, grafted = (frame[frame["condition"] == c].drop(columns="condition").reset_index(drop=True) for c in ("own", "grafted"))
    assert own.equals(grafted)


def test_what_does_not_fit_is_refused(rte, model):
    with pytest.raises(ValueError, match="1 vectors for 2 prompts"):
        changed(rte, PROMPTS, "shape2", torch.zeros(1, 128))
    with pytest.raises(ValueError, match="holds no token of role colour1"):
        changed(rte, ["square is above blue circle"], "colour1", torch.zeros(1, 128))
    with pytest.raises(ValueError, match="was not prepared"):
        changed(rte, PROMPTS, "shape2", torch.zeros(2, 128))[0].encode(["red square"])
    with pytest.raises(ValueError, match="tokens of role relation"):
        interchange_token(model, PROMPTS[:1], PROMPTS[1:], "relation")


@pytest.mark.parametrize("change, message", [
    ({"effects": torch.full((8, 128), torch.inf)}, "not finite"), ({"scales": []}, "0 scales"), ({"effects": torch.zeros(3, 128)}, "of 3 relations"),
    ({"prompts": ["red square"]}, "'red square' says no relation"), ({"scales": [float("nan")]}, "not finite")])
def test_what_would_draw_nothing_sensible_is_refused(tiny, change, message):
    with pytest.raises(ValueError, match=message):
        arithmetic(tiny, **{"prompts": PROMPTS[:1], "effects": torch.zeros(8, 128), "scales": [1.0], "steps": 1} | change)


def test_each_prompt_needs_a_donor_and_each_embedding_a_name(tiny, rte):
    with pytest.raises(ValueError, match="1 donors for 2 prompts"):
        interchange_token(tiny, PROMPTS, PROMPTS[:1], "shape2")
    from spatial_circuits.text.prepared import Prepared
    with pytest.raises(ValueError, match="2 names .1 different. for 2 embeddings"):
        Prepared(["a", "a"], rte.encode(PROMPTS))
