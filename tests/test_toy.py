"""The toy: its floor plans, its quadruples, its gains."""
import pandas as pd
import pytest
import torch

from spatial_circuits.data.captions import captions
from spatial_circuits.data.scenes import relation_of, sample_scenes
from spatial_circuits.model.noise import Noise
from spatial_circuits.text.batch import TextBatch
from spatial_circuits.training.toy import (
    Toy,
    floor_plan,
    places_exchanged,
    toy_scenes,
    train_toy,
)

INDEX = torch.arange(400)


def test_a_floor_plan_says_which_shape_lies_where_in_which_colour():
    scenes = sample_scenes(torch.tensor([0]), shape=torch.tensor([[2, 0]]),
                           color=torch.tensor([[1, 0]]))
    scenes = scenes.replace(xy=torch.tensor([[[32, 96], [96, 32]]]))
    plan = floor_plan(scenes)[0]
    lower_left, upper_right = plan[:, 8:, :8], plan[:, :8, 8:]
    assert (lower_left.sum((1, 2)) > 0).tolist() == [False, False, True, False]
    assert (upper_right.sum((1, 2)) > 0).tolist() == [True, False, False, True]
    assert lower_left[3].sum() == -upper_right[3].sum() == -plan[2].sum() and plan.max() == 5
    assert (floor_plan(scenes, colours=False)[0, 3] == 0).all()


def test_exchanged_objects_stand_in_each_other_s_place_and_are_told_in_the_same_order():
    scenes = sample_scenes(INDEX)
    other = places_exchanged(scenes)
    assert torch.equal(other.xy, scenes.xy.flip(1)) and torch.equal(other.shape, scenes.shape)
    assert torch.equal(relation_of(other.xy), other.relation)
    assert torch.equal(places_exchanged(other).phrase, scenes.phrase)


@pytest.mark.parametrize("wordings", [1, 2, 3])
def test_so_many_wordings_a_relation_each_as_likely(wordings):
    scenes = toy_scenes(Toy(wordings=wordings, colours=False), torch.arange(6000), 1)
    assert not scenes.named.any()
    counts = pd.crosstab(scenes.relation.numpy(), scenes.phrase.numpy())
    assert ((counts > 0).sum(axis=1) == [min(wordings, n) for n in (3, 3, 2, 2, 3, 3, 3, 3)]).all()
    told = counts.stack()
    assert told[told > 0].min() > 0.8 * 6000 / 8 / wordings


def test_a_quadruple_is_two_pictures_each_told_both_ways():
    four = toy_scenes(Toy(quadruples=True), INDEX, 0)
    plans = floor_plan(four).view(4, len(INDEX), 4, 16, 16)
    assert torch.equal(plans[0], plans[2]) and torch.equal(plans[1], plans[3])
    assert torch.equal(plans[0, :, :3].sum(1), plans[1, :, :3].sum(1))
    assert not torch.equal(plans[0], plans[1])
    told = [captions(four[torch.arange(len(INDEX)) + i * len(INDEX)]) for i in range(4)]
    for one, two, three, other in zip(*told):
        assert len({one, two, three, other}) == 4
        assert one.split(" is ")[0] == two.split(" is ")[0]
        assert three.split(" is ")[0] == other.split(" is ")[0] != one.split(" is ")[0]
    assert torch.equal(relation_of(four.xy), four.relation)


def test_a_short_run_is_repeatable_and_learns_where_things_may_lie(rte, one_thread):
    toy = Toy(wordings=1, colours=False)
    one, two = (train_toy(toy, rte, 6, 8, every=3, progress=False) for _ in range(2))
    pd.testing.assert_frame_equal(one, two)
    assert list(one.index) == [24, 48] and list(one) == ["shape", "axis", "order"]
    blind = train_toy(Toy(), rte, 1, 8, progress=False)
    assert list(blind) == ["shape", "binding", "axis", "order"] and blind.abs().max().max() < 0.05


def test_a_caption_that_says_nothing_has_no_gain(rte, one_thread):
    class Mute:
        dim = rte.dim

        def encode(self, prompts):
            text = rte.encode(prompts)
            return TextBatch(text.embeddings * 0, text.mask[:1].expand_as(text.mask) * 0 + 1 > 0,
                             text.tokens, text.roles)
    gains = train_toy(Toy(noise=Noise(top=1.0, high=0.0)), Mute(), 4, 8, every=4, progress=False)
    assert gains.abs().max().max() < 1e-6


@pytest.mark.parametrize("toy, options, message", [
    (Toy(quadruples=True), {"batch": 6}, "batch is 6; with quadruples it must be a multiple of 4"),
    (Toy(wordings=0), {}, "wordings is 0; it must be a whole number of at least 1"),
    (Toy(), {"steps": 0}, "steps is 0")])
def test_wrong_values_are_refused(rte, toy, options, message):
    with pytest.raises(ValueError, match=message):
        train_toy(toy, rte, progress=False, **options)
