"""Injection: vectors that tell relations apart, what a head makes of them, and steering with them."""
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatial_circuits.analyses.injection import (
    SITES,
    injected_patterns,
    mean_residual,
    patterns_on_residual,
    relation_vectors,
    rotation,
    steer,
)
from spatial_circuits.data.captions import PHRASE_RELATION, PHRASES, parse
from spatial_circuits.data.metrics import _scenes
from spatial_circuits.data.render import render
from spatial_circuits.data.scenes import RELATIONS
from spatial_circuits.hooks.edits import AddResidual
from spatial_circuits.hooks.readers import MeanResidual, Patterns
from spatial_circuits.hooks.run import run
from spatial_circuits.text.counterparts import restated

PROMPTS = ["red square is above blue circle", "triangle is to the left of red square"]
BALANCED = [f"red {a} is {PHRASES[PHRASE_RELATION.index(r)]} blue {b}" for r in range(8)
            for a, b in (("square", "circle"), ("circle", "square"))]
HEADS = [(0, 0), (0, 1), (1, 0), (1, 1)]
SEEDS = [1_000_000, 1_000_001]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def net(tiny, album):
    """The tiny model with a VAE that keeps its latents."""
    return replace(tiny, vae=album())


@pytest.fixture(scope="module")
def vectors():
    return torch.randn(8, 64, 16, generator=torch.Generator().manual_seed(0))


def close(a, b):
    return torch.allclose(a, b, atol=1e-5 * float(b.abs().max()), rtol=1e-4)


# ---- words

@pytest.mark.parametrize("phrase", PHRASES)
def test_a_restated_prompt_says_the_wanted_relation_and_nothing_else_new(phrase):
    for prompt in (f"red square is {phrase} blue circle", f"triangle is {phrase} the red square"):
        for relation in range(8):
            before, after = parse(prompt), parse(restated(prompt, relation))
            assert after.relation == relation and (after.shape, after.color) == (before.shape, before.color)
            assert len(after.spans) == len(before.spans)
    assert restated(f"red square is {phrase} blue circle", 2) == "red square is to the left of blue circle"


@given(st.integers(2, 40), st.integers(0, 5))
def test_a_rotation_keeps_norms_and_angles(width, seed):
    turn = rotation(width, seed)
    assert torch.allclose(turn @ turn.T, torch.eye(width), atol=1e-5)
    assert torch.equal(turn, rotation(width, seed)) and not torch.equal(turn, rotation(width, seed + 1))


# ---- what heads write

def test_relation_vectors_are_mean_writes_minus_the_mean_over_relations(tiny):
    seen, handles = {}, []
    for i, block in enumerate(tiny.transformer.transformer_blocks):
        handles.append(block.attn2.to_out[0].register_forward_pre_hook(lambda m, x, i=i: seen.setdefault(i, []).append(x[0])))
    tiny.latents(BALANCED, [2_000_000 + i for i in range(16)], steps=2)
    for handle in handles:
        handle.remove()
    heads = [(0, 1), (1, 0)]
    written = torch.zeros(8, 2, 64, 16)
    for step in range(2):
        for layer, head in heads:
            alone = torch.zeros(16, 64, 16)                                                   # the conditional half, one head alone
            alone[..., head * 8:head * 8 + 8] = seen[layer][step][16:, :, head * 8:head * 8 + 8]
            out = tiny.transformer.transformer_blocks[layer].attn2.to_out[0]
            written[:, step] += (out(alone) - out.bias).view(8, 2, 64, 16).mean(1)            # two prompts a relation
    found = relation_vectors(tiny, BALANCED, heads, steps=2, batch=5)
    assert found.shape == (8, 2, 64, 16) and torch.allclose(found, written - written.mean(0), atol=1e-5)
    assert found.std() > 1e-3 and found.sum(0).abs().max() < 1e-5


def test_unbalanced_prompts_weigh_relations_alike(tiny):
    plain = relation_vectors(tiny, BALANCED, [(0, 0)], steps=1)
    more = relation_vectors(tiny, BALANCED + BALANCED[:2], [(0, 0)], steps=1)                 # the first relation twice
    assert more.sum(0).abs().max() < 1e-5 and not torch.allclose(more[0], plain[0], atol=1e-4)
    assert torch.allclose(more[3] - more[5], plain[3] - plain[5], atol=1e-5)
    assert not torch.allclose(relation_vectors(tiny, BALANCED, [(0, 0)], per_prompt=2, steps=1), plain, atol=1e-4)


@pytest.mark.parametrize("prompts, message", [
    (BALANCED[2:], "no prompt for the relation above; the mean needs prompts of all 8"),
    (BALANCED[:-2], f"no prompt for the relation {RELATIONS[-1]}"), (["red square", *BALANCED], "prompt 'red square' says no relation"),
])
def test_all_relations_are_needed(net, prompts, message):
    calls = []
    handle = net.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=message):
        relation_vectors(net, prompts, [(0, 0)], steps=1)
    handle.remove()
    assert not calls


# ---- on the mean stream

def test_patterns_of_the_real_stream_are_the_model_s_own(tiny):
    for prompt in PROMPTS:
        inputs, own = MeanResidual(), Patterns(HEADS, steps=[0])
        run(tiny, [prompt], [5], inputs, own, steps=1)
        for layer in range(2):
            found = patterns_on_residual(tiny, [prompt], inputs.mean[layer], layer)
            assert found.shape == (1, 2, 64, len(tiny.encoder.encode([prompt]).tokens[0]))
            assert torch.allclose(found.sum(-1), torch.ones(()), atol=1e-5)
            for head in range(2):
                assert torch.allclose(found[0, head], own.maps[layer, head][0, 0], atol=1e-5)


def test_prompts_of_different_length_and_streams_go_together(tiny, vectors):
    found = patterns_on_residual(tiny, PROMPTS, vectors[:2], 1)
    mask = tiny.encoder.encode(PROMPTS).mask
    assert not found.masked_select(~mask[:, None, None]).any()
    for i, prompt in enumerate(PROMPTS):
        alone = patterns_on_residual(tiny, [prompt], vectors[i], 1)
        assert torch.allclose(found[i, ..., :alone.shape[-1]], alone[0], atol=1e-5)


def test_the_mean_stream_is_the_mean_input_at_the_first_step(tiny):
    seen, handles = [], []
    for block in tiny.transformer.transformer_blocks:
        handles.append(block.attn2.to_q.register_forward_pre_hook(lambda m, x: seen.append(x[0])))
    tiny.latents([p for p in PROMPTS for _ in range(2)], [2_000_000 + i for i in range(4)], steps=2)
    for handle in handles:
        handle.remove()
    found = mean_residual(tiny, PROMPTS, per_prompt=2, steps=2)
    assert found.shape == (2, 64, 16) and close(found, torch.stack([x[4:].mean(0) for x in seen[:2]]))


def test_injected_vectors_are_added_to_the_stream(tiny, vectors):
    stream, each = vectors[0], vectors[1:3]
    found = injected_patterns(tiny, PROMPTS, stream, each, (1, 0), [0, 1, -2.5])
    assert found.shape == (3, 2, 64, 9)
    for a, pattern in zip((0, 1, -2.5), found):
        assert torch.allclose(pattern, patterns_on_residual(tiny, PROMPTS, stream + a * each, 1)[:, 0], atol=1e-6)
    assert not torch.allclose(found[0], found[1], atol=1e-2)


# ---- steering

def test_steering_adds_the_new_relation_and_takes_the_old(net, vectors):
    targets = [3, 1]                                                                          # right, below
    frame = steer(net, PROMPTS, targets, vectors, [0, .5, -2], per_prompt=2, steps=2, batch=12)
    conditions = ["relation 0", "relation 0.5", "relation -2", "random 0", "random 0.5", "random -2"]
    assert list(frame["condition"]) == conditions * 4
    assert list(frame["scale"]) == [0, .5, -2] * 8 and list(frame["vector"]) == (["relation"] * 3 + ["random"] * 3) * 4
    assert list(frame["prompt"]) == [p for p, t in zip(PROMPTS, targets) for p in [restated(p, t)] * 12]
    assert list(frame["seed"]) == [s for s in range(1_000_000, 1_000_004) for _ in range(6)]
    told, seeds = [p for p in PROMPTS for _ in range(2)], range(1_000_000, 1_000_004)
    found = net.vae.latents.unflatten(0, (4, 6)).transpose(0, 1)
    plain = net.latents(told, seeds, steps=2)
    delta = torch.stack([vectors[3] - vectors[0], vectors[1] - vectors[2]]).repeat_interleave(2, 0)
    for condition, latents in zip(conditions, found):
        kind, scale = condition.split()
        turned = delta if kind == "relation" else delta @ rotation(16, 1).T
        wanted = run(net, told, seeds, AddResidual(float(scale) * turned, SITES["residual stream"]), steps=2)
        assert close(latents, wanted) and close(latents, plain) == (scale == "0")


@pytest.mark.parametrize("options, layer, steps", [({"site": "position embedding"}, 0, None), ({"layer": 2}, 2, None), ({}, 1, None),
                                                   ({"when": [1]}, 1, [1])])
def test_vectors_are_added_where_and_when_one_wishes(net, vectors, options, layer, steps):
    steer(net, PROMPTS, [3, 1], vectors, [1], steps=2, **options)
    delta = torch.stack([vectors[3] - vectors[0], vectors[1] - vectors[2]])
    wanted = run(net, PROMPTS, SEEDS, AddResidual(delta, layer, steps=steps), steps=2)
    assert close(net.vae.latents[::2], wanted) and not close(wanted, net.latents(PROMPTS, SEEDS, steps=2))


def test_pictures_are_scored_against_the_target(tiny, album, vectors):
    shown = ["red square is below blue circle", "red square is above blue circle"]             # relation 1, random 1
    net = replace(tiny, vae=album(render(_scenes(shown, 1, 0, "clean")[0])))
    frame = steer(net, PROMPTS[:1], [1], vectors, [1], steps=1)
    assert list(frame["loose"]) == [True, False] and frame["shape"].all()


@pytest.mark.parametrize("change, message", [
    ({"site": "final norm"}, "site 'final norm' is unknown; choose from position embedding, residual stream"),
    ({"targets": [1]}, "1 targets for 2 prompts; give one each"), ({"layer": 3}, "layer 3 is out of range"),
    ({"prompts": ["red square", PROMPTS[0]]}, "prompt 'red square' says no relation"), ({"when": [5]}, "acts at step 5"),
])
def test_wrong_values_are_refused_before_sampling(net, vectors, change, message):
    calls = []
    handle = net.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=message):
        steer(net, **{"prompts": PROMPTS, "targets": [0, 1], "vectors": vectors, "scales": [1], "steps": 1} | change)
    handle.remove()
    assert not calls


@pytest.mark.parametrize("change, message", [
    ({"vectors": torch.full((8, 64, 16), torch.nan)}, "vectors holds a number that is not finite"), ({"scales": []}, "give at least one"),
    ({"scales": [float("inf")]}, "finite"), ({"targets": [0, 8]}, "target 8 is out of range; choose 0 to 7")])
def test_what_would_draw_nothing_sensible_is_refused(net, vectors, change, message):
    with pytest.raises(ValueError, match=message):
        steer(net, **{"prompts": PROMPTS, "targets": [0, 1], "vectors": vectors, "scales": [1], "steps": 1} | change)


def test_vectors_of_no_head_are_refused(net):
    with pytest.raises(ValueError, match="heads is empty"):
        relation_vectors(net, BALANCED, [], steps=1)
