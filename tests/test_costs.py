"""Counts of operations and bytes: what PyTorch counts and what tensors take, to the number or nearly so."""
import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import tiny_pixart
import torch
from live_bytes import LiveBytes
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from spatial_circuits.analyses import costs, placed
from spatial_circuits.analyses.heads import heads_of, named_heads
from spatial_circuits.analyses.heatmap import WordAttention, heatmap
from spatial_circuits.analyses.locate import by_mask
from spatial_circuits.analyses.max_statistic import head_p
from spatial_circuits.analyses.placed import PlaceAttention, placed_ablation, placed_synopsis
from spatial_circuits.analyses.placed_injection import placed_injection
from spatial_circuits.analyses.predicted import patched_predictions
from spatial_circuits.analyses.screening import screen_layers
from spatial_circuits.cli import main
from spatial_circuits.hooks.attach import hooked
from spatial_circuits.hooks.readers import Patterns
from spatial_circuits.model.store import load

TOP = Path(__file__).parents[1]
PROMPT = "a cat is above a dog"
SHAPES = [({}, 300, (32, 48)), ({"size": 128, "head_dim": 12}, 30, (32, 32)), ({"head_dim": 4, "size": 64}, 20, (64, 64))]


def forward(transformer, tokens, size, *hooks):
    """One forward of two branches under hooks."""
    x, text = torch.randn(2, 4, *size), torch.randn(2, tokens, transformer.config.caption_channels)
    conditions = {"resolution": torch.ones(2, 2), "aspect_ratio": torch.ones(2, 1)}
    with torch.no_grad(), hooked(transformer, *hooks) as session:
        session.at(0)
        transformer(x, encoder_hidden_states=text, timestep=torch.ones(2), added_cond_kwargs=conditions,
                    encoder_attention_mask=torch.ones(2, tokens))


def counted(transformer, tokens, size, *hooks):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward(transformer, tokens, size, *hooks)
    return counter.get_total_flops()


def sizes(transformer, tokens, size):
    config = {**transformer.config, "use_additional_conditions": transformer.use_additional_conditions}
    return costs.sizes_of_config(config, tokens, *size)


@pytest.mark.parametrize(("options", "tokens", "size"), SHAPES)
def test_operations_and_weights_are_those_that_pytorch_counts(options, tokens, size):
    transformer = tiny_pixart.pipeline(**options).transformer
    s = sizes(transformer, tokens, size)
    assert costs.parameters(s) == sum(p.numel() for p in transformer.parameters())
    bare = sum(costs.forward_operations(s).values())
    assert bare == counted(transformer, tokens, size)
    roles, places = torch.ones(1, tokens, 8), torch.ones(1, 3, s.places)
    readers = {"words": WordAttention(roles[..., :1]), "places": PlaceAttention(roles, places),
               "pattern": Patterns([(i, 0) for i in range(3)])}
    for name, reader in readers.items():
        assert bare + costs.reading_operations(s, name) == counted(transformer, tokens, size, reader)
    one = counted(transformer, tokens, size, WordAttention(roles[..., :1], [(1, 0)]))
    assert one == bare + costs.reading_operations(s, "words", layers=1)


def test_rte_is_counted_from_the_loaded_model():
    model = load("rte")
    s = costs.sizes_of(model)
    assert (s.layers, s.heads, s.head_dim, s.places, s.element) == (6, 4, 32, 64, 4)
    assert costs.weight_bytes(s) == sum(p.numel() * 4 for p in model.transformer.parameters())
    assert sum(costs.forward_operations(s).values()) == counted(model.transformer, s.tokens, (16, 16))
    parts = costs.model_bytes(model)
    assert parts["transformer"] >= costs.weight_bytes(s) and min(parts["VAE"], parts["decoding"]) > 0


@pytest.mark.parametrize(("options", "tokens", "size"), SHAPES)
def test_bytes_at_hand_are_nearly_those_of_the_tensors_alive(options, tokens, size):
    transformer = tiny_pixart.pipeline(**options).transformer
    s = sizes(transformer, tokens, size)
    for name, hooks in ((None, ()), ("words", [WordAttention(torch.ones(1, tokens, 1))]),
                        ("pattern", [Patterns([(0, 0)])])):
        with LiveBytes() as live:
            forward(transformer, tokens, size, *hooks)
        assert costs.activation_bytes(s, 2, name) == pytest.approx(live.peak, rel=0.2)
    vae = tiny_pixart.pipeline(**options).vae
    with torch.no_grad(), LiveBytes() as live:
        vae.decode(torch.randn(1, 4, 64, 64))
    assert costs.decoder_bytes(vae.config.block_out_channels, 512 * 512) == pytest.approx(live.peak, rel=0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("stock") / "pipe"
    tiny_pixart.pipeline(scheduler="euler").save_pretrained(place)
    return place


PROMPTS = [PROMPT, "a red dog is below a cat", "a blue cat is below a dog"]


def analyses(model, steps=1, chunk=2):
    """Each analysis of the estimates, by name, to be run; heads to ablate are all."""
    halves = torch.zeros(2, 4, 4, dtype=torch.bool)
    halves[0, :2] = halves[1, 2:] = True
    locate, every = by_mask(halves), named_heads(heads_of(model))
    given = {"steps": steps, "chunk": chunk}
    return {"heatmap": lambda: heatmap(model, PROMPT, "above", steps=steps),
            "synopsis": lambda: placed_synopsis(model, PROMPTS, locate, **given),
            "ablate": lambda: placed_ablation(model, PROMPTS, every, locate, **given),
            "patch": lambda: patched_predictions(model, PROMPTS, batch=5, steps=steps),
            "inject": lambda: placed_injection(model, PROMPTS, [(0, 1)], locate, early=1, **given),
            "screen": lambda: screen_layers(model, PROMPTS)}


def estimated(model, steps=1):
    words = len({word for prompt in PROMPTS for word in prompt.split()}) + 1              # and the end
    return costs.estimates(costs.sizes_of(model), 3, 2, steps, 5, words)


def test_an_analysis_makes_the_forwards_and_operations_foretold(tmp_path, monkeypatch):
    monkeypatch.setattr(placed, "head_p", partial(head_p, n=1))          # shuffles under a counter are slow
    tiny_pixart.pipeline(scheduler="euler", layers=2, size=16).save_pretrained(tmp_path / "pipe")
    model, calls = load(tmp_path / "pipe"), []
    draw = analyses(model)
    handle = model.transformer.register_forward_pre_hook(lambda _, args: calls.append(len(args[0]) / 2))
    for one in estimated(model):
        calls.clear()
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            draw[one.analysis]()
        assert one.forwards == sum(calls)
        counts = {name: sum(count.values()) for name, count in counter.get_flop_counts().items()}
        made = counts["Global"] - counts["T5EncoderModel"] if one.analysis == "screen" else counts["PixArtTransformer2DModel"]
        exact = one.analysis not in ("inject", "screen")                # there: writes of heads, and words of several tokens, by which
        assert one.operations == made if exact else one.operations == pytest.approx(made, rel=0.1)       # a tenth is allowed
    handle.remove()


@dataclass
class Blank:
    """In place of a VAE: empty pictures, so that the decoding takes no memory."""
    model: object

    def decode(self, latents):
        return torch.zeros(len(latents), 3, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize("shape", [{"size": 64, "heads": 4}, {"size": 64, "heads": 2, "head_dim": 24}])
def test_memory_is_foretold_to_a_factor_of_one_and_a_half(shape, tmp_path, monkeypatch):
    monkeypatch.setattr(placed, "head_p", partial(head_p, n=1))
    tiny_pixart.pipeline("alpha", "euler", layers=2, **shape).save_pretrained(tmp_path / "pipe")      # of 120 tokens: a small T5
    model = load(tmp_path / "pipe")
    model = replace(model, vae=Blank(model.vae.model))
    draw = analyses(model)
    for one in estimated(model):
        with LiveBytes() as live:
            draw[one.analysis]()
        assert 2 / 3 < one.memory / live.peak < 1.5, (one.analysis, one.memory, live.peak)


def test_what_readers_keep_is_what_is_said(folder):
    model = load(folder)
    s, reader = costs.sizes_of(model), WordAttention(torch.ones(1, 300, 1))
    places = PlaceAttention(torch.ones(1, 300, 8), torch.ones(1, 3, s.places))
    for hook, name in ((reader, "heatmap"), (places, "places")):
        forward(model.transformer, 300, (32, 32), hook)
        assert sum(4 * x.numel() for x in hook.total.values()) == costs.kept_bytes(s, 1)[name]


def test_a_big_picture_is_decoded_a_few_at_a_time(folder, monkeypatch):
    from spatial_circuits.model import stock
    model, rows = load(folder), []
    latents = torch.randn(3, 4, 32, 32)
    plain = model.vae.decode(latents)
    monkeypatch.setattr(stock, "PIXELS", 2 * 256 * 256)
    inner = model.vae.model.decode
    monkeypatch.setattr(model.vae.model, "decode", lambda z, **o: rows.append(len(z)) or inner(z, **o))
    assert (model.vae.decode(latents).int() - plain.int()).abs().max() <= 1 and rows == [2, 1]
    monkeypatch.setattr(stock, "PIXELS", 10)
    assert len(model.vae.decode(latents)) == 3 and rows[2:] == [1, 1, 1]


def test_what_cannot_be_counted_is_refused_by_name():
    config = tiny_pixart.pipeline().transformer.config
    with pytest.raises(ValueError, match="latents of 33 x 32 are not filled by patches of 2"):
        costs.sizes_of_config(config, 20, 33, 32)
    s = costs.sizes_of_config(config, 20)
    with pytest.raises(ValueError, match="reader 'all' is unknown; choose from words, places, pattern"):
        costs.reading_operations(s, "all")
    with pytest.raises(ValueError, match="pictures is 0"):
        costs.estimates(s, 0)


def test_the_check_says_what_an_analysis_will_take(folder, capsys):
    assert main(["check", "--model", str(folder), "--pictures", "5", "--dtype", "bf16"]) == 0
    said = capsys.readouterr().out
    s = costs.sizes_of(load(folder, dtype="bfloat16"))
    for one in costs.estimates(s, 5):
        assert f"{one.analysis}: {one.forwards:,} forwards, {one.operations:.2e} operations, " in said
    assert f"memory of the transformer: {costs.weight_bytes(s) / 2 ** 20:,.1f} MiB" in said


@pytest.fixture(scope="module")
def record():
    return json.loads((TOP / "book" / "pixart_costs.json").read_text())


def test_the_readme_says_what_is_on_record(record):
    told = " ".join((TOP / "README.md").read_text().split())
    beside = ", ".join(f"`{row['analysis']}` {row['beside the weights'] / 1e9:.1f}" for row in record["memory"] if "beside the weights" in row)
    assert f"in GB: {beside};" in told and f"{record['speed']['ratio'][1]:.2f} times the processor time" in told
    assert (f"{record['layers']} layers of {record['heads']} heads, {record['places']:,} image tokens, {record['tokens']} text tokens, "
            f"{record['dtype']}") in told


def test_what_was_measured_at_sigmas_shape_is_within_its_bounds(record):
    config = {"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72, "patch_size": 2, "in_channels": 4, "out_channels": 8,
              "caption_channels": 16, "sample_size": 128, "use_additional_conditions": True}
    assert record["parameters"] == costs.parameters(costs.sizes_of_config(config, 300))
    rows = {row["analysis"]: row for row in record["memory"]}
    assert {"heatmap", "screen", "synopsis", "ablate", "patch", "inject", "decoding"} == set(rows)
    for row in rows.values():
        assert row["peak"] - row["weights"] == row["beside the weights"] < 8e9
        assert 0 < row["estimate"] < row["beside the weights"] - row["libraries"]      # kernels take more than the tensors
    assert record["speed"]["ratio"][1] <= 1.25
