"""Store: a folder that stock tools read, whole, guarded by hashes, and nobody else's files lost."""
import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL
from test_files import small_disk

from spatial_circuits.model import store as pretrained
from spatial_circuits.model.manifest import verify, write_manifest
from spatial_circuits.model.noise import Noise
from spatial_circuits.model.store import (
    HERE,
    VAE_FOLDER,
    load,
    load_vae,
    names,
    save_model,
    save_vae,
)
from spatial_circuits.model.vae import VAE
from spatial_circuits.text.encoders import ENCODERS, load_encoder
from spatial_circuits.text.identity import tensors_hash
from spatial_circuits.training.vae import CONFIG

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
PROMPT = "red square is above blue circle"
RTE = {"name": "rte", "options": {}}


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the saved model that a test may harm."""
    return shutil.copytree(saved, tmp_path / "copy")


def test_save_and_load(saved, lively):
    model = load(saved)
    assert (model.name, model.folder, model.noise) == ("untrained", saved, Noise())
    assert RTE.items() <= model.text.items() and set(model.text["vocabulary"]) > {"red", "upper"}
    for key, value in lively().state_dict().items():
        assert torch.equal(model.transformer.state_dict()[key], value.half().float()), key
    assert not model.transformer.training
    assert not any(p.requires_grad for p in model.transformer.parameters())
    latents = model.latents([PROMPT], [0], steps=2)
    images = model.images([PROMPT], [0], steps=2)
    assert torch.equal(images, model.vae.decode(latents)) and images.shape == (1, 3, 128, 128)
    assert "_name_or_path" not in json.loads((saved / "transformer" / "config.json").read_text())


def test_save_keeps_the_run_and_the_model_s_precision(lively, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    noise = {"path": "ddpm", "prediction": "epsilon"}
    (run / "recipe.json").write_text(json.dumps({"noise": noise, "steps": 7}))
    (run / "log.jsonl").write_text('{"step": 7}\n')
    (run / "snapshots").mkdir()
    (run / "snapshots" / "00000007.safetensors").write_text("weights")
    model = lively()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for text in ({"name": "rte-nopos", "options": {"dim": 128}},
                 {"name": "rte", "options": {"base": 30.0}}):
        folder = save_model(tmp_path / "model", model, text, run=run, precision="bf16",
                            command="spatial-circuits train")  # twice: replaced as a whole
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for name in ("recipe.json", "log.jsonl", "snapshots/00000007.safetensors"):
        assert (folder / name).read_bytes() == (run / name).read_bytes()
        assert name in json.loads((folder / "manifest.json").read_text())
    assert json.loads((folder / "model.json").read_text())["precision"] == "bf16"
    assert (folder / "command.txt").read_text() == "spatial-circuits train\n"
    loaded = load(folder)
    assert loaded.noise == Noise("ddpm", "epsilon")
    assert loaded.scheduler.config.prediction_type == "epsilon"
    assert torch.equal(loaded.encoder.position, load_encoder(text).position)
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


@pytest.mark.parametrize("harm", ["truncated", "altered", "missing", "no manifest", "unlisted",
                                  "broken manifest", "[]", "{}", '"text"'])
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
    elif harm == "unlisted":
        manifest = json.loads((copy / "manifest.json").read_text())
        del manifest[WEIGHTS]
        (copy / "manifest.json").write_text(json.dumps(manifest))
        message = f"{WEIGHTS} is not listed"
    else:
        whole = (copy / "manifest.json").read_text()
        (copy / "manifest.json").write_text(whole[:50] if harm == "broken manifest" else harm)
        message = "manifest.json is "
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
    assert "no model 'rtte'; choose from " in str(error.value)
    assert all(n in str(error.value) for n in names())
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


@pytest.mark.parametrize("file, content, message", [
    ("text.json", "{}", "text.json is damaged"),
    ("text.json", "[1]", "text.json is damaged"),
    ("text.json", '{"name": 3}', "text.json: text.json must hold"),
    ("text.json", '{"name": "rte", "options": []}', "text.json: text.json must hold"),
    ("text.json", '{"name": "bert"}', "text.json: text encoder 'bert' is unknown"),
    ("text.json", '{"name": "rte", "options": {"dim": 64}}', "names an encoder of 64 dim"),
    ("text.json", '{"name": "t5-untrained", "options": {"dim": 8}}', "names an encoder of 8 dim"),
    ("text.json", '{"name": "rte", "options": {"dim": NaN}}', "option dim of text encoder rte"),
    ("text.json", '{"name": "rte", "vocabulary": ["red", "red"]}', "vocabulary holds 'red'"),
    ("recipe.json", "{}", "recipe.json is damaged"),
    ("recipe.json", '{"size": "tiny"}', "recipe.json tells no noise process"),
    ("recipe.json", '{"noise": {"shif": 3}}', "recipe.json tells no noise process.*shif"),
    ("recipe.json", '{"noise": {"shift": NaN}}', "noise.shift is nan"),
])
def test_a_file_that_makes_no_sense_is_named(copy, file, content, message):
    (copy / file).write_text(content)
    write_manifest(copy)
    with pytest.raises(ValueError, match=message) as error:
        load(copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{"options": {"seed": 1}}, {"options": {"base": 30.0}},
                                    {"vocabulary": ["red", "square"]},
                                    {"sha256": "0", "sketch": [9]}])
def test_another_encoder_than_that_of_training_is_refused(copy, change):
    record = json.loads((copy / "text.json").read_text())
    (copy / "text.json").write_text(json.dumps({**record, **change}))
    write_manifest(copy)
    with pytest.raises(ValueError, match="'rte' is not the one of training: the sha256"):
        load(copy)


@pytest.fixture(scope="module")
def another():
    """A VAE that is not the shipped one."""
    torch.manual_seed(0)
    model = AutoencoderKL(**CONFIG | {"block_out_channels": (4, 4, 4, 4), "norm_num_groups": 2,
                                      "scaling_factor": 0.5, "shift_factor": 0.25})
    return VAE(model, torch.full((1, 1, 1, 1), 0.25), torch.full((1, 1, 1, 1), 2.0))


def test_a_model_brings_the_vae_of_its_training(another, lively, vae, tmp_path):
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    folder = save_model(tmp_path / "m", lively(), RTE, noise=Noise(), vae=another)
    wanted = another.decode(latents).int()
    for own in (load(folder).vae, load_vae(folder / "vae")):
        assert (own.decode(latents) - wanted).abs().max() <= 1  # its memory is laid out otherwise
        assert tensors_hash(own.tensors()) == tensors_hash(another.tensors())
    assert torch.equal(load(folder, vae=VAE_FOLDER).vae.decode(latents), vae.decode(latents))
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    with pytest.raises(ValueError, match="vae/diffusion_pytorch_model.safetensors is damaged"):
        load(folder)
    folder = save_model(tmp_path / "n", lively(), RTE, noise=Noise(), vae=vae)
    assert not (folder / "vae").exists()
    assert torch.equal(load(folder).vae.decode(latents), vae.decode(latents))


def test_another_vae_than_that_of_training_is_refused(saved, another, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "VAE_FOLDER", save_vae(tmp_path / "v", another.model, [], ""))
    with pytest.raises(ValueError, match="untrained was trained with another VAE"):
        load(saved)
    assert load(saved, vae=VAE_FOLDER).vae.mean.shape == (1, 4, 1, 1)


def test_a_damaged_vae_of_one_s_own_and_an_unknown_one_are_refused(another, tmp_path):
    folder = save_vae(tmp_path / "vae", another.model, [{"step": 0}], "none")
    load_vae(folder)
    (folder / "config.json").write_text((folder / "config.json").read_text().replace("0.5", "0.6"))
    with pytest.raises(ValueError, match="config.json is damaged"):
        load_vae(folder)
    with pytest.raises(ValueError, match="VAE 'no/such-vae' is neither a folder with one nor"):
        load_vae("no/such-vae")


def kept(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_saving_removes_nothing_of_one_s_own(copy, another, lively, tmp_path):
    (copy / "notes.txt").write_text("mine")
    (tmp_path / "d" / "sub").mkdir(parents=True)
    (tmp_path / "d" / "thesis.txt").write_text("mine")
    before = kept(tmp_path)
    with pytest.raises(ValueError, match="'notes.txt', which its manifest.json does not list"):
        save_model(copy, lively(), RTE, noise=Noise())
    with pytest.raises(ValueError, match="which its manifest.json does not list"):
        save_vae(tmp_path / "d", another.model, [], "none")
    assert kept(tmp_path) == before


def test_what_cannot_be_saved_replaces_nothing(copy, lively, monkeypatch, tmp_path):
    before, broken = kept(tmp_path), lively()
    broken.proj_out.weight[0, 0] = float("nan")
    small = {"name": "rte", "options": {"dim": 4}}
    monkeypatch.setitem(ENCODERS, "small", lambda: load_encoder(small))
    for model, text, message in (
            (lively(), {"name": "nosuch"}, "'nosuch' is neither a folder"),
            (lively(), {}, "must hold"),
            (lively(), {"name": "small"}, "text names an encoder of 4 dim"),
            (lively(), {"name": "no.such:Class"}, "'no.such:Class' cannot be imported"),
            (broken, RTE, "weight proj_out.weight is not finite in fp16")):
        with pytest.raises(ValueError, match=message):
            save_model(copy, model, text, noise=Noise())
        assert kept(tmp_path) == before
    with pytest.raises(ValueError, match="recipe.json is missing"):
        save_model(copy, lively(), RTE, run=tmp_path / "nowhere")
    with small_disk(), pytest.raises(OSError, match="/copy'"):
        save_model(copy, lively(), RTE, noise=Noise())
    assert kept(tmp_path) == before


def test_a_model_whose_replacement_was_cut_short_loads(copy):
    copy.rename(copy.with_name(".copy.replaced"))
    assert load(copy).name == "copy" and not copy.with_name(".copy.replaced").exists()


@pytest.mark.parametrize("name", names())
def test_a_shipped_model_keeps_vocabulary_and_hash_of_its_encoder(name):
    record = json.loads((HERE / name / "text.json").read_text())
    assert len(record["sha256"]) == 64
    assert ("vocabulary" in record) == ("sketch" in record) == (record["name"] != "minilm")
