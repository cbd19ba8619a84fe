"""Recordings agree with the same edits made by hand, and refuse before sampling what cannot be."""
from dataclasses import replace

import pytest
import torch

from spatial_circuits.analyses.weight_maps import project_captions, qk_maps
from spatial_circuits.book import recording as recordings
from spatial_circuits.book.recording import (
    SAID,
    Change,
    Workbench,
    decoded,
    record,
    role_ramps,
)
from spatial_circuits.data.scenes import RELATIONS
from spatial_circuits.hooks.attach import hooked
from spatial_circuits.hooks.edits import Ablate, MaskKeys
from spatial_circuits.hooks.readers import Patterns
from spatial_circuits.text.prepared import Prepared

PROMPTS = ["red square is above blue circle", "blue triangle is to the left of red circle"]


@pytest.fixture(scope="module")
def bench(tiny):
    return Workbench(tiny, [(0, 0), (0, 1)], steps=3)


@pytest.fixture(scope="module")
def recording(bench):
    changes = {"off": Change(off=[(1, 0)]), "blind": Change(hidden=["relation"]),
               "moved": Change(relation=3), "told": Change(relation=3, site="relation")}
    return record(bench, PROMPTS, changes, [5, 6])


def test_each_condition_is_what_the_same_edit_gives_alone(bench, recording, tiny):
    text = tiny.encoder.encode(PROMPTS)
    keys = torch.tensor([[r == "relation" for r in row] for row in text.roles])
    assert recording.conditions == ["intact", "off", "blind", "moved", "told"]
    alone = {"intact": (), "off": (Ablate([(1, 0)], bench.mean),), "blind": (MaskKeys(keys),)}
    for name, hooks in alone.items():
        with hooked(tiny.transformer, *hooks):
            latents = tiny.latents(PROMPTS, [5, 6], steps=3)
        assert torch.allclose(recording.latents[:, recording.conditions.index(name)], latents,
                              atol=1e-4), name


def test_attention_is_that_of_the_heads_summed_over_the_words_of_a_role(recording, tiny):
    patterns = Patterns([(1, 1)])
    with hooked(tiny.transformer, patterns):
        tiny.latents(PROMPTS, [5, 6], steps=3)
    text = tiny.encoder.encode(PROMPTS)
    for i, row in enumerate(text.roles):
        words = torch.tensor([r == "relation" for r in row])
        expected = patterns.maps[1, 1][i][..., words].sum(-1).view(3, 8, 8)
        assert torch.allclose(recording.attention[i, 0, :, 1, 1, SAID.index("relation")].float(),
                              expected, atol=2e-3)


def test_the_last_guess_is_the_picture(recording):
    assert torch.allclose(recording.guesses[:, :, -1], recording.latents, atol=1e-5)
    assert not torch.allclose(recording.guesses[:, :, 0], recording.latents, atol=1e-2)


def test_every_change_changes_the_picture_and_only_its_own_sample(bench, recording):
    for k in range(1, 5):
        change = recording.latents[:, k] - recording.latents[:, 0]
        assert change.abs().max() > 1e-3, recording.conditions[k]
    again = record(bench, PROMPTS[:1], {}, [5])
    assert torch.allclose(again.latents[0, 0], recording.latents[0, 0], atol=1e-4)


def test_a_relation_written_into_its_word_is_the_partitions_arithmetic(bench, recording, tiny):
    text = tiny.encoder.encode(["", PROMPTS[0]])
    here = torch.tensor([r == "relation" for r in text.roles[1]])
    effects = bench.effects("relation")
    text.embeddings[1, here] += effects[3] - effects[RELATIONS.index("above")]
    told = replace(tiny, encoder=Prepared(["", "x"], text)).latents(["x"], [5], steps=3)
    assert torch.allclose(recording.latents[0, 4], told[0], atol=1e-4)


def test_ramps_are_the_weights_logits_without_their_mean(tiny):
    found = role_ramps(tiny, PROMPTS)
    text = tiny.encoder.encode(PROMPTS)
    word = project_captions(tiny.transformer, text.embeddings)[0, 3]
    expected = qk_maps(tiny.transformer, word[None])[:, :, 0]
    assert text.tokens[0][3] == "above" and found.shape == (2, 2, 2, 5, 8, 8)
    expected = expected - expected.mean((-1, -2), keepdim=True)
    assert torch.allclose(found[0, :, :, SAID.index("relation")], expected, atol=1e-5)
    unsaid = role_ramps(tiny, ["square is above circle"])[0, :, :, SAID.index("colour1")]
    assert unsaid.isnan().all()


def test_a_picture_is_made_where_the_vae_is_and_comes_back(tiny):
    class Elsewhere:
        """A VAE on another device."""
        mean = torch.zeros((), device="meta")

        def decode(self, latents):
            assert latents.device.type == "meta" and latents.shape == (6, 4, 16, 16)
            return torch.full((6, 3, 128, 128), 7, dtype=torch.uint8)
    found = decoded(replace(tiny, vae=Elsewhere()), torch.zeros(2, 3, 4, 16, 16))
    assert found.device.type == "cpu" and found.shape == (2, 3, 3, 128, 128) and (found == 7).all()


def test_ramps_are_computed_where_the_model_is(tiny, monkeypatch):
    class Elsewhere:
        """A transformer on another device."""
        device, transformer_blocks = torch.device("meta"), tiny.transformer.transformer_blocks

    def maps(net, vectors):
        assert vectors.device == net.device
        return torch.zeros(2, 2, len(vectors), 8, 8)
    vectors = lambda encoder, prompts, role, net: torch.zeros(len(prompts), 16)  # noqa: E731
    monkeypatch.setattr(recordings, "token_vectors", vectors)
    monkeypatch.setattr(recordings, "qk_maps", maps)
    assert role_ramps(replace(tiny, transformer=Elsewhere()), PROMPTS).device.type == "cpu"


@pytest.mark.parametrize("change, message", [
    ({"hidden": ["verb"]}, "'verb' is unknown; choose from colour1, shape1"),
    ({"site": "sky"}, "'sky' is unknown; choose from stream"),
    ({"relation": 9}, "relation 9 is out of range; choose 0 to 7")])
def test_a_change_that_does_not_exist_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Change(**change)


@pytest.mark.parametrize("prompt, change, message", [
    (PROMPTS[0], Change(off=[(7, 0)]), "L7H0 is out of range"),
    ("square is above circle", Change(hidden=["colour1"]), "holds no colour1"),
    ("red square", Change(relation=1), "holds no relation"),
    ("purple square is above circle", Change(), "unknown word 'purple'")])
def test_what_a_prompt_cannot_bear_is_refused_first(bench, monkeypatch, prompt, change, message):
    monkeypatch.setattr(type(bench.model), "latents", lambda *a, **k: pytest.fail("sampled"))
    with pytest.raises(ValueError, match=message):
        record(bench, [prompt], {"x": change}, [1])


def test_without_relation_heads_the_way_out_is_named(tiny):
    way_out = "no relation heads are known for the model tiny; write the relation into a token"
    with pytest.raises(ValueError, match=way_out):
        record(Workbench(tiny), PROMPTS[:1], {"x": Change(relation=1)}, [1])
