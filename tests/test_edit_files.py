"""Interventions as data: they survive a file, and a model under them draws what the same hooks draw, whatever asks it."""
import json
from dataclasses import replace

import numpy as np
import pytest
import tiny_pixart
import torch
from PIL import Image

from spatial_circuits.analyses.ablation import ablate
from spatial_circuits.analyses.edit_files import (
    EditSpec,
    edit_hooks,
    load_edits,
    save_edits,
    under_edits,
)
from spatial_circuits.cli import main
from spatial_circuits.hooks.edits import Ablate, MaskKeys
from spatial_circuits.hooks.run import run
from spatial_circuits.model.store import load
from spatial_circuits.text.prepared import Prepared

PROMPTS = ["red square is above blue circle", "blue circle is to the left of red square"]
ZERO = EditSpec("zero", ["L1H1"], steps=[0, 1])


def test_edits_survive_a_file(tmp_path):
    edits = [ZERO, EditSpec("hide", None, ["blue circle", "red"], branch="both")]
    save_edits(tmp_path / "edits.json", edits)
    assert load_edits(tmp_path / "edits.json") == edits


def test_a_model_under_edits_draws_as_under_the_same_hooks(tiny):
    wanted = run(tiny, PROMPTS, [1, 2], Ablate([(1, 1)], steps=[0, 1]), steps=3)
    plain = tiny.latents(PROMPTS, [1, 2], steps=3)
    found = under_edits(tiny, [ZERO]).latents(PROMPTS, [1, 2], steps=3)
    assert torch.equal(found, wanted) and not torch.equal(found, plain)
    keys = torch.zeros(2, 9, dtype=torch.bool)
    keys[0, 2:4] = keys[1, 2] = True                                       # "is above", "is"
    hide = EditSpec("hide", ["L0H0", "L1H0"], ["is"])
    above = EditSpec("hide", None, ["above"])
    wanted = run(tiny, PROMPTS[:1], [1], MaskKeys(keys[:1, :7]), steps=3)
    assert torch.equal(under_edits(tiny, [EditSpec("hide", None, ["is above"])]).latents(PROMPTS[:1], [1], steps=3), wanted)
    hook, = edit_hooks([hide], tiny, PROMPTS)
    assert hook.keys.shape == (2, 10) and hook.keys.nonzero().tolist() == [[0, 2], [1, 2]]
    with pytest.raises(ValueError, match="word 'above' has no token in 'blue circle is to the left"):
        under_edits(tiny, [above]).latents(PROMPTS, [1, 2])
    assert torch.equal(tiny.latents(PROMPTS, [1, 2], steps=3), plain)       # the model stays as it is


def test_a_copy_with_another_encoder_draws_under_the_edits_too(tiny):
    """So do exchanges of tokens and arithmetic, which give the model texts of their own."""
    text = tiny.encoder.encode(["", PROMPTS[0]])
    both = under_edits(under_edits(tiny, [ZERO]), [EditSpec("zero", ["L0H0"])])
    copied = replace(both, encoder=Prepared(["", "mine"], text))
    wanted = run(tiny, PROMPTS[:1], [1], Ablate([(1, 1)], steps=[0, 1]), Ablate([(0, 0)]), steps=3)
    assert torch.equal(copied.latents(["mine"], [1], steps=3), wanted) and len(copied.edits) == 2
    assert not hasattr(tiny, "edits")


def test_analyses_of_a_model_under_edits_add_theirs(tiny):
    frame = ablate(under_edits(tiny, [ZERO]), PROMPTS[:1], {"L0H0": [(0, 0)]}, steps=3)
    assert list(frame["condition"]) == ["intact", "L0H0"]
    one = under_edits(tiny, [ZERO])
    both = run(one, PROMPTS[:1], [1], Ablate([(0, 0)]), steps=3)
    wanted = run(tiny, PROMPTS[:1], [1], Ablate([(0, 0)]), Ablate([(1, 1)], steps=[0, 1]), steps=3)
    assert torch.equal(both, wanted)


@pytest.mark.parametrize(("text", "message"), [
    ("{", "holds no edits"), ("[]", "edits must be a list of at least one object"), ('{"edits": "zero"}', "edits must be a list"),
    ('{"edits": []}', "edits must be a list of at least one"), ('{"edits": [{"kind": "zero", "heads": []}]}', r"heads are \[\]"),
    ('{"edits": [{"kind": "zero", "steps": []}]}', r"steps are \[\]"), ('{"edits": [{"heads": ["L0H0"]}]}', "missing 1 required .* 'kind'"),
    ('{"edits": [{"kind": "melt"}]}', "kind 'melt' is unknown; choose from zero, hide"),
    ('{"edits": [{"kind": "zero", "when": [1]}]}', "key 'when' is unknown; choose from kind, heads, words, steps, branch"),
    ('{"edits": [{"kind": "hide"}]}', "hide needs at least one"), ('{"edits": [{"kind": "zero", "words": ["a"]}]}', "zero has none"),
    ('{"edits": [{"kind": "zero", "heads": ["1.2"]}]}', "head '1.2' is not of the form L2H3"),
    ('{"edits": [{"kind": "zero", "steps": [-1]}]}', "step -1"), ('{"edits": [{"kind": "zero", "branch": "up"}]}', "branch 'up'")])
def test_a_file_of_another_form_is_refused_by_name(text, message, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"mine.json holds no edits.*{message}|mine.json {message}"):
        load_edits(file)


def test_commands_draw_under_a_file_of_edits(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_pixart.pipeline(layers=2).save_pretrained("pipe")
    model = load("pipe")
    edit = EditSpec("hide", None, ["above"])
    save_edits("mine.json", [edit])
    prompt = "a cat is above a dog"
    assert main(["sample", prompt, "--model", "pipe", "--count", "1", "--edit", "mine.json"]) == 0
    drawn = np.asarray(Image.open("sample.png")).transpose(2, 0, 1)
    assert np.array_equal(drawn, under_edits(model, [edit]).images([prompt], [0])[0].numpy())
    assert not np.array_equal(drawn, model.images([prompt], [0])[0].numpy())
    assert main(["heatmap", "--model", "pipe", "--prompt", prompt, "--word", "above", "--edit", "mine.json"]) == 0
    assert np.load("heatmap/maps.npy").max() == 0                           # nobody sees it
    (tmp_path / "prompts.txt").write_text(prompt)
    np.save("mask.npy", np.ones((2, 4, 4), bool))
    assert main(["ablate", "--model", "pipe", "--prompts-file", "prompts.txt", "--locator", "mask:mask.npy",
                 "--heads", "L0H0", "--edit", "mine.json", "--json", "out.json"]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["prompts"] == 1
    save_edits("mine.json", [EditSpec("zero", ["L7H0"])])
    assert main(["sample", prompt, "--model", "pipe", "--edit", "mine.json"]) == 2
    assert "L7H0 is out of range; the model has L0H0 to L1H1" in capsys.readouterr().err
