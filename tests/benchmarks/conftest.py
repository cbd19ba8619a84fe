"""`--record FILE`: the figures of the benchmarks are kept in a JSON file, by kind of machine."""
import json
from pathlib import Path

import pytest
import torch
from processors import processor

from spatial_circuits.files import write_json
from spatial_circuits.model.precision import resolve_precision

FIGURES = pytest.StashKey[dict[str, dict]]()


def pytest_addoption(parser):
    parser.addoption("--record", type=Path, metavar="FILE", help="keep the figures in this JSON file")


def pytest_configure(config):
    config.stash[FIGURES] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    result = yield
    benchmark = item.funcargs.get("benchmark")
    if benchmark is not None and benchmark.extra_info:
        item.config.stash[FIGURES][benchmark.name] = dict(benchmark.extra_info)
    return result


def pytest_sessionfinish(session):
    """Add what this run measured to what the file holds of this kind of machine."""
    path, found = session.config.getoption("--record"), session.config.stash[FIGURES]
    if path is None or not found:
        return
    kept = json.loads(path.read_text()) if path.exists() else {}
    about = machine()
    before = kept.get(about["kind"], {}).get("benchmarks", {})
    write_json(path, kept | {about["kind"]: about | {"benchmarks": before | found}})


def machine() -> dict:
    """What the figures depend on, and the kind: with matrix units for bf16, without and by which instructions, or a GPU."""
    gpu, precision, instructions = torch.cuda.is_available(), resolve_precision("auto"), torch.backends.cpu.get_cpu_capability()
    kind = {"bf16": "with bf16 units", "no": f"without, {instructions}"}[precision]
    return {"kind": "GPU" if gpu else kind, "processor": torch.cuda.get_device_name() if gpu else processor(),
            "precision": precision, "instructions": instructions, "threads": torch.get_num_threads(),
            "torch": torch.__version__}
