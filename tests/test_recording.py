"""Recordings agree with the same edits made by hand, and refuse what cannot be done before sampling."""
import pytest
import torch

from spatial_circuits.arithmetic import Prepared
from spatial_circuits.edits import Ablate, MaskKeys, Patterns
from spatial_circuits.hooks import hooked
from spatial_circuits.recording import SAID, Bench, Change, ramps, record
from spatial_circuits.scenes import RELATIONS
from spatial_circuits.weights import captioned, qk_maps

PROMPTS = ["red square is above blue circle", "blue triangle is to the left of red circle"]


@pytest.fixture(scope="module")
def bench(tiny):
    return Bench(tiny, [(0, 0), (0, 1)], steps=3)


@pytest.fixture(scope="module")
def recording(bench):
    changes = {"off": Change(off=[(1, 0)]), "blind": Change(hidden=["relation"]), "moved": Change(relation=3), "told": Change(relation=3, site="relation")}
    return record(bench, PROMPTS, changes, [5, 6])


def test_each_condition_is_what_the_same_edit_gives_alone(bench, recording, tiny):
    text = tiny.encoder.encode(PROMPTS)
    keys = torch.tensor([[r == "relation" for r in row] for row in text.roles])
    assert recording.conditions == ["intact", "off", "blind", "moved", "told"]
    alone = {"intact": (), "off": (Ablate([(1, 0)], bench.mean),), "blind": (MaskKeys(keys),)}
    for name, hooks in alone.items():
        with hooked(tiny.transformer, *hooks):
            latents = tiny.latents(PROMPTS, [5, 6], steps=3)
        assert torch.allclose(recording.latents[:, recording.conditions.index(name)], latents, atol=1e-4), name


def test_attention_is_that_of_the_heads_summed_over_the_words_of_a_role(recording, tiny):
    patterns = Patterns([(1, 1)])
    with hooked(tiny.transformer, patterns):
        tiny.latents(PROMPTS, [5, 6], steps=3)
    text = tiny.encoder.encode(PROMPTS)
    for i, row in enumerate(text.roles):
        words = torch.tensor([r == "relation" for r in row])
        expected = patterns.maps[1, 1][i][..., words].sum(-1).view(3, 8, 8)
        assert torch.allclose(recording.attention[i, 0, :, 1, 1, SAID.index("relation")].float(), expected, atol=2e-3)


def test_the_last_guess_is_the_picture(recording):
    assert torch.allclose(recording.guesses[:, :, -1], recording.latents, atol=1e-5)
    assert not torch.allclose(recording.guesses[:, :, 0], recording.latents, atol=1e-2)


def test_every_change_changes_the_picture_and_only_its_own_sample(bench, recording):
    for k in range(1, 5):
        assert (recording.latents[:, k] - recording.latents[:, 0]).abs().max() > 1e-3, recording.conditions[k]
    again = record(bench, PROMPTS[:1], {}, [5])
    assert torch.allclose(again.latents[0, 0], recording.latents[0, 0], atol=1e-4)


def test_a_relation_written_into_its_word_is_the_partitions_arithmetic(bench, recording, tiny):
    text = tiny.encoder.encode(["", PROMPTS[0]])
    here = torch.tensor([r == "relation" for r in text.roles[1]])
    effects = bench.effects("relation")
    text.embeddings[1, here] += effects[3] - effects[RELATIONS.index("above")]
    from dataclasses import replace
    told = replace(tiny, encoder=Prepared(["", "x"], text)).latents(["x"], [5], steps=3)
    assert torch.allclose(recording.latents[0, 4], told[0], atol=1e-4)


def test_ramps_are_the_weights_logits_without_their_mean(tiny):
    found = ramps(tiny, PROMPTS)
    text = tiny.encoder.encode(PROMPTS)
    word = captioned(tiny.transformer, text.embeddings)[0, 3]
    expected = qk_maps(tiny.transformer, word[None])[:, :, 0]
    assert text.tokens[0][3] == "above" and found.shape == (2, 2, 2, 5, 8, 8)
    assert torch.allclose(found[0, :, :, SAID.index("relation")], expected - expected.mean((-1, -2), keepdim=True), atol=1e-5)
    assert ramps(tiny, ["square is above circle"])[0, :, :, SAID.index("colour1")].isnan().all()


@pytest.mark.parametrize("change, message", [
    (dict(hidden=["verb"]), "'verb' is unknown; choose from colour1, shape1"), (dict(site="sky"), "'sky' is unknown; choose from stream"),
    (dict(relation=9), "relation 9 is out of range; choose 0 to 7")])
def test_a_change_that_does_not_exist_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Change(**change)


@pytest.mark.parametrize("prompt, change, message", [
    (PROMPTS[0], Change(off=[(7, 0)]), "L7H0 is out of range"), ("square is above circle", Change(hidden=["colour1"]), "holds no colour1"),
    ("red square", Change(relation=1), "holds no relation"), ("purple square is above circle", Change(), "unknown word 'purple'")])
def test_what_a_prompt_cannot_bear_is_refused_before_sampling(bench, monkeypatch, prompt, change, message):
    monkeypatch.setattr(type(bench.model), "latents", lambda *a, **k: pytest.fail("sampled"))
    with pytest.raises(ValueError, match=message):
        record(bench, [prompt], {"x": change}, [1])


def test_without_relation_heads_the_way_out_is_named(tiny):
    with pytest.raises(ValueError, match="no relation heads are known for the model tiny; write the relation into a token"):
        record(Bench(tiny), PROMPTS[:1], {"x": Change(relation=1)}, [1])
