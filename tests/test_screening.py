"""Screening by layers: the numbers of the whole screen on any grid, a layer at a time, kept and read again."""
import pandas as pd
import pytest
import tiny_pixart

from spatial_circuits.analyses import screening
from spatial_circuits.analyses.chunks import Chunks
from spatial_circuits.analyses.screening import screen_layers, word_means
from spatial_circuits.analyses.weight_maps import screen_words, words
from spatial_circuits.cli import main
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.model.store import load

PROMPTS = ["the cat on the left of the dog", "a dog is above a red cat", "a dog is to the right of the cat", "a cat is below a dog"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(tiny_pixart.saved(tmp_path_factory, size=24, layers=3, heads=3, head_dim=4))


@pytest.mark.parametrize("name", ["rte", "minilm"])
def test_the_books_models_are_screened_as_before(name):
    ours, prompts = load(name), prompt_set("96")[::6]
    wanted = screen_words(ours.transformer, ours.encoder, prompts)
    pd.testing.assert_frame_equal(screen_layers(ours, prompts), wanted, atol=1e-4, rtol=1e-4)


def test_a_pipeline_of_another_grid(model):
    found, wanted = screen_layers(model, PROMPTS), screen_words(model.transformer, model.encoder, PROMPTS)
    assert model.transformer.pos_embed.height == 12 and len(found) == 9 * 4
    pd.testing.assert_frame_equal(found, wanted, atol=1e-4, rtol=1e-4)


def test_a_word_said_thrice_weighs_thrice(model):
    wanted = words(model.transformer, model.encoder, PROMPTS)
    means = word_means(model, PROMPTS)
    assert list(means) == list(wanted)
    for word, vector in wanted.items():
        assert (means[word] - vector).abs().max() < 1e-5, word


def test_a_layer_is_computed_at_a_time_and_once(model, monkeypatch, tmp_path):
    wanted, blocks = screen_layers(model, PROMPTS), []
    plain = screening.screen_words
    monkeypatch.setattr(screening, "screen_words", lambda net, *rest: blocks.append(len(net.transformer_blocks)) or plain(net, *rest))
    for count in (4, 1):                                                # the first layer tells the words, too
        blocks.clear()
        pd.testing.assert_frame_equal(screen_layers(model, PROMPTS, Chunks(tmp_path)), wanted)
        assert blocks == [1] * count
    with pytest.raises(ValueError, match="chunks of another run: prompts was"):
        screen_layers(model, PROMPTS[:3], Chunks(tmp_path))


def test_prompts_without_two_sides_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="the prompts hold 1 direction words"):
        screen_layers(model, PROMPTS[1:2])
    with pytest.raises(ValueError, match="the prompts hold 0 direction words"):
        screen_layers(model, [])


def test_the_command_keeps_layers(tmp_path, capsys):
    line = ["screen", "--limit", "24", "--chunks", str(tmp_path)]
    assert main(line) == 0
    shown = capsys.readouterr().out
    assert len(list(tmp_path.glob("*.safetensors"))) == 6 and "L5H3" in shown
    assert main(line) == 0 and capsys.readouterr().out == shown
