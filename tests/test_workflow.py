"""The study as a graph: spelled out, and run for real, locally and on Slurm, through kills."""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors.torch import load_file

import spatial_circuits
from spatial_circuits.claims.claims import FILES
from spatial_circuits.parameters import parse_parameters
from spatial_circuits.text.encoders import encoder
from spatial_circuits.training.log import read_log
from spatial_circuits.training.recipe import RECIPES, override_recipe

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = ROOT / "workflow"
sys.path.append(str(WORKFLOW))
from study import check_study, expand_runs, train_options  # noqa: E402

STUDY = yaml.safe_load((WORKFLOW / "study.yaml").read_text())
RTE = {"name": "a", "encoder": "rte", "encoder_seeds": [42], "seeds": [0, 1]}
STEPS, EVERY = 60, 6


def study(**changes) -> dict:
    return {"out": "runs", "command": "spatial-circuits", "tables": {"screen": "screen"}, "populations": [RTE], **changes}


def test_a_population_is_a_run_for_each_pair_of_seeds():
    crossed = {**RTE, "encoder_seeds": [42, 43], "options": {"center": True}, "parameters": {"steps": 9}, "size": "nano"}
    runs = expand_runs(study(populations=[crossed, {"name": "minilm", "encoder": "minilm", "seeds": [3]}]))
    assert list(runs) == ["a-e42-s0", "a-e42-s1", "a-e43-s0", "a-e43-s1", "minilm-s3"]
    assert train_options(runs["a-e43-s1"]) == ("--encoder rte --recipe noise-first --encoder-option center=true "
                                              "--encoder-option seed=43 -p steps=9 -p seed=1 -p size=nano")
    assert train_options(runs["minilm-s3"]) == "--encoder minilm --recipe noise-first -p seed=3"


@pytest.mark.parametrize("changes, message", [
    ({"populations": [{**RTE, "sizes": "nano"}]}, "population a: 'sizes' is unknown; choose from chapters, encoder"),
    ({"populations": [{**RTE, "tables": ["tokens"]}]}, "tables of population a: 'tokens' is unknown; choose from screen"),
    ({"populations": [RTE, RTE]}, "two runs have the name a-e42-s0"), ({"populations": []}, "no entry populations"),
    ({"populations": [{"name": "a", "encoder": "rte"}]}, "population a needs an encoder and a list of seeds"),
    ({"populations": [{**RTE, "name": "a/b"}]}, "'a/b' needs a name of letters"), ({"gpu": 1}, "the study: 'gpu' is unknown")])
def test_a_study_that_cannot_run_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_study(study(**changes))


def test_the_study_is_one_that_the_commands_take():
    check_study(STUDY)
    assert set(STUDY["tables"]) <= {*FILES, "evaluation"}
    sizes, built = {}, {}
    for run in expand_runs(STUDY).values():
        words = train_options(run).split()
        options = parse_parameters([words[i + 1] for i, w in enumerate(words) if w == "--encoder-option"])
        plan = override_recipe(RECIPES["noise-first"], parse_parameters([words[i + 1] for i, w in enumerate(words) if w == "-p"]))
        built.setdefault((run["encoder"], options.get("dose"), options.get("bias")), options)
        sizes.setdefault(run["name"], []).append(plan.seed)
    for (kind, *_), options in built.items():
        encoder(kind, **options)
    assert all(len(sizes[name]) >= 6 for name in ("rte", "t5-untrained", "minilm"))
    dial = {name: seeds for name, seeds in sizes.items() if name.startswith(("fused", "t5-bias"))}
    assert len(dial) == 8 and all(len(seeds) >= 3 for seeds in dial.values())


# --- for real

@pytest.fixture(scope="module")
def snakemake():
    """Snakemake, from its own environment or the path."""
    own = ROOT / ".venv-study" / "bin" / "snakemake"
    found = str(own) if own.exists() else shutil.which("snakemake")
    if not found:
        pytest.skip("no Snakemake on this machine; `make test` installs it, so does: pip install -r workflow/requirements.txt")
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a study of two short runs; the cores of the tests are few, so one thread a job."""
    folder = tmp_path_factory.mktemp("study")
    small = {"size": "toy", "batch": 2, "cache": 32, "steps": STEPS, "warmup": 2, "precision": "no", "compile": False}
    command = f"env PYTHONPATH={Path(spatial_circuits.__file__).parents[1]} {sys.executable} -m spatial_circuits.cli"
    tables = {"evaluation": "evaluate --prompts 22 --limit 2 --images-per-prompt 1"}
    populations = [{**RTE, "parameters": small}]
    for out in ("local", "cluster"):
        config = study(out=out, command=command, device="cpu", train=f"--checkpoint-every {EVERY}", tables=tables, populations=populations)
        (folder / f"{out}.yaml").write_text(yaml.safe_dump(config))
    return folder


class Graph:
    """A study that is started, killed and started again."""

    def __init__(self, snakemake: str, place: Path, out: str, *options: str):
        self.place, self.out = place, place / out
        self.line = [snakemake, "--snakefile", str(WORKFLOW / "Snakefile"), "--configfile", f"{out}.yaml", "--nolock",
                     "--rerun-incomplete", "--rerun-triggers", "mtime", *options]
        self.environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        self.environment.pop("PYTHONPATH", None)

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(self.line, cwd=self.place, env=self.environment, stdout=(self.place / "stdout").open("a"),
                                stderr=subprocess.STDOUT)

    def finish(self, *options: str) -> str:
        done = subprocess.run([*self.line, *options], cwd=self.place, env=self.environment, capture_output=True, text=True, timeout=300)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said + "".join(p.read_text() for p in self.out.glob("logs/*/*.txt"))
        return said

    def wait(self, process: subprocess.Popen, pattern: str) -> None:
        """Until a file of the study is there."""
        deadline = time.monotonic() + 240
        while not list(self.out.glob(pattern)):
            assert process.poll() is None and time.monotonic() < deadline, (self.place / "stdout").read_text()
            time.sleep(0.05)

    def kill_training(self, run: str) -> None:
        """kill -9 the training process of a run."""
        folder = f"{self.out.name}/{run}"
        [victim] = [p for p in psutil.process_iter(["cmdline"]) if folder in (p.info["cmdline"] or []) and "train" in p.info["cmdline"]
                    and "spatial_circuits.cli" in p.info["cmdline"] and p.cwd() == str(self.place)]
        victim.kill()
        victim.wait(30)

    def made(self) -> dict[str, int]:
        """When each file of the study was written."""
        return {p.relative_to(self.out).as_posix(): p.stat().st_mtime_ns for p in self.out.rglob("*") if p.is_file()}

    def weights(self, run: str) -> dict:
        return load_file(self.out / run / "model" / "transformer" / "diffusion_pytorch_model.safetensors")


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def check(graph: Graph, *targets: str) -> None:
    """The population is there, and nothing is left to do."""
    for run in ("a-e42-s0", "a-e42-s1"):
        assert [r["step"] for r in read_log(graph.out / run / "log.jsonl") if "loss" in r] == [50, STEPS]
        assert json.loads((graph.out / run / "verdict.json").read_text())["claims"]["C1"]["runs"] == 1
    record = json.loads((graph.out / "population.json").read_text())
    assert record["runs"] == ["a-e42-s0", "a-e42-s1"] and record["claims"][0]["runs"] == 2
    assert "Nothing to be done" in graph.finish(*targets, "--dry-run")


@pytest.fixture(scope="module")
def local(snakemake, place):
    """The study run on this machine: the second training run and Snakemake killed in the middle, then started again."""
    graph = Graph(snakemake, place, "local", "--cores", "1")
    process = graph.start()
    graph.wait(process, "*/checkpoint-*.safetensors")
    first = next(graph.out.glob("*/checkpoint-*.safetensors")).parent.name      # Snakemake chooses
    second = {"a-e42-s0": "a-e42-s1", "a-e42-s1": "a-e42-s0"}[first]
    graph.wait(process, f"{second}/checkpoint-*.safetensors")
    graph.kill_training(second)
    kill(process)
    found = max((graph.out / second).glob("checkpoint-*.safetensors"))
    assert int(found.stem.split("-")[1]) < STEPS
    before = {name: t for name, t in graph.made().items() if name.startswith(first)}
    assert f"{first}/trained" in before
    graph.first, graph.second = first, second
    graph.finish("--cores", "2")
    after = graph.made()
    touched = {f"{first}/model/manifest.json"}       # the card takes the tables in
    assert {name: after[name] for name in before if name not in touched} == {
        name: t for name, t in before.items() if name not in touched}
    return graph


def test_a_killed_study_goes_on_and_redoes_nothing(local):
    check(local)
    for run in ("a-e42-s0", "a-e42-s1"):
        assert "# Model card: " + run in (local.out / run / "model" / "README.md").read_text()
        assert {"evaluation.json", "README.md"} <= set(json.loads((local.out / run / "model" / "manifest.json").read_text()))
    bars = {run: (local.out / "logs" / run / "train.txt").read_text() for run in ("a-e42-s0", "a-e42-s1")}
    assert {run for run, bar in bars.items() if f" 0/{STEPS} " in bar} == {local.first}    # the other went on


def test_a_run_in_one_piece_has_the_same_weights(local):
    config = yaml.safe_load((local.place / "local.yaml").read_text())
    line = train_options(expand_runs(config)[local.second])
    subprocess.run(f"{config['command']} train {line} --threads 1 --device cpu --out whole", shell=True, cwd=local.place, check=True,
                   capture_output=True)
    whole = load_file(local.place / "whole" / "model" / "transformer" / "diffusion_pytorch_model.safetensors")
    ours = local.weights(local.second)
    assert whole.keys() == ours.keys() and all(whole[k].equal(ours[k]) for k in whole)


OURS = "# Written by a test of Spatial Circuits; one that was killed may leave it.\n"
SLURM = """ClusterName=one
SlurmctldHost={host}
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MinJobAge=3600
SlurmUser=root
StateSaveLocation={state}/ctld
SlurmdSpoolDir={state}/d
SlurmctldPidFile={state}/slurmctld.pid
SlurmdPidFile={state}/slurmd.pid
SlurmctldLogFile={state}/slurmctld.log
SlurmdLogFile={state}/slurmd.log
NodeName={host} CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A Slurm of one node on this machine: started, and stopped again."""
    programs = [shutil.which(p) or shutil.which(p, path="/usr/sbin") for p in ("munged", "slurmctld", "slurmd", "sbatch")]
    if os.getuid() or not all(programs):
        pytest.skip("no Slurm here, or no root; Debian: apt-get install slurm-wlm munge, as `make test` does for root")
    file = Path("/etc/slurm/slurm.conf")     # not elsewhere: srun within a job does not see SLURM_CONF
    if file.exists() and not file.read_text().startswith(OURS):
        pytest.skip(f"{file} is there: this machine has a Slurm of its own")
    state = tmp_path_factory.mktemp("slurm")
    for name in ("ctld", "d"):
        (state / name).mkdir()
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    started = []
    try:
        file.write_text(OURS + SLURM.format(host=socket.gethostname().split(".")[0], state=state, cpus=os.cpu_count()))
        lines = [["runuser", "-u", "munge", "--", programs[0], "--foreground", "--force"], [programs[1], "-D"], [programs[2], "-D"]]
        for line in lines:
            started.append(subprocess.Popen(line, stdout=(state / "out").open("a"), stderr=subprocess.STDOUT, start_new_session=True))
            time.sleep(1)
        deadline = time.monotonic() + 60
        while "idle" not in subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True).stdout:
            assert time.monotonic() < deadline, "".join(p.read_text() for p in state.glob("*.log")) + (state / "out").read_text()
            time.sleep(0.5)
        yield state
    finally:
        subprocess.run(["scancel", "--full", "--user", "root"], capture_output=True)
        for process in reversed(started):
            process.terminate()
            process.wait(30)
        file.unlink(missing_ok=True)


def test_the_same_study_on_slurm(slurm, snakemake, local, place):
    """One job killed, Snakemake killed while the other goes on; started again, all is as it was on this machine."""
    graph = Graph(snakemake, place, "cluster", "--profile", str(WORKFLOW / "profiles" / "slurm"), "--jobs", "2",
                  "--set-resources", "train:gpu=0", "train:mem_mb=1500", "table:gpu=0", "--default-resources", "mem_mb=1500",
                  "slurm_partition=main", "slurm_account=none", "--slurm-status-command", "squeue", "--seconds-between-status-checks", "1",
                  "--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "10")
    process = graph.start()
    graph.wait(process, "a-e42-s0/checkpoint-*.safetensors")
    graph.kill_training("a-e42-s0")
    kill(process)
    graph.finish("cluster/population.json")       # without the cards
    check(graph, "cluster/population.json")
    for run in ("a-e42-s0", "a-e42-s1"):
        one, two = local.weights(run), graph.weights(run)
        assert one.keys() == two.keys() and all(one[k].equal(two[k]) for k in one), run
        tables = [json.loads((g.out / run / "model" / "evaluation.json").read_text())["metrics"] for g in (local, graph)]
        assert tables[0] == tables[1]
