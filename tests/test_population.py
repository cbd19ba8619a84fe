"""Populations and the zoo: runs counted with intervals, models found by name, cards from their files."""
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch

from spatial_circuits.claims import claims
from spatial_circuits.claims.cards import HEADER, card, read_parts, write_card, zoo
from spatial_circuits.claims.population import (
    conditional_scores,
    folder_name,
    group,
    how_often,
    order_of_learning,
    population_record,
    reading,
    reading_counts,
    reading_rows,
    readings,
    verdict_rows,
)
from spatial_circuits.cli import main
from spatial_circuits.model import collections, store
from spatial_circuits.model.collections import WORKFLOW, collected, packed_entry, packed_weights
from spatial_circuits.model.manifest import verify, write_manifest
from spatial_circuits.model.store import find_model, load, names


def exchange(side: dict, axis: dict) -> list[dict]:
    """An exchange table from shares of ten pictures by token set."""
    rows = []
    for tokens in side:
        rows.append({"kind": "opposite", "tokens": tokens, "side": 10 * side[tokens], "axis": 0, "pictures": 10})
        rows.append({"kind": "turned", "tokens": tokens, "axis": 10 * axis[tokens], "side": 0, "pictures": 10})
    return rows


WORD = {"relation": 0.9, "shape2": 0.1, "relation+shape2": 0.9, "all": 1.0}
PAIR = {"relation": 0.2, "shape2": 0.4, "relation+shape2": 0.9, "all": 1.0}


def run(folder, loose: float = 0.97, order=(1, 2, 3, 4), **text):
    """A folder with what is read of a training run: scores reach their level at the records of `order`."""
    folder.mkdir(parents=True)
    log = []
    for n in range(1, 7):
        known = [n >= k for k in order]
        both = 0.9 if all(known[:2]) else 0.05
        log.append({"step": n, "images": n * 100, "color": 0.9 * known[0] + 0.05, "shape": 0.9 * known[1] + 0.05,
                    "unique_binding": both * (1.0 if known[2] else 0.5), "loose": both * (1.0 if known[2] else 0.5) * (1.0 if known[3] else 0.5)})
    (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log))
    metrics = {m: {"mean": loose, "low": loose, "high": loose, "ceiling": 1.0, "of_ceiling": loose} for m in claims.ORDER}
    records = {"text": {"name": "rte", "options": {"seed": 1}, **text}, "recipe": {"size": "tiny", "steps": 6, "batch": 100, "seed": 0, "first_up": 0.5},
               "evaluation": {"metrics": metrics}}
    for name, record in records.items():
        (folder / f"{name}.json").write_text(json.dumps(record))
    return folder


def test_runs_are_counted_by_what_they_share(tmp_path):
    folders = [run(tmp_path / "a"), run(tmp_path / "b", 0.5, text={"options": {"seed": 2}}),
               run(tmp_path / "c" / "model", name="rte-fused", options={"seed": 1, "dose": 0.5})]
    assert [group(f) for f in folders] == ["rte", "rte", "rte-fused dose=0.5"]
    rows = verdict_rows(folders)
    assert list(rows[rows["claim"] == "C1"]["run"]) == [f"{tmp_path.name}/a", f"{tmp_path.name}/b", "c"]
    found = how_often(rows).set_index(["claim", "group"])
    assert tuple(found.loc[("C1", "rte")][["held", "runs"]]) == (1, 2)
    assert found.loc[("C1", "rte"), "low"] == pytest.approx(0.0945, abs=1e-3)       # Wilson, 1 of 2
    assert found.loc[("C1", "rte"), "high"] == pytest.approx(0.9055, abs=1e-3)


def test_what_cannot_be_compared_is_not_counted(tmp_path):
    folder = run(tmp_path / "a")
    recipe = json.loads((folder / "recipe.json").read_text())
    (folder / "recipe.json").write_text(json.dumps({**recipe, "first_up": 0.95}))
    rows = verdict_rows([folder]).set_index("claim")
    assert math.isnan(rows.loc["C2", "held"]) and group(folder) == "rte biased captions"
    assert "C2" not in set(how_often(rows.reset_index())["claim"])


def test_the_order_of_learning_is_told_run_by_run(tmp_path):
    folders = [run(tmp_path / "a"), run(tmp_path / "b", order=(1, 2, 3, 3)), run(tmp_path / "c", order=(1, 2, 3, 9))]
    found = order_of_learning(folders)
    assert list(found["held"]) == [1, 0, 0] and list(found["color"]) == [100, 100, 100]
    assert list(found["unique_binding"]) == [300, 300, 300] and found["loose"][0] == 400 and math.isinf(found["loose"][2])
    rows = conditional_scores(folders)
    assert len(rows) == 18 and rows[(rows["run"] == f"{tmp_path.name}/a") & (rows["images"] == 300)]["loose"].item() == 0.5
    record = population_record(folders)
    assert record["order"][2]["loose"] is None and record["order_counts"][0]["held"] == 1 and json.dumps(record, allow_nan=False)


def test_a_log_of_few_scores_tells_no_order(tmp_path):
    folder = run(tmp_path / "a")
    lines = (folder / "log.jsonl").read_text().splitlines()
    (folder / "log.jsonl").write_text("\n".join(lines[-2:]) + "\n")
    assert "C2" not in claims.evidence(folder) and order_of_learning([folder]).empty


@pytest.mark.parametrize("shares, where", [
    ((0.9, 0.1, 0.9), "relation word"), ((0.1, 0.5, 0.9), "second shape"), ((0.6, 0.6, 0.1), "either alone"),
    ((0.4, 0.4, 0.8), "only both"), ((0.1, 0.1, 0.4), "elsewhere")])
def test_where_a_part_is_read(shares, where):
    assert reading(*shares) == where


def test_side_and_axis_are_read_from_different_donors(tmp_path):
    assert readings(exchange(WORD, PAIR)) == {"side": "relation word", "axis": "only both"}
    deaf = {**WORD, "all": 0.3}
    assert readings(exchange(deaf, WORD)) == {"side": "nowhere", "axis": "relation word"}
    folders = [run(tmp_path / "a"), run(tmp_path / "b"), run(tmp_path / "c")]
    for folder, side in zip(folders, (WORD, WORD, PAIR)):
        (folder / "exchange.json").write_text(json.dumps({"exchange": exchange(side, WORD)}))
    found = reading_counts(reading_rows(folders)).set_index(["part", "group", "place"])
    assert tuple(found.loc[("side", "rte", "relation word")][["held", "runs"]]) == (2, 3)
    assert tuple(found.loc[("side", "rte", "only both")][["held", "runs"]]) == (1, 3)
    assert tuple(found.loc[("axis", "rte", "only both")][["held", "runs"]]) == (0, 3)


def test_nothing_measured_counts_nothing(tmp_path):
    folder = run(tmp_path / "a")
    (folder / "evaluation.json").unlink()
    (folder / "log.jsonl").unlink()
    record = population_record([folder])
    assert [record[k] for k in ("verdicts", "claims", "order", "reading_counts", "conditional")] == [[]] * 5


# --- the zoo

@pytest.fixture
def pack(tmp_path, lively, monkeypatch):
    """A workflow folder with a packed collection of one small untrained model."""
    from hashlib import sha256

    from safetensors.torch import save_file

    from spatial_circuits.model import transformer
    monkeypatch.setitem(transformer.SIZES, "atom", (2, 2, 8))
    folder = tmp_path / "workflow" / "few"
    (folder / "records").mkdir(parents=True)
    path = folder / "records" / "weights.safetensors"
    save_file({f"one|{k}": v.half().contiguous() for k, v in lively().state_dict().items()}, path)
    (folder / "records" / "sha256.json").write_text(json.dumps({path.name: sha256(path.read_bytes()).hexdigest()}))
    noise = {"path": "flow", "prediction": "sample", "top": 0.2, "high": 0.4}
    entry = {"file": "records/weights.safetensors", "text": {"name": "rte", "options": {"seed": 5}}, "precision": "no", "command": "none",
             "recipe": {"size": "atom", "steps": 2, "batch": 3, "seed": 7, "noise": noise, "first_up": 0.5},
             "log": [{"step": 2, "images": 6, "loose": 0.25}], "tables": {"exchange": {"exchange": exchange(WORD, PAIR)}}}
    (folder / "models.json").write_text(json.dumps({"one": entry}))
    for module in (collections, store):
        monkeypatch.setattr(module, "WORKFLOW", tmp_path / "workflow")
    monkeypatch.setenv("SPATIAL_CIRCUITS_CACHE", str(tmp_path / "cache"))
    return folder


def test_a_packed_model_loads_by_name(pack, lively):
    assert collected() == ["few/one"] and packed_entry("few/two") is None and packed_entry("rte") is None
    model = load("few/one")
    assert model.name == "one" and model.noise.prediction == "sample" and model.text["options"] == {"seed": 5}
    assert all(torch.equal(v, lively().state_dict()[k].half().float()) for k, v in model.transformer.state_dict().items())
    assert json.loads((model.folder / "exchange.json").read_text())["exchange"] and model.folder == find_model("few/one")
    before = model.folder.stat().st_mtime_ns
    assert load("few/one").folder.stat().st_mtime_ns == before                     # kept
    assert zoo()[-1] == ("few/one", "rte seed=5", "atom", "7", "unbiased", "6", "0.25", "relation word", "only both")


def test_a_harmed_pack_is_refused(pack):
    path = pack / "records" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-2] + b"\0\1")
    with pytest.raises(ValueError, match="weights.safetensors is damaged"):
        load("few/one")
    with pytest.raises(ValueError, match="no packed model 'few/two'; choose from few/one"):
        packed_weights("few/two")
    with pytest.raises(ValueError, match="no model 'few/two'; choose from few/one"):
        load("few/two")


def test_every_model_of_the_checkout_is_listed_with_what_it_does():
    rows = zoo()
    assert rows[0] == HEADER and len({row[0] for row in rows}) == len(rows)
    assert [row[0] for row in rows[1:]] == [*names(), *collected()]
    assert {"stacked/rte-0", "stacked/minilm-3"} <= {row[0] for row in rows}
    by_name = {row[0]: dict(zip(HEADER, row)) for row in rows[1:]}
    assert by_name["stacked/rte-fused0.5-1"]["text encoder"] == "rte-fused dose=0.5 seed=43"
    assert all(row["pictures"] == "409,600" and row["size"] in ("tiny", "nano", "micro") for row in by_name.values())
    assert by_name["stacked/rte-0"]["side read from"] == "relation word"


def test_a_stacked_model_is_that_of_the_records():
    found = packed_weights("stacked/rte-fused0.5-1")
    assert found["pos_embed.proj.weight"].shape[0] == 128
    record = json.loads((WORKFLOW.parent / "book" / "population.json").read_text())["rte-fused0.5-1"]
    entry = packed_entry("stacked/rte-fused0.5-1")
    assert entry["text"] == record["text"] and entry["tables"]["exchange"]["exchange"] == record["exchange"]


def test_a_card_says_what_the_files_say(saved, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(saved, folder)
    (folder / "recipe.json").write_text(json.dumps({**json.loads((folder / "recipe.json").read_text()), "size": "toy", "steps": 5, "batch": 4,
                                                    "seed": 3, "first_up": 0.5}))
    (folder / "exchange.json").write_text(json.dumps({"exchange": exchange(PAIR, WORD)}))
    write_manifest(folder)
    page = write_card(folder).read_text()
    for words in ("mine", "`rte`: random token embeddings", "2 layers of 2 heads, width 16", "20 drawn pictures", "no bias in the order",
                  "`none: untrained`", "Not evaluated", "side of the relation from: only both"):
        assert words in page, words
    verify(folder)
    assert {"README.md", "exchange.json"} <= set(json.loads((folder / "manifest.json").read_text()))


def test_the_cards_that_ship_are_those_of_the_files():
    """Else: for m in MODEL ...; do spatial-circuits card $m; done"""
    for name in [*names(), *(n for n in collected() if not packed_entry(n))]:
        folder = find_model(name)
        assert (folder / "README.md").read_text() == card(folder), name
        rows = re.findall(r"^\| C\d.*$", card(folder), re.M)
        assert [row for row in rows if len(re.findall(r"(?<!\\)\|", row)) != 4] == []          # a bar in a figure is no column
        verify(folder)


def test_a_model_keeps_its_name_by_a_relative_path(monkeypatch, tmp_path):
    monkeypatch.chdir(store.HERE.parent)
    assert folder_name(Path("pretrained/rte")) == folder_name(find_model("rte")) == "rte"
    monkeypatch.chdir(tmp_path.parent)
    assert folder_name(Path(tmp_path.name)) == f"{tmp_path.parent.name}/{tmp_path.name}"          # was "/" and the name


def test_all_models_that_ship_stay_small():
    folders = [store.HERE, WORKFLOW / "stacked"]
    files = [p for folder in folders for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"]
    assert sum(p.stat().st_size for p in files) < 150 * 2 ** 20
    assert len(names()) == 10 and len([n for n in collected() if packed_entry(n)]) == 29


def test_the_commands_of_many(tmp_path, capsys):
    a, b = (run(tmp_path / name, loose) for name, loose in (("a", 0.97), ("b", 0.5)))
    assert main(["population", str(a), str(b), "--json", str(tmp_path / "p.json")]) == 0
    assert json.loads((tmp_path / "p.json").read_text())["claims"][0]["runs"] == 2 and "k of n runs" in capsys.readouterr().out
    assert main(["judge", str(a), "--json", str(tmp_path / "v.json")]) == 0
    assert json.loads((tmp_path / "v.json").read_text())["claims"]["C1"]["status"] == "holds" and "C1   holds" in capsys.readouterr().out
    assert main(["judge", "nowhere"]) == 2 and "no model 'nowhere'" in capsys.readouterr().err
    assert read_parts("rte")["text"]["name"] == "rte"
