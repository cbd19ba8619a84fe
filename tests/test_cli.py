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
from spatial_circuits.analyses import evaluation
from spatial_circuits.cli import main
from spatial_circuits.data.metrics import METRICS, prompt_set
from spatial_circuits.model import store
from spatial_circuits.model.store import load
from spatial_circuits.parameters import parse_parameters
from spatial_circuits.text import encoders
from spatial_circuits.training import monitor
from spatial_circuits.training.log import read_log

SMALL = ("size=nano", "batch=2", "cache=32", "steps=9", "warmup=2", "precision=no", "compile=false")
TINY_RUN = ["train", "--threads", "1", "--checkpoint-every", "3", "--device", "cpu",
            *(a for pair in SMALL for a in ("-p", pair))]
SAMPLED = ("evaluate", "synopsis", "ablate", "circuit", "tokens", "arithmetic", "robustness", "exchange", "edges", "fused")
MEASURES = (*SAMPLED, "screen", "factors")


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

    monkeypatch.setattr(monitor, "monitor", lambda *_: None)  # 132 sampled images are not what is tested
    assert main([*TINY_RUN, "--out", "killed", "--resume"]) == 0
    assert main([*TINY_RUN, "--out", "whole", "--keep-checkpoints"]) == 0
    assert [len(list(tmp_path.glob(f"{run}/checkpoint-*"))) for run in ("killed", "whole")] == [1, 3]
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
    assert (record["model"], record["prompts"], record["images_per_prompt"], record["seed"]) == ("untrained", 3, 2, 1)
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


HUGE = str(10 ** 30)


@pytest.mark.parametrize("arguments, needles", [
    (["evaluate", "--model", "rtte"], ["'rtte'", "choose from"]),
    (["evaluate", "--prompts", "100"], ["'100'", "264", "96", "22"]),
    (["evaluate", "--limit", "0"], ["'--limit'", "greater than or equal to 1"]),
    (["evaluate", "--images-per-prompt", "x"], ["'--images-per-prompt'", "valid integer"]),
    (["evaluate", "--mode", "strict"], ["'strict'", "clean", "paper"]),
    (["sample", "red hexagon is above blue circle", "--model", SAVED], ["'hexagon'", "nearest known"]),
    (["sample", "red square", "--model", SAVED, "--out", "row.gif"], ["row.gif", ".png"]),
    (["sample", ""], ["the prompt is empty"]), (["sample", " "], ["the prompt is empty"]),
    (["sample", "red square", "--device", "cuda:99"], ["'cuda:99'", "auto, cpu"]),
    (["sample", "red square", "--device", "tpu"], ["'tpu'", "auto, cpu"]),
    (["sample", "red square", "--seed", HUGE], ["'--seed'", "2147483647"]),
    (["train-vae", "--seed", HUGE], ["'--seed'", "2147483647"]),
    (["export", "set", "--seed", HUGE], ["'--seed'", "2147483647"]),
    *(([name, "--seed", HUGE], ["'--seed'", "2147483647"]) for name in SAMPLED),
    (["train", "-p", f"seed={HUGE}"], ["parameter seed is 1000", "64 bits"]),
    (["train", "-p", "lr=Infinity"], ["parameter lr is Infinity", "finite"]),
    (["train", "-p", "noise.shift=NaN"], ["parameter noise.shift is NaN", "finite"]),
    (["train", "-p", "lr=1e999"], ["parameter lr is 1e999", "finite"]),
    (["train", "--encoder-option", "base=NaN"], ["parameter base is NaN", "finite"]),
    (["train", "-p", "lr=1", "-p", "lr=2"], ["parameter lr is given twice"]),
    (["export", "set", "--count", "-1"], ["'--count'", "greater than or equal to 1"]),
    (["export", "set", "--preset", "dirty"], ["'dirty'", "clean", "paper"]),
    (["train", "--encoder", "no-such-encoder"], ["'no-such-encoder'", "rte, rte-nopos, rte-fused, minilm"]),
    (["train", "--encoder-option", "bass=3"], ["'bass'", "dim, position, base"]),
    (["train", "--encoder-option", "base=low"], ["base", "'low'", "float"]),
    (["train", "--encoder-option", "base"], ["'base' is not of the form NAME=VALUE"]),
    (["train", "-p", "size=huge"], ["'huge'", "tiny, shallow, toy, nano, micro, mini, B"]),
    (["train", "-p", "stepz=3"], ["stepz", "steps"]),
    (["train", "-p", "steps=many"], ["steps", "'many'", "int"]),
    (["train", "-p", "noise.high=2"], ["noise.high is 2", "0..1"]),
    (["train", "-p", "lr=-0.1"], ["lr is -0.1", "at least 0"]),
    (["train", "--recipe", "slow"], ["'slow'", "biased", "paper"]),
    (["train", "--vae", "no-such-vae"], ["no-such-vae"]),
    (["train", "--threads", "0"], ["'--threads'", "greater than or equal to 1"]),
    (["heatmap", "--prompt", "", "--word", "above"], ["the prompt is empty"]),
    (["train", "-p", "noise=7"], ["noise", "noise.high", "widen"]),
    (["sample", "red square", "--model", "stacked/nope"], ["no model 'stacked/nope'", "stacked/minilm-3"]),
    (["population", "rte", "nano", "rte"], ["rte", "named twice"]),
    (["dance"], ["'dance'", "train-vae", "run-book"]), (["evaluat"], ["'evaluat'", "'evaluate'"]),
])
def test_bad_input_is_one_line_exit_2_and_writes_nothing(arguments, needles, saved, capsys, tmp_path):
    code = main([str(saved) if a == SAVED else a for a in arguments])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("spatial-circuits: ")
    assert code == 2 and all(needle in lines[0] for needle in needles), lines
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def no_work(monkeypatch):
    """Loading or training anything fails the test."""
    from spatial_circuits.training import loop, vae
    for module, name in ((store, "load"), (loop, "train"), (vae, "train_vae")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("the work was begun"))


@pytest.mark.parametrize("line, needle", [
    *((f"{name} --json pics", "pics") for name in MEASURES),
    ("evaluate --json notes.txt/out.json", "notes.txt"), ("screen --json notes.txt/out.json", "notes.txt"),
    ("sample word --out pics", "pics"), ("sample word --out notes.txt/row.png", "notes.txt"),
    ("train-vae --out .", "."), ("train-vae --out ..", ".."), ("train-vae --out pics", "thesis.txt"),
    ("train-vae --out notes.txt", "notes.txt"), ("train --out runs/mine", "thesis.txt"),
])
def test_outputs_are_refused_before_any_work(line, needle, no_work, capsys):
    for file in ("notes.txt", "pics/thesis.txt", "runs/mine/model/thesis.txt"):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text("mine")
    before = sorted(Path().rglob("*"))
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert needle in error and error.count("\n") == 1
    assert sorted(Path().rglob("*")) == before and Path("pics/thesis.txt").read_text() == "mine"


def test_outputs_go_to_folders_that_are_made(saved):
    line = ["--model", str(saved), "--device", "cpu"]
    assert main(["sample", "red square", *line, "--count", "1", "--out", "new/row.PNG"]) == 0
    assert Image.open("new/row.PNG").size == (128, 128)
    assert os.listdir("new") == ["row.PNG"]  # no partial file


def test_every_command_that_runs_a_model_takes_a_device(monkeypatch, capsys):
    asked = []

    class Unmoved:
        def to(self, device):
            asked.append(device)
            raise ValueError("far enough")
    monkeypatch.setattr(store, "load", lambda name: Unmoved())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in (*MEASURES, "sample"):
        words = ["red square"] if name == "sample" else []
        assert main([name, *words]) == main([name, *words, "--device", "cuda:1"]) == 2
        assert main([name, *words, "--device", "cpu"]) == 2
        assert asked == ["cuda", "cuda:1", "cpu"], name
        asked.clear()
    for name in ("train", "train-vae"):
        assert main([name, "--device", "cuda:2"]) == 2
        assert "choose from auto, cpu, cuda, cuda:0, cuda:1" in capsys.readouterr().err


def test_the_command_starts_at_once_and_without_pytorch():
    code = """import sys, time
from spatial_circuits.cli import main
main(sys.argv[1:])
print(*sys.modules)
print(time.process_time())"""
    path = {**os.environ, "PYTHONPATH": str(Path(spatial_circuits.__file__).parents[1])}
    for words in (["--help"], ["train", "--help"], ["run-book", "--help"], ["--version"]):
        shown = subprocess.run([sys.executable, "-c", code, *words], check=True, env=path,
                               capture_output=True, text=True).stdout
        *shown, imported, seconds = shown.splitlines()
        assert float(seconds) < 1
        assert not set(imported.split()) & {"torch", "diffusers", "pandas", "papermill", "jupytext", "nbformat"}
    assert shown[0] == f"spatial-circuits {spatial_circuits.__version__}"


def test_parameters_are_plain_values():
    assert parse_parameters(["noise.high=0.3"]) == {"noise.high": 0.3}
    assert parse_parameters(["seed=3", "rate=1e-5", "model=rte", "flag=true", "path=a=b"]) == {
        "seed": 3, "rate": 1e-5, "model": "rte", "flag": True, "path": "a=b"}
    with pytest.raises(ValueError, match="'seed' is not of the form NAME=VALUE"):
        parse_parameters(["seed"])


def test_where_an_error_comes_from_can_be_asked(monkeypatch, capsys):
    def broken(name):
        return max([])
    monkeypatch.setattr(store, "load", broken)
    assert main(["screen"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["--debug", "screen"]) == 2
    assert "in broken" in capsys.readouterr().err
    monkeypatch.setenv("SPATIAL_CIRCUITS_DEBUG", "1")
    assert main(["screen"]) == 2
    assert "in broken" in capsys.readouterr().err
    monkeypatch.setattr(store, "load", lambda name: {}["missing"])
    with pytest.raises(KeyError, match="missing"):
        main(["screen"])


@pytest.mark.parametrize("sent, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_is_one_line_and_leaves_no_file(sent, status, saved, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: os.kill(os.getpid(), sent))
    line = ["evaluate", "--model", str(saved), "--json", "new/out.json"]
    if sent == signal.SIGINT:
        assert main(line) == status
    else:
        with pytest.raises(SystemExit, match=str(status)):
            main(line)
    assert capsys.readouterr().err in ("spatial-circuits: interrupted\n", "spatial-circuits: terminated\n")
    assert not Path("new").exists() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_folder_of_an_encoder_is_kept_by_its_full_path(monkeypatch, no_work):
    Path("my/t5").mkdir(parents=True)
    asked = []

    def stop(kind, /, **options):
        asked.append((kind, options))
        raise ValueError("far enough")
    monkeypatch.setattr(encoders, "encoder", stop)
    assert main(["train", "--encoder", "my/t5"]) == 2
    assert asked == [("t5", {"name": str(Path("my/t5").resolve())})]


def test_without_a_command_it_says_how_to_be_used(capsys):
    assert main([]) == 0
    told = capsys.readouterr().out.strip().splitlines()
    assert told[0].startswith("Usage:") and any(line.strip().startswith("heatmap ") for line in told)


def test_the_shipped_models_are_listed(capsys):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines][:len(store.names())] == store.names()
    assert lines[0].split()[:4] == ["micro", "rte", "micro", "0"] and "409,600" in lines[0]


def test_analyses_write_their_tables(saved):
    line = ["--model", str(saved), "--device", "cpu"]
    assert main(["screen", *line, "--json", "screen.json"]) == 0
    heads = json.loads(Path("screen.json").read_text())["heads"]
    assert {h["name"] for h in heads} == {"L0H0", "L0H1", "L1H0", "L1H1"}
    assert main(["ablate", *line, "--limit", "2", "--heads", "L1H1", "L0H0", "--kind", "zero",
                 "--when", "0", "1", "--json", "ablation.json"]) == 0
    record = json.loads(Path("ablation.json").read_text())
    assert record["model"] == "untrained" and record["when"] == [0, 1]
    assert {row["condition"] for row in record["effects"]} == {"intact", "L1H1", "L0H0"}
    assert "--heads L1H1 L0H0 --kind zero --when 0 1" in record["command"]
    assert main(["synopsis", "--limit", "2", "--images-per-prompt", "1", "--step", "0",
                 "--json", "synopsis.json"]) == 0  # it needs pictures that are right
    assert json.loads(Path("synopsis.json").read_text())["step"] == 0
    assert main(["exchange", *line, "--limit", "1", "--json", "exchange.json"]) == 0
    record = json.loads(Path("exchange.json").read_text())
    assert len(record["exchange"]) == 1 + 3 * 22 and all(row["pictures"] == 1 for row in record["exchange"])
    assert {"share", "low", "high", "control", "p"} < set(record["table"][0]) and {r["part"] for r in record["table"]} == {"axis", "side", "side given axis"}


@pytest.mark.parametrize("line, message", [
    ("ablate --heads L9H0", "head L9H0 is out of range"), ("ablate --role verb", "role 'verb' is unknown"),
    ("ablate --when 99", "step 99 is out of range"), ("synopsis --step last", "step 'last' is out of range"),
    ("circuit --limit 2", "2 prompts are too few"), ("edges --limit 7", "7 prompts are too few"), ("edges --readers L1", "head 'L1' is not of the form"),
    ("fused --limit 3", "3 prompts are too few"), ("fused --tokens shape2 verb", "role 'verb' is unknown"),
    ("edges --relation L0H0 L9H9", "head L9H9 is out of range"), ("edges --readers L2H1 L9H8", "head L9H8 is out of range"),
    ("ablate --role relation --kind zero", "role 'relation' is hidden and no output ablated; leave out kind 'zero'"),
    ("ablate --kind mean --locator detector", "kind 'mean' cannot be used here; choose from zero, the only one with a locator"),
    ("screen --prompts 22 --prompts-file Makefile", "leave one of them out"), ("screen --prompts-file latin.txt", "latin.txt is no text in UTF-8"),
    ("fused --tokens verb", "role 'verb' is unknown"), ("screen --model nowhere", "no model 'nowhere'"),
])
def test_analyses_refuse_in_one_line(line, message, capsys):
    Path("latin.txt").write_bytes("café".encode("latin-1"))
    assert main([*line.split(), "--json", "out.json"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not Path("out.json").exists()
