"""The speeds that README states are those on record."""
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from spatial_circuits.analyses.learning import crossing
from spatial_circuits.data.metrics import ceiling, prompt_set

TOP = Path(__file__).resolve().parents[1]
KINDS = ("with bf16 units", "without, AVX512", "without, AVX2")


def cells(row: str) -> list[str]:
    """The columns of a row of README's table of times."""
    [line] = re.findall(rf"^\| {re.escape(row)} \| (.+) \|$", (TOP / "README.md").read_text(), re.M)
    return line.split(" | ")


def test_pictures_a_second_in_training():
    record = json.loads((TOP / "book" / "speed.json").read_text())
    measured = [record[kind]["benchmarks"]["test_training[compiled]"]["images_per_s"] for kind in KINDS]
    assert cells("pictures a second in training") == [f"{rate:.0f}" for rate in measured]


def test_minutes_to_nine_tenths_of_the_ceiling_without_bf16_units():
    record = json.loads((TOP / "book" / "cold_start.json").read_text())
    log = pd.DataFrame(record["log"]).set_index("images")
    best = ceiling(prompt_set("264"), 4, 0)["loose"].mean()
    trained = np.interp(crossing(log["loose"].dropna(), 0.9 * best), log.index, log["seconds"])
    warm = (trained + record["compiling_s"]) / 60
    cold = warm + record["encoding_s"] / 60
    assert cold < 40 and warm < 30
    told = cells("`make train ENCODER=rte` until *loose* is .9 of its ceiling")[2]
    assert told == f"{warm:.0f} min, {cold:.0f} from a cold start"
