"""Chunks: with them and without the same numbers, each part computed once, also after a kill, and only of one run."""
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_pixart
import torch

from spatial_circuits.analyses import chunks as module
from spatial_circuits.analyses.chunks import Chunks, model_identity
from spatial_circuits.analyses.edit_files import EditSpec, under_edits
from spatial_circuits.analyses.heads import named_heads
from spatial_circuits.analyses.locate import by_colors
from spatial_circuits.analyses.placed import placed_ablation, placed_synopsis
from spatial_circuits.cli import main
from spatial_circuits.model.store import load

PROMPTS = ["a cat on the left of a dog", "a dog is above a red cat", "a cat near a dog"]
SETS = named_heads([(0, 0), (1, 1)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_pixart.saved(tmp_path_factory, size=16, layers=2)


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


@pytest.fixture
def halves():
    return tiny_pixart.halves(8)


@pytest.fixture
def drawn(monkeypatch):
    """Numbers of pictures, a drawing each."""
    rows = []
    from spatial_circuits.model.stock import StockModel
    plain = StockModel.latents
    monkeypatch.setattr(StockModel, "latents", lambda self, texts, seeds, **o: rows.append(len(texts)) or plain(
        self, texts, seeds, **o))
    return rows


def analyse(name, model, locate, chunks=None, seed=3, **options):
    options = {"chunk": 2, "steps": 2, "per_prompt": 2, "seed": seed, "chunks": chunks, **options}
    if name == "synopsis":
        return placed_synopsis(model, PROMPTS, locate, **options)
    return placed_ablation(model, PROMPTS, SETS, locate, **options)


@pytest.mark.parametrize(("name", "drawings"), [("synopsis", 6), ("ablate", 9)])
def test_chunks_change_nothing_and_are_made_once(name, drawings, model, halves, drawn, tmp_path):
    wanted = analyse(name, model, halves)
    assert len(drawn) == drawings
    for new in (drawings, 0):
        drawn.clear()
        pd.testing.assert_frame_equal(analyse(name, model, halves, Chunks(tmp_path, locator="halves")), wanted)
        assert len(drawn) == new
    parts = sorted(tmp_path.glob("*.safetensors"))
    assert len(parts) == (3 if name == "synopsis" else 9)
    parts[1].unlink()
    drawn.clear()
    pd.testing.assert_frame_equal(analyse(name, model, halves, Chunks(tmp_path, locator="halves")), wanted)
    assert len(drawn) == drawings // len(parts)


def test_a_picture_without_both_things_counts_after_a_resume_as_before(model, tmp_path):
    def locate(images, nouns):
        found = torch.ones(len(images), 2, *images.shape[-2:], dtype=torch.bool)
        found[::2] = False
        return found
    frames = [analyse("synopsis", model, locate, chunks) for chunks in (None, Chunks(tmp_path, locator="odd"), Chunks(tmp_path, locator="odd"))]
    assert (frames[0]["images"] == 3).all() and frames[0]["p"].between(0, 1).all()
    for frame in frames[1:]:
        pd.testing.assert_frame_equal(frame, frames[0])


@pytest.mark.parametrize("name", ["synopsis", "ablate"])
def test_another_run_is_refused_by_what_differs(name, model, halves, tmp_path, monkeypatch):
    analyse(name, model, halves, Chunks(tmp_path, locator="halves"))
    other = tiny_pixart.pipeline(scheduler="euler", size=16, layers=2, seed=1)
    other.save_pretrained(tmp_path.with_name("other"))
    silent = under_edits(model, [EditSpec("zero", ["L0H0"])])
    monkeypatch.setattr(type(model), "latents", None)                   # nothing is drawn
    for made, options, message in (
            (model, {"seed": 4}, "seed was 3 and is 4"), (model, {"steps": 3}, 'options was {"steps": 2}'),
            (model, {"chunk": 3}, "chunk was 2 and is 3"), (silent, {}, r"edits was \[\] and is"),
            (load(tmp_path.with_name("other")), {}, "transformer was")):
        with pytest.raises(ValueError, match=f"chunks of another run: {message}"):
            analyse(name, made, halves, Chunks(tmp_path, locator="halves"), **options)
    with pytest.raises(ValueError, match='locator was "halves" and is "thirds"'):
        analyse(name, model, halves, Chunks(tmp_path, locator="thirds"))
    with pytest.raises(ValueError, match="analysis was"):
        analyse({"synopsis": "ablate", "ablate": "synopsis"}[name], model, halves, Chunks(tmp_path, locator="halves"))


def test_what_is_not_ours_or_damaged_is_refused_by_name(model, halves, tmp_path):
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"strange holds 'thesis.txt' and no run.json"):
        analyse("synopsis", model, halves, Chunks(strange))
    assert [p.name for p in strange.iterdir()] == ["thesis.txt"]
    (strange / "thesis.txt").rename(tmp_path / "run.json.0123abcd.partial")       # left by a kill
    good = Chunks(tmp_path / "good")
    analyse("synopsis", model, halves, good)
    part = next((tmp_path / "good").glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged .* remove it, and it is computed anew"):
        analyse("synopsis", model, halves, good)
    (tmp_path / "good" / "run.json").write_text("{")
    with pytest.raises(ValueError, match="run.json is damaged"):
        analyse("synopsis", model, halves, good)


def test_the_identity_tells_precision_and_scheduler(model, folder):
    own = model_identity(model)
    assert own == model_identity(load(folder)) and json.loads(json.dumps(own, default=str))
    half = model_identity(load(folder, dtype="bfloat16"))
    assert {k for k in own if own[k] != half[k]} == {"transformer", "vae", "text encoder", "dtype"}


def test_a_scheduler_with_an_infinite_option_keeps_chunks(halves, drawn, tmp_path):
    """DPM-Solver clips at -inf, which JSON cannot say."""
    tiny_pixart.pipeline(scheduler="dpm", size=16, layers=2).save_pretrained(tmp_path / "pipe")
    first = analyse("synopsis", load(tmp_path / "pipe"), halves, Chunks(tmp_path / "kept"))
    drawn.clear()
    pd.testing.assert_frame_equal(analyse("synopsis", load(tmp_path / "pipe"), halves, Chunks(tmp_path / "kept")), first)
    assert drawn == []                                                  # all is read


@pytest.mark.parametrize("name", ["synopsis", "ablate"])
def test_a_killed_command_goes_on_where_it_was(name, folder, drawn, tmp_path):
    prompts, mask, kept = tmp_path / "prompts.txt", tmp_path / "mask.npy", tmp_path / "chunks"
    prompts.write_text("\n".join(PROMPTS))
    masks = np.zeros((2, 8, 8), bool)
    masks[0, :, :2] = masks[1, :, 4:] = True
    np.save(mask, masks)
    line = [name, "--model", str(folder), "--prompts-file", str(prompts), "--images-per-prompt", "8",
            "--locator", f"mask:{mask}", "--chunks", str(kept), "--json", str(tmp_path / "out.json")]
    line += ["--heads", "L0H0", "L1H1"] if name == "ablate" else []
    process = subprocess.Popen([sys.executable, "-m", "spatial_circuits.cli", *line], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    ends = time.time() + 90
    while len(list(kept.glob("*.safetensors"))) < 2 and process.poll() is None and time.time() < ends:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "out.json").exists()
    finished = len(list(kept.glob("*.safetensors")))
    whole = 6 if name == "synopsis" else 18
    assert 2 <= finished < whole
    assert main(line) == 0
    assert len(drawn) == (whole - finished) * (2 if name == "synopsis" else 1)
    record = json.loads((tmp_path / "out.json").read_text())
    again = [x for x in line if x not in ("--chunks", str(kept))]
    again[again.index("--json") + 1] = str(tmp_path / "plain.json")
    assert main(again) == 0
    plain = json.loads((tmp_path / "plain.json").read_text())
    assert {k: v for k, v in record.items() if k != "command"} == {k: v for k, v in plain.items() if k != "command"}
    masks[:, 0] = False
    np.save(mask, masks)
    assert main(line) == 2                                               # another mask under the same name


def test_our_models_need_a_locator_for_chunks(tmp_path, capsys):
    assert main(["synopsis", "--limit", "1", "--chunks", str(tmp_path)]) == 2
    assert "--chunks is for analyses with a locator; add --locator detector" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no colour is given"):
        analyse("synopsis", load("rte"), by_colors({}), Chunks(tmp_path / "none", locator="none"))
    assert not (tmp_path / "none").exists()


def lines(folder, mask, prompts, kept, out):
    """Commands that processes can share, each with its folders."""
    located = ["--locator", f"mask:{mask}"]
    own = {"synopsis": [*located, "--images-per-prompt", "2"], "ablate": [*located, "--heads", "L0H0", "L1H1"], "patch": ["--every", "7"],
           "inject": [*located, "--heads", "L0H1"], "screen": []}
    return {name: [name, "--model", str(folder), "--prompts-file", str(prompts), *rest, "--chunks", str(kept / name),
                   "--json", str(out / f"{name}.json")] for name, rest in own.items()}


SHARED = """import json, sys
from spatial_circuits.analyses.chunks import process
from spatial_circuits.analyses import chunks
from spatial_circuits.cli import main
made = []
plain = chunks.save_file
chunks.save_file = lambda tensors, path: made.append(path) or plain(tensors, path)
status = [main(line) for line in json.loads(open(sys.argv[1]).read())]
alone = main(["patch", "--model", "rte"])
open(f"{sys.argv[1]}.{process()[0]}", "w").write(json.dumps([process(), status, alone, len(made)]))
"""


def test_two_processes_of_accelerate_share_the_chunks_and_make_the_table_of_one(folder, tmp_path):
    prompts, mask, script = tmp_path / "prompts.txt", tmp_path / "mask.npy", tmp_path / "script.py"
    prompts.write_text("\n".join([*PROMPTS[:2], "a cat is below a dog", "a red dog on the right of a cat"]))
    masks = np.zeros((2, 8, 8), bool)
    masks[0, :, :2] = masks[1, :, 4:] = True
    np.save(mask, masks)
    script.write_text(SHARED)
    two, one = (lines(folder, mask, prompts, tmp_path / name, tmp_path / name) for name in ("two", "one"))
    (tmp_path / "lines.json").write_text(json.dumps(list(two.values())))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", str(script), str(tmp_path / "lines.json")]
    done = subprocess.run(launch, env=surroundings(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [json.loads((tmp_path / f"lines.json.{k}").read_text()) for k in (0, 1)]
    assert [s[0] for s in said] == [[0, 2], [1, 2]] and all(s[1] == [0] * 5 and s[2] == 2 for s in said)
    assert "2 processes were started, which share an analysis by its chunks" in done.stderr
    parts = [len(list((tmp_path / "two" / name).glob("*.safetensors"))) for name in two]
    assert sum(s[3] for s in said) == sum(parts) and min(s[3] for s in said) > 0      # each part is made once
    assert done.stdout.count("denoising") == 1                            # the first process alone speaks
    for name, line in one.items():
        assert main(line) == 0
        records = [json.loads((tmp_path / n / f"{name}.json").read_text()) for n in ("one", "two")]
        assert records[0].pop("command") != records[1].pop("command") and records[0] == records[1], name
        pieces = [sorted(p.name for p in (tmp_path / n / name).glob("*.safetensors")) for n in ("one", "two")]
        assert pieces[0] == pieces[1] != []
    assert main(two["patch"]) == 0                                       # one process goes on from what two made


DYING = """import os, signal, sys, time
from pathlib import Path
from spatial_circuits.analyses import chunks
from spatial_circuits.cli import main
mode, kept, plain = sys.argv[1], Path(sys.argv[2]), chunks.save_file
def save(tensors, path):
    if mode == "hang":
        time.sleep(600)
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "hang" or mode == "die" and chunks.process()[0] == 1:
    chunks.save_file = save
while mode == "die" and chunks.process()[0] == 0 and not list(kept.glob("*.lock")):
    time.sleep(0.05)
sys.exit(main(sys.argv[3:]))
"""


def surroundings(**more):
    path = os.pathsep.join(p for p in sys.path if p)
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", **more}


def wait_for(true, process):
    ends = time.time() + 120
    while not true() and process.poll() is None and time.time() < ends:
        time.sleep(0.02)
    assert true()


@pytest.fixture
def patching(folder, tmp_path):
    """A command of six parts, its folder of chunks, and what it finds alone."""
    (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS[:2], "a cat is below a dog"]))
    line = lines(folder, "", tmp_path / "prompts.txt", tmp_path / "kept", tmp_path / "out")["patch"]
    alone = lines(folder, "", tmp_path / "prompts.txt", tmp_path / "alone", tmp_path / "alone")["patch"]
    assert main(alone) == 0
    return line, tmp_path / "kept" / "patch", json.loads((tmp_path / "alone" / "patch.json").read_text())


def same(line, wanted):
    found = json.loads(Path(line[-1]).read_text())
    return {**found, "command": ""} == {**wanted, "command": ""}


@pytest.mark.parametrize("dead", [0, 1])
def test_what_a_killed_process_leaves_the_other_does(dead, patching, tmp_path):
    line, kept, wanted = patching
    (tmp_path / "dying.py").write_text(DYING)
    started = {}
    for number, mode in ((dead, "hang"), (1 - dead, "live")):
        started[number] = subprocess.Popen([sys.executable, str(tmp_path / "dying.py"), mode, str(kept), *line], text=True, stdout=subprocess.DEVNULL,
                                           stderr=subprocess.PIPE, env=surroundings(RANK=str(number), WORLD_SIZE="2"))
        if number == dead:
            wait_for(lambda: list(kept.glob("*.lock")), started[dead])
    wait_for(lambda: len(list(kept.glob("*.safetensors"))) == 5, started[1 - dead])
    time.sleep(0.5)
    assert started[1 - dead].poll() is None and not os.path.exists(line[-1])     # it waits
    started[dead].send_signal(signal.SIGKILL)
    said = started[1 - dead].communicate(timeout=120)[1]
    assert started[dead].wait() == -signal.SIGKILL and started[1 - dead].returncode == 0, said
    part = "000000-0000" if dead == 0 else "000001-0001"
    assert f"process {dead} of 2, pid {started[dead].pid} of " in said and f" is gone and left part {part} to others" in said
    assert same(line, wanted) and not list(kept.glob("*.lock"))


def test_accelerate_ends_all_when_one_dies_and_the_same_command_goes_on(patching, tmp_path):
    line, kept, wanted = patching
    (tmp_path / "dying.py").write_text(DYING)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", str(tmp_path / "dying.py")]
    first = subprocess.run([*launch, "die", str(kept), *line], env=surroundings(), capture_output=True, text=True, timeout=300)
    assert first.returncode != 0 and "Signal 9 (SIGKILL)" in first.stderr
    again = subprocess.run([*launch, "live", str(kept), *line], env=surroundings(), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr[-3000:]
    assert " is gone and left part" in first.stderr + again.stderr        # rank 0 has it before it is ended, or the next run
    assert same(line, wanted) and not list(kept.glob("*.lock"))


def two():
    return {"x": torch.tensor([2.0])}


def test_a_process_that_hangs_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.lock").write_text("process 1 of 2, pid 7 of far")
    told, file = [], os.open(tmp_path / "a.lock", os.O_RDONLY)
    fcntl.flock(file, fcntl.LOCK_EX)
    monkeypatch.setattr(module, "_PATIENCE", 0.3)
    monkeypatch.setattr(module.warnings, "warn", lambda text, **_: told.append(text) or len(told) > 1 or os.close(file))
    made = list(Chunks(tmp_path).parts([("a", two), ("b", two)]))
    assert len(made) == 2 and made[0]["x"] == 2 and [text.split(":")[0] for text in told] == [
        "no part came for 0.0 minutes; at a is process 1 of 2, pid 7 of far",
        "process 1 of 2, pid 7 of far is gone and left part a to others"]


def test_without_locks_one_process_works_and_several_are_refused(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr(module.fcntl, "flock", flock)
    assert len(list(Chunks(tmp_path).parts([("a", two)]))) == 1
    monkeypatch.setattr(module, "process", lambda: (0, 2))
    with pytest.raises(OSError, match="the file system has no locks, by which processes share chunks"):
        list(Chunks(tmp_path).parts([("b", two)]))


def test_several_processes_need_a_folder(model, halves, monkeypatch):
    monkeypatch.setattr("spatial_circuits.analyses.chunks.process", lambda: (1, 2))
    monkeypatch.setattr(type(model), "latents", None)
    with pytest.raises(ValueError, match="2 processes share an analysis by its chunks; name a folder"):
        analyse("synopsis", model, halves)
