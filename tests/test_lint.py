"""The code as two tools see it: ruff (style and likely bugs) and mypy (types). Rules: pyproject."""
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("command", [["ruff", "check", "lib", "tests", "book", "workflow"], ["mypy"]])
def test_it_has_nothing_to_say(command):
    run = subprocess.run([sys.executable, "-m", *command], cwd=TOP, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
