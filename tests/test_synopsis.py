"""Attention synopsis: the sums of a slow computation, which pictures count, a null that holds."""
from dataclasses import replace

import numpy as np
import pytest
import torch

from spatial_circuits.analyses.synopsis import (
    SCORES,
    Synopsis,
    attention_scores,
    object_masks,
    ranking,
    smallest_p,
    spelled_p,
    synopsis,
)
from spatial_circuits.data.captions import ROLES, parse
from spatial_circuits.data.detect import detect, masks
from spatial_circuits.data.metrics import _scenes
from spatial_circuits.data.render import render
from spatial_circuits.data.scenes import SHAPES
from spatial_circuits.hooks.readers import Patterns
from spatial_circuits.hooks.run import run
from spatial_circuits.text.roles import role_table

PROMPTS = ["red square is above blue circle",
           "triangle is diagonally down and left from red circle"]
HEADS = [(i, j) for i in range(2) for j in range(2)]
pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(prompts, per_prompt, seed=0):
    """True pictures of the prompts [P * n, 3, 128, 128]."""
    return render(_scenes(prompts, per_prompt, seed, "clean")[0])


def grey(pictures, *rows):
    pictures = pictures.clone()
    pictures[list(rows)] = 128
    return pictures


def blue_hidden(picture):
    """The picture with its blue object painted over."""
    picture = picture.clone()
    picture[:, (picture[2].int() - picture[0].int()) > 0] = 128
    return picture


def slow(tiny, prompts, per_prompt, pictures, counts, branch):
    """sum, share [P, steps, L, H, 3, R] and peak [P, L, H, 3, R] from full maps, token by token."""
    told, reader = [p for p in prompts for _ in range(per_prompt)], Patterns(HEADS, branch=branch)
    run(tiny, told, [1_000_000 + i for i in range(len(told))], reader, steps=2)
    names = tiny.encoder.encode(["", *told]).roles
    total, share, peak = (np.zeros((len(prompts), *s, 2, 2, 3, len(ROLES)))
                          for s in ((2,), (2,), ()))
    for p, prompt in enumerate(prompts):
        mine = [i for i in range(p * per_prompt, (p + 1) * per_prompt) if counts[i]]
        for i in mine:
            blobs = {b.shape: b for b in detect(pictures[i])}
            places = masks([blobs[SHAPES[s]] for s in parse(prompt).shape]).view(2, 64).numpy()
            places = np.concatenate([places, 1 - places.sum(0, keepdims=True)])
            for layer, head in HEADS:
                pattern = reader.maps[layer, head][i].numpy()  # [steps, N, T]
                for c in range(3):
                    best = np.zeros(len(ROLES))
                    for step in range(2):
                        each = np.zeros(len(ROLES))
                        for token, role in enumerate(names[1 + i] if branch == "cond"
                                                     else names[0]):
                            each[ROLES.index(role)] += (places[c] * pattern[step, :, token]).sum()
                        total[p, step, layer, head, c] += each / len(mine)
                        share[p, step, layer, head, c] += each / places[c].sum() / len(mine)
                        best = np.maximum(best, each / places[c].sum())
                    peak[p, layer, head, c] += best / len(mine)
    return tuple(torch.from_numpy(x).float() for x in (total, share, peak))


@pytest.fixture(scope="module")
def found(tiny, album):
    """Two prompts of three pictures, two of which lack an object, and the synopsis of them."""
    pictures = drawn(PROMPTS, 3)
    pictures[1] = 128
    pictures[5] = blue_hidden(pictures[5])
    return pictures, synopsis(replace(tiny, vae=album(pictures)), PROMPTS, per_prompt=3, steps=2,
                              chunk=4)


@pytest.mark.parametrize("branch", ["cond", "uncond"])
def test_all_numbers_are_those_of_a_slow_computation(tiny, found, branch):
    pictures, ours = found
    total, share, peak = slow(tiny, PROMPTS, 3, pictures, [1, 0, 1, 1, 1, 0], branch)
    tokens = torch.tensor([[row.count(r) for r in ROLES]
                           for row in tiny.encoder.encode(PROMPTS).roles]).float()
    assert torch.equal(ours.tokens, tokens)
    for step in (0, 1, "mean"):
        at = (lambda x: x.mean(1)) if step == "mean" else (lambda x: x[:, step])
        assert torch.allclose(ours.table("sum", branch, step), at(total), rtol=2e-3, atol=2e-3)
        assert torch.allclose(ours.table("share", branch, step), at(share), atol=1e-3)
        held = tokens[:, None, None, None]
        each = (at(share) / held).where(held > 0, torch.nan)
        assert torch.allclose(ours.table("per token", branch, step), each, atol=1e-3,
                              equal_nan=True)
    assert torch.allclose(ours.table("share", branch, "max"), peak, atol=1e-3)
    assert torch.equal(ours.table(branch=branch), ours.table("share", branch, "mean"))
    assert branch == "uncond" or share.std() > 0.05 and (peak > at(share) + 1e-3).any()


def test_shares_sum_to_one_and_the_null_prompt_has_but_its_end(found):
    ours = found[1]
    assert torch.allclose(ours.share.sum(-1), torch.ones(()), atol=2e-3)
    null = ours.table("share", "uncond")
    assert (null[..., ROLES.index("end")] > 0.999).all() and null[..., :5].abs().max() == 0
    absent = ours.table("per token")[1, ..., ROLES.index("colour1")]
    assert absent.isnan().all() and ours.table("share")[1, ..., ROLES.index("colour1")].max() == 0


def test_pictures_without_both_objects_are_left_out_and_counted(found):
    assert found[1].images.tolist() == [2, 2] and found[1].failed.tolist() == [1, 1]


def test_a_prompt_without_a_picture_has_no_row(tiny, album):
    pictures = drawn(PROMPTS, 2)
    ours = synopsis(replace(tiny, vae=album(grey(pictures, 0, 1))), PROMPTS, per_prompt=2, steps=1,
                    chunk=2)
    assert ours.images.tolist() == [0, 2] and ours.failed.tolist() == [2, 0]
    for value in ("sum", "share", "per token"):
        table = ours.table(value)
        assert table.shape == (1, 2, 2, 3, 8)
    assert torch.allclose(ours.table()[0].sum(-1), torch.ones(()), atol=2e-3)
    nothing = synopsis(replace(tiny, vae=album()), PROMPTS, per_prompt=1, steps=1)
    assert len(nothing.table()) == 0
    with pytest.raises(ValueError, match="no picture of the synopsis counts"):
        ranking(nothing)


@pytest.mark.parametrize("chunk", [1, 2, 32])
def test_chunks_do_not_matter(tiny, album, found, chunk):
    pictures, wanted = found
    ours = synopsis(replace(tiny, vae=album(pictures)), PROMPTS, per_prompt=3, steps=2, chunk=chunk)
    for name in ("sum", "share", "peak", "tokens", "images", "failed"):
        assert torch.allclose(getattr(ours, name).float(), getattr(wanted, name).float(), rtol=2e-3,
                              atol=1e-3), name


def test_reading_leaves_the_pictures_as_they_are(tiny, album):
    vae = album()
    synopsis(replace(tiny, vae=vae), PROMPTS, per_prompt=2, steps=2)
    told = [p for p in PROMPTS for _ in range(2)]
    assert torch.equal(vae.latents, tiny.latents(told, [1_000_000 + i for i in range(4)], steps=2))


@pytest.mark.parametrize("change, message", [
    ({"prompts": [PROMPTS[0], "red square"]}, "prompt 'red square' lacks a relation"),
    ({"prompts": ["red square is above blue"]}, "prompt 'red square is above blue' lacks a shape"),
    ({"prompts": ["red square is above big circle"]}, "unknown word 'big'"),
    ({"prompts": []}, "a sweep needs a prompt and an image, got 0 prompts"),
    ({"per_prompt": 0}, "a sweep needs a prompt and an image"),
    ({"chunk": 0}, "chunk is 0; it must be at least 1"),
    ({"seed": 10 ** 30}, "seed 10{30} must be a whole number between"),
])
def test_prompts_that_cannot_be_read_are_refused_before_sampling(tiny, album, change, message):
    vae = album()
    with pytest.raises(ValueError, match=message):
        synopsis(replace(tiny, vae=vae), **{"prompts": PROMPTS, "steps": 1} | change)
    assert not vae.seen


@pytest.mark.parametrize("options, message", [
    ({"value": "total"},
     "no 'total' at step 'mean' in the 'cond' branch; choose a value of sum, share, per token"),
    ({"branch": "both"}, "in the 'both' branch; .* a branch of uncond, cond"),
    ({"value": "sum", "step": "max"}, "no 'sum' at step 'max'"),
    ({"step": 2}, "step 2 is out of range; choose 0 to 1, mean or max"),
    ({"step": -1}, "step -1 is out of range"),
    ({"step": "min"}, "step 'min' is out of range"), ({"step": 0.5}, "step 0.5 is out of range"),
])
def test_a_table_that_does_not_exist_is_refused(found, options, message):
    with pytest.raises(ValueError, match=message):
        found[1].table(**options)


# ---- masks and roles

def test_masks_lie_on_the_objects_and_cover_the_picture():
    prompts = [*PROMPTS, "blue square is left of red square", "square is below blue circle"]
    scenes = _scenes(prompts, 1, 0, "clean")[0]
    places, fine = object_masks(render(scenes), prompts)
    assert fine.all() and torch.allclose(places.sum(1), torch.ones(()), atol=1e-6)
    x, y = (torch.arange(64) % 8) * 16 + 7.5, (torch.arange(64) // 8) * 16 + 7.5
    for k in range(2):
        weights = places[:, k] / places[:, k].sum(1, keepdim=True)
        centre = torch.stack([weights @ x, weights @ y], 1)
        assert (centre - scenes.xy[:, k]).abs().max() < 3


def test_an_object_that_is_missing_wrong_or_there_twice_fails():
    prompt = PROMPTS[0]
    pair, twin = (drawn([p], 1)[0] for p in (prompt, "red square is above blue square"))
    triangles = drawn(["red triangle is above blue circle"], 1)[0]
    swapped = pair.flip(0)                                              # red and blue change places
    scenes = _scenes([prompt], 1, 0, "clean")[0]
    left, right = (render(scenes.replace(xy=torch.tensor([[[x, 40], [x, 90]]])))[0]
                   for x in (32, 96))
    twice = left.clone()
    twice[:, :64, 64:] = right[:, :64, 64:]                             # a second red square
    pictures = torch.stack([pair, twin, triangles, swapped, blue_hidden(pair),
                            torch.full_like(pair, 128)])
    assert object_masks(pictures, [prompt] * 6)[1].tolist() == [True, False, False, False, False,
                                                                False]
    assert object_masks(torch.stack([left, twice, right]),
                        [prompt] * 3)[1].tolist() == [True, False, True]
    loose = "square is above circle"  # colours unsaid: any will do
    assert object_masks(pictures, [loose] * 6)[1].tolist() == [True, False, False, True, False,
                                                               False]
    same = "square is above square"                                     # which is which?
    assert object_masks(pictures[1:2], [same])[1].tolist() == [False]


def test_role_tables_hold_one_role_a_token(rte):
    roles = rte.encode(PROMPTS).roles
    table = role_table(roles)
    assert table.shape == (2, 10, 8) and torch.equal(table.sum(-1), torch.ones(2, 10))
    assert [[ROLES[i] for i in row] for row in table.argmax(-1).tolist()] == roles


# ---- scores and their null

def planted(prompts=12, relation=(1, 0), obj=(0, 1), strength=0.2):
    """A synopsis by hand: noise, a head that looks at the relation, one at its own shape."""
    generator = torch.Generator().manual_seed(0)
    share = 0.1 + 0.05 * torch.rand(prompts, 2, 3, 2, 3, 3, len(ROLES), generator=generator)
    at = [ROLES.index(r) for r in ("relation", "shape1", "shape2")]
    share[:, 1, :, relation[0], relation[1], :2, at[0]] += strength
    share[:, 1, :, obj[0], obj[1], 0, at[1]] += strength
    share[:, 1, :, obj[0], obj[1], 1, at[2]] += strength
    ones = torch.ones(prompts, dtype=torch.long)
    return Synopsis(["p"] * prompts, share, share, share.amax(2), torch.ones(prompts, len(ROLES)),
                    ones, 0 * ones)


def test_scores_by_hand():
    table = torch.zeros(1, 1, 1, 3, 8)
    at = [ROLES.index(r) for r in ("relation", "shape1", "shape2")]
    table[0, 0, 0, :, at] = torch.tensor([[.5, .4, .1], [.3, .2, .6], [9., 9., 9.]])
    found = attention_scores(table)
    assert tuple(found) == SCORES
    assert found["relation"].item() == pytest.approx(.4)
    assert found["object"].item() == pytest.approx((.4 - .1 + .6 - .2) / 2)


@pytest.mark.parametrize("step", ["mean", "max", 1])
def test_planted_heads_come_first_and_alone_are_significant(step):
    frame = ranking(planted(), n=400, step=step)
    assert len(frame) == 2 * 6 and list(frame["score"]) == ["relation"] * 6 + ["object"] * 6
    for kind, head in (("relation", "L1H0"), ("object", "L0H1")):
        part = frame[frame["score"] == kind]
        assert part["mean"].is_monotonic_decreasing and part.iloc[0]["name"] == head
        assert part.iloc[0]["p"] == pytest.approx(6 / 401) and (part["p"].iloc[1:] > 0.05).all()
        assert (part["low"] <= part["mean"]).all() and (part["mean"] <= part["high"]).all()
    best = frame.iloc[0]
    assert (best["layer"], best["head"]) == (1, 0) and 0.2 < best["low"] and best["high"] < 0.4


def test_the_smallest_p_is_spelled_as_a_bound():
    frame = ranking(planted(), n=400)
    words = [spelled_p(p, 6, 400) for p in frame["p"]]
    assert words[0] == "p <= 0.015" and words[-1] == "p = 1.000" and smallest_p(6, 400) == 6 / 401
    assert smallest_p(448) == pytest.approx(.224, abs=1e-3) and smallest_p(448, 100) == 1
    with pytest.raises(ValueError, match="n is 0; it must be at least 1"):
        ranking(planted(), n=0)


def test_intervals_of_a_ranking_are_drawn_after_its_shuffles():
    """The draws of recorded tables: the generator goes on from the permutations."""
    ours, rng = planted(prompts=5), np.random.default_rng(0)
    frame = ranking(ours, n=200)
    for _ in range(200):
        rng.permuted(np.tile(np.arange(5), (5, 1)), axis=1)
    weights = rng.multinomial(5, np.full(5, 1 / 5), size=2000) / 5
    for row in frame.itertuples():
        value = attention_scores(ours.table("per token"))[row.score][:, row.layer, row.head].numpy()
        assert (row.low, row.high) == pytest.approx(np.percentile(weights @ value, [2.5, 97.5]),
                                                    abs=1e-6)


def test_under_the_null_no_head_is_significant_and_the_seed_decides():
    frames = [ranking(planted(strength=0), n=200, seed=s) for s in (0, 0, 1)]
    assert min(f["p"].min() for f in frames) > 0.05 and (frames[0]["p"] <= 1).all()
    assert frames[0].equals(frames[1]) and not frames[0].equals(frames[2])


def test_the_mean_is_over_prompts_and_its_interval_too():
    ours = planted(prompts=6)
    # half of the prompts attend more
    ours.share[3:, 1, :, 1, 0, :2, ROLES.index("relation")] += 0.3
    with pytest.warns(UserWarning,
                      match="50 shuffles show no corrected p below 0.12 for 6 heads; take 120"):
        part = ranking(ours, n=50).iloc[0]
    table = attention_scores(ours.table("per token"))["relation"][:, 1, 0]
    assert part["mean"] == pytest.approx(table.mean().item(), abs=1e-6)
    assert part["low"] < table[:3].mean() + 0.1
    assert part["high"] > table[3:].mean() - 0.1
    assert part["high"] - part["low"] > 0.15
