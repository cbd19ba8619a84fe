"""Memory that tensors leave is kept: a second batch touches no new page."""
import os
import platform
import subprocess
import sys

import pytest

from spatial_circuits import memory
from spatial_circuits.model.store import load

FAULTS = """
import resource
import torch
from spatial_circuits.memory import keep_freed_memory

def faults(count=4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.ones(64 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
plain = faults()
told = keep_freed_memory()
faults(24)                          # until the scraps of aligned blocks have settled
print(plain, told, faults())
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def measured(**variables) -> list[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    return subprocess.run([sys.executable, "-c", FAULTS], env={**environment, **variables}, check=True,
                          capture_output=True, text=True).stdout.split()


@glibc
def test_a_second_tensor_takes_the_pages_of_the_first():
    plain, told, kept = measured()
    assert told == "True" and int(plain) > 100 and int(kept) < int(plain) / 10


@glibc
def test_the_users_own_choice_is_left():
    plain, told, after = measured(MALLOC_ARENA_MAX="2")
    assert told == "False" and int(after) > 100


def test_elsewhere_nothing_is_told(monkeypatch):
    monkeypatch.setattr(memory.os, "environ", {})
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed_memory() is False


def test_loading_a_model_tells(monkeypatch):
    from spatial_circuits.model import store
    told = []
    monkeypatch.setattr(store, "keep_freed_memory", lambda: told.append(True))
    load("nano")
    assert told == [True]
