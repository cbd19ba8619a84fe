"""Evaluation and report: what is refused before sampling, what stops on the way, which ceiling."""
import copy
from dataclasses import replace

import pytest
import torch

from spatial_circuits.analyses.ablation import ablate
from spatial_circuits.analyses.evaluation import evaluate, report
from spatial_circuits.analyses.synopsis import synopsis
from spatial_circuits.data.metrics import METRICS, ceiling, prompt_set

PROMPTS = ["red square is above blue circle", "triangle is to the left of red square"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def net(tiny, album):
    """The tiny model with a VAE that keeps its latents."""
    return replace(tiny, vae=album())


@pytest.mark.parametrize("change, message", [
    ({"prompts": []}, "a sweep needs a prompt and an image, got 0 prompts"),
    ({"images_per_prompt": 0}, "images_per_prompt is 0; it must be at least 1"),
    ({"seed": 10 ** 30}, "seed 10{30} must be a whole number between"),
    ({"seed": 2 ** 62}, "seed 4611686018427387904 must be a whole number between"),
    ({"mode": "strict"}, "mode 'strict' is not one of clean, paper"),
    ({"prompts": ["red square is above red square"]}, "is ambiguous"),
    ({"prompts": [PROMPTS[0], "red square"]}, "prompt 'red square' must name two shapes"),
    ({"prompts": ["big square is above circle"]}, "unknown word 'big'"),
])
def test_what_cannot_be_evaluated_is_refused_before_sampling(net, change, message):
    with pytest.raises(ValueError, match=message):
        evaluate(net, **{"prompts": PROMPTS, "steps": 1} | change)
    assert not net.vae.seen


def test_seeds_of_an_evaluation_are_those_of_a_sweep(net):
    frame = evaluate(net, PROMPTS, 2, seed=3, steps=1)
    assert list(frame["seed"]) == [3_000_000 + i for i in range(4)]
    assert list(frame["prompt"]) == [p for p in PROMPTS for _ in range(2)]
    assert torch.equal(net.vae.latents,
                       net.latents(list(frame["prompt"]), list(frame["seed"]), steps=1))


@pytest.mark.parametrize("call", [evaluate, synopsis,
                                  lambda net, prompts,
                                  **o: ablate(net, prompts, {"a": [(0, 0)]}, **o)],
                         ids=["evaluate", "synopsis", "ablate"])
def test_latents_that_are_not_finite_are_never_scored(net, call):
    model = copy.deepcopy(net.transformer)
    model.proj_out.weight[0, 0] = torch.nan
    with pytest.raises(ValueError,
                       match=f"the latents of {PROMPTS[0]!r}, seed 1000000, are NaN"):
        call(replace(net, transformer=model), PROMPTS, steps=1)
    assert not net.vae.seen


@pytest.mark.parametrize("mode, preset, ceiling_of",
                         [("clean", None, "clean"), ("paper", None, "paper"),
                                                      ("paper", "clean", "clean"),
                          ("clean", "paper", "paper")])
def test_the_ceiling_follows_mode_and_preset(mode, preset, ceiling_of):
    prompts = prompt_set(22)
    frame = ceiling(prompts, 2)                          # stands for a model's pictures
    found = report(frame, mode, preset=preset)
    assert list(found) == list(METRICS)
    best = ceiling(prompts, 16, 0, ceiling_of, mode)
    for name, row in found.items():
        assert row["ceiling"] == pytest.approx(best[name].mean())
        assert row["mean"] == 1 and row["of_ceiling"] == pytest.approx(1 / row["ceiling"])
    assert (found["shape"]["ceiling"] < 0.95) == (ceiling_of == "paper")


def test_a_report_refuses_what_it_does_not_know():
    frame = ceiling(PROMPTS, 1)
    with pytest.raises(ValueError, match="mode 'strict' is not one of"):
        report(frame, "strict")
    with pytest.raises(ValueError, match="preset 'dirty' is unknown"):
        report(frame, preset="dirty")
