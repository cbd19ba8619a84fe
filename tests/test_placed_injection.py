"""Injection in any model: the book's vectors, pictures that turn, chunks, and what is refused before drawing."""
import json

import numpy as np
import pandas as pd
import pytest
import tiny_pixart
import torch

from spatial_circuits.analyses import placed_injection as module
from spatial_circuits.analyses.chunks import Chunks
from spatial_circuits.analyses.injection import relation_vectors, rotation
from spatial_circuits.analyses.locate import by_detector
from spatial_circuits.analyses.placed_injection import placed_injection, relation_means
from spatial_circuits.cli import main
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.data.scenes import RELATIONS
from spatial_circuits.hooks.edits import AddResidual
from spatial_circuits.hooks.readers import MeanResidual
from spatial_circuits.hooks.run import run
from spatial_circuits.model.stock import StockModel
from spatial_circuits.model.store import load
from spatial_circuits.text.parser import opposed, read_spatial

PROMPTS = ["a cat on the left of a dog", "a dog is above a red cat", "a cat is below a dog", "a red dog on the right of a cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_pixart.saved(tmp_path_factory, size=24, layers=3, heads=3, head_dim=4)


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


@pytest.fixture
def halves():
    return tiny_pixart.halves(12)


def test_means_are_the_vectors_of_the_book(tiny):
    prompts, heads = prompt_set("264")[:11], [(0, 1), (1, 0)]
    means = relation_means(tiny, prompts, heads, early=2, seed=3, chunk=2, steps=3)
    wanted = relation_vectors(tiny, prompts, heads, seed=3, steps=3)[:, :2].mean(1)      # [8, N, D]
    assert set(means) == set(RELATIONS)
    centre = torch.stack([means[r] for r in RELATIONS]).mean(0)
    for i, relation in enumerate(RELATIONS):
        assert torch.allclose(means[relation] - centre, wanted[i], atol=1e-5), relation
    assert wanted.abs().max() > 0.01


def test_the_opposite_relation_is_written_into_the_books_model():
    """Three heads of `rte` that its table names; scored by our detector for the opposite of each prompt."""
    ours, prompts = load("rte"), prompt_set("264")[:8]
    frame = placed_injection(ours, prompts, [(2, 0), (2, 1), (2, 2)], by_detector)
    shown = frame.groupby("condition", sort=False)["placed"].mean()
    assert list(shown.index) == ["intact", "relation 1", "random 1"]
    assert shown["intact"] == shown["random 1"] == 0 and shown["relation 1"] >= 0.5


@pytest.mark.parametrize(("layer", "number"), [(None, 2), (0, 0), (3, 3)])
def test_what_is_added_where_is_the_difference_of_the_means(layer, number, model, halves, monkeypatch):
    added, plain = [], AddResidual.__init__

    def keep(self, vector, where, **scope):
        added.append((vector, where))
        plain(self, vector, where, **scope)
    monkeypatch.setattr(AddResidual, "__init__", keep)
    first, last = PROMPTS[0], PROMPTS[3]
    placed_injection(model, [first, last], [(0, 1), (1, 2)], halves, scales=(0.5, 2.0), layer=layer, early=2, chunk=1, steps=2)
    of_last, of_first = (relation_means(model, told, [(0, 1), (1, 2)], early=2, seed=2, steps=2) for told in (
        [last, "a red dog on the left of a cat"], [first, "a cat on the right of a dog"]))       # held out: of the other prompt
    delta = [of_last["right"] - of_last["left"], of_first["left"] - of_first["right"]]
    turned = [d @ rotation(12, 1).T for d in delta]
    wanted = [s * d[i] for i in (0, 1) for s in (0.5, 2.0) for d in (delta, turned)]
    assert len(added) == 8 and {where for _, where in added} == {number}
    for (vector, _), one in zip(added, wanted):
        assert torch.allclose(vector[0], one, atol=1e-5) and one.abs().max() > 0.01


def test_no_prompt_is_scored_with_a_mean_of_its_things(model, monkeypatch):
    prompts = [*prompt_set("264")[:44], "a cup is over a cat", "a cat is under a cup", "a cat is beneath a dog"]
    source, lists = module.means_sources(prompts)
    for prompt in prompts:
        said, used = read_spatial(prompt), [read_spatial(p) for p in lists[source[prompt]]]
        sides = {said.relation, read_spatial(opposed(prompt)).relation}
        near = [set(other.nouns) for other in used if other.relation in sides]
        assert near and set(said.nouns) not in near
    assert source["a cup is over a cat"] == source["a cat is under a cup"] and {*lists[0], *lists[1]} == {*prompts}
    assert abs(len(lists[0]) - len(lists[1])) <= 6


def test_means_of_further_prompts(model, halves, monkeypatch):
    told, plain = [], module.relation_means
    monkeypatch.setattr(module, "relation_means", lambda model, texts, *rest, **options: told.append(texts) or plain(
        model, texts, *rest, **options))
    more = ["a red cat is under a red dog", "a red cat on the left of a red dog"]
    frame = placed_injection(model, PROMPTS[:2], [(0, 1)], halves, early=1, steps=2, means_from=more)
    assert told == [[*more, "a red cat is over a red dog", "a red cat on the right of a red dog"]] and len(frame) == 3 * 2


def test_a_vector_in_the_run_is_in_the_stream(model):
    """The edit of which the injection is made, seen by a reader of a pipeline of another grid."""
    streams = []
    for hooks in ([], [AddResidual(torch.ones(1, 144, 12), 1)]):
        reader = MeanResidual()
        run(model, PROMPTS[:1], [0], *hooks, reader, steps=2)
        streams.append(reader.mean)
    assert torch.equal(streams[0][0], streams[1][0]) and not torch.equal(streams[0][1], streams[1][1])


def test_chunks_change_nothing_and_are_made_once(model, halves, monkeypatch, tmp_path):
    rows, plain = [], StockModel.latents
    monkeypatch.setattr(StockModel, "latents", lambda self, texts, seeds, **o: rows.append(len(texts)) or plain(
        self, texts, seeds, **o))
    options = {"early": 1, "chunk": 2, "steps": 2, "per_prompt": 2}
    wanted = placed_injection(model, PROMPTS, [(0, 1)], halves, **options)
    assert max(rows) == 2 and sum(rows) == 2 * 8 + 3 * 8                  # means, then three conditions
    rows.clear()
    for times in (1, 0):
        found = placed_injection(model, PROMPTS, [(0, 1)], halves, chunks=Chunks(tmp_path, locator="halves"), **options)
        pd.testing.assert_frame_equal(found, wanted)
        assert sum(rows) == 40 * times
        rows.clear()
    with pytest.raises(ValueError, match="chunks of another run: layer was 1 and is 2"):
        placed_injection(model, PROMPTS, [(0, 1)], halves, layer=2, chunks=Chunks(tmp_path, locator="halves"), **options)
    with pytest.raises(ValueError, match="chunks of another run: means_from was"):
        placed_injection(model, PROMPTS, [(0, 1)], halves, chunks=Chunks(tmp_path, locator="halves"), **options,
                         means_from=["a red cat is under a red dog", "a red cat on the left of a red dog"])


@pytest.mark.parametrize(("options", "message"), [
    ({"heads": []}, "heads is empty"), ({"heads": [(3, 0)]}, "head L3H0 is out of range; the model has L0H0 to L2H2"),
    ({"layer": 4}, r"layer 4 is out of range; choose 0 \(the position embedding\) to 3"), ({"layer": -1}, "layer -1 is out of range"),
    ({"scales": []}, r"scales is \[\]"), ({"scales": [np.nan]}, "scales is"), ({"early": 0}, "early is 0"),
    ({"early": 15}, "step 14 is out of range; the run has steps 0 to 13"), ({"chunk": 0}, "chunk is 0"),
    ({"prompts": ["a cat near a dog"]}, "'near' in 'a cat near a dog' has no opposite"),
    ({"prompts": PROMPTS[:3]}, "only one pair of things is left or right, and means are to be of others"),
    ({"means_from": ["a cup is above a cat", PROMPTS[1]]}, "'a dog is above a red cat' is scored, and it or its opposite is among the prompts for the means"),
    ({"means_from": ["a dog is below a red cat"]}, "'a dog is above a red cat' is scored, and it or its opposite is among the prompts for the means"),
    ({"means_from": ["a cup is above a cat"]}, "the prompts for the means do not say left"),
    ({"means_from": ["a cup"]}, "'a cup' does not say two things"),
    ({"means_from": ["a cat is above a dog " + "cat " * 400, "a dog on the left of a red cat"]}, "has [0-9]+ tokens; at most"),
    ({"prompts": ["a lonely dog"]}, "does not say two things"), ({"locate": by_detector}, "our detector does not know 'cat'"),
])
def test_what_cannot_be_injected_is_refused_before_drawing(options, message, model, halves, monkeypatch, tmp_path):
    monkeypatch.setattr(StockModel, "latents", None)
    given = {"prompts": PROMPTS, "heads": [(0, 1)], "locate": halves, "chunks": Chunks(tmp_path / "kept"), **options}
    with pytest.raises(ValueError, match=message):
        placed_injection(model, **given)
    assert not (tmp_path / "kept").exists()


def test_the_command_injects_into_a_pipeline(folder, tmp_path, capsys):
    prompts, mask = tmp_path / "prompts.txt", tmp_path / "mask.npy"
    prompts.write_text("\n".join(PROMPTS))
    masks = np.zeros((2, 8, 8), bool)
    masks[0, :, 4:] = masks[1, :, :2] = True                             # the first thing on the right
    np.save(mask, masks)
    line = ["inject", "--model", str(folder), "--prompts-file", str(prompts), "--locator", f"mask:{mask}"]
    assert main([*line, "--heads", "L0H1", "L1H1", "--scale", "2", "--chunks", str(tmp_path / "kept"), "--json", str(tmp_path / "out.json")]) == 0
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["heads"] == ["L0H1", "L1H1"] and record["layer"] is None
    assert record["means"] == {"of": "the other half", "prompts": [2, 2]}
    placed = {row["condition"]: row["mean"] for row in record["effects"] if row["metric"] == "placed"}
    assert placed == {name: pytest.approx(1 / 4, abs=1e-5) for name in ("intact", "relation 2", "random 2")}    # left of, turned: right of
    more = tmp_path / "more.txt"
    more.write_text("a red cat is under a red dog\n\na red cat on the left of a red dog\n")
    assert main([*line, "--heads", "L0H1", "--means-from", str(more), "--json", str(tmp_path / "more.json")]) == 0
    assert json.loads((tmp_path / "more.json").read_text())["means"] == {"of": "further prompts", "prompts": [2]}
    capsys.readouterr()
    assert main(line) == 2 and "name at least one whose mean output" in capsys.readouterr().err


def test_writes_are_of_the_conditional_branch_alone(model):
    reader, total = module.Writes([(1, 1)], [0]), []
    run(model, PROMPTS[:1], [0], reader, steps=2)
    handle = model.transformer.transformer_blocks[1].attn2.to_out[0].register_forward_pre_hook(lambda _, args: total.append(args[0]))
    run(model, PROMPTS[:1], [0], steps=2)
    handle.remove()
    own = total[0][1, :, 4:8]                                            # first step; row 0 is the unconditional branch
    weight = model.transformer.transformer_blocks[1].attn2.to_out[0].weight[:, 4:8]
    assert torch.allclose(reader.total, own @ weight.T, atol=1e-5)
