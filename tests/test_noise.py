"""Noise: levels, losses and sampler agree on what the model predicts."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatial_circuits.model.noise import PREDICTIONS, Noise

PAIRS = [(path, prediction) for path, known in PREDICTIONS.items() for prediction in known]
AUTHORS_SIGMAS = (157.4, 78.8, 41.1, 22.8, 13.3, 8.08, 5.17, 3.44, 2.35, 1.65, 1.15, 0.785, 0.496,
                  0.245, 0)


def draw(count: int = 8):
    x0, eps = torch.randn(2, count, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return x0, eps, torch.linspace(0.05, 0.95, count)


@pytest.mark.parametrize("path, prediction", PAIRS)
def test_a_perfect_output_has_no_loss_and_stands_for_the_picture(path, prediction):
    noise, (x0, eps, t) = Noise(path, prediction), draw()
    alpha, sigma = noise.levels(t)
    perfect = {"sample": x0, "epsilon": eps, "flow_prediction": eps - x0}[prediction]
    assert noise.loss(perfect, x0, eps, t).max() == 0 < noise.loss(perfect + 1, x0, eps, t).min()
    assert torch.allclose(noise.picture(perfect, alpha * x0 + sigma * eps, t), x0, atol=1e-3)


def test_a_weighted_picture_loss_is_the_velocity_s():
    x0, eps, t = draw()
    output = x0 + 0.3 * eps
    alpha, sigma = Noise().levels(t)
    velocity = (alpha * x0 + sigma * eps - output) / sigma
    by_picture, by_velocity = (Noise("flow", p).loss(o, x0, eps, t)
                               for p, o in (("sample", output), ("flow_prediction", velocity)))
    assert torch.allclose(by_picture[1:], by_velocity[1:], rtol=1e-4)
    assert by_picture[0] < by_velocity[0]  # t = .05 < SHARP


@pytest.mark.parametrize("path, prediction", PAIRS)
def test_the_sampler_reaches_what_a_perfect_model_predicts(path, prediction):
    noise, (x0, eps, _) = Noise(path, prediction), draw()
    scheduler, x = noise.scheduler(), eps
    scheduler.set_timesteps(14)
    for t in scheduler.timesteps:
        alpha, sigma = noise.levels(t.expand(8) / 1000)
        implied = (x - alpha * x0) / sigma
        output = {"sample": x0, "epsilon": implied, "flow_prediction": implied - x0}[prediction]
        x = scheduler.step(output, t, x).prev_sample
    assert (x - x0).abs().max() < 0.05


@pytest.mark.parametrize("path", PREDICTIONS)
def test_training_and_sampling_name_noise_levels_alike(path):
    noise = Noise(path, PREDICTIONS[path][0])
    scheduler = noise.scheduler()
    scheduler.set_timesteps(14)
    alpha, sigma = (s.flatten() for s in noise.levels(scheduler.timesteps / 1000))
    ours = sigma if path == "flow" else sigma / alpha
    assert torch.allclose(ours, scheduler.sigmas[:-1], rtol=0.01, atol=2e-3)


def test_the_paper_s_sampler_has_the_paper_s_sigmas():
    scheduler = Noise("ddpm", "epsilon").scheduler()
    scheduler.set_timesteps(14)
    assert scheduler.sigmas.tolist() == pytest.approx(AUTHORS_SIGMAS, rel=5e-3)
    config = scheduler.config
    solver = config.algorithm_type, config.solver_order, config.solver_type
    assert solver == ("dpmsolver++", 2, "midpoint")


@given(high=st.floats(0, 1), knee=st.floats(0, 1), path=st.sampled_from(list(PREDICTIONS)))
def test_training_times_split_at_the_knee(high, knee, path):
    noise = Noise(path, PREDICTIONS[path][0], high=high, knee=knee)
    t = noise.times((torch.arange(1000) + 0.5) / 1000)
    assert 0 <= t.min() and t.max() <= 1
    above = (t >= knee - 1e-3).float().mean()
    assert above == pytest.approx(high + (1 - high) * (1 - knee), abs=5e-3)


def test_times_widen_from_pure_noise_the_middle_first():
    noise = Noise(prediction="sample", top=0.2, high=0.4)
    u = (torch.arange(10_000) + 0.5) / 10_000

    def shares(widened):
        t = noise.times(u, widened)
        return [(t >= edge).float().mean().item() for edge in (0.97, 0.75, 0.5)]
    assert noise.times(u, 0.0).min() >= 0.97
    assert shares(0.0) == [1, 1, 1]
    assert shares(1.0) == pytest.approx(       # .2 + .4 (.03 / .25) + .4 (.03), and so on
        [0.26, 0.7, 0.8], abs=1e-3)
    half = shares(0.5)                         # parts .6, .3, .1
    assert half == pytest.approx([0.6 + 0.3 * 0.12 + 0.1 * 0.03, 0.9 + 0.025, 0.95], abs=1e-3)
    assert torch.equal(noise.times(u, 1.0), noise.times(u))


@pytest.mark.parametrize("wrong, message", [
    ({"top": 0.7}, "noise.top and noise.high are 0.7 and 0.5; their sum must be at most 1"),
    ({"peak": 2.0}, "noise.peak is 2.0; it must lie in 0..1"),
    ({"path": "cosine"}, "'cosine' is unknown; choose from flow, ddpm"),
    ({"prediction": "epsilon"}, "'epsilon' does not go with path 'flow'; choose from sample, flow"),
    ({"high": 1.5}, "noise.high is 1.5; it must lie in 0..1"),
    ({"knee": -0.1}, "noise.knee is -0.1; it must lie in 0..1"),
    ({"shift": 0.0}, "noise.shift is 0.0; it must be above 0"),
    ({"shift": float("nan")}, "noise.shift is nan; it must be above 0"),
    ({"shift": float("inf")}, "noise.shift is inf; it must be above 0"),
    ({"knee": float("nan")}, "noise.knee is nan; it must lie in 0..1"),
])
def test_wrong_values_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        Noise(**wrong)
