"""A model's folder over time: tables and cards come and go, the model stays whole, and what is not ours is kept."""
import json
import shutil

import pytest

from spatial_circuits.claims.cards import write_card
from spatial_circuits.claims.claims import evidence, history
from spatial_circuits.claims.judges import best_share, span, sure
from spatial_circuits.cli import main
from spatial_circuits.model.manifest import check_table, is_measured, verify, write_manifest
from spatial_circuits.model.store import load
from spatial_circuits.training.log import read_log

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(saved, tmp_path):
    """A model of one's own, with a recipe."""
    copy = shutil.copytree(saved, tmp_path / "mine")
    recipe = {**json.loads((copy / "recipe.json").read_text()), "size": "toy", "steps": 5, "batch": 4, "seed": 3, "first_up": 0.5}
    (copy / "recipe.json").write_text(json.dumps(recipe))
    write_manifest(copy)
    return copy


def listed(folder) -> set[str]:
    return set(json.loads((folder / "manifest.json").read_text()))


def test_what_is_measured_of_a_model_and_what_is_the_model():
    assert all(map(is_measured, ("README.md", "exchange.json", "evaluation.json")))
    assert not any(map(is_measured, ("text.json", "config.json", "manifest.json", "log.jsonl", WEIGHTS, "vae/README.md", "scheduler/x.json")))


def test_tables_may_be_written_again_after_the_card(folder):
    table = folder / "evaluation.json"
    arguments = ["evaluate", "--model", str(folder), "--limit", "1", "--images-per-prompt", "1", "--json", str(table)]
    assert main(arguments) == 0
    write_card(folder)
    assert "evaluation.json" in listed(folder)
    table.write_text(table.read_text() + "\n")
    (folder / "README.md").write_text("# Model card: mine, with a word of my own\n")
    assert load(folder).name == "mine"                          # was refused as damaged
    with pytest.raises(ValueError, match="README.md is damaged or was changed"):
        verify(folder)
    write_card(folder)                                          # of one prompt, whose interval is null: was a traceback
    verify(folder)


def test_a_table_takes_the_place_of_tables_alone(folder, capsys):
    before = (folder / WEIGHTS).read_bytes()
    for name in ("transformer/config.json", WEIGHTS, "text.json", "manifest.json"):
        status = main(["evaluate", "--model", str(folder), "--limit", "1", "--json", str(folder / name)])
        assert status == 2 and "is a file of" in capsys.readouterr().err, name
    assert (folder / WEIGHTS).read_bytes() == before
    assert main(["judge", "rte", "--json", str(folder / "recipe.json")]) == 2
    for name in ("synopsis.json", "notes/table.json"):
        check_table(folder / name)


def test_a_card_is_not_written_over_a_page_of_ones_own_nor_of_a_damaged_model(folder):
    (folder / "README.md").write_text("my notes")
    with pytest.raises(ValueError, match="README.md is no card and would be lost"):
        write_card(folder)
    assert (folder / "README.md").read_text() == "my notes"
    (folder / "README.md").unlink()
    (folder / "notes.txt").write_text("mine")
    write_card(folder)
    assert "notes.txt" not in listed(folder) and "README.md" in listed(folder)
    weights = bytearray((folder / WEIGHTS).read_bytes())
    weights[-5] ^= 1
    (folder / WEIGHTS).write_bytes(weights)
    with pytest.raises(ValueError, match="is damaged or was changed"):
        write_card(folder)
    with pytest.raises(ValueError, match="is damaged or was changed"):
        load(folder)


@pytest.mark.parametrize("line", ["train-vae --steps 1 --out {}", "live --out {}"])
def test_a_model_is_not_replaced_by_another_kind_of_thing(line, folder, capsys):
    assert main(line.format(folder).split()) == 2
    assert "holds things of another kind" in capsys.readouterr().err
    verify(folder)


def test_an_interval_may_be_missing():
    row = {"mean": 0.5, "low": None, "high": None, "n_prompts": 1, "ceiling": 1.0}
    assert span(row) == "" and best_share({"loose": row}) == 0.5
    assert sure(row) == row and 0 < sure({**row, "mean": 1.0})["low"] < 1


def test_a_log_damaged_in_the_middle_is_refused_and_one_cut_short_is_read(folder):
    lines = [json.dumps({"step": i, "images": 4 * i}) for i in range(5)]
    log = folder / "log.jsonl"
    log.write_text("\n".join([*lines[:3], lines[3][:7]]))
    assert [r["step"] for r in read_log(log)] == [0, 1, 2]
    log.write_text("\n".join([*lines[:2], lines[2][:7], *lines[3:]]))
    for read in (lambda: read_log(log), lambda: history(folder), lambda: evidence(folder)):
        with pytest.raises(ValueError, match="log.jsonl is damaged in line 3"):
            read()
