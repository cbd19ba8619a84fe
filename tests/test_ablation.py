"""Ablation: every condition of a sweep is the run it says, and effects are paired differences."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from spatial_circuits.analyses.ablation import ablate, greedy_ablation, mask_roles, mean_outputs
from spatial_circuits.analyses.heads import (
    INTACT,
    head_conditions,
    head_masks,
    head_name,
    heads_of,
    layers_and_heads,
    listed,
    named_heads,
    other_heads,
    parse_head,
)
from spatial_circuits.analyses.intervals import wilson
from spatial_circuits.analyses.sweep import EFFECT, effects, pictures, spread, sweep
from spatial_circuits.data.captions import ROLES
from spatial_circuits.data.metrics import METRICS, _scenes
from spatial_circuits.data.render import render
from spatial_circuits.hooks.edits import Ablate, MaskKeys
from spatial_circuits.hooks.run import run
from spatial_circuits.text.roles import role_mask

PROMPTS = ["red square is above blue circle", "triangle is to the left of red square"]
HEADS = [(0, 0), (0, 1), (1, 0), (1, 1)]
SEEDS = [1_000_000 + i for i in range(4)]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def net(tiny, album):
    """The tiny model with a VAE that keeps its latents."""
    return replace(tiny, vae=album())


def close(a, b):
    return torch.allclose(a, b, atol=1e-5 * float(b.abs().max()), rtol=1e-4)


def by_condition(net, count):
    """[conditions, pictures, 4, 16, 16]: the latents of a sweep."""
    return net.vae.latents.unflatten(0, (-1, count)).transpose(0, 1)


def told(per_prompt):
    return [p for p in PROMPTS for _ in range(per_prompt)]


# ---- names and conditions

def test_heads_and_conditions_by_hand(tiny):
    assert head_name(2, 3) == "L2H3" and heads_of(tiny) == HEADS
    assert other_heads(tiny, [(0, 1), (1, 1)]) == [(0, 0), (1, 0)]
    names, where = head_conditions(tiny, {"a": [(0, 1)], "b": [], "c": HEADS})
    assert names == [INTACT, "a", "b", "c"]
    assert where.flatten(1).int().tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0],
                                               [1, 1, 1, 1]]
    assert torch.equal(spread(where, 3), torch.cat([where] * 3))
    assert torch.equal(where, head_masks(tiny, [[], [(0, 1)], [], HEADS]))
    assert layers_and_heads(tiny) == (2, 2)
    assert named_heads(HEADS[:2]) == {"L0H0": [(0, 0)], "L0H1": [(0, 1)]}
    assert listed([(0, 1), (12, 3)]) == "L0H1, L12H3" and listed([]) == "none"


@pytest.mark.parametrize("text", ["L2", "l2h3", "L2H3 ", "L-1H0", "2,3", "L\u0662H3", ""])
def test_only_names_of_heads_are_parsed(text):
    assert parse_head("L2H3") == (2, 3) and parse_head(head_name(10, 0)) == (10, 0)
    with pytest.raises(ValueError, match="is not of the form L2H3"):
        parse_head(text)


def test_pictures_of_a_prompt_follow_each_other_with_seeds_of_their_own():
    assert pictures(["a", "b"], 2, 3) == (["a", "a", "b", "b"],
                                          [3_000_000, 3_000_001, 3_000_002, 3_000_003])
    for prompts, n in ((["a"], 0), ([], 2)):
        message = f"a sweep needs a prompt and an image, got {len(prompts)} prompts and {n} images"
        with pytest.raises(ValueError, match=message):
            pictures(prompts, n, 0)


# ---- sweeps

def test_each_row_is_scored_under_its_own_condition(tiny, album):
    """Pictures of condition "right" show the prompt, of "wrong" its objects the other way round."""
    # 2 prompts x 2 pictures x 3 conditions
    shown = _scenes([p for p in PROMPTS for _ in range(6)], 1, 0, "clean")[0]
    shown.xy[1::3] = shown.xy[1::3].flip(1)
    frame = sweep(replace(tiny, vae=album(render(shown))), PROMPTS, ["right", "wrong", "too"],
                  per_prompt=2, seed=7, steps=1)
    assert list(frame["condition"]) == ["right", "wrong", "too"] * 4
    assert list(frame["prompt"]) == [p for p in PROMPTS for _ in range(6)]
    assert list(frame["seed"]) == [7_000_000 + i for i in range(4) for _ in range(3)]
    assert list(frame["loose"]) == [True, False, True] * 4 and frame["shape"].all()


def test_the_intact_condition_is_plain_sampling_and_the_others_are_theirs(net):
    sets = {"one": [(0, 1)], "two": [(1, 0), (1, 1)], "none": []}
    frame = ablate(net, PROMPTS, sets, per_prompt=2, steps=2)
    assert list(frame["condition"][:4]) == [INTACT, *sets] and set(METRICS) <= set(frame)
    found, plain = by_condition(net, 4), net.latents(told(2), SEEDS, steps=2)
    for latents, heads in zip(found, [[], *sets.values()]):
        wanted = run(net, told(2), SEEDS, Ablate(heads, branch="cond"), steps=2) if heads else plain
        assert close(latents, wanted)
    assert not any(torch.allclose(found[i], plain, atol=1e-2) for i in (1, 2))


@pytest.mark.parametrize("options", [{"branch": "both"}, {"branch": "uncond"}, {"when": [1]},
                                     {"seed": 4}, {"batch": 3}, {"batch": 1}])
def test_options_reach_the_run(net, options):
    ablate(net, PROMPTS, {"one": [(0, 1)], "two": [(1, 0)]}, per_prompt=2, **{"steps": 2} | options)
    seeds = [options.get("seed", 1) * 1_000_000 + i for i in range(4)]
    hook = Ablate([(0, 1)], branch=options.get("branch", "cond"), steps=options.get("when"))
    assert close(by_condition(net, 3)[1], run(net, told(2), seeds, hook, steps=2))


def test_mean_ablation_uses_the_mean(net):
    mean = mean_outputs(net, PROMPTS, per_prompt=2, steps=2)
    ablate(net, PROMPTS, {"zero": HEADS}, steps=2)
    ablate(net, PROMPTS, {"mean": HEADS}, mean=mean, steps=2)
    zero, ours = (torch.cat(net.vae.seen[i:i + 1])[1::2] for i in (0, 1))
    wanted = run(net, PROMPTS, SEEDS[:2], Ablate(None, mean, "cond"), steps=2)
    assert close(ours, wanted) and not torch.allclose(ours, zero, atol=1e-2)


def test_mean_outputs_are_what_the_output_projections_receive(tiny):
    seen, handles = [], []
    for block in tiny.transformer.transformer_blocks:
        layer = block.attn2.to_out[0]
        handles.append(layer.register_forward_pre_hook(lambda m, x: seen.append(x[0])))
    tiny.latents(told(2), [2_000_000 + i for i in range(4)], steps=3)
    for handle in handles:
        handle.remove()
    wanted = torch.stack(seen).view(3, 2, 2, 4, 64, 2, 8).mean(3)
    wanted = wanted.permute(0, 2, 1, 4, 3, 5)  # [steps, branches, L, H, N, d]
    found = mean_outputs(tiny, PROMPTS, per_prompt=2, steps=3, batch=3)
    assert found.shape == (3, 2, 2, 2, 64, 8) and close(found, wanted)


def test_prompts_can_differ_by_condition_and_be_scored_against_others(tiny, album):
    pairs = [[p, p.replace("red", "blue")]
             for p in ("red square is above circle", "triangle is left of red square")]
    drawn = [p for pair in pairs for p in pair]
    net = replace(tiny, vae=album(render(_scenes(drawn, 1, 0, "clean")[0])))
    frame = sweep(net, pairs, ["as told", "blue"], scored=[pair[0] for pair in pairs], steps=1)
    assert list(frame["prompt"]) == [p for pair in pairs for p in pair[:1] * 2]
    assert list(frame["loose"]) == [True, False] * 2
    seeds = [1_000_000, 1_000_000, 1_000_001, 1_000_001]
    assert list(frame["seed"]) == seeds
    assert close(net.vae.latents, net.latents(drawn, seeds, steps=1))


def test_each_condition_can_be_scored_against_its_own_prompt(tiny, album):
    shown = [p for p in PROMPTS for _ in range(2)]
    against = [[p, q] for p, q in zip(PROMPTS, ("red square is below blue circle",
                                                "triangle is to the right of red square"))]
    net = replace(tiny, vae=album(render(_scenes(shown, 1, 0, "clean")[0])))
    frame = sweep(net, PROMPTS, ["as told", "opposite"], scored=against, steps=1)
    assert list(frame["prompt"]) == [p for pair in against for p in pair]
    assert list(frame["loose"]) == [True, False] * 2


# ---- hidden roles

def test_a_role_s_tokens_are_hidden_from_the_heads_named(net):
    groups = {"shape 1 everywhere": ("shape1", None), "relation at L0H1": ("relation", [(0, 1)]),
              "end at layer 1": ("end", [(1, 0), (1, 1)])}
    frame = mask_roles(net, PROMPTS, groups, per_prompt=2, steps=2)
    assert list(frame["condition"][:4]) == [INTACT, *groups]
    found = by_condition(net, 4)
    assert close(found[0], net.latents(told(2), SEEDS, steps=2))
    for latents, (role, heads) in zip(found[1:], groups.values()):
        keys = role_mask(net.encoder, told(2), role)
        assert close(latents, run(net, told(2), SEEDS, MaskKeys(keys, heads), steps=2))
        assert not torch.allclose(latents, found[0], atol=1e-3)


def test_roles_can_be_hidden_at_some_steps(net):
    mask_roles(net, PROMPTS, {"all": ("relation", None)}, steps=2, when=[0])
    keys = role_mask(net.encoder, PROMPTS, "relation")
    assert close(by_condition(net, 2)[1],
                 run(net, PROMPTS, SEEDS[:2], MaskKeys(keys, steps=[0]), steps=2))


def test_role_masks_mark_the_words(rte):
    tokens = rte.encode(PROMPTS).tokens
    said = {role: [[w for w, on in zip(*row) if on]
                   for row in zip(tokens, role_mask(rte, PROMPTS, role))] for role in
            ("shape1", "relation", "shape2", "end")}
    assert said == {"shape1": [["square"], ["triangle"]],
                    "relation": [["above"], ["to", "the", "left", "of"]],
                    "shape2": [["circle"], ["square"]], "end": [["</s>"]] * 2}
    assert role_mask(rte, PROMPTS, "pad").sum(1).tolist() == [2, 0]


# ---- heads taken away one by one

@pytest.fixture
def scored(monkeypatch):
    """Made-up scores: L0H1 costs .2 of loose, L1H0 then .5 more, L1H1 the objects themselves."""
    calls = []

    def fake(model, prompts, sets, mean=None, **options):
        calls.append(sets)
        rows = []
        for condition, heads in {INTACT: [], **sets}.items():
            both = {(0, 1), (1, 0)} <= set(heads)
            loose = .9 - .2 * ((0, 1) in heads) - .5 * both - .9 * ((1, 1) in heads)
            unique = .95 - .9 * ((1, 1) in heads)  # L1H1 breaks the objects: not what is looked for
            rows.append((condition, 1.0, unique, max(loose, 0)))
        return pd.DataFrame(rows, columns=["condition", "shape", "unique_binding", "loose"])
    monkeypatch.setattr("spatial_circuits.analyses.ablation.ablate", fake)
    return calls


def test_knocking_takes_the_head_without_which_most_objects_are_misplaced(tiny, scored):
    found = greedy_ablation(tiny, PROMPTS, rounds=4, lost=.5)
    assert list(found["name"]) == ["L0H1", "L1H0"] and list(found["head"]) == [(0, 1), (1, 0)]
    assert list(found["misplaced"]) == pytest.approx([.25, .75])
    assert list(found["lost"]) == pytest.approx([2 / 9, 7 / 9])
    assert list(scored[0]) == ["L0H0", "L0H1", "L1H0", "L1H1"]
    assert list(scored[1]) == ["L0H0", "L1H0", "L1H1"]
    assert scored[1]["L1H1"] == [(0, 1), (1, 1)]


def test_knocking_ends_with_its_rounds_and_candidates(tiny, scored):
    assert list(greedy_ablation(tiny, PROMPTS, rounds=1)["name"]) == ["L0H1"]
    assert list(greedy_ablation(tiny, PROMPTS, lost=.2)["name"]) == ["L0H1"]
    assert sorted(greedy_ablation(tiny, PROMPTS, candidates=[(0, 0), (0, 1)],
                                  lost=2)["name"]) == ["L0H0", "L0H1"]
    with pytest.raises(ValueError, match="rounds is 0; it must be at least 1"):
        greedy_ablation(tiny, PROMPTS, rounds=0)


def test_a_model_that_places_nothing_right_has_nothing_to_lose(net):
    with pytest.raises(ValueError, match="the intact model's loose is 0 on these prompts: no head"):
        greedy_ablation(net, PROMPTS, steps=1)                           # grey pictures


# ---- what is refused

@pytest.mark.parametrize("call, message", [
    (lambda net: ablate(net, PROMPTS, {"a": [(0, 2)]}),
     "head L0H2 is out of range; the model has L0H0 to L1H1"),
    (lambda net: ablate(net, PROMPTS, {"a": [(-1, 0)]}), "head L-1H0 is out of range"),
    (lambda net: ablate(net, ["red hexagon is above circle"], {"a": [(0, 0)]}),
     "must name two shapes"),
    (lambda net: ablate(net, ["big square is above circle"], {"a": [(0, 0)]}),
     "unknown word 'big'"),
    (lambda net: ablate(net, PROMPTS, {"a": [(0, 0)]}, per_prompt=0),
     "a sweep needs a prompt and an image"),
    (lambda net: ablate(net, PROMPTS, {"a": [(0, 0)]}, branch="all"), "branch 'all' is unknown"),
    (lambda net: ablate(net, PROMPTS, {"a": [(0, 0)]}, when=[14]),
     "Ablate acts at step 14; the run has steps 0 to 13"),
    (lambda net: ablate(net, PROMPTS, {"a": [(0, 0)]}, when=[]), "no step is named"),
    (lambda net: ablate(net, PROMPTS, {"a": [(0, 0)]}, seed=10 ** 30),
     "seed 10{30} must be a whole"),
    (lambda net: ablate(net, PROMPTS, {INTACT: [(0, 0)]}),
     "no set of heads may be called 'intact'"),
    (lambda net: ablate(net, [PROMPTS[0], "square is above square"], {"a": [(0, 0)]}),
     "is ambiguous"),
    (lambda net: ablate(net, ["red square"], {"a": [(0, 0)]}), "must name two shapes"),
    (lambda net: ablate(net, PROMPTS, {"a": HEADS}, mean=torch.zeros(14, 2, 2, 2, 64, 8), steps=2),
     r"the mean is of \[steps, branches, layers, heads\] \[14, 2, 2, 2\]; the run has \[2, "),
    (lambda net: ablate(net, PROMPTS, {"a": HEADS}, mean=torch.zeros(14, 2, 6, 4, 64, 8)),
     r"\[14, 2, 6, 4\]; the run has \[14, 2, 2, 2\]"),
    (lambda net: mask_roles(net, PROMPTS, {}), "groups is empty"),
    (lambda net: mask_roles(net, PROMPTS, {"a": ("shape1", None, [])}), "no step is named"),
    (lambda net: mask_roles(net, ["red circle and blue square"], {"a": ("shape1", None)}),
     "must name"),
    (lambda net: sweep(net, PROMPTS, []), "conditions of different names"),
    (lambda net: sweep(net, PROMPTS, ["a", "a"]), "conditions of different names"),
    (lambda net: sweep(net, [PROMPTS], ["a", "b", "c"]),
     "2 prompts, .* for 3 conditions; give one each"),
    (lambda net: sweep(net, PROMPTS, ["a"], scored=PROMPTS[:1]),
     "1 prompts to score against for 2"),
    (lambda net: sweep(net, PROMPTS, ["a"], scored=["red square"] * 2), "must name two shapes"),
    (lambda net: mask_roles(net, PROMPTS, {"a": ("verb", None)}),
     f"role 'verb' is unknown; choose from {', '.join(ROLES)}"),
    (lambda net: mask_roles(net, PROMPTS, {"a": ("colour1", None)}),
     "prompt 'triangle is to the left of red square' holds no token of role colour1"),
    (lambda net: mask_roles(net, PROMPTS, {"a": ("shape1", [(2, 0)])}),
     "head L2H0 is out of range"),
    (lambda net: role_mask(net.encoder, ["red square"], "relation"),
     "prompt 'red square' holds no token of role relation"),
])
def test_wrong_values_are_refused_before_any_forward(net, call, message):
    calls = []
    handle = net.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=message):
        call(net)
    handle.remove()
    assert not calls


def test_a_model_without_cross_attention_is_refused(tiny, lively):
    model = lively()
    model.transformer_blocks[0].attn2 = None
    net = replace(tiny, transformer=model)
    for call in (lambda: ablate(net, PROMPTS, {"a": [(0, 0)]}),
                 lambda: mask_roles(net, PROMPTS, {"a": ("relation", None)}),
                 lambda: mean_outputs(net, PROMPTS)):
        with pytest.raises(ValueError, match="no cross-attention"):
            call()


# ---- effects

def made_up(rows):
    """A frame of (prompt, condition, loose) rows; the other metrics are all True."""
    frame = pd.DataFrame(rows, columns=["prompt", "condition", "loose"])
    return frame.assign(**{m: True for m in METRICS if m != "loose"})


def test_effects_are_paired_differences_of_prompt_means():
    # a: 1 -> .5
    rows = [("a", INTACT, True), ("a", "cut", False), ("a", INTACT, True), ("a", "cut", True),
            # b: .5 -> 0
            ("b", INTACT, True), ("b", "cut", False), ("b", INTACT, False), ("b", "cut", False)]
    found = effects(made_up(rows))
    assert list(found) == EFFECT
    assert list(dict.fromkeys(found.index.get_level_values(0))) == [INTACT, "cut"]
    cut = found.loc[("cut", "loose")]
    assert cut["mean"] == .25
    assert tuple(cut[["change", "change_low", "change_high"]]) == (-.5,) * 3  # no spread in pairs
    assert tuple(cut[["low", "high", "n_prompts", "n_images"]]) == (0, .5, 2, 4)
    assert tuple(found.loc[(INTACT, "loose")][["mean", "low", "high", "change"]]) == (.75, .5, 1, 0)
    assert (found.xs("shape", level=1)["mean"] == 1).all()


def test_intervals_of_effects_are_a_bootstrap_over_prompts():
    rng = np.random.default_rng(0)
    fails = rng.random(100) < 0.3
    rows = [(f"p{i}", c, not (c == "cut" and fails[i])) for i in range(100) for c in (INTACT, "cut")
            for _ in range(2)]
    cut = effects(made_up(rows), ["loose"]).loc[("cut", "loose")]
    share = fails.mean()
    assert cut["change"] == pytest.approx(-share) and cut["n_images"] == 200
    error = 1.96 * (share * (1 - share) / 100) ** 0.5  # of 100 prompts, not 200 pictures
    wanted = (-share - error, -share + error)
    assert tuple(cut[["change_low", "change_high"]]) == pytest.approx(wanted, abs=0.02)
    assert len(effects(made_up(rows), ["loose"])) == 2
    weights = np.random.default_rng(0).multinomial(100, np.full(100, 0.01), size=2000) / 100
    for ends, values in (("low", "high"), ~fails * 1.0), (("change_low", "change_high"),
                                                          fails * -1.0):
        wanted = np.percentile(weights @ values, [2.5, 97.5])  # the draws of recorded tables
        assert tuple(cut[list(ends)]) == pytest.approx(tuple(wanted), abs=1e-12)


def test_effects_with_edges_have_wilson_s_interval_where_all_pictures_agree():
    rows = [(f"p{i}", c, c == INTACT) for i in range(44) for c in (INTACT, "cut")]
    plain, edges = (effects(made_up(rows), ["loose"], edges=e) for e in (False, True))
    assert tuple(plain.loc[("cut", "loose")][["low", "high"]]) == (0, 0)
    assert tuple(edges.loc[("cut", "loose")][["low", "high"]]) == wilson(0, 44)
    assert tuple(edges.loc[(INTACT, "loose")][["low", "high"]]) == wilson(44, 44)
    changes = ["change", "change_low", "change_high"]
    assert plain[changes].equals(edges[changes])


def test_prompts_of_many_pictures_weigh_no_more_than_others():
    rows = [("a", c, c == INTACT) for c in (INTACT, "cut")
            for _ in range(9)] + [("b", INTACT, True), ("b", "cut", True)]
    assert effects(made_up(rows), ["loose"]).loc[("cut", "loose"), "change"] == -.5


def test_effects_of_a_real_sweep_have_all_conditions(net):
    frame = ablate(net, PROMPTS, {"a": [(0, 0)], "b": [(1, 1)]}, per_prompt=2, steps=1)
    found = effects(frame)
    assert found.shape == (3 * len(METRICS), len(EFFECT))
    assert not found.isna().any(axis=None)
    assert (found["n_images"] == 4).all()
