"""Scenes: a pure function of (seed, index), and the two presets' distributions."""
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatial_circuits.data.captions import PHRASE_RELATION, captions, parse
from spatial_circuits.data.render import RGB, render
from spatial_circuits.data.scenes import (
    ALIGN,
    GAP,
    HIGH,
    JITTER,
    LOW,
    OFFSETS,
    PRESETS,
    RELATIONS,
    Scenes,
    relation_of,
    sample_scenes,
    swapped,
    uniform,
)

# chi-square, p = .001, by degrees of freedom
CRITICAL = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 7: 24.32, 15: 37.70}


def same(a: Scenes, b: Scenes) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Scenes))


def balanced(values: torch.Tensor, classes: int) -> bool:
    """Chi-square test of `values` (integers 0..classes-1) against equal shares."""
    expected = len(values) / classes
    counts = values.bincount(minlength=classes)
    return ((counts - expected) ** 2).sum() / expected < CRITICAL[classes - 1]


def overlapping(scenes: Scenes) -> torch.Tensor:
    """[B] bool: the second object, drawn on top, hides a pixel of the first."""
    images = render(scenes, antialias=False)
    alone = scenes.replace(xy=torch.tensor([[30, 30], [90, 90]]).expand(len(scenes), 2, 2))
    ink = RGB[scenes.color[:, 0]][:, :, None, None]
    visible, whole = ((im == ink).all(1).sum((1, 2))
                      for im in (images, render(alone, antialias=False)))
    return visible < whole


@given(indices=st.lists(st.integers(0, 2**40), min_size=2, max_size=30), seed=st.integers(0, 2**40),
       preset=st.sampled_from(PRESETS), data=st.data())
def test_a_scene_depends_on_seed_and_index_alone(indices, seed, preset, data):
    index = torch.tensor(indices)
    whole = sample_scenes(index, seed, preset)
    order = torch.tensor(data.draw(st.permutations(range(len(indices)))))
    cut = data.draw(st.integers(1, len(indices) - 1))
    assert same(whole[order], sample_scenes(index[order], seed, preset))
    assert same(whole[:cut], sample_scenes(index[:cut], seed, preset))
    assert same(whole[cut], sample_scenes(index[cut:cut + 1], seed, preset))


def test_the_stream_is_the_one_that_models_were_trained_on():
    scenes = sample_scenes(torch.tensor([0, 1, 10**6]))
    assert captions(scenes) == ["triangle is to the left of blue circle",
                                "triangle is above and to the left of blue circle",
                                "red circle is to the left of square"]
    assert scenes.xy.tolist() == [[[27, 41], [98, 43]], [[27, 35], [79, 105]],
                                  [[41, 93], [111, 95]]]
    assert not same(sample_scenes(torch.arange(9), 0), sample_scenes(torch.arange(9), 1))


def test_uniforms_are_uniform_and_independent():
    u = torch.cat([uniform(seed, torch.arange(4000), 8) for seed in (0, 1)], 1)  # [4000, 16]
    assert 0 <= u.min() and u.max() < 1
    assert sum(balanced((column * 16).long(), 16) for column in u.T) >= 15
    # draws, seeds, neighbours
    correlation = torch.corrcoef(torch.cat([u, u.roll(1, 0)], 1).T) - torch.eye(32)
    assert correlation.abs().max() < 4.5 / 4000 ** 0.5


def test_clean_scenes_are_apart_or_aligned():
    scenes = sample_scenes(torch.arange(8000), 5)
    assert scenes.xy.min() >= LOW and scenes.xy.max() <= HIGH
    sign = OFFSETS[scenes.relation]
    d = scenes.xy[:, 0] - scenes.xy[:, 1]
    assert (d * sign)[sign != 0].min() >= GAP
    assert d[sign == 0].abs().max() <= JITTER <= ALIGN
    assert torch.equal(relation_of(scenes.xy), scenes.relation)
    assert not overlapping(scenes[:400]).any()
    above = scenes.xy[scenes.relation == 0].reshape(-1, 4).T.float()  # x1, y1, x2, y2
    features = torch.stack([above[0], above[2] - above[0], above[1], above[3] - above[1]])
    # where and how far, x apart from y
    assert torch.corrcoef(features)[:2, 2:].abs().max() < 4 / above.shape[1] ** 0.5


def test_clean_scenes_are_balanced():
    scenes = sample_scenes(torch.arange(8000), 6)
    assert (scenes.shape[:, 0] != scenes.shape[:, 1]).all() and (scenes.color.sum(1) == 1).all()
    assert torch.equal(torch.tensor(PHRASE_RELATION)[scenes.phrase], scenes.relation)
    assert balanced(scenes.relation, 8)
    assert balanced(scenes.shape[:, 0] * 2 + (scenes.shape[:, 1] - scenes.shape[:, 0]) % 3 - 1, 6)
    assert balanced(scenes.color[:, 0], 2)
    assert balanced(scenes.named[:, 0] * 2 + scenes.named[:, 1].long(), 4)
    for r in range(8):
        phrases = scenes.phrase[scenes.relation == r]
        assert balanced(phrases - phrases.min(), PHRASE_RELATION.count(r))
    # the test can fail
    assert not balanced(sample_scenes(torch.arange(8000), 6, "paper").relation, 8)


def test_paper_scenes_have_the_authors_marginals():
    scenes, n = sample_scenes(torch.arange(20_000), 3, "paper"), 20_000
    assert scenes.xy.min() == LOW == 17 and scenes.xy.max() == HIGH == 111
    assert all(balanced((scenes.xy.view(n, 4)[:, k] - LOW) // 19, 5) for k in range(4))
    share = scenes.relation.bincount(minlength=8) / n
    for found, known in [(share[4:].sum(), 0.788),
                         *zip(share, (0.0556, 0.0568, 0.0499, 0.0499, *[0.197] * 4))]:
        assert abs(found - known) < 4 * (known * (1 - known) / n) ** 0.5
    share = overlapping(scenes[:1500]).float().mean()
    assert abs(share - 0.273) < 4 * (0.273 * 0.727 / 1500) ** 0.5


@given(st.lists(st.integers(17, 111), min_size=4, max_size=4))
def test_relation_by_the_authors_rule(xy):
    x1, y1, x2, y2 = xy
    dx, dy = x1 - x2, y1 - y2
    if abs(dx) <= 5:
        expected = "above" if dy < 0 else "below"
    elif abs(dy) <= 5:
        expected = "left" if dx < 0 else "right"
    else:
        expected = ("upper" if dy < 0 else "lower") + ("_left" if dx < 0 else "_right")
    assert RELATIONS[relation_of(torch.tensor([[[x1, y1], [x2, y2]]]))] == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_given_attributes_are_kept(preset):
    index = torch.arange(88)
    phrase = index % 22
    shape, color = torch.tensor([[2, 0]]).expand(88, 2), torch.tensor([[1, 0]]).expand(88, 2)
    scenes = sample_scenes(index, 1, preset, phrase=phrase, shape=shape, color=color,
                           named=color == 1)
    assert torch.equal(scenes.phrase, phrase) and torch.equal(scenes.named, color == 1)
    assert torch.equal(scenes.relation, torch.tensor(PHRASE_RELATION)[phrase])
    assert torch.equal(relation_of(scenes.xy), scenes.relation)
    assert captions(scenes[:1]) == ["blue triangle is above circle"]
    assert torch.equal(sample_scenes(index, 1, preset, relation=index % 8).relation, index % 8)


def test_swapped_tells_the_same_picture_the_other_way_round():
    scenes = sample_scenes(torch.arange(200), 2)
    where = torch.arange(200) % 3 == 0
    other = swapped(scenes, where)
    assert torch.equal(render(other), render(scenes)) and same(swapped(other, where), scenes)
    for one, two, turned in zip(map(parse, captions(scenes)), map(parse, captions(other)), where):
        if turned:
            assert (two.shape, two.color) == (one.shape[::-1], one.color[::-1])
            assert torch.equal(OFFSETS[two.relation], -OFFSETS[one.relation])
        else:
            assert two == one
    assert torch.equal(relation_of(other.xy), other.relation)


@pytest.mark.parametrize("seed", [10 ** 30, -2 ** 63, 2 ** 63 - 1, 1.5, True, "0", None])
def test_a_seed_that_is_no_whole_number_of_62_bits_is_refused_by_name(seed):
    with pytest.raises(ValueError, match=f"seed {seed!r} must be a whole number between"):
        sample_scenes(torch.arange(3), seed)


def test_large_and_negative_seeds_draw_scenes():
    for seed in (2 ** 62 - 1, -5):
        scenes = sample_scenes(torch.arange(8), seed, "paper", relation=torch.arange(8))
        assert torch.equal(scenes.relation, torch.arange(8))


def test_indexing_ends_and_refuses():
    scenes = sample_scenes(torch.arange(3))
    assert [len(s) for s in scenes] == [1, 1, 1] and same(scenes[-1], scenes[2])
    with pytest.raises(IndexError):
        scenes[3]
    with pytest.raises(ValueError, match="preset 'dirty' is unknown; choose from clean, paper"):
        sample_scenes(torch.arange(3), preset="dirty")
