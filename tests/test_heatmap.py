"""Heatmaps of a word, in any model: what a reader of whole patterns gives, in a fraction of its memory."""
import numpy as np
import pytest
import tiny_pixart
import torch
from PIL import Image

from spatial_circuits.analyses.heatmap import WordAttention, heatmap
from spatial_circuits.cli import main
from spatial_circuits.hooks.readers import Patterns
from spatial_circuits.hooks.run import run
from spatial_circuits.model.store import load
from spatial_circuits.text.encoders import encoder
from spatial_circuits.text.words import token_spans, word_tokens

PROMPT = "a red zebra is above a cat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("stock") / "pipe"
    tiny_pixart.pipeline(scheduler="heun").save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


def test_a_map_is_the_mean_pattern_summed_over_the_words_tokens(model):
    found = heatmap(model, PROMPT, "zebra", seed=3, steps=2)
    assert found.tokens == ["z", "e", "b", "r", "a"] and len(found.heads) == 6
    reader = Patterns(found.heads)
    latents = run(model, [PROMPT], [3], reader, steps=2)
    for head, values in zip(found.heads, found.maps):
        wanted = reader.maps[head][0, :, :, 3:8].sum(-1).mean(0).view(16, 16)
        torch.testing.assert_close(values, wanted, atol=1e-3, rtol=1e-2)
    assert torch.equal(found.picture, model.vae.decode(latents)[0])


def test_a_picture_that_is_not_square_and_a_step_can_be_chosen(model):
    found = heatmap(model, PROMPT, "above", [(2, 1)], steps=2, when=[1], height=128, width=192)
    assert found.maps.shape == (1, 8, 12) and found.picture.shape == (3, 128, 192)
    reader = Patterns([(2, 1)], steps=[1])
    run(model, [PROMPT], [0], reader, steps=2, height=128, width=192)
    place = model.encoder.encode([PROMPT]).tokens[0].index("▁above")
    torch.testing.assert_close(found.maps[0], reader.maps[2, 1][0, 0, :, place].view(8, 12), atol=1e-3, rtol=1e-2)


def test_one_number_a_head_and_place_is_kept(model):
    reader = WordAttention(torch.ones(1, 300, 1), [(0, 0), (1, 0), (2, 0)])
    run(model, [PROMPT], [0], reader, steps=4)
    assert not reader.calls and sum(x.numel() for x in reader.total.values()) == 3 * 2 * 256
    torch.testing.assert_close(reader.total[0], torch.full((1, 2, 256, 1), 7.0), atol=0.02, rtol=0)


def test_it_serves_our_models_too(tiny):
    found = heatmap(tiny, "red square is above blue circle", "above", steps=2)
    reader = Patterns([(1, 1)])
    run(tiny, ["red square is above blue circle"], [0], reader, steps=2)
    torch.testing.assert_close(found.maps[3], reader.maps[1, 1][0, :, :, 3].mean(0).view(8, 8), atol=1e-3, rtol=1e-2)


def test_the_overlay_is_brightest_where_the_map_is(model):
    found = heatmap(model, PROMPT, "cat", steps=2)
    found.picture, found.maps = torch.zeros(3, 256, 256, dtype=torch.uint8), torch.zeros(6, 16, 16)
    found.maps[2, 4, 5] = 1
    shown = found.overlay((1, 0))
    assert shown.shape == (3, 256, 256) and divmod(int(shown[0].argmax()), 256) == (71, 87)
    assert shown[0].max() == 191 and shown[:, 200:].max() == 0
    with pytest.raises(ValueError, match=r"head \(9, 9\) has no map here"):
        found.overlay((9, 9))


@pytest.mark.parametrize(("word", "heads", "message"), [
    ("dog", None, "word 'dog' has no token in"), ("zeb", None, "choose from a, red, zebra"), ("", None, "word ''"),
    ("cat", [(3, 0)], "L3H0 is out of range"), ("cat", [], "heads is empty")])
def test_what_cannot_be_mapped_is_refused(word, heads, message, model):
    with pytest.raises(ValueError, match=message):
        heatmap(model, PROMPT, word, heads)


@pytest.mark.parametrize("name", ["rte", "t5-untrained"])
def test_words_are_found_with_every_encoder(name):
    made, prompt = encoder(name), "red square is above blue circle"
    assert word_tokens(made, prompt, "is above") == [2, 3] and word_tokens(made, prompt, "RED") == [0]


def test_tokens_that_are_not_in_the_text_have_no_characters():
    spans = token_spans("On a Balloon", ["[CLS]", "on", "a", "ball", "##oon", "</s>", "<pad>"])
    assert spans == [(0, 0), (0, 2), (3, 4), (5, 9), (9, 12), (12, 12), (12, 12)]


def test_the_commands_write_maps_and_check_a_pipeline(folder, tmp_path, capsys, monkeypatch):
    out = tmp_path / "maps"
    line = ["heatmap", "--model", str(folder), "--prompt", PROMPT, "--word", "above", "--out", str(out)]
    assert main([*line, "--heads", "L1H0", "L2H1"]) == 0
    assert np.load(out / "maps.npy").shape == (2, 16, 16)
    for every in ([], ["--heads", "all"]):
        assert main([*line, *every]) == 0
        assert np.load(out / "maps.npy").shape == (6, 16, 16)
    assert Image.open(out / "overlay.png").size == Image.open(out / "picture.png").size == (256, 256)
    assert (out / "heads.png").stat().st_size > 5_000
    assert main([*line[:6], "below"]) == 2 and "word 'below' has no token" in capsys.readouterr().err
    assert main(["check", "--model", str(folder)]) == 0
    assert "bit-identical with a reader: True" in capsys.readouterr().out
    from spatial_circuits.analyses import self_check
    monkeypatch.setitem(self_check.TOLERANCE, torch.float32, 0.0)
    assert main(["check", "--model", str(folder)]) == 2 and "does not pass the check" in capsys.readouterr().err
