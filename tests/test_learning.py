"""When something is learned, and which of two things comes first, from curves whose answer is known."""
import math

import pandas as pd
import pytest

from spatial_circuits.analyses.intervals import wilson
from spatial_circuits.analyses.learning import comes_first, crossing, when_learned


def line(*values: float) -> pd.Series:
    """A curve with these values, 100 images apart."""
    return pd.Series(values, 100 * (1 + pd.RangeIndex(len(values))), dtype=float)


@pytest.mark.parametrize("curve, level, images", [
    (line(0, 1), 0.25, 125), (line(0, 0.5, 0.2, 1), 0.4, 180),             # the first time, between two records
    (line(0, 0.5, 1), 0.5, 200), (line(0.7, 1), 0.5, 100),                  # on a record; from the start
    (line(0, 0.1), 0.5, math.nan)])
def test_a_crossing_is_interpolated(curve, level, images):
    assert crossing(curve, level) == pytest.approx(images, nan_ok=True)


def test_a_gain_is_learned_by_shares_of_its_last_value():
    found = when_learned({"axis": line(0, 1, 2), "side": line(0, 0, 4)})
    assert found == {("axis", "a tenth"): pytest.approx(120), ("axis", "half"): 200,
                     ("side", "a tenth"): pytest.approx(210), ("side", "half"): 250}


def test_what_comes_first_is_counted_over_runs():
    early, late, never = line(0, 1, 1), line(0, 0, 1), line(0, 0, -1)
    runs = [{"axis": early, "side": late}, {"axis": late, "side": early}, {"axis": early, "side": early},
            {"axis": early, "side": late}, {"axis": early, "side": line(math.nan, math.nan, math.nan)}]
    learned = pd.DataFrame({i: when_learned(gains) for i, gains in enumerate(runs)}).T
    found = comes_first(learned, "axis", "side").loc["half"]
    assert (found["first"], found["runs"]) == (2, 4) and tuple(found[["low", "high"]]) == wilson(2, 4)
    assert (found["least"], found["most"]) == (-100, 100)                   # equal is not first
    assert comes_first(learned, "side", "axis").loc["half", "first"] == 1
    with pytest.raises(ValueError, match="0 of 0"):
        comes_first(learned.iloc[4:], "axis", "side")
    assert crossing(never, 0.5 * never.iloc[-1]) == 100                     # a gain below 0 is above its half from the start
