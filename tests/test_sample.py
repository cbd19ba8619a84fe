"""Sampling: what stock diffusers gives, by any of its solvers, whatever the batch, one null."""
import copy
import warnings
from dataclasses import replace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from fake_device import fake_device

from spatial_circuits.model import pipeline
from spatial_circuits.model.noise import PREDICTIONS, Noise
from spatial_circuits.model.sampler import initial_noise, sample_latents
from spatial_circuits.model.store import load, save_model

PROMPTS = ["red square is above blue circle",
           "triangle is diagonally down and left from red circle", "circle is left of square",
           "blue triangle is lower than square"]
pytestmark = pytest.mark.usefixtures("one_thread")
PAIRS = [(path, prediction) for path, known in PREDICTIONS.items() for prediction in known]


@pytest.mark.parametrize("path, prediction", PAIRS)
def test_stock_diffusers_loads_a_saved_model_and_gives_the_same_sample(lively, tmp_path, path,
                                                                       prediction):
    folder = save_model(tmp_path / "model", lively(), {"name": "rte", "options": {}},
                        noise=Noise(path, prediction))
    ours = load(folder)
    latents = ours.latents([PROMPTS[0]], [3])

    model = PixArtTransformer2DModel.from_pretrained(folder / "transformer",
                                                     torch_dtype=torch.float32)
    scheduler = DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler")
    text = ours.encoder.encode(["", PROMPTS[0]])
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    scheduler.set_timesteps(14)
    with torch.no_grad():
        for t in scheduler.timesteps:
            null, told = (model(x, encoder_hidden_states=text.embeddings[i:i + 1], timestep=t[None],
                                encoder_attention_mask=text.mask[i:i + 1].float(),
                                return_dict=False,
                                added_cond_kwargs={"resolution": None, "aspect_ratio": None})[0]
                          for i in (0, 1))
            x = scheduler.step(null + 4.5 * (told - null), t, x).prev_sample
    assert x.std() > 0.1
    assert torch.allclose(latents, x, atol=1e-4 * x.abs().max())


def by_hand(net, scheduler, prompts, seeds, steps, guidance=4.5):
    """A straight loop of plain diffusers."""
    text = net.encoder.encode(["", *prompts])
    rows = [0] * len(prompts) + list(range(1, 1 + len(prompts)))
    scheduler.set_timesteps(steps)
    x = initial_noise(seeds) * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([x, x]), t)
            out = net.transformer(both, encoder_hidden_states=text.embeddings[rows],
                                  timestep=t.expand(len(both)),
                                  encoder_attention_mask=text.mask[rows].float(), return_dict=False,
                                  added_cond_kwargs={"resolution": None, "aspect_ratio": None})[0]
            null, told = out.chunk(2)
            x = scheduler.step(null + guidance * (told - null), t, x).prev_sample
    return x


@pytest.mark.parametrize("scheduler", [
    Noise().scheduler(), Noise("ddpm", "epsilon").scheduler(), EulerDiscreteScheduler(),
    HeunDiscreteScheduler(),
    PNDMScheduler(), DDIMScheduler(), UniPCMultistepScheduler()], ids=lambda s: type(s).__name__)
def test_samples_are_those_of_a_straight_loop_bit_for_bit(tiny, scheduler):
    wanted = by_hand(tiny, type(scheduler).from_config(scheduler.config), PROMPTS, range(4), 5)
    assert torch.equal(replace(tiny, scheduler=scheduler).latents(PROMPTS, range(4), steps=5),
                       wanted)


def test_samples_are_those_of_diffusers_own_pipeline_bit_for_bit(tiny):
    text = tiny.encoder.encode(["", *PROMPTS])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = PixArtAlphaPipeline(tokenizer=None, text_encoder=None, vae=None,
                                   transformer=tiny.transformer,
                                   scheduler=Noise().scheduler())
    pipe.set_progress_bar_config(disable=True)
    found = pipe(prompt=None, negative_prompt=None, prompt_embeds=text.embeddings[1:],
                 prompt_attention_mask=text.mask[1:].float(),
                 negative_prompt_embeds=text.embeddings[:1].expand(4, -1, -1),
                 negative_prompt_attention_mask=text.mask[:1].expand(4, -1).float(),
                 latents=initial_noise(range(4)),
                 num_inference_steps=5, guidance_scale=4.5, output_type="latent",
                 use_resolution_binning=False).images
    assert torch.equal(tiny.latents(PROMPTS, range(4), steps=5), found)


def test_a_solver_s_own_noise_is_the_seed_s_too(tiny):
    net = replace(tiny, scheduler=EulerAncestralDiscreteScheduler())
    together = net.latents(PROMPTS, range(4), steps=3)
    again = net.latents(PROMPTS, range(4), steps=3, batch=2)
    assert torch.allclose(together, again, atol=1e-4 * float(together.abs().max()))
    assert (together - net.latents(PROMPTS, [4, 1, 2, 3], steps=3))[0].abs().max() > 1e-2


def test_guesses_are_of_solvers_that_keep_them(tiny):
    seen = []
    replace(tiny, scheduler=EulerDiscreteScheduler()).latents(PROMPTS, range(4), steps=2,
                                                              on_guess=lambda i, x: seen.append(x))
    assert len(seen) == 2 and seen[0].shape == (4, 4, 16, 16)
    with pytest.raises(ValueError,
                       match="PNDMScheduler keeps no noise-free latents; leave out on_guess"):
        replace(tiny, scheduler=PNDMScheduler()).latents(PROMPTS, range(4), steps=5,
                                                         on_guess=lambda i, x: None)


def test_without_guidance_the_conditional_branch_runs_alone(tiny):
    rows = []
    handle = tiny.transformer.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    alone = tiny.latents(PROMPTS, range(4), steps=2, guidance=None)
    handle.remove()
    assert rows == [4, 4]
    assert torch.allclose(alone, tiny.latents(PROMPTS, range(4), steps=2, guidance=1.0), atol=1e-3)


@pytest.fixture(scope="module")
def drawn(lively, rte):
    """A function that samples an untrained model; options as in `sample`."""
    model, scheduler = lively(), Noise().scheduler()
    return lambda prompts, seeds, **options: sample_latents(model, scheduler, rte, prompts, seeds,
                                                            **{"steps": 5} | options)


def test_an_image_depends_on_its_prompt_and_seed_alone(drawn):
    seeds = [5, 6, 5, 2**40]
    together = drawn(PROMPTS, seeds)
    for i, (prompt, seed) in enumerate(zip(PROMPTS, seeds, strict=True)):
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
    out = sample_latents(lively(), scheduler, rte, PROMPTS[:2], [0, 1], steps=4, on_step=lambda i,
                         x: seen.append((i, x)))
    assert [i for i, _ in seen] == [0, 1, 2, 3] and torch.equal(seen[-1][1], out)
    assert scheduler.num_inference_steps is None


def test_noise_is_the_seed_s():
    assert torch.equal(initial_noise([4, 9])[1], initial_noise([9])[0])
    assert torch.equal(initial_noise([9])[0],
                       torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(9)))


@pytest.mark.parametrize("change, message", [
    ({"seeds": [0, 1]}, "1 prompts but 2 seeds"),
    ({"steps": 0}, "steps is 0; it must be an integer of at least 1"),
    ({"steps": 2.5}, "steps is 2.5; it must be an integer"),
    ({"prompts": ["red hexagon is above blue circle"]}, "'hexagon'"),
    ({"steps": 1001}, "steps is 1001; it must be an integer of at least 1, at most 1000"),
    ({"guidance": float("nan")}, "guidance is nan; it must be a finite number"),
    ({"guidance": float("inf")}, "guidance is inf; it must be a finite number"),
    ({"batch": 0}, "batch is 0; it must be an integer of at least 1"),
    ({"seeds": [10**30]}, f"seed {10**30} is out of range; seeds run from"),
    ({"seeds": [-2**63 - 1]}, "is out of range"),
    ({"seeds": [1.5]}, "seed 1.5 is no integer"),
    ({"seeds": [None]}, "seed None is no integer"),
    ({"prompts": "circle"}, "prompts is one text, 'circle'; give a list"),
])
def test_wrong_values_are_refused(drawn, change, message):
    with pytest.raises(ValueError, match=message):
        drawn(**{"prompts": PROMPTS[:1], "seeds": [0]} | change)


def test_no_prompts_give_no_latents(drawn):
    assert drawn([], []).shape == (0, 4, 16, 16)


def test_latents_that_are_not_finite_are_refused_by_prompt_and_seed(tiny):
    net = replace(tiny, transformer=copy.deepcopy(tiny.transformer))
    net.transformer.proj_out.bias[0] = torch.nan
    with pytest.raises(ValueError,
                       match="latents of 'circle is left of square', seed 7, are NaN or infinite"):
        net.latents([PROMPTS[2]], [7], steps=1)
    with pytest.raises(ValueError, match="are NaN or infinite"):
        tiny.latents([PROMPTS[2]], [7], guidance=1e38)


# ---- devices

def test_a_model_moves_as_a_whole_and_samples_there(tiny):
    wanted = tiny.latents(PROMPTS, range(4), steps=3)
    with fake_device() as device:
        net = copy.deepcopy(tiny)
        assert net.to(device) is net and net.device == device == net.vae.mean.device
        assert {p.device for module in (net.transformer, net.vae.model)
                for p in module.parameters()} == {device}
        found = net.latents(PROMPTS, range(4), steps=3, batch=3)
        assert found.device == device and torch.allclose(found.cpu(), wanted, atol=1e-4)
        assert net.latents([], []).device == device
        guided = net.latents(PROMPTS, range(4), steps=3, guidance=None)
        assert guided.device == device
        images = net.images(PROMPTS[:1], [0], steps=1)
        assert images.device.type == "cpu" and images.dtype == torch.uint8
        noisy = replace(net, scheduler=EulerAncestralDiscreteScheduler())
        assert noisy.latents(PROMPTS, range(4), steps=2).device == device
    assert tiny.device.type == "cpu"


def test_precision_is_that_of_the_model_s_device(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert tiny.fast() is tiny                      # on the CPU of a machine with CUDA
    monkeypatch.setattr(pipeline.Model, "device", torch.device("cuda"))
    assert tiny.fast().transformer.dtype == torch.bfloat16
