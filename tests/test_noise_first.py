"""Noise first: the schedule over noise, and captions without any bias at any step of it."""
from dataclasses import replace

import pytest
import torch
from scipy.stats import chi2_contingency, chisquare

from spatial_circuits.data.captions import all_captions, parse
from spatial_circuits.data.scenes import PHRASES_PER_RELATION, UPPER_FIRST, sample_scenes
from spatial_circuits.text.batch import TextBatch
from spatial_circuits.training import batches as module
from spatial_circuits.training.batches import Batches
from spatial_circuits.training.recipe import NOISE_FIRST, RECIPES, Recipe

COUNT = 20_000
TABLE = all_captions()
LIKELY = 1e-5       # p-values below it do not happen by chance in a hundred tests


@pytest.fixture
def stream(vae, monkeypatch):
    """What a recipe tells at a step: times [COUNT] and captions (None: the null prompt)."""
    monkeypatch.setattr(module, "scene_latents", lambda *_: torch.zeros(1, 4, 16, 16))
    rows = torch.arange(len(TABLE) + 1)[:, None, None].float()
    captions = TextBatch(rows, torch.ones(len(rows), 1, dtype=torch.bool), [], [])

    def look(recipe: Recipe, step: int) -> tuple[torch.Tensor, list[str | None]]:
        data = Batches(replace(recipe, cache=1), captions, vae, torch.device("cpu"), False)
        data.recipe = replace(recipe, cache=COUNT)
        data.latents = torch.zeros(1, 4, 16, 16).expand(COUNT, -1, -1, -1)
        _, _, t, text, _ = data.batch(step, torch.arange(COUNT))
        return t, [None if row == 0 else TABLE[int(row) - 1] for row in text.flatten()]
    return look


def test_the_named_recipe_is_it():
    assert RECIPES["noise-first"] is NOISE_FIRST
    assert NOISE_FIRST.first_up == 0.5 and NOISE_FIRST.preset == "clean"


@pytest.mark.parametrize("share, lowest, spoken", [
    (0.0, 0.97, 1.0), (0.149, 0.97, 1.0), (0.175, None, None), (0.2, 0.0, 0.75), (0.999, 0.0, 0.5)])
def test_it_begins_at_pure_noise_with_both_colours_told(stream, share, lowest, spoken):
    times, told = stream(NOISE_FIRST, int(share * NOISE_FIRST.steps))
    told = [c for c in told if c]
    colours = sum(("red" in c) + ("blue" in c) for c in told) / (2 * len(told))
    if lowest is None:
        assert 0 < times.min() < 0.97 and 0.75 < colours < 1
        return
    assert lowest <= times.min() < lowest + 0.01
    assert colours == pytest.approx(spoken, abs=0.01)


def independent(a: list, b: list) -> float:
    """p-value that two factors of the captions are independent."""
    rows = {x: i for i, x in enumerate(sorted(set(a)))}
    columns = {x: i for i, x in enumerate(sorted(set(b)))}
    table = torch.zeros(len(rows), len(columns))
    for x, y in zip(a, b, strict=True):
        table[rows[x], columns[y]] += 1
    return chi2_contingency(table.numpy()).pvalue


def uniform_p(values: list) -> float:
    """p-value that all values are equally likely."""
    counts = torch.tensor([values.count(v) for v in sorted(set(values))])
    return chisquare(counts.numpy()).pvalue


def faults(told: list[str | None]) -> list[str]:
    """What is biased in captions of the scenes 0, 1, ... (seed 0): names of tests that fail."""
    kept = [(i, parse(c)) for i, c in enumerate(told) if c and "red" in c and "blue" in c]
    scenes = sample_scenes(torch.tensor([i for i, _ in kept]), NOISE_FIRST.seed)
    relation = [p.relation for _, p in kept]
    factors = {"relation": relation, "wording": [p.phrase for _, p in kept],
               "shapes": [tuple(p.shape) for _, p in kept], "colour": [p.color[0] for _, p in kept]}
    upper = torch.isin(torch.tensor(relation), UPPER_FIRST).tolist()
    p_values = {"order": uniform_p(upper), "relation": uniform_p(relation),
                "shapes": uniform_p(factors["shapes"]), "colour": uniform_p(factors["colour"])}
    for one, other in (("relation", "shapes"), ("relation", "colour"), ("shapes", "colour"),
                       ("wording", "shapes"), ("wording", "colour")):
        p_values[f"{one}, {other}"] = independent(factors[one], factors[other])
    for r in range(len(PHRASES_PER_RELATION)):
        wordings = [p.phrase for _, p in kept if p.relation == r]
        if PHRASES_PER_RELATION[r] > 1:
            p_values[f"wording of {r}"] = uniform_p(wordings)
    place = (scenes.xy.float().mean(1) > 64).tolist()
    for axis in (0, 1):
        p_values[f"place {axis}, order"] = independent([q[axis] for q in place], upper)
        p_values[f"place {axis}, colour"] = independent([q[axis] for q in place], factors["colour"])
    return [name for name, p in p_values.items() if p < LIKELY]


@pytest.mark.parametrize("share", [0.0, 0.16, 0.22, 0.6, 0.999])
def test_captions_are_unbiased_at_every_step(stream, share):
    _, told = stream(NOISE_FIRST, int(share * NOISE_FIRST.steps))
    assert faults(told) == []


def test_the_biased_recipe_is_seen_to_be_biased(stream):
    biased = RECIPES["biased"]
    assert "order" in faults(stream(biased, 0)[1])
    assert "order" not in faults(stream(biased, biased.steps - 1)[1])


def test_the_command_trains_without_a_bias_by_default():
    from inspect import signature

    from spatial_circuits.cli.train import _train
    assert signature(_train).parameters["recipe"].default == next(iter(RECIPES)) == "noise-first"
