"""VAE: the shipped one keeps what the detector sees; any diffusers VAE fits in."""
from copy import deepcopy

import pytest
import torch
from diffusers import AutoencoderKL

from spatial_circuits import vae as module
from spatial_circuits.captions import captions
from spatial_circuits.metrics import METRICS, score
from spatial_circuits.pretrained import save_vae
from spatial_circuits.render import render
from spatial_circuits.scenes import sample
from spatial_circuits.vae import CONFIG, VAE, train_vae


def test_a_round_trip_keeps_the_detector_s_verdict(vae):
    """At least 99.5 % of 400 scenes (5 s; the figure for 1,000 and more is the same and stands in the book)."""
    scenes = sample(torch.arange(400), seed=77)
    before = render(scenes)
    told = captions(scenes.replace(named=torch.ones(400, 2, dtype=torch.bool)))
    verdicts = [score(images, told)[list(METRICS)] for images in (before, vae.decode(vae.encode(before)))]
    assert verdicts[0].all(axis=None)
    assert (verdicts[0] == verdicts[1]).all(axis=1).mean() >= 0.995


def test_latents_are_standardised_and_independent_of_the_batch(vae):
    images = render(sample(torch.arange(64), seed=78))
    latents = vae.encode(images, batch=32)
    assert latents.shape == (64, 4, 16, 16) and latents.dtype == torch.float32
    assert latents.mean((0, 2, 3)).abs().max() < 0.1 and (latents.std((0, 2, 3)) - 1).abs().max() < 0.1
    assert torch.allclose(vae.encode(images[5:9]), latents[5:9], atol=1e-3)
    pixels = vae.decode(latents[:3], batch=2)
    assert pixels.shape == (3, 3, 128, 128) and pixels.dtype == torch.uint8
    assert (pixels.int() - images[:3].int()).abs().float().mean() < 4


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return AutoencoderKL(**CONFIG | {"block_out_channels": (4, 4, 4, 4), "norm_num_groups": 2, "scaling_factor": 0.5,
                                     "shift_factor": 0.25})


def test_another_vae_brings_its_own_scale(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    images = render(sample(torch.arange(2)))
    mode = tiny.encode(images.float() / 127.5 - 1).latent_dist.mode()
    other = VAE.load(tmp_path)
    assert torch.allclose(other.encode(images), (mode - 0.25) * 0.5, atol=1e-4)
    direct = ((tiny.decode(mode).sample + 1) * 127.5).round().clamp(0, 255)
    assert (other.decode((mode - 0.25) * 0.5).float() - direct).abs().max() <= 1


def test_training_measures_its_latents_and_survives_saving(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "CONFIG", CONFIG | {"block_out_channels": (4, 4, 4, 4), "norm_num_groups": 2})
    measure = module.measure
    monkeypatch.setattr(module, "measure", lambda model: measure(model, 64))  # 2,048 scenes take long
    log: list = []
    model = train_vae(steps=41, batch=2, log=log)
    assert [r["step"] for r in log] == [0, 20, 40] and log[-1]["loss"] < log[0]["loss"]
    folder = save_vae(tmp_path / "vae", model, log, "none")
    assert model.dtype == torch.float32
    loaded = VAE.load(folder)
    assert loaded.mean.flatten().tolist() == model.config.latents_mean
    latents = loaded.encode(render(sample(torch.arange(64), seed=10_001)))
    assert latents.mean((0, 2, 3)).abs().max() < 0.02 and (latents.std((0, 2, 3)) - 1).abs().max() < 0.02


def test_moving_a_shared_vae_keeps_it_whole(tiny):
    shared = VAE(deepcopy(tiny), torch.zeros(1, 4, 1, 1), torch.ones(1, 4, 1, 1))
    assert shared.to("meta") is shared  # stands for any other device
    assert {shared.mean.device, shared.std.device, next(shared.model.parameters()).device} == {torch.device("meta")}


def test_a_folder_without_a_vae_is_named(tmp_path):
    with pytest.raises(OSError, match="nothing-here"):
        VAE.load(tmp_path / "nothing-here")
