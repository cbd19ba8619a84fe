"""Patching and circuit: counterparts, who takes what from whom, and the scales of effects."""
import copy
import json
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from spatial_circuits.analyses import circuit
from spatial_circuits.analyses.ablation import ablate
from spatial_circuits.analyses.heads import INTACT, head_name, heads_of, other_heads
from spatial_circuits.analyses.patching import (
    REFERENCE_RUNS,
    greedy_patching,
    normalised,
    patch,
    patch_paths,
    prediction_effects,
    query_shares,
)
from spatial_circuits.data.captions import PHRASE_RELATION, PHRASES, all_captions, parse
from spatial_circuits.data.scenes import OFFSETS
from spatial_circuits.hooks.attach import hooked
from spatial_circuits.hooks.edits import Patch, PathPatch
from spatial_circuits.hooks.run import run
from spatial_circuits.model.sampler import initial_noise
from spatial_circuits.model.store import HERE, load
from spatial_circuits.model.transformer import build_transformer, predict
from spatial_circuits.text.counterparts import PROMPT_FACTORS, colourless, counterpart, opposite

PROMPTS = ["red square is above blue circle", "blue triangle is to the left of red square"]
OTHER = ["red square is below blue circle", "blue triangle is to the right of red square"]
HEADS = [(0, 0), (0, 1), (1, 0), (1, 1)]
SEEDS = [1_000_000, 1_000_001]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def net(tiny, album):
    """The tiny model with a VAE that keeps its latents."""
    return replace(tiny, vae=album())


def close(a, b):
    return torch.allclose(a, b, atol=1e-5 * float(b.abs().max()), rtol=1e-4)


def differ(a, b):
    return float((a - b).abs().max()) > 1e-3 * float(b.abs().max())


def by_condition(net, count, run=-1):
    """[conditions, pictures, 4, 16, 16]: the latents of the last sweep."""
    return net.vae.seen[run].unflatten(0, (-1, count)).transpose(0, 1)


# ---- counterparts

@pytest.mark.parametrize("phrase", PHRASES)
def test_opposite_phrases_are_of_one_length_and_point_the_other_way(phrase):
    other = opposite(phrase)
    assert other in PHRASES
    assert opposite(other) == phrase
    assert len(other.split()) == len(phrase.split())
    here, there = (OFFSETS[PHRASE_RELATION[PHRASES.index(p)]] for p in (phrase, other))
    assert torch.equal(here, -there)


@pytest.mark.parametrize("factor, changed", [("relation", {"relation", "phrase"}),
                                             ("shape", {"shape"}), ("colour", {"color"})])
def test_a_counterpart_changes_one_factor_and_back(factor, changed):
    tried = 0
    for prompt in all_captions():
        said = parse(prompt)
        if factor == "colour" and None in said.color:
            with pytest.raises(ValueError, match=f"prompt {prompt!r} does not say its colour"):
                counterpart(prompt, factor)
            continue
        other, tried = counterpart(prompt, factor), tried + 1
        told = parse(other)
        assert counterpart(other, factor) == prompt and len(other.split()) == len(prompt.split())
        assert {k for k in ("shape", "color", "relation", "phrase")
                if getattr(said, k) != getattr(told, k)} == changed
        if factor == "shape":
            assert told.shape[1] == said.shape[1] and told.shape[0] not in said.shape
    assert tried == (264 if factor == "colour" else 1056)


def test_counterparts_by_hand():
    prompt = "Red square is lower than the blue circle"
    assert counterpart(prompt, "relation") == "Red square is higher than the blue circle"
    assert counterpart(prompt, "shape") == "Red triangle is lower than the blue circle"
    assert counterpart(prompt, "colour") == "blue square is lower than the red circle"
    assert colourless([prompt.lower(),
                       "circle is above square"]) == ["square is lower than the circle",
                                                      "circle is above square"]


@pytest.mark.parametrize("call, message", [
    (lambda: opposite("beside"), "phrase 'beside' is unknown; choose from above"),
    (lambda: counterpart(PROMPTS[0], "size"),
     "factor 'size' is unknown; choose from relation, shape, colour"),
    (lambda: counterpart("red square", "relation"),
     "prompt 'red square' does not say its relation"),
    (lambda: counterpart("red square", "shape"), "prompt 'red square' does not say its shape"),
])
def test_prompts_without_a_counterpart_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- patching

@pytest.mark.parametrize("factor", PROMPT_FACTORS)
def test_all_heads_together_turn_one_prompt_into_the_other(net, factor):
    other = [counterpart(p, factor) for p in PROMPTS]
    plain = [net.latents(p, SEEDS, steps=2) for p in (PROMPTS, other)]
    for direction, start, end in (("denoising", 1, 0), ("noising", 0, 1)):
        frame = patch(net, PROMPTS, factor, {"none": [], "all": HEADS}, direction, steps=2)
        assert list(frame["condition"]) == [*REFERENCE_RUNS, "none", "all"] * 2
        # scored against the clean prompt
        assert list(frame["prompt"]) == [p for p in PROMPTS for _ in range(4)]
        found = by_condition(net, 4)
        for latents, wanted in zip(found, (*plain, plain[start], plain[end])):
            assert close(latents, wanted)
    assert differ(*plain)


@pytest.mark.parametrize("stage", ["output", "pattern", "value", "query", "key"])
@pytest.mark.parametrize("options", [{}, {"direction": "noising"}, {"branch": "uncond"},
                                     {"batch": 6}, {"per_prompt": 2, "seed": 3}],
                         ids=lambda o: next(iter(o), "plain"))
def test_a_set_takes_its_stage_from_the_other_run(net, stage, options):
    sets = {"a": [(0, 1)], "b": [(0, 0), (1, 1)]}
    patch(net, PROMPTS, "relation", sets, stage=stage, steps=2, **options)
    n, seed = options.get("per_prompt", 1), options.get("seed", 1) * 1_000_000
    # patched, source
    pair = (PROMPTS, OTHER) if options.get("direction") == "noising" else (OTHER, PROMPTS)
    told, source = ([p for p in prompts for _ in range(n)] for prompts in pair)
    seeds = [seed + i for i in range(2 * n)]
    for i, heads in enumerate(sets.values()):
        where = torch.zeros(4 * n, 2, 2, dtype=torch.bool)
        for layer, head in heads:
            where[:2 * n, layer, head] = True  # sources follow, untouched
        hook = Patch(torch.arange(4 * n) % (2 * n) + 2 * n, where, stage,
                     branch=options.get("branch", "cond"))
        wanted = run(net, told + source, seeds * 2, hook, steps=2)[:2 * n]
        assert close(by_condition(net, 4)[2 + i], wanted)


def test_other_prompts_can_be_scored(net):
    frame = patch(net, PROMPTS, "relation", {"all": HEADS}, scored=colourless(PROMPTS), steps=1)
    assert list(frame["prompt"]) == [p for p in colourless(PROMPTS) for _ in range(3)]


# ---- paths

def test_a_straight_path_is_the_edit_of_that_name(net):
    frame = patch_paths(net, PROMPTS, "relation", {"a": [(0, 0)], "b": [(0, 0), (0, 1)]}, [(1, 1)],
                        straight=True, steps=2)
    assert list(frame["condition"]) == [*REFERENCE_RUNS, "a", "b"] * 2
    found, both = by_condition(net, 4), torch.tensor([2, 3, 2, 3])
    for latents, heads in zip(found[2:], ([(0, 0)], [(0, 0), (0, 1)])):
        hooks = [PathPatch(h, [(1, 1)], both, torch.tensor([True, True, False, False]),
                           branch="cond") for h in heads]
        assert close(latents, run(net, OTHER + PROMPTS, SEEDS * 2, *hooks, steps=2)[:2])
    assert close(found[0], net.latents(PROMPTS, SEEDS, steps=2))
    assert close(found[1], net.latents(OTHER, SEEDS, steps=2))
    assert differ(found[2], found[1]) and differ(found[3], found[2])


@contextmanager
def to_q(net, layer, change):
    module = net.transformer.transformer_blocks[layer].attn2.to_q
    handle = module.register_forward_hook(lambda m, x, out: change(out))
    yield
    handle.remove()


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_by_every_path_receivers_see_the_queries_of_a_run_with_patched_senders(net, direction):
    frame = patch_paths(net, PROMPTS, "relation", {"a": [(0, 0)], "b": [(0, 1)]}, [(1, 1)],
                        direction, steps=2, batch=6)
    assert list(frame["condition"]) == [*REFERENCE_RUNS, "a", "b"] * 2
    assert list(frame["prompt"]) == [p for p in PROMPTS for _ in range(4)]
    patched, source = (OTHER, PROMPTS) if direction == "denoising" else (PROMPTS, OTHER)
    found = by_condition(net, 6)  # with the two hidden runs
    for i, sender in enumerate(((0, 0), (0, 1))):
        queries, where = [], torch.zeros(4, 2, 2, dtype=torch.bool)
        where[:2, sender[0], sender[1]] = True
        with to_q(net, 1, lambda out: queries.append(out)):
            hidden = run(net, patched + source, SEEDS * 2,
                         Patch(torch.tensor([2, 3, 2, 3]), where, branch="cond"), steps=2)
        step = iter(queries)

        def replay(out):
            out, kept = out.clone(), next(step)
            out[2:, :, 8:] = kept[4:6, :, 8:]  # head 1, conditional half
            return out
        with to_q(net, 1, replay):
            wanted = net.latents(patched, SEEDS, steps=2)
        assert close(found[2 + i], hidden[:2]) and close(found[4 + i], wanted)
        assert differ(wanted, net.latents(patched, SEEDS, steps=2)) and differ(wanted, hidden[:2])


def test_without_other_ways_every_path_is_the_straight_one(tiny, album):
    model = copy.deepcopy(tiny.transformer)
    for block in model.transformer_blocks:
        for layer in (block.attn1.to_out[0], block.ff.net[2]):
            layer.weight.zero_()
    sets = {"a": [(0, 0)], "b": [(0, 0), (0, 1)]}
    nets = [replace(tiny, transformer=t, vae=album())
            for t in (model, model, tiny.transformer, tiny.transformer)]
    for net, straight in zip(nets, (True, False, True, False)):
        patch_paths(net, PROMPTS, "relation", sets, [(1, 0), (1, 1)], straight=straight, steps=1)
    alone, mediated, full, roundabout = (by_condition(n, c)[-2:] for n,
                                         c in zip(nets, (4, 6, 4, 6)))
    assert close(alone, mediated) and differ(full, roundabout)


@pytest.mark.parametrize("call, message", [
    (lambda net: patch(net, PROMPTS, "size", {"a": [(0, 0)]}), "factor 'size' is unknown"),
    (lambda net: patch(net, PROMPTS, "shape", {"a": [(0, 0)]}, "back"),
     "direction 'back' is unknown; choose from denoising, noising"),
    (lambda net: patch(net, PROMPTS, "shape", {"a": [(0, 0)]}, stage="mask"),
     "stage 'mask' cannot be patched"),
    (lambda net: patch(net, PROMPTS, "shape", {"a": [(0, 7)]}), "head L0H7 is out of range"),
    (lambda net: patch(net, ["circle is above square"], "colour", {"a": [(0, 0)]}),
     "does not say its colour"),
    (lambda net: patch_paths(net, PROMPTS, "shape", {"a": [(0, 0)]}, [(1, 7)]),
     "head L1H7 is out of range"),
    (lambda net: patch_paths(net, PROMPTS, "shape", {"a": [(1, 0)]}, [(1, 1)], straight=True),
     "a receiver in layer 1 cannot see the sender"),
    (lambda net: patch_paths(net, PROMPTS, "shape", {"a": [(0, 0)]}, [(1, 1)], "back"),
     "direction 'back' is unknown"),
    (lambda net: prediction_effects(net, PROMPTS, "size", {"a": [(0, 0)]}),
     "factor 'size' is unknown"),
    (lambda net: prediction_effects(net, PROMPTS, "shape", {"a": [(7, 0)]}),
     "head L7H0 is out of range"),
    (lambda net: prediction_effects(net, PROMPTS, "shape", {"a": HEADS}, "sideways"),
     "direction 'sideways' is unknown"),
    (lambda net: prediction_effects(net, PROMPTS, "shape", {"a": HEADS}, every=0), "every is 0"),
    (lambda net: prediction_effects(net, [], "shape", {"a": HEADS}), "got 0 prompts"),
    (lambda net: greedy_patching(net, PROMPTS, "shape", limit=0),
     "limit is 0; it must be at least 1"),
    (lambda net: patch(net, PROMPTS, "shape", {"a": [(0, 0)]}, per_prompt=0), "and 0 images"),
    (lambda net: patch(net, PROMPTS, "shape", {"a": [(0, 0)]}, scored=["red square"] * 2),
     "must name"),
    (lambda net: patch(net, PROMPTS, "shape", {"clean": [(0, 0)]}),
     "conditions of different names"),
    (lambda net: query_shares(net, PROMPTS, "shape", [(0, 0)], (1, 9)), "head 9 is out of range"),
    (lambda net: query_shares(net, PROMPTS, "shape", [(0, 9)], (1, 0)),
     "head L0H9 is out of range"),
])
def test_wrong_values_are_refused_before_any_forward(net, call, message):
    calls = []
    handle = net.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=message):
        call(net)
    handle.remove()
    assert not calls


# ---- effects on the prediction

@pytest.mark.parametrize("factor", PROMPT_FACTORS)
@pytest.mark.parametrize("direction", ["denoising", "noising", "both"])
def test_all_heads_have_an_effect_of_one_and_none_of_zero(tiny, factor, direction):
    found = prediction_effects(tiny, PROMPTS, factor, {"all": HEADS, "none": [], "one": [(0, 1)]},
                               direction, steps=2)
    assert list(found.index) == PROMPTS and list(found) == ["all", "none", "one"]
    assert np.allclose(found["all"], 1, atol=1e-5) and np.allclose(found["none"], 0, atol=1e-5)
    assert (found["one"].abs() > 1e-3).all() and (found["one"] < 0.999).all()


@pytest.mark.parametrize("direction, every",
                         [("denoising", 1), ("noising", 1), ("denoising", 2), ("both", 2)])
def test_effects_by_hand_and_whatever_the_batch(tiny, direction, every):
    trace = [initial_noise(SEEDS)]
    tiny.latents(PROMPTS, SEEDS, steps=3, on_step=lambda i, x: trace.append(x))
    scheduler = type(tiny.scheduler).from_config(tiny.scheduler.config)
    scheduler.set_timesteps(3)
    errors = torch.zeros(3, 2)  # denoising, noising, counterpart
    for x, t in list(zip(trace, scheduler.timesteps))[::every]:
        for i in range(2):
            text = tiny.encoder.encode([OTHER[i], PROMPTS[i]])

            def eps(*hooks):
                with torch.no_grad(), hooked(tiny.transformer, *hooks) as session:
                    session.at(0, ("cond",))
                    return predict(tiny.transformer, x[[i, i]], t.expand(2), text.embeddings,
                                   text.mask)
            plain = eps()
            patched = [eps(Patch(torch.tensor([s, s]), [(0, 1)]))[1 - s] for s in (1, 0)]
            errors[:, i] += torch.stack([(a - b).square().sum() for a,
                                         b in zip((*patched, plain[0]), (plain[1], *plain))])
    both = 1 - errors[:2] / errors[2]
    wanted = {"denoising": both[0], "noising": both[1], "both": both.amin(0)}[direction]
    assert (both[0] - both[1]).abs().max() > 1e-2
    for batch in (256, 5, 1):
        sets = {"one": [(0, 1)], "none": []}
        found = prediction_effects(tiny, PROMPTS, "relation", sets, direction, steps=3, every=every,
                                   batch=batch)
        assert np.allclose(found["one"], wanted, atol=1e-4)


def test_query_shares_tell_how_far_the_senders_turn_the_receiver(tiny):
    layer0 = [(0, 0), (0, 1)]
    found = query_shares(tiny, PROMPTS, "relation", layer0, (1, 1))
    assert list(found.index) == PROMPTS
    assert list(found) == ["all paths", "pattern, all paths", "straight", "pattern, straight"]
    assert np.allclose(found["all paths"], 1, atol=1e-4)  # nothing else tells it the prompt
    assert (abs(found["pattern, all paths"] - 1) > 1e-3).any()  # but its own keys
    assert (abs(found["straight"] - 1) > 1e-3).any()
    one = [query_shares(tiny, PROMPTS, "relation", [h], (1, 1))["straight"] for h in layer0]
    assert np.allclose(sum(one), found["straight"], atol=1e-4)  # the straight path is linear


def test_a_query_share_by_hand(tiny):
    scheduler = type(tiny.scheduler).from_config(tiny.scheduler.config)
    scheduler.set_timesteps(14)
    noise, seen = initial_noise(SEEDS[:1] * 3), []
    text = tiny.encoder.encode([PROMPTS[0], OTHER[0], OTHER[0]])
    where = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]).bool().view(3, 2, 2)
    with torch.no_grad(), to_q(tiny, 1, lambda out: seen.append(out[..., :8])), \
            hooked(tiny.transformer, Patch(torch.tensor([0, 1, 0]), where)) as session:
        session.at(0, ("cond",))
        predict(tiny.transformer, noise, scheduler.timesteps[:1].expand(3), text.embeddings,
                text.mask)
    clean, other, patched = seen[0].flatten(1)
    wanted = ((patched - other) @ (clean - other) / (clean - other).square().sum()).item()
    found = query_shares(tiny, PROMPTS[:1], "relation", [(0, 1)], (1, 0))
    assert found["all paths"].item() == pytest.approx(wanted, abs=1e-4)
    assert 0.01 < abs(wanted) < 0.99


def test_growing_adds_the_best_head_each_round(tiny):
    options = {"steps": 2}
    found = greedy_patching(tiny, PROMPTS, "shape", target=1.01, limit=3, **options)
    chosen = []
    for row in found.itertuples():
        sets = {head_name(*h): [*chosen, h] for h in heads_of(tiny) if h not in chosen}
        effect = prediction_effects(tiny, PROMPTS, "shape", sets, "both", **options).mean()
        assert row.name == effect.idxmax() == head_name(*row.head)
        assert row.effect == pytest.approx(effect.max(), abs=1e-5)
        assert row.low <= row.effect <= row.high and row.factor == "shape"
        chosen.append(row.head)
    assert len(found) == 3


def test_growing_ends_at_its_target_or_when_no_head_is_left(tiny):
    first = greedy_patching(tiny, PROMPTS, "shape", target=-10, steps=1)
    assert len(first) == 1
    rest = greedy_patching(tiny, PROMPTS, "shape", target=2, without=[first["head"][0]], steps=1)
    assert 1 <= len(rest) <= 3 and first["head"][0] not in list(rest["head"])
    none = greedy_patching(tiny, PROMPTS, "shape", without=HEADS, steps=1)
    assert len(none) == 0 and list(none) == ["factor", "name", "head", "effect", "low", "high"]


def test_growing_ends_when_no_further_head_helps(tiny, monkeypatch):
    """An unreachable target pads no set: L1H1 brings .3, L0H1 .2 more, then nothing rises."""
    def fake(model, prompts, factor, sets, direction, **options):
        gain = {(1, 1): .3, (0, 1): .2, (0, 0): 0., (1, 0): -.1}
        return pd.DataFrame({n: [sum(gain[h] for h in heads)] * 2 for n, heads in sets.items()})
    monkeypatch.setattr("spatial_circuits.analyses.patching.prediction_effects", fake)
    found = greedy_patching(tiny, PROMPTS, "shape", target=2, limit=4)
    assert list(found["name"]) == ["L1H1", "L0H1"]
    assert list(found["effect"]) == pytest.approx([.3, .5])
    found = greedy_patching(tiny, PROMPTS, "shape", target=2, without=[(1, 1), (0, 1)])
    assert list(found["name"]) == ["L0H0"]  # the best single head, always


@pytest.mark.parametrize("name", ["rte", "rte-seed1", "minilm"])
def test_each_head_of_a_recorded_circuit_raised_the_effect(name):
    found = pd.DataFrame(json.loads((HERE / name / "circuit.json").read_text())["found"])
    assert all(rows["effect"].is_monotonic_increasing for _, rows in found.groupby("factor"))


def test_a_model_that_does_not_read_a_factor_is_named_as_such(tiny, atom, album):
    untrained = replace(tiny, transformer=build_transformer(atom, 128).eval(), vae=album())
    message = (f"the model predicts the same for {PROMPTS[0]!r} and .*: it does not read the "
               "shape, so no head carries it .is it trained")
    with pytest.raises(ValueError, match=message):
        prediction_effects(untrained, PROMPTS, "shape", {"a": HEADS}, steps=2)
    with pytest.raises(ValueError, match=message):
        circuit.find_circuit(untrained, PROMPTS, steps=2)
    with pytest.raises(ValueError, match="no picture shows both objects, so no head can be seen"):
        circuit.heads_by_attention(untrained, PROMPTS, steps=1)


# ---- scales

def made_up(scores):
    """A frame from {condition: one score a prompt}."""
    return pd.DataFrame([(f"p{i}", c, float(v)) for i in range(len(next(iter(scores.values()))))
                         for c, v in ((c, x[i]) for c, x in scores.items())],
                        columns=["prompt", "condition", "loose"])


def test_effects_are_scaled_from_the_counterpart_to_the_clean_run():
    scores = {"clean": [1, 1, 1, .6], "counterpart": [0, .2, 0, 0], "branch": [.5, .5, .5, .4],
              "worse": [0, 0, 0, 0]}
    found = normalised(made_up(scores), "loose")
    assert list(found.index) == ["clean", "counterpart", "branch", "worse"]
    for condition, value in (("clean", 1), ("counterpart", 0)):
        assert tuple(found.loc[condition][["mean", "low", "high"]]) == (value,) * 3
    assert found.loc["branch", "mean"] == pytest.approx((.475 - .05) / (.9 - .05))
    assert found.loc["branch", "raw"] == pytest.approx(.475)
    assert found.loc["worse", "mean"] == pytest.approx(-.05 / .85)
    assert found.loc["branch", "low"] <= found.loc["branch", "mean"] <= found.loc["branch", "high"]


def test_a_metric_that_does_not_tell_the_prompts_apart_gives_no_scale():
    message = "loose is 0.550 for the clean prompts and 0.500 for the others: it does not tell"
    with pytest.raises(ValueError, match=message):
        normalised(made_up({"clean": [.6, .5], "counterpart": [.5, .5]}), "loose")


# ---- circuit

def test_a_circuit_is_found_from_patching_alone(tiny):
    found = circuit.find_circuit(tiny, PROMPTS, target=0.7, limit=2, steps=2)
    for role, factor in (("relation", "relation"), ("object", "shape"), ("colour", "colour")):
        rows = found.trace[found.trace["factor"] == factor]
        assert getattr(found, role) == list(rows["head"])
        assert 0 < len(rows) <= 2 or role == "relation" and {*found.object,
                                                             *found.colour} == set(HEADS)
    assert not {*found.relation} & {*found.object, *found.colour}
    assert found.heads == sorted({*found.relation, *found.object, *found.colour})
    assert str(found).startswith("relation: ")
    assert f"object: {', '.join(head_name(*h) for h in found.object)}" in str(found)
    assert str(circuit.Circuit([], [(0, 1)], [],
                               found.trace)) == "relation: none; object: L0H1; colour: none"


def test_scouting_takes_heads_that_look_at_the_relation_and_turn_the_object_head(tiny, monkeypatch):
    # [P, L, H]
    made_up = {"relation": torch.tensor([[[.5, .2], [.7, .1]]]),
               "object": torch.tensor([[[0, .1], [.9, .2]]])}
    monkeypatch.setattr(circuit, "synopsis", lambda *_,
                        **__: SimpleNamespace(table=lambda value: torch.zeros(1)))
    monkeypatch.setattr(circuit, "attention_scores", lambda table: made_up)
    heads, reader, table = circuit.heads_by_attention(tiny, PROMPTS, turn=-9)
    assert (heads, reader) == ([(0, 0)], (1, 0))  # L1H0 looks more, but comes too late
    assert list(table.index) == ["L1H0", "L0H0", "L0H1", "L1H1"]
    assert list(table["object"]) == pytest.approx([.9, 0, .1, .2])
    for h in ((0, 0), (0, 1)):
        wanted = query_shares(tiny, PROMPTS, "relation", [h], reader)["all paths"].mean()
        assert table.loc[head_name(*h), "turns"] == pytest.approx(wanted, abs=1e-5)
    assert table.loc[["L1H0", "L1H1"], "turns"].isna().all()
    assert circuit.heads_by_attention(tiny, PROMPTS, share=.2, turn=-9)[0] == [(0, 0), (0, 1)]
    # none turns so much: the best by its look
    assert circuit.heads_by_attention(tiny, PROMPTS, turn=99)[0] == [(1, 0)]


def test_the_shipped_model_has_a_small_circuit(one_thread):
    net = load("rte-biased")
    found = circuit.find_circuit(net, [PROMPTS[0], "blue circle is to the right of red triangle"],
                                 limit=4, steps=2)
    assert 3 <= len(found.heads) < len(heads_of(net)) / 2
    last = found.trace.groupby("factor")["effect"].last()
    assert (last > 0.8).all() and found.trace["effect"].is_unique


def test_the_three_tests_of_a_circuit_are_runs_without_the_right_heads(net):
    member = [(0, 1), (1, 0)]
    mean = torch.randn(2, 2, 2, 2, 64, 8, generator=torch.Generator().manual_seed(0))
    frame = circuit.tests(net, PROMPTS[:1], member, mean, random=2, steps=2)
    names = list(frame["condition"])
    assert names == [INTACT, "circuit alone", "without the circuit", "nothing",
                     "circuit without L0H1", "circuit without L1H0",
                     "random 1", "random 2"]
    wanted = {"circuit alone": [(0, 0), (1, 1)], "without the circuit": member, "nothing": HEADS,
              "circuit without L0H1": other_heads(net, [(1, 0)]),
              "circuit without L1H0": other_heads(net, [(0, 1)])}
    ablate(net, PROMPTS[:1], wanted, mean=mean, steps=2)
    ours, theirs = (dict(zip(n, seen)) for n, seen in zip((names, [INTACT, *wanted]), net.vae.seen))
    assert all(close(ours[c], theirs[c]) for c in (INTACT, *wanted))
    assert differ(ours["circuit alone"], ours["nothing"])
    # random sets: one head alone
    circuit.tests(net, PROMPTS[:1], HEADS[:1], mean, random=3, steps=2)
    ablate(net, PROMPTS[:1], {str(h): other_heads(net, [h]) for h in HEADS}, mean=mean, steps=2)
    for latents in net.vae.seen[-2][-3:]:
        assert sum(close(latents, x) for x in net.vae.seen[-1][1:]) == 1


def test_shares_are_of_the_intact_score():
    frame = made_up({INTACT: [1, 1, .5, .5], "a": [.5, .5, .25, .25], "b": [1, 0, .5, 0],
                     "c": [0, 0, 0, 0]})
    found = circuit.shares(frame)
    assert list(found.index) == [INTACT, "a", "b", "c"]
    assert list(found["mean"]) == [1, .5, .5, 0]
    assert (found["n_prompts"] == 4).all()
    assert tuple(found.loc["a"][["low", "high"]]) == (.5, .5)  # a pair's share has no spread
    assert found.loc["b", "low"] < .2 and found.loc["b", "high"] > .8


def test_shares_of_a_model_that_scores_nothing_are_nan_and_say_why():
    frame = made_up({INTACT: [0, 0], "a": [1, 0]})
    with pytest.warns(UserWarning,
                      match="the intact model's loose is 0 on all prompts: shares of it are NaN"):
        found = circuit.shares(frame)
    assert found.loc[INTACT, ["mean", "low", "high"]].isna().all()


def test_pruning_a_model_that_scores_nothing_is_refused(net):
    with pytest.raises(ValueError, match="the intact model's loose is 0 on these prompts"):
        circuit.prune(net, PROMPTS[:1], HEADS[:2], steps=1)


def test_agreement_is_rank_correlation_and_the_same_best_head():
    table = pd.DataFrame({"a": [4., 3, 2, 1, 0], "b": [400., 30, 2, .1, 0], "c": [0., 1, 2, 3, 4],
                          "d": [4., 0, 2, 1, 3]},
                         index=[f"L0H{i}" for i in range(5)])
    found = circuit.agreement(table).set_index(["first", "second"])
    assert len(found) == 6 and (found["heads"] == 5).all()
    assert list(found.loc[[("a", "b"), ("a", "c")], "rank correlation"]) == pytest.approx([1, -1])
    assert found.loc[("a", "d"), "rank correlation"] == pytest.approx(1 - 6 * (9 + 0 + 0 + 9) / 120)
    assert list(found["same top head"]) == [True, False, True, False, True, False]
    assert found.loc[("a", "d"), "p"] > 0.5 > 0.01 > found.loc[("a", "b"), "p"]
