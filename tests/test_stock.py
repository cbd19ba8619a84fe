"""Any PixArt: a diffusers pipeline opened by name draws what stock diffusers draws, bit by bit, with readers and without."""
import json
import shutil

import numpy as np
import pytest
import tiny_pixart
import torch
from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline
from safetensors.torch import load_file, save_file

from spatial_circuits.analyses.heads import layers_and_heads
from spatial_circuits.analyses.self_check import self_check
from spatial_circuits.hooks.attach import hooked
from spatial_circuits.hooks.edits import Ablate
from spatial_circuits.hooks.readers import MeanOutputs, Patterns
from spatial_circuits.hooks.run import run
from spatial_circuits.model.store import load
from spatial_circuits.text.batch import TextBatch
from spatial_circuits.text.prepared import Prepared

PROMPTS = ["a red dog on the left of a cat", "blue circle is above red square"]
STOCK = {"alpha": PixArtAlphaPipeline, "sigma": PixArtSigmaPipeline}


@pytest.fixture(scope="module")
def saved_as(tmp_path_factory):
    """A function (options of tiny_pixart.pipeline) -> the folder that stock diffusers saved."""
    made = {}

    def save(**options):
        key = json.dumps(options, sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("stock") / "pipe"
            tiny_pixart.pipeline(**options).save_pretrained(made[key])
        return made[key]
    return save


def stock(folder, kind, seeds=(3, 4), prompts=PROMPTS, dtype=torch.float32, **call):
    """What a user of diffusers gets: latents and pictures."""
    pipe = STOCK[kind].from_pretrained(folder, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)

    def drawn(output):
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        return pipe(prompt=list(prompts), generator=generators, output_type=output, **call).images
    pictures = np.stack([np.asarray(p) for p in drawn("pil")]) if call.pop("picture", True) else None
    return drawn("latent"), pictures


@pytest.mark.parametrize(("kind", "scheduler", "size", "guidance"), [
    ("sigma", "dpm", 32, 4.5), ("sigma", "euler", 32, 4.5), ("sigma", "ddim", 32, None),
    ("sigma", "heun", 32, 4.5), ("alpha", "dpm", 64, 4.5), ("alpha", "heun", 32, None)])
def test_it_draws_what_stock_diffusers_draws_with_readers_and_without(kind, scheduler, size, guidance, saved_as):
    folder = saved_as(kind=kind, scheduler=scheduler, size=size)
    pictured = (kind, scheduler) in (("sigma", "dpm"), ("alpha", "heun"))
    wanted, pictures = stock(folder, kind, num_inference_steps=3, guidance_scale=guidance or 1.0, picture=pictured)
    model = load(folder)
    options = {"steps": 3, "guidance": guidance}
    assert torch.equal(model.latents(PROMPTS, [3, 4], **options), wanted)
    readers = Patterns([(1, 0)]), MeanOutputs("self"), MeanOutputs()
    with hooked(model.transformer, *readers):
        assert torch.equal(model.latents(PROMPTS, [3, 4], **options), wanted)
    if pictured:
        assert np.array_equal(model.images(PROMPTS, [3, 4], **options).permute(0, 2, 3, 1).numpy(), pictures)
    tokens, forwards = {"alpha": 120, "sigma": 300}[kind], {"heun": 5}.get(scheduler, 3)
    assert readers[0].maps[1, 0].shape == (2, forwards, (size // 2) ** 2, tokens)
    torch.testing.assert_close(readers[0].maps[1, 0].sum(-1), torch.ones(2, forwards, (size // 2) ** 2))


def test_sixteen_heads_of_72_and_300_tokens(saved_as):
    folder = saved_as(heads=16, head_dim=72)
    wanted, _ = stock(folder, "sigma", (5,), PROMPTS[:1], num_inference_steps=2, height=64, width=96,
                      use_resolution_binning=False, picture=False)
    model, reader = load(folder), Patterns([(2, 15)])
    assert layers_and_heads(model) == (3, 16) and model.encoder.max_tokens == 300
    found = run(model, PROMPTS[:1], [5], reader, steps=2, height=64, width=96)
    assert torch.equal(found, wanted) and found.shape == (1, 4, 8, 12)
    assert reader.maps[2, 15].shape == (1, 2, 24, 300)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_runs_in_the_precision_asked_for(dtype, saved_as):
    folder = saved_as()
    wanted, _ = stock(folder, "sigma", (1,), PROMPTS[:1], getattr(torch, dtype), num_inference_steps=2, picture=False)
    model = load(folder, dtype=dtype)
    reader = MeanOutputs()
    found = run(model, PROMPTS[:1], [1], reader, steps=2)
    assert found.dtype == getattr(torch, dtype) and torch.equal(found, wanted)
    assert model.vae.decode(found).dtype == torch.uint8 and reader.mean.isfinite().all()
    assert self_check(model).passed


def test_micro_conditions_are_those_of_the_pipeline(saved_as):
    folder = saved_as(kind="alpha", size=128, layers=1, head_dim=12)
    wanted, _ = stock(folder, "alpha", (1,), PROMPTS[:1], num_inference_steps=2, picture=False,
                      height=256, width=512, use_resolution_binning=False)
    model = load(folder)
    assert model.transformer.use_additional_conditions
    assert torch.equal(model.latents(PROMPTS[:1], [1], steps=2, height=256, width=512), wanted)


def test_micro_conditions_that_a_pipeline_leaves_out_are_given(saved_as):
    folder = saved_as(head_dim=12, use_additional_conditions=True)
    with pytest.raises(AttributeError):
        stock(folder, "sigma", num_inference_steps=2, picture=False)
    model, seen = load(folder), []
    handle = model.transformer.adaln_single.register_forward_pre_hook(lambda m, args: seen.append(args[1]))
    assert model.latents(PROMPTS, [1, 2], steps=2, height=128, width=256).shape == (2, 4, 16, 32)
    handle.remove()
    assert seen[0]["resolution"].tolist() == [[128, 256]] * 4 and seen[0]["aspect_ratio"].tolist() == [[0.5]] * 4


def test_hooks_are_told_samples_branches_and_steps_over_several_batches(saved_as):
    model = load(saved_as(scheduler="heun"))
    prompts, seeds = PROMPTS + PROMPTS[:1], [1, 2, 3]
    plain = model.latents(prompts, seeds, steps=2, batch=2)
    where = torch.zeros(3, 3, 2, dtype=torch.bool)
    where[2] = True
    edited = run(model, prompts, seeds, Ablate(where), steps=2, batch=2)
    assert torch.equal(edited[:2], plain[:2]) and not torch.equal(edited[2], plain[2])
    late = run(model, prompts, seeds, Ablate(None, steps=[2]), steps=2, batch=3)       # Heun makes 3 forwards
    assert not torch.equal(late, model.latents(prompts, seeds, steps=2, batch=3))
    with pytest.raises(ValueError, match="acts at step 3; the run has steps 0 to 2"):
        run(model, prompts, seeds, Ablate(None, steps=[3]), steps=2)
    torch.testing.assert_close(plain, model.latents(prompts, seeds, steps=2, batch=3), atol=5e-3, rtol=0)


def test_each_step_can_be_watched(saved_as):
    model, steps = load(saved_as()), []
    last = model.latents(PROMPTS, [1, 2], steps=3, on_step=lambda i, x: steps.append((i, x)))
    assert [i for i, _ in steps] == [0, 1, 2] and torch.equal(steps[-1][1], last)


def test_the_null_can_be_another_text_and_embeddings_be_given(saved_as):
    model = load(saved_as())
    plain = model.latents(PROMPTS, [1, 2], steps=2)
    assert not torch.equal(model.latents(PROMPTS, [1, 2], steps=2, negative_prompt="a dog"), plain)
    text = model.encoder.encode(["", *PROMPTS])
    model.encoder = Prepared(["", *PROMPTS], text)
    torch.testing.assert_close(model.latents(PROMPTS, [1, 2], steps=2), plain)
    moved = TextBatch(text.embeddings.roll(1, 2), text.mask, text.tokens, text.roles)
    model.encoder = Prepared(["", *PROMPTS], moved)
    assert not torch.allclose(model.latents(PROMPTS, [1, 2], steps=2), plain, atol=1e-3)


def test_its_encoder_tells_tokens_and_roles(saved_as):
    encoder = load(saved_as(kind="alpha")).encoder
    text = encoder.encode(["A red zebra is on the left of a blue cat", ""])
    assert text.embeddings.shape == (2, 120, encoder.dim) and text.mask.sum(1).tolist() == [17, 1]
    roles = [r for r, m in zip(text.roles[0], text.mask[0]) if m]
    assert roles[1] == "colour1" and roles[2:8] == ["filler"] + ["shape1"] * 5 and roles[-1] == "end"
    assert [t for t, r in zip(text.tokens[0], roles) if r == "relation"] == ["▁on", "▁the", "▁left", "▁of"]
    assert text.roles[1] == ["end"] + ["pad"] * 119
    with pytest.raises(ValueError, match="at most 120 fit"):
        encoder.encode(["red dog " * 80])


def test_a_pipeline_in_the_hubs_cache_is_opened_by_its_name(saved_as, tmp_path, monkeypatch):
    from huggingface_hub import constants
    place = tmp_path / "models--tiny--pixart"
    (place / "snapshots").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots" / ("0" * 40)).symlink_to(saved_as())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    wanted, _ = stock(saved_as(), "sigma", num_inference_steps=2, picture=False)
    assert torch.equal(load("tiny/pixart").latents(PROMPTS, [3, 4], steps=2), wanted)


def test_the_self_check_sees_a_reader_that_changes_the_picture(saved_as, monkeypatch):
    model = load(saved_as())
    found = self_check(model, PROMPTS[0])
    assert found.passed and 0 < found.pattern_error < 1e-4
    assert found.memory["heatmap"] == 4 * 3 * 2 * 256 and found.memory["patterns"] == 4 * 14 * 256 * 300
    reader = MeanOutputs()
    run(model, PROMPTS[:1], [0], reader, steps=14)
    kept = sum(x.numel() * x.element_size() for x in reader.sums.values())
    assert found.memory["mean outputs"] == kept
    from spatial_circuits.hooks.core import Call
    monkeypatch.setattr(Call, "pattern", property(lambda call: (call.query @ call.key.mT).softmax(-1)))
    assert not self_check(model, PROMPTS[0]).passed              # without scale and mask


def test_what_is_no_such_pipeline_is_refused_by_name(saved_as, tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ValueError, match="holds a FluxPipeline; choose .* PixArtAlphaPipeline or PixArtSigmaPipeline"):
        load(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "PixArtSigmaPipeline"}')
    with pytest.raises(ValueError, match="is no pipeline that can be read"):
        load(tmp_path)
    with pytest.raises(ValueError, match="no model 'nobody/nothing'.* is no pipeline that can be read"):
        load("nobody/nothing")
    with pytest.raises(ValueError, match="dtype 'float8' is unknown; choose from float32, bfloat16, float16"):
        load(saved_as(), dtype="float8")
    with pytest.raises(ValueError, match="dtype 'float16' is for diffusers pipelines"):
        load("rte", dtype="float16")


@pytest.mark.parametrize(("part", "file", "weight"), [
    ("transformer", "diffusion_pytorch_model", "transformer_blocks.1.attn2.to_q.weight"),
    ("vae", "diffusion_pytorch_model", "decoder.conv_in.weight"),
    ("text_encoder", "model", "encoder.block.0.layer.0.SelfAttention.q.weight")])
def test_a_weight_that_is_missing_is_named(part, file, weight, saved_as, tmp_path):
    shutil.copytree(saved_as(), tmp_path / "pipe")
    file = tmp_path / "pipe" / part / f"{file}.safetensors"
    weights = load_file(file)
    weights.pop(weight)
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks the weights {weight}"):
        load(tmp_path / "pipe")


def rewritten(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_pipeline_without_a_text_encoder_must_name_one(saved_as, tmp_path):
    shutil.copytree(saved_as(), tmp_path / "pipe")
    rewritten(tmp_path / "pipe" / "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
    with pytest.raises(ValueError, match="holds no text encoder; save one with it or name one in text.json"):
        load(tmp_path / "pipe")


def test_a_transformer_under_its_older_name_is_known(saved_as, tmp_path):
    """As in the first PixArts of the hub."""
    shutil.copytree(saved_as(), tmp_path / "pipe")
    rewritten(tmp_path / "pipe" / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    rewritten(tmp_path / "pipe" / "transformer" / "config.json", _class_name="Transformer2DModel")
    one, two = (load(f).latents(PROMPTS[:1], [1], steps=2) for f in (saved_as(), tmp_path / "pipe"))
    assert torch.equal(one, two)


def test_another_vae_can_be_named(saved_as):
    folder, other = saved_as(), saved_as(seed=1)
    model = load(folder, vae=other / "vae")
    latents = model.latents(PROMPTS[:1], [1], steps=2)
    assert torch.equal(latents, load(folder).latents(PROMPTS[:1], [1], steps=2))
    off = (model.vae.decode(latents).int() - load(other).vae.decode(latents).int()).abs()
    assert off.max() <= 1 and not torch.equal(model.vae.decode(latents), load(folder).vae.decode(latents))


@pytest.mark.parametrize(("options", "message"), [
    ({"hight": 64}, "option 'hight' is unknown; choose from"), ({"seeds": [1]}, "lists of one length"), ({"batch": 0}, "batch is 0"), ({"steps": 0}, "steps is 0"),
    ({"guidance": float("nan")}, "guidance is nan"), ({"seeds": [1, 0.5]}, "seed 0.5 is no integer")])
def test_wrong_options_are_refused_before_sampling(options, message, saved_as):
    with pytest.raises(ValueError, match=message):
        load(saved_as()).latents(PROMPTS, **{"seeds": [1, 2], "steps": 2, **options})


def test_one_step_is_refused_where_stock_diffusers_fails_and_no_prompt_is_no_latent(saved_as):
    with pytest.raises(ValueError, match="steps is 1; diffusers' PixArtAlphaPipeline needs at least 2"):
        load(saved_as(kind="alpha")).latents(PROMPTS, [1, 2], steps=1)
    assert load(saved_as()).latents(PROMPTS, [1, 2], steps=1).isfinite().all()
    assert load(saved_as()).latents([], [], steps=2).shape == (0, 4, 32, 32)
