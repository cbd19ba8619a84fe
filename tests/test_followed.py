"""Runs that are followed: a fork has its parent's weights and another run's data; what tokens carry along a run."""
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spatial_circuits.training.loop import train
from spatial_circuits.training.recipe import Recipe

TOP = Path(__file__).resolve().parents[1]
SMALL = Recipe(size="atom", batch=4, cache=32, steps=8, warmup=2, precision="no", compile=False)
RTE = {"name": "rte", "options": {"seed": 42}}


@pytest.fixture
def follow(monkeypatch):
    monkeypatch.syspath_prepend(TOP / "workflow" / "followed")
    sys.modules.pop("follow", None)
    import follow
    monkeypatch.setattr(follow, "monitor", lambda *_: None)     # 132 sampled pictures are not what is tested
    monkeypatch.setattr(follow, "EVERY", 2)
    return follow


@pytest.fixture
def parent(tmp_path, rte, vae, atom, one_thread):
    train(SMALL, rte, vae, tmp_path / "run-0", progress=False, checkpoint_every=2, keep=True, text=RTE)
    return tmp_path / "run-0"


def test_a_fork_starts_where_it_left_and_then_sees_other_data(follow, parent):
    follow.fork(parent, 4, 0, 6)
    follow.fork(parent, 4, 1, 6)
    same, other = parent.with_name("run-0-4-0"), parent.with_name("run-0-4-1")
    assert follow.recipe_of(other).seed == 1 and json.loads((other / "parent.json").read_text()) == {
        "run": "run-0", "step": 4, "images": 16}
    at = {(folder, step): load_file(folder / f"checkpoint-0000000{step}.safetensors")
          for folder in (parent, same, other) for step in (4, 6)}

    def equal(one, two):
        return all(torch.equal(at[one][k], at[two][k]) for k in at[one])
    assert equal((other, 4), (parent, 4)) and equal((same, 6), (parent, 6))
    assert not equal((other, 6), (parent, 6))
    before = (other / "checkpoint-00000006.safetensors").stat().st_mtime
    follow.fork(parent, 4, 1, 8)                                # goes on where it was
    assert (other / "checkpoint-00000006.safetensors").stat().st_mtime == before
    assert (other / "checkpoint-00000008.safetensors").exists()


def test_a_fork_of_a_step_without_checkpoint_is_refused(follow, parent):
    with pytest.raises(SystemExit, match="run-0 holds no checkpoint of step 5"):
        follow.fork(parent, 5, 1, 8)
    assert not parent.with_name("run-0-5-1").exists()


def test_what_tokens_carry_is_measured_at_every_checkpoint(follow, parent):
    found = follow.measure(parent)
    assert sorted({row["images"] for row in found["shares"]}) == [8, 16, 24, 32]
    assert found["text"] == RTE and found["parent"] is None and found["seed"] == 0


def test_the_record_of_the_book_holds_runs_and_their_forks():
    record = json.loads((TOP / "book" / "followed.json").read_text())
    for run in record.values():
        parent = run["parent"]
        assert parent is None or record[parent["run"]]["parent"] is None
        if parent:
            seen = [{r["images"]: r["moved"] for r in each["shares"] if r["tokens"] == "relation"}
                    for each in (run, record[parent["run"]])]
            assert min(seen[0]) == parent["images"] and seen[0][parent["images"]] == seen[1][parent["images"]]


def test_the_record_holds_a_run_of_each_encoder_at_each_dose():
    """By encoder with one seed, so that scenes, noise and first weights are the same at every dose."""
    record = json.loads((TOP / "book" / "followed.json").read_text())
    dosed = [r for r in record.values() if r["text"]["name"] == "t5-untrained"]
    found = {(r["text"]["options"]["bias"], r["text"]["options"]["seed"], r["seed"]) for r in dosed}
    assert len(dosed) == 9 and found == {(b, drawn, drawn + 2) for b in (0.1, 0.5, 1.0) for drawn in (0, 1, 2)}
    last = {max(row["images"] for row in r["shares"]) for r in dosed}
    assert min(last) == 1280 * 128
    stop = [[row for row in r["shares"] if row["images"] == min(last)] for r in dosed]
    assert all(len(rows) == len(stop[0]) for rows in stop)
