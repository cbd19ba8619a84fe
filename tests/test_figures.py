"""Figures: what is written into them can be read."""
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from spatial_circuits.book.figures import rgb
from spatial_circuits.book.head_figures import heat_tables, scatter
from spatial_circuits.book.verdict import verdict

COMPASS = {"cardinal": {"right": (-0.97, 0.13), "left": (0.82, 0.14), "above": (0.28, -1.04), "below": (0.11, 0.76)},
           "diagonal": {"lower right": (-0.92, 0.08), "upper right": (-0.81, -0.22), "lower left": (0.79, 0.21),
                        "upper left": (0.70, -0.07)}}


def points(places: dict) -> pd.DataFrame:
    return pd.DataFrame(places, ["x", "y"]).T


def test_labels_of_points_lie_in_the_axes_and_on_no_other():
    figure = scatter({name: points(places) for name, places in COMPASS.items()}, "x", "y")
    figure.draw_without_rendering()
    ax, = figure.axes
    boxes = {t.get_text(): t.get_window_extent() for t in ax.texts}
    assert set(boxes) == {name for places in COMPASS.values() for name in places}
    assert all(ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 for box in boxes.values())
    assert [pair for pair in combinations(boxes, 2) if boxes[pair[0]].overlaps(boxes[pair[1]])] == []


def test_close_points_of_a_group_share_a_label():
    figure = scatter({"a": points({"one": (0, 0), "two": (0.01, 0.01), "three": (1, 1)})}, "x", "y")
    assert [t.get_text() for t in figure.axes[0].texts] == ["one, two", "three"]


def test_a_table_shows_its_numbers_and_leaves_out_what_there_is_not():
    figure = heat_tables({"t": pd.DataFrame({"a": [0.0, 1.0], "b": [np.nan, 0.5]}, ["x_1", "y"])}, "share")
    assert [t.get_text() for t in figure.axes[0].texts] == ["0.00", "1.00", "0.50"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["x 1", "y"]
    assert [t.get_color() for t in figure.axes[0].texts] == ["white", "black", "white"]      # each on its ground


def test_the_middle_of_a_signed_map_is_light_and_the_bottom_of_another_dark():
    assert rgb(np.array([0.5]), signed=True).min() > 230 and rgb(np.array([0.0])).max() < 100


@pytest.mark.parametrize("holds, word", [(True, "Holds"), (np.bool_(False), "Does not hold"), (None, "Not measured")])
def test_a_verdict_is_set_apart(holds, word):
    said = verdict({"Water is *wet*": True, "So it is": holds})
    assert said.data == f"> **Holds**: Water is *wet*.\n>\n> **{word}**: So it is."
