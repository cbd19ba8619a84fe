"""Scene cache: encoded once, shared, checked, and as good as encoding anew."""
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spatial_circuits.data.captions import captions
from spatial_circuits.data.metrics import METRICS, score
from spatial_circuits.data.render import render
from spatial_circuits.data.scenes import sample_scenes
from spatial_circuits.model.vae import VAE
from spatial_circuits.training import scene_cache
from spatial_circuits.training.recipe import Recipe
from spatial_circuits.training.scene_cache import (
    cache_folder,
    scene_encoder,
    scene_key,
    scene_latents,
)

SMALL = Recipe(cache=10, seed=3)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SPATIAL_CIRCUITS_CACHE", str(tmp_path / "a b"))
    monkeypatch.setattr(scene_cache, "CHUNK", 4)
    return tmp_path / "a b"


@pytest.fixture
def encoded(monkeypatch):
    """The numbers of the scenes that are encoded, in order."""
    seen: list[int] = []

    def watched(*arguments):
        encode = scene_encoder(*arguments)

        def go(index):
            if len(index) > 1:                      # one is encoded to learn the shape
                seen.extend(index.tolist())
            return encode(index)
        return go
    monkeypatch.setattr(scene_cache, "scene_encoder", watched)
    return seen


def test_scenes_are_encoded_once_and_mapped(vae, encoded, folder):
    first = scene_latents(SMALL, vae, CPU, progress=False)
    assert encoded == list(range(10))
    second = scene_latents(SMALL, vae, CPU, progress=False)
    assert encoded == list(range(10)) and torch.equal(first, second)
    fresh = vae.encode(render(sample_scenes(torch.arange(10), 3)))
    assert first.dtype == torch.float16 and (first.float() - fresh).abs().max() < 1e-2
    (path,) = folder.glob("*.f16")
    assert path.stat().st_size == first.numel() * 2
    assert sorted(p.suffix for p in folder.iterdir()) == [".f16", ".json"]
    assert str(path) in Path("/proc/self/maps").read_text()


def test_a_flipped_bit_is_named_and_encoded_again(vae, encoded, folder):
    latents = scene_latents(SMALL, vae, CPU, progress=False).clone()
    (path,) = folder.glob("*.f16")
    data = bytearray(path.read_bytes())
    data[5 * 2048 + 7] ^= 1                         # in the second chunk
    path.write_bytes(data)
    encoded.clear()
    named = r"scenes 4 to 7 in .*f16 are damaged; encoding them again"
    with pytest.warns(UserWarning, match=named):
        again = scene_latents(SMALL, vae, CPU, progress=False)
    assert encoded == [4, 5, 6, 7] and torch.equal(again, latents)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]"])
def test_a_damaged_record_costs_time_only(vae, encoded, folder, damage):
    latents = scene_latents(SMALL, vae, CPU, progress=False).clone()
    next(folder.glob("*.json")).write_bytes(damage)
    assert torch.equal(scene_latents(SMALL, vae, CPU, progress=False), latents)
    assert encoded == 2 * list(range(10))


def test_an_interrupted_encoding_goes_on(vae, encoded, folder, monkeypatch):
    watched = scene_cache.scene_encoder

    def killed(*arguments):
        encode = watched(*arguments)

        def go(index):
            if 8 in index.tolist():
                raise KeyboardInterrupt
            return encode(index)
        return go
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(scene_cache, "scene_encoder", killed)
        scene_latents(SMALL, vae, CPU, progress=False)
    scene_latents(SMALL, vae, CPU, progress=False)
    assert encoded == list(range(10))               # none of them twice


def test_the_key_names_all_that_the_latents_depend_on(vae, monkeypatch):
    key = scene_key(SMALL, vae)
    assert scene_key(replace(SMALL, lr=1.0, steps=7), vae) == key
    other = VAE(vae.model, vae.mean + 1, vae.std)
    keys = [scene_key(replace(SMALL, **change), vae) for change in (
        {"seed": 4}, {"cache": 11}, {"preset": "paper", "first_up": 0.5})]
    keys.append(scene_key(SMALL, other))
    monkeypatch.setattr(scene_cache, "render", lambda scenes: render(scenes, antialias=False))
    keys.append(scene_key(SMALL, vae))
    assert len({key, *keys}) == 6


def test_the_folder_is_the_environment_s_or_the_user_s(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "a b"
    monkeypatch.delenv("SPATIAL_CIRCUITS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/spatial-circuits")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "spatial-circuits"


def test_where_nothing_can_be_kept_training_goes_on(vae, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPATIAL_CIRCUITS_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be kept: .*file"):
        latents = scene_latents(SMALL, vae, CPU, progress=False)
    monkeypatch.setenv("SPATIAL_CIRCUITS_CACHE", str(tmp_path / "good"))
    assert torch.equal(scene_latents(SMALL, vae, CPU, progress=False), latents)


def test_two_at_once_share_the_work(vae, encoded):
    """Threads stand for processes: the lock is the open file's, and each opens its own."""
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: scene_latents(SMALL, vae, CPU, progress=False), range(2))
    assert encoded == list(range(10)) and torch.equal(one, two)


def test_encoded_scenes_keep_the_detector_s_verdict(vae):
    """On at least 99.5 % of 208 scenes, in fp16; and a scene is encoded alike in any company."""
    rows = torch.arange(208)
    latents = scene_encoder(Recipe(seed=77), vae, CPU)(rows)
    assert torch.equal(scene_encoder(Recipe(seed=77), vae, CPU)(rows[64:128]), latents[64:128])
    scenes = sample_scenes(rows, 77)
    told = captions(scenes.replace(named=torch.ones(len(rows), 2, dtype=torch.bool)))
    verdicts = score(vae.decode(latents.half().float()), told)[list(METRICS)]
    assert verdicts.all(axis=1).mean() >= 0.995
