"""Refused before a picture is drawn: models, prompts, steps, roles and edits that a command cannot take, each by name."""
import json

import numpy as np
import pytest
import tiny_pixart

from spatial_circuits.cli import main
from spatial_circuits.model.pipeline import Model
from spatial_circuits.model.stock import StockModel

LARGE, SMALL = "a pipeline of 192 px", "a pipeline of the book's size"
FEW = {"edges": 8, "fused": 4, "curves": 4, "circuit": 4, "subspaces": 4, "tokens": 2, "arithmetic": 2, "exchange": 2, "evaluate": 1}
PREDICTED = ("edges", "fused", "curves", "circuit", "subspaces")        # read a prediction at latents of their own
MASK = ["--locator", "mask:mask.npy"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Euler's scheduler, eight channels out."""
    return {LARGE: tiny_pixart.saved(tmp_path_factory, size=24, layers=2), SMALL: tiny_pixart.saved(tmp_path_factory, size=16, layers=2)}


@pytest.fixture(autouse=True)
def refused(folders, tmp_path, monkeypatch, capsys):
    """A function that runs a command, which must end in one line before a picture is drawn, and returns the line."""
    monkeypatch.chdir(tmp_path)
    masks = np.zeros((2, 8, 8), bool)
    masks[0, :, :2] = masks[1, :, 5:] = True
    np.save("mask.npy", masks)
    for kind in (Model, StockModel):
        monkeypatch.setattr(kind, "latents", lambda *_, **__: pytest.fail("a picture was drawn"))

    def run(*words, prompts=(), edit=None):
        if prompts:
            (tmp_path / "prompts.txt").write_text("\n".join(prompts))
            words = [*words, "--prompts-file", "prompts.txt"]
        if edit:
            (tmp_path / "edit.json").write_text(json.dumps({"edits": [edit]}))
            words = [*words, "--edit", "edit.json"]
        before = sorted(tmp_path.rglob("*"))
        assert main([str(folders.get(word, word)) for word in words]) == 2
        error = capsys.readouterr().err
        assert error.count("spatial-circuits:") == 1 and sorted(tmp_path.rglob("*")) == before
        return error
    return run


@pytest.mark.parametrize("name", [*FEW, "robustness"])
def test_pictures_of_a_size_that_the_book_does_not_score(name, refused):
    error = refused(name, "--model", LARGE, *(["--limit", str(FEW[name])] if name in FEW else []))
    assert "draws pictures of 192 px; this analysis scores those of 128 px alone (synopsis, ablate, patch, inject" in error


@pytest.mark.parametrize("name", PREDICTED)
def test_predictions_that_do_not_hang_on_latents_alone(name, refused):
    error = refused(name, "--model", SMALL, "--limit", str(FEW[name]))
    assert "has 4 channels and predicts 8, from noise of size 157.4" in error and "needs 4, 4, 1 and False" in error


TWO = ["a dog is above a red cat", "a cat near a dog"]


@pytest.mark.parametrize(("words", "told", "message"), [
    (["ablate", "--when", "0", "99", *MASK], {"prompts": TWO}, "step 99 is out of range; the run has steps 0 to 13"),
    (["ablate", "--when", "14"], {}, "step 14 is out of range; the run has steps 0 to 13"),
    (["ablate", "--role", "colour2", *MASK], {"prompts": TWO}, "prompt 'a cat near a dog' holds no token of role colour2"),
    (["ablate", *MASK], {"prompts": [*TWO, "a " + "red " * 300 + "cat near a dog"]}, "tokens; at most 300 fit"),
    (["synopsis", *MASK], {"prompts": [*TWO, "a " + "red " * 300 + "cat near a dog"]}, "tokens; at most 300 fit"),
    (["ablate", *MASK], {"prompts": TWO, "edit": {"kind": "hide", "words": ["above"]}}, "word 'above' has no token in 'a cat near a dog'"),
    (["patch"], {"prompts": TWO[:1], "edit": {"kind": "hide", "words": ["above"]}}, "word 'above' has no token in 'a dog is below a red cat'"),
    (["patch"], {"prompts": TWO[:1], "edit": {"kind": "zero", "steps": [14]}}, "Ablate acts at step 14; the run has steps 0 to 13"),
    (["patch"], {"prompts": TWO}, "'near' in 'a cat near a dog' has no opposite"),
    (["inject", "--heads", "L0H0", *MASK], {"prompts": TWO}, "'near' in 'a cat near a dog' has no opposite"),
    (["ablate", "--locator", "colours:cat=300,0,0;dog=0,0,0"], {"prompts": TWO}, "colour 'cat=300,0,0' is not of the form"),
])
def test_steps_roles_prompts_edits_and_colours(words, told, message, refused):
    assert message in refused(words[0], "--model", LARGE, *words[1:], **told)


@pytest.mark.parametrize(("words", "told", "message"), [
    (["ablate"], {"prompts": ["red square is above blue circle", "red square"]}, "'red square'"),
    (["circuit"], {"prompts": ["red square is above blue circle"] * 5 + ["red square"]}, "'red square'"),
    (["robustness"], {"edit": {"kind": "hide", "words": ["above"]}}, "word 'above' has no token in"),
    (["synopsis"], {"prompts": ["red square is above blue circle", "red square is above blue hexagon"]}, "blue hexagon' must name two shapes"),
    (["tokens"], {"prompts": ["red square is above blue circle", "square is above blue circle"]}, "holds no token of role colour1"),
    (["edges", "--readers", "L0H1"], {}, "no relation head comes before the reader L0H1"),
])
def test_prompts_and_edits_of_the_books_models(words, told, message, refused):
    assert message in refused(*words, "--model", "rte", **told)


def test_a_film_of_a_pipeline(refused):
    assert "is a pipeline of diffusers, which does not show its guesses" in refused("share", "--model", LARGE)
