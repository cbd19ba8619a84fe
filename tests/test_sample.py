"""Sampling: what stock diffusers gives, independent of the batch, with one null."""
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

from spatial_circuits.noise import PREDICTIONS, Noise
from spatial_circuits.pretrained import load, save
from spatial_circuits.sample import initial_noise, sample

PROMPTS = ["red square is above blue circle", "triangle is diagonally down and left from red circle", "circle is left of square",
           "blue triangle is lower than square"]
PAIRS = [(path, prediction) for path, known in PREDICTIONS.items() for prediction in known]


@pytest.mark.parametrize("path, prediction", PAIRS)
def test_stock_diffusers_loads_a_saved_model_and_gives_the_same_sample(lively, tmp_path, path, prediction):
    folder = save(tmp_path / "model", lively(), {"name": "rte", "options": {}}, noise=Noise(path, prediction))
    ours = load(folder)
    latents = ours.latents([PROMPTS[0]], [3])

    model = PixArtTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
    scheduler = DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler")
    text = ours.encoder.encode(["", PROMPTS[0]])
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    scheduler.set_timesteps(14)
    with torch.no_grad():
        for t in scheduler.timesteps:
            null, told = (model(x, encoder_hidden_states=text.embeddings[i:i + 1], timestep=t[None],
                                encoder_attention_mask=text.mask[i:i + 1].float(), return_dict=False,
                                added_cond_kwargs={"resolution": None, "aspect_ratio": None})[0] for i in (0, 1))
            x = scheduler.step(null + 4.5 * (told - null), t, x).prev_sample
    assert x.std() > 0.1
    assert torch.allclose(latents, x, atol=1e-4 * x.abs().max())


@pytest.fixture(scope="module")
def drawn(lively, rte):
    """A function that samples an untrained model; options as in `sample`."""
    model, scheduler = lively(), Noise().scheduler()
    return lambda prompts, seeds, **options: sample(model, scheduler, rte, prompts, seeds, **{"steps": 5} | options)


def test_an_image_depends_on_its_prompt_and_seed_alone(drawn):
    seeds = [5, 6, 5, 2**40]
    together = drawn(PROMPTS, seeds)
    for i, (prompt, seed) in enumerate(zip(PROMPTS, seeds)):
        assert torch.allclose(drawn([prompt], [seed])[0], together[i], atol=1e-4)
    order = [2, 0, 3, 1]
    shuffled = drawn([PROMPTS[i] for i in order], [seeds[i] for i in order], batch=3)
    assert torch.allclose(shuffled, together[order], atol=1e-4)
    twice = drawn([PROMPTS[0]] * 2 + [PROMPTS[2]], [5, 8, 5])
    assert torch.allclose(twice[0], together[0], atol=1e-4)
    differences = [(twice[0] - twice[1]).abs().max(), (twice[0] - twice[2]).abs().max()]
    assert min(differences) > 1e-2  # another seed, another prompt


def test_the_null_is_the_empty_prompt(drawn):
    null = drawn([""], [1], guidance=1.0)
    assert torch.allclose(drawn([PROMPTS[0]], [1], guidance=0.0), null, atol=1e-4)
    assert not torch.allclose(drawn([PROMPTS[0]], [1], guidance=1.0), null, atol=1e-2)


def test_on_step_sees_every_step_and_the_scheduler_stays_clean(lively, rte):
    scheduler, seen = Noise().scheduler(), []
    out = sample(lively(), scheduler, rte, PROMPTS[:2], [0, 1], steps=4, on_step=lambda i, x: seen.append((i, x)))
    assert [i for i, _ in seen] == [0, 1, 2, 3] and torch.equal(seen[-1][1], out)
    assert scheduler.num_inference_steps is None


def test_noise_is_the_seed_s():
    assert torch.equal(initial_noise([4, 9])[1], initial_noise([9])[0])
    assert torch.equal(initial_noise([9])[0], torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(9)))


@pytest.mark.parametrize("change, message", [
    ({"seeds": [0, 1]}, "1 prompts but 2 seeds"),
    ({"steps": 0}, "steps is 0; it must be an integer of at least 1"),
    ({"steps": 2.5}, "steps is 2.5; it must be an integer"),
    ({"prompts": ["red hexagon is above blue circle"]}, "'hexagon'"),
])
def test_wrong_values_are_refused(drawn, change, message):
    with pytest.raises(ValueError, match=message):
        drawn(**{"prompts": PROMPTS[:1], "seeds": [0]} | change)


def test_no_prompts_give_no_latents(drawn):
    assert drawn([], []).shape == (0, 4, 16, 16)
