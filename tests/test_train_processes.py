"""Several processes: together they are one."""
import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spatial_circuits.model import transformer
from spatial_circuits.model.store import load_vae
from spatial_circuits.text.encoders import encoder
from spatial_circuits.training.log import read_log
from spatial_circuits.training.loop import train
from spatial_circuits.training.recipe import Recipe

RECIPE = Recipe(size="one", batch=6, cache=8, steps=4, warmup=1, precision="no", compile=False)


def work(rank: int, port: int, folder: str) -> None:
    """One of two processes: first a batch that cannot be shared, then a whole run."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                      OMP_NUM_THREADS="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    transformer.SIZES["one"] = (1, 2, 8)
    options = {"progress": False, "device": "cpu", "evaluate": lambda _: {"score": 1}}
    arguments = encoder("rte"), load_vae(), Path(folder) / "2"
    message = "batch is 5; it must be a multiple of the number of processes, 2"
    with pytest.raises(ValueError, match=message):
        train(replace(RECIPE, batch=5), *arguments, **options)
    assert not arguments[2].exists()
    Path(folder, f"refused-{rank}").touch()
    while not Path(folder, f"refused-{1 - rank}").exists():  # or the other's run is seen here
        time.sleep(.01)
    train(RECIPE, *arguments, **options, evaluate_every=2)


def test_two_processes_train_what_one_does(tmp_path, monkeypatch, rte, vae, one_thread):
    monkeypatch.setitem(transformer.SIZES, "one", (1, 2, 8))
    train(RECIPE, rte, vae, tmp_path / "1", progress=False, device="cpu",
          evaluate=lambda _: {"score": 1}, evaluate_every=2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, str(tmp_path)), 2)
    one, two = (load_file(tmp_path / n / "checkpoint-00000004.safetensors") for n in "12")
    assert one.keys() == two.keys()
    for key in one:
        assert torch.allclose(one[key], two[key], atol=2e-4), key
    logs = [read_log(tmp_path / n / "log.jsonl") for n in "12"]
    for a, b in zip(*logs, strict=True):
        assert (a["step"], a["images"]) == (b["step"], b["images"]) and a.keys() == b.keys()
        assert a.get("loss", 0) == pytest.approx(b.get("loss", 0), abs=1e-4)
    files = [sorted(p.name for p in (tmp_path / n).rglob("*")) for n in "12"]
    assert files[0] == files[1]
