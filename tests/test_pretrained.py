"""Pretrained: a folder that stock tools read, guarded by hashes."""
import json
import shutil

import pytest
import torch

from spatial_circuits import pretrained
from spatial_circuits.noise import Noise
from spatial_circuits.pretrained import HERE, VAE_FOLDER, load, load_vae, names, save, verify

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
PROMPT = "red square is above blue circle"


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the saved model that a test may harm."""
    return shutil.copytree(saved, tmp_path / "copy")


def test_save_and_load(saved, lively):
    model = load(saved)
    assert (model.name, model.folder, model.text, model.noise) == ("untrained", saved, {"name": "rte", "options": {}}, Noise())
    for key, value in lively().state_dict().items():
        assert torch.equal(model.transformer.state_dict()[key], value.half().float()), key
    assert not model.transformer.training and not any(p.requires_grad for p in model.transformer.parameters())
    latents = model.latents([PROMPT], [0], steps=2)
    images = model.images([PROMPT], [0], steps=2)
    assert torch.equal(images, model.vae.decode(latents)) and images.shape == (1, 3, 128, 128)
    assert "_name_or_path" not in json.loads((saved / "transformer" / "config.json").read_text())


def test_save_keeps_the_run_and_the_model_s_precision(lively, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.json").write_text(json.dumps({"noise": {"path": "ddpm", "prediction": "epsilon"}, "steps": 7}))
    (run / "log.jsonl").write_text('{"step": 7}\n')
    model = lively()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for text in ({"name": "rte-nopos", "options": {"dim": 128}}, {"name": "rte", "options": {"base": 30.0}}):
        folder = save(tmp_path / "model", model, text, run=run, command="spatial-circuits train")  # twice: replaced as a whole
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [(folder / n).read_bytes() for n in ("recipe.json", "log.jsonl")] == [(run / n).read_bytes() for n in ("recipe.json", "log.jsonl")]
    assert (folder / "command.txt").read_text() == "spatial-circuits train\n"
    loaded = load(folder)
    assert loaded.noise == Noise("ddpm", "epsilon") and loaded.scheduler.config.prediction_type == "epsilon"
    assert torch.equal(loaded.encoder.position, pretrained.encoder("rte", base=30.0).position)
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


@pytest.mark.parametrize("harm", ["truncated", "altered", "missing", "no manifest", "broken manifest"])
def test_a_harmed_model_is_refused_by_name_and_hash(copy, harm):
    path, message = copy / WEIGHTS, WEIGHTS
    content = path.read_bytes()
    if harm == "truncated":
        path.write_bytes(content[:-1000])
    elif harm == "altered":
        path.write_bytes(content[:-1000] + bytes([content[-1000] ^ 1]) + content[-999:])
    elif harm == "missing":
        path.unlink()
    elif harm == "no manifest":
        (copy / "manifest.json").unlink()
        message = "copy has no manifest.json"
    else:
        (copy / "manifest.json").write_text((copy / "manifest.json").read_text()[:50])
        message = "manifest.json is damaged"
    with pytest.raises(ValueError) as error:
        load(copy)
    assert message in str(error.value)
    if harm in ("truncated", "altered"):
        known = json.loads((copy / "manifest.json").read_text())[WEIGHTS]
        assert f"expected {known}" in str(error.value) and len(known) == 64


def test_a_harmed_vae_is_refused(tmp_path, monkeypatch):
    folder = shutil.copytree(VAE_FOLDER, tmp_path / "vae")
    monkeypatch.setattr(pretrained, "VAE_FOLDER", folder)
    load_vae()
    path = folder / "config.json"
    path.write_text(path.read_text().replace("latents_std", "latents_sdt"))
    with pytest.raises(ValueError, match="vae/config.json is damaged or was changed"):
        load_vae()


def test_an_unknown_name_lists_the_names(monkeypatch, saved):
    with pytest.raises(ValueError) as error:
        load("rtte")
    assert "no model 'rtte'; choose from " in str(error.value) and all(n in str(error.value) for n in names())
    monkeypatch.setattr(pretrained, "HERE", saved.parent)
    assert names() == ["untrained"] and load("untrained").folder == saved
    with pytest.raises(ValueError, match="choose from untrained or give a model's folder"):
        load("rtte")


def test_what_ships_is_whole_and_small():
    verify(VAE_FOLDER)
    for name in names():
        verify(HERE / name)
        size = sum(p.stat().st_size for p in (HERE / name).rglob("*") if p.is_file())
        assert size < 16 * 2**20, name
        log = [json.loads(line) for line in (HERE / name / "log.jsonl").read_text().splitlines()]
        assert "spatial-circuits train" in (HERE / name / "command.txt").read_text()
        assert log[-1]["step"] == json.loads((HERE / name / "recipe.json").read_text())["steps"]
