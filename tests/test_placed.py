"""Any two things in any model: locators, and synopsis and ablation end to end, in bounded memory."""
import json

import numpy as np
import pytest
import tiny_pixart
import torch

from spatial_circuits.analyses.heads import named_heads
from spatial_circuits.analyses.locate import (
    by_colors,
    by_detector,
    by_mask,
    by_model,
    named_locator,
)
from spatial_circuits.analyses.placed import (
    PlaceAttention,
    judge,
    placed_ablation,
    placed_effects,
    placed_synopsis,
)
from spatial_circuits.analyses.synopsis import RoleAttention, attention_scores
from spatial_circuits.cli import main
from spatial_circuits.data.metrics import score
from spatial_circuits.data.render import render
from spatial_circuits.data.scenes import sample_scenes
from spatial_circuits.hooks.run import run
from spatial_circuits.model.store import load
from spatial_circuits.text.parser import read_spatial
from spatial_circuits.text.roles import role_table

PROMPTS = ["a cat on the left of a dog", "a dog is above a red cat", "a cat near a dog"]
NOWHERE = torch.zeros(0, 3, 8, 8, dtype=torch.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_pixart.saved(tmp_path_factory)


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


@pytest.fixture
def halves():
    return tiny_pixart.halves(16)


def test_our_detector_agrees_with_the_books_score_at_another_size():
    scenes = sample_scenes(torch.arange(24))
    pictures, named = render(scenes), [("red", "blue")[c] for c in scenes.color[:, 0]]
    from spatial_circuits.data.captions import captions
    prompts = captions(scenes.replace(named=torch.ones_like(scenes.named)))
    said = [read_spatial(p) for p in prompts]
    assert all(s.nouns[0].startswith(color) for s, color in zip(said, named))
    large = torch.nn.functional.interpolate(pictures.float(), (256, 256)).to(torch.uint8)
    found = by_detector(large, [s.nouns for s in said])
    assert found.shape == (24, 2, 256, 256)
    ours, book = judge(found, said), score(pictures, prompts)
    assert ours["found"].all() and ours["placed"].all() and book["loose"].all()
    np.testing.assert_allclose(ours[["dx", "dy"]] * 127, book[["dx", "dy"]], atol=1.5)
    swapped = judge(found.flip(1), said)
    assert swapped["found"].all() and not swapped["placed"].any()
    twice = by_detector(pictures[:1], [(said[0].nouns[0].split()[1], "circle")])
    assert twice.shape == (1, 2, 128, 128)


def test_colours_and_masks_by_hand():
    picture = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    picture[0, 0, 4:8, 2:6] = 250
    picture[0, 2, 20:, 20:] = 240
    locate = named_locator("colours:cat=255,0,0;dog=0,0,255")
    found = locate(picture, [("small cat", "dog")])
    assert found[0, 0].nonzero().aminmax(dim=0).max.tolist() == [7, 5] and found[0, 1].sum() == 144
    table = judge(found, [read_spatial("a small cat to the upper left of a dog")])
    assert table["placed"].item() == 1 and table["dx"].item() == pytest.approx((3.5 - 25.5) / 31)
    assert judge(found, [read_spatial("a cat near a dog")])["placed"].isna().all()
    none = judge(torch.zeros_like(found), [read_spatial("a cat above a dog")])
    assert not none["found"].any() and none["placed"].item() == 0
    assert by_mask(torch.eye(4)[None].repeat(2, 1, 1))(picture, [("a", "b")]).shape == (1, 2, 32, 32)


def owl(folder):
    """A tiny OWL-ViT with random weights, as transformers saves it."""
    from transformers import (
        CLIPTokenizer,
        OwlViTConfig,
        OwlViTForObjectDetection,
        OwlViTImageProcessor,
        OwlViTProcessor,
    )
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocab = {t: i for i, t in enumerate([*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = OwlViTConfig(text_config={**small, "vocab_size": len(vocab), "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53},
                          vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=16)
    OwlViTForObjectDetection(config).save_pretrained(folder)
    images = OwlViTImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    OwlViTProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_a_zero_shot_detector_of_transformers_by_name(tmp_path):
    locate = by_model(str(owl(tmp_path / "owl")), threshold=0.0)
    found = locate(torch.randint(0, 255, (2, 3, 48, 64), dtype=torch.uint8), [("cat", "dog")] * 2)
    assert found.shape == (2, 2, 48, 64) and found.any()
    for one in found.flatten(0, 1):                               # each a box
        rows, columns = one.any(1).sum(), one.any(0).sum()
        assert one.sum() == rows * columns
    never = by_model(str(tmp_path / "owl"), threshold=0.999)
    assert not never(torch.zeros(1, 3, 48, 64, dtype=torch.uint8), [("cat", "dog")]).any()


@pytest.mark.parametrize(("ask", "message"), [
    (lambda: named_locator("compass"), "locator 'compass' is unknown; choose detector"),
    (lambda: named_locator("colours:cat"), "colour 'cat' is not of the form"),
    (lambda: named_locator("model:nobody/nothing"), "no zero-shot detector 'nobody/nothing' can be read"),
    (lambda: by_detector(NOWHERE, [("red circle", "green dog")]), "our detector does not know 'green dog'"),
    (lambda: by_colors({"cat": (0, 0, 0)})(NOWHERE, [("cat", "dog")]), "no colour is given for 'dog'; known: cat"),
    (lambda: by_mask(torch.zeros(3, 8, 8)), r"the masks have shape \(3, 8, 8\)")])
def test_what_cannot_be_located_is_refused_by_name(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()


def test_the_synopsis_is_that_of_whole_patterns(model, halves):
    found = placed_synopsis(model, PROMPTS[:2], halves, seed=3, chunk=2, steps=2)
    texts, seeds = PROMPTS[:2], [3_000_000, 3_000_001]
    roles = role_table(model.encoder.encode(texts).roles)
    reader = RoleAttention(roles)
    run(model, texts, seeds, reader, steps=2)
    seen = reader.values[2:].float().mean(1).unflatten(3, (16, 16))                # [2, L, H, 16, 16, R]
    places = [seen[..., :4, :].mean((3, 4)), seen[..., 8:, :].mean((3, 4)), seen[..., 4:8, :].mean((3, 4))]
    table = torch.stack(places, 3) / roles.sum(1)[:, None, None, None]
    wanted = attention_scores(table.nan_to_num(0, 0, 0))
    for kind in ("relation", "object"):
        rows = found[found["score"] == kind].sort_values(["layer", "head"])
        np.testing.assert_allclose(rows["mean"], wanted[kind].mean(0).flatten(), atol=2e-4)
    assert (found["images"] == 2).all() and (found["low"] <= found["mean"] + 1e-9).all()


def test_what_is_kept_does_not_grow_with_steps_or_places(model):
    roles = role_table(model.encoder.encode(PROMPTS[:1]).roles)
    sizes = []
    for steps, side in ((2, 64), (4, 128)):
        reader = PlaceAttention(roles, torch.ones(1, 3, (side // 16) ** 2))
        run(model, PROMPTS[:1], [0], reader, steps=steps, height=side, width=side)
        assert not reader.calls
        sizes.append(sum(x.numel() for x in reader.total.values()))
    assert sizes == [3 * 2 * 3 * 8] * 2


def test_ablation_draws_one_condition_and_a_chunk_at_a_time(model, halves, monkeypatch):
    rows = []
    plain = type(model).latents

    def counted(self, prompts, seeds, **options):
        rows.append(len(prompts))
        return plain(self, prompts, seeds, **options)
    monkeypatch.setattr(type(model), "latents", counted)
    sets = named_heads([(0, 0), (2, 1)])
    frame = placed_ablation(model, PROMPTS, sets, halves, per_prompt=2, chunk=4, steps=2)
    assert rows == [4] * 3 + [2] * 3 and len(frame) == 18
    table = placed_effects(frame)
    assert list(dict.fromkeys(table.index.get_level_values(0))) == ["intact", "L0H0", "L2H1"]
    assert table.loc[("intact", "found"), "mean"] == 1 and table.loc[("L0H0", "placed"), "change"] == 0
    assert table.loc[("intact", "found"), "n_prompts"] == 3 and table.loc[("intact", "placed"), "n_prompts"] == 2
    near = placed_effects(frame[frame["relation"] == "near"])
    assert set(near.index.get_level_values("metric")) == {"found"}


def test_ablation_changes_the_pictures_of_its_condition_alone(model):
    seen = []

    def locate(images, nouns):
        seen.append(images)
        return torch.ones(len(images), 2, *images.shape[-2:], dtype=torch.bool)
    sets = {"all": [(i, j) for i in range(3) for j in range(2)], "none": []}
    placed_ablation(model, PROMPTS[:2], sets, locate, steps=2)
    asked, intact, without, none = seen
    assert len(asked) == 0 and torch.equal(intact, none) and not torch.equal(intact, without)
    placed_ablation(model, PROMPTS[:2], sets, locate, steps=2, role="relation")
    hidden = seen[-2]
    assert torch.equal(seen[-3], intact) and not torch.equal(hidden, intact) and not torch.equal(hidden, without)


@pytest.mark.parametrize("draw", [placed_synopsis, lambda m, p, at: placed_ablation(m, p, {}, at)])
def test_bad_prompts_are_refused_before_a_picture_is_drawn(draw, model, halves, monkeypatch):
    monkeypatch.setattr(type(model), "latents", None)
    with pytest.raises(ValueError, match="prompt 'a lonely dog' does not say two things"):
        draw(model, [PROMPTS[0], "a lonely dog"], halves)
    with pytest.raises(ValueError, match="our detector does not know 'cat'"):
        draw(model, PROMPTS, by_detector)


def test_the_commands_run_a_prompts_file_on_a_pipeline(folder, tmp_path, capsys):
    prompts, mask = tmp_path / "prompts.txt", tmp_path / "mask.npy"
    prompts.write_text("\n".join([*PROMPTS[:2], "", " "]))
    masks = np.zeros((2, 8, 8), bool)
    masks[0, :, :2] = masks[1, :, 5:] = True
    np.save(mask, masks)
    line = ["--model", str(folder), "--prompts-file", str(prompts), "--images-per-prompt", "1", "--locator", f"mask:{mask}"]
    assert main(["synopsis", *line, "--json", str(tmp_path / "synopsis.json")]) == 0
    record = json.loads((tmp_path / "synopsis.json").read_text())
    assert record["prompts"] == record["images"] == 2 and len(record["heads"]) == 12
    assert main(["ablate", *line, "--heads", "L1H0", "--json", str(tmp_path / "ablation.json")]) == 0
    record = json.loads((tmp_path / "ablation.json").read_text())
    assert record["kind"] == "zero" and {e["metric"] for e in record["effects"]} == {"found", "placed"}
    capsys.readouterr()
    for wrong, message in ((["ablate", *line, "--kind", "mean"], "zero, the only one with a locator"),
                           (["ablate", *line[:4]], "our detector does not know 'cat'"),
                           (["synopsis", *line, "--step", "0"], "with a locator it must be mean"),
                           (["synopsis", "--prompts-file", str(tmp_path / "none.txt")], "none.txt")):
        assert main(wrong) == 2
        assert message in capsys.readouterr().err
    prompts.write_text("\n")
    assert main(["ablate", *line]) == 2 and "holds no prompt" in capsys.readouterr().err


def test_our_model_with_our_detector_gives_what_the_book_measures():
    ours = load("rte-biased")
    prompts = ["red square is above blue circle", "blue triangle is to the left of red circle"]
    frame = placed_ablation(ours, prompts, {}, by_detector, per_prompt=2, seed=1)
    from spatial_circuits.analyses.evaluation import evaluate
    book = evaluate(ours, prompts, 2, seed=1)
    assert frame["placed"].astype(bool).tolist() == book["loose"].tolist() and book["loose"].any()
    np.testing.assert_allclose(frame["dx"] * 127, book["dx"].fillna(frame["dx"] * 127), atol=1.5)
