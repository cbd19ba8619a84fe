"""The command: what each part writes, one-line errors, and a run that survives `kill -9`."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import spatial_circuits
from spatial_circuits import evaluation
from spatial_circuits.cli import main
from spatial_circuits.metrics import METRICS, prompt_set
from spatial_circuits.pretrained import load
from spatial_circuits.train import read_log

TINY_RUN = ["train", "--threads", "1", "--checkpoint-every", "3", *(a for pair in (
    "size=nano", "batch=2", "cache=32", "steps=9", "warmup=2", "precision=no", "compile=false") for a in ("-p", pair))]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Commands run in an empty folder."""
    monkeypatch.chdir(tmp_path)


def test_a_run_killed_at_once_resumes_to_the_same_weights(tmp_path, monkeypatch, one_thread):
    library = Path(spatial_circuits.__file__).parents[1]
    child = subprocess.Popen([sys.executable, "-m", "spatial_circuits.cli", *TINY_RUN, "--out", "killed"],
                             env={**os.environ, "PYTHONPATH": str(library)}, stdout=subprocess.DEVNULL,
                             stderr=(tmp_path / "stderr").open("w"))
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("killed/checkpoint-*.safetensors")) and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, (tmp_path / "stderr").read_text()
    found = max(tmp_path.glob("killed/checkpoint-*.safetensors"))
    assert 3 <= int(found.stem.split("-")[1]) < 9

    monkeypatch.setattr(evaluation, "monitor", lambda *_: None)  # 132 sampled images are not what is tested
    assert main([*TINY_RUN, "--out", "killed", "--resume"]) == 0
    assert main([*TINY_RUN, "--out", "whole"]) == 0
    one, two = (load_file(next(tmp_path.glob(f"{run}/checkpoint-00000009.safetensors"))) for run in ("killed", "whole"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert [r["step"] for r in read_log("killed/log.jsonl")] == [r["step"] for r in read_log("whole/log.jsonl")] == [9]
    assert not list(tmp_path.glob("killed/*.partial"))
    model = load("killed/model")
    assert (model.folder / "command.txt").read_text().endswith("--out killed --resume\n")
    assert main([*TINY_RUN, "--out", "whole"]) == 2  # it holds a run


def test_evaluate_writes_every_figure(saved, capsys):
    assert main(["evaluate", "--model", str(saved), "--limit", "3", "--images-per-prompt", "2", "--json", "new/out.json"]) == 0
    record = json.loads(Path("new/out.json").read_text())
    assert (record["model"], record["limit"], record["images_per_prompt"], record["seed"]) == ("untrained", 3, 2, 1)
    assert list(record["metrics"]) == list(METRICS)
    for figures in record["metrics"].values():
        assert figures["low"] <= figures["mean"] <= figures["high"] <= 1 and figures["ceiling"] > 0.99
        assert figures["of_ceiling"] == pytest.approx(figures["mean"] / figures["ceiling"])
    assert "3 prompts x 2 images" in capsys.readouterr().out and os.listdir("new") == ["out.json"]


def test_evaluation_of_one_prompt_is_strict_json(saved):
    assert main(["evaluate", "--model", str(saved), "--limit", "1", "--images-per-prompt", "1", "--json", "out.json"]) == 0
    metrics = json.loads(Path("out.json").read_text(), parse_constant=lambda name: pytest.fail(name))["metrics"]
    assert all(m["low"] is m["high"] is None for m in metrics.values())  # no interval from one prompt


def test_evaluation_is_the_same_for_any_limit(saved):
    model, prompts = load(saved), prompt_set("264")[:3]
    frame = evaluation.evaluate(model, prompts, images_per_prompt=2, steps=2)
    assert frame["seed"].tolist() == [1_000_000 + i for i in range(6)]
    assert frame["prompt"].tolist() == [p for p in prompts for _ in range(2)]
    first = evaluation.evaluate(model, prompts[:1], images_per_prompt=2, steps=2)
    assert first.equals(frame[:2])


def test_sample_and_export_write_their_files(saved):
    assert main(["sample", "red square is above circle", "--model", str(saved), "--count", "3", "--out", "row.png"]) == 0
    assert Image.open("row.png").size == (3 * 128, 128)
    assert main(["export", "set", "--count", "2", "--preset", "paper"]) == 0
    assert sorted(os.listdir("set")) == ["000000.png", "000001.png", "metadata.jsonl"]


SAVED = "the saved model's folder"


@pytest.mark.parametrize("arguments, needles", [
    (["evaluate", "--model", "rtte"], ["'rtte'", "choose from"]),
    (["evaluate", "--prompts", "100"], ["'100'", "264", "96", "22"]),
    (["evaluate", "--limit", "0"], ["'0' is not a whole number of at least 1"]),
    (["evaluate", "--images-per-prompt", "x"], ["'x' is not a whole number of at least 1"]),
    (["evaluate", "--mode", "strict"], ["'strict'", "clean", "paper"]),
    (["sample", "red hexagon is above blue circle", "--model", SAVED], ["'hexagon'", "nearest known"]),
    (["sample", "red square", "--model", SAVED, "--out", "no/such/row.png"], ["no/such/row.png"]),
    (["export", "set", "--count", "-1"], ["'-1' is not a whole number of at least 1"]),
    (["export", "set", "--preset", "dirty"], ["'dirty'", "clean", "paper"]),
    (["train", "--encoder", "no-such-encoder"], ["'no-such-encoder'", "rte, rte-nopos, minilm"]),
    (["train", "--encoder-option", "bass=3"], ["'bass'", "dim, position, base"]),
    (["train", "--encoder-option", "base=low"], ["base", "'low'", "float"]),
    (["train", "--encoder-option", "base"], ["'base' is not of the form NAME=VALUE"]),
    (["train", "-p", "size=huge"], ["'huge'", "tiny, shallow, nano, micro, mini, B"]),
    (["train", "-p", "stepz=3"], ["stepz", "steps"]),
    (["train", "-p", "steps=many"], ["steps", "'many'", "int"]),
    (["train", "-p", "noise.high=2"], ["noise.high is 2", "0..1"]),
    (["train", "-p", "lr=-0.1"], ["lr is -0.1", "at least 0"]),
    (["train", "--recipe", "slow"], ["'slow'", "fast", "paper"]),
    (["train", "--vae", "no-such-vae"], ["no-such-vae"]),
    (["train", "--threads", "0"], ["'0' is not a whole number of at least 1"]),
    (["dance"], ["'dance'", "train", "evaluate"]),
])
def test_bad_input_is_one_line_exit_2_and_writes_nothing(arguments, needles, saved, capsys, tmp_path):
    try:
        code = main([str(saved) if a == SAVED else a for a in arguments])
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("spatial-circuits: ")
    except SystemExit as error:  # argparse adds its usage above the line
        code, lines = error.code, capsys.readouterr().err.splitlines()[-1:]
    assert code == 2 and all(needle in lines[0] for needle in needles), lines
    assert list(tmp_path.iterdir()) == []


def test_analyses_write_their_tables(capsys):
    assert main(["screen", "--json", "screen.json"]) == 0
    assert len({h["name"] for h in json.loads(Path("screen.json").read_text())["heads"]}) == 24
    assert main(["ablate", "--limit", "2", "--heads", "L1H3", "--kind", "zero", "--when", "0", "1", "--json", "ablation.json"]) == 0
    record = json.loads(Path("ablation.json").read_text())
    assert record["model"] == "rte" and record["command"].startswith("spatial-circuits ablate --limit 2")
    assert main(["synopsis", "--limit", "2", "--images-per-prompt", "1", "--step", "0", "--json", "synopsis.json"]) == 0
    assert json.loads(Path("synopsis.json").read_text())["step"] == 0


@pytest.mark.parametrize("line, message", [
    ("ablate --heads L9H0", "head L9H0 is out of range"), ("ablate --role verb", "role 'verb' is unknown"),
    ("ablate --when 99", "step 99 is out of range"), ("synopsis --step last", "step 'last' is out of range"),
    ("circuit --limit 2", "2 prompts are too few"), ("screen --model nowhere", "no model 'nowhere'"),
])
def test_analyses_refuse_in_one_line(line, message, capsys):
    assert main([*line.split(), "--json", "out.json"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not Path("out.json").exists()
