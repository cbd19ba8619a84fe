"""Figures: what is written into them can be read."""
from itertools import combinations
from math import gcd

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from spatial_circuits.book.figures import CYCLE, DASHES, NARROW, intervals, lines, rgb
from spatial_circuits.book.head_figures import attention_rows, heat_tables, luminance, scatter
from spatial_circuits.book.verdict import verdict

COMPASS = {"cardinal": {"right": (-0.97, 0.13), "left": (0.82, 0.14), "above": (0.28, -1.04), "below": (0.11, 0.76)},
           "diagonal": {"lower right": (-0.92, 0.08), "upper right": (-0.81, -0.22), "lower left": (0.79, 0.21),
                        "upper left": (0.70, -0.07)}}


def points(places: dict) -> pd.DataFrame:
    return pd.DataFrame(places, ["x", "y"]).T


CROWDED = {"a": {"one": (0.036, 0.25), "0, 1, 2, 4, 5": (0.036, 0.13)}, "b": {"two": (0.095, 0.177), "five": (0.085, 0.09)},
           "c": {"far": (0.58, 0.76), "1, 3, 4": (0.052, 0.065)}}


@pytest.mark.parametrize("groups", [COMPASS, CROWDED])
def test_labels_of_points_lie_on_no_point_and_can_be_read(groups):
    figure = scatter({name: points(places) for name, places in groups.items()}, "x", "y")
    figure.draw_without_rendering()
    ax, = figure.axes
    places = ax.transData.transform([place for group in groups.values() for place in group.values()])
    assert [(t.get_text(), x, y) for t in ax.texts for x, y in places if t.get_window_extent().contains(x, y)] == []
    assert {t.get_color() for t in ax.texts} == {"#333333"}


def test_labels_of_points_lie_in_the_axes_and_on_no_other():
    figure = scatter({name: points(places) for name, places in COMPASS.items()}, "x", "y")
    figure.draw_without_rendering()
    ax, = figure.axes
    boxes = {t.get_text(): t.get_window_extent() for t in ax.texts}
    assert set(boxes) == {name for places in COMPASS.values() for name in places}
    assert all(ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 for box in boxes.values())
    assert [pair for pair in combinations(boxes, 2) if boxes[pair[0]].overlaps(boxes[pair[1]])] == []


def test_points_may_have_no_label_and_equal_ones_are_written_once():
    frame = pd.DataFrame({"x": [0, 0.01, 1, 2], "y": [0, 0.01, 1, 2]}, index=["0.5", "0.5", "", ""])
    texts = [note.get_text() for note in scatter({"a": frame}, "x", "y").axes[0].texts]
    assert texts == ["0.5"]


def test_close_points_of_a_group_share_a_label():
    figure = scatter({"a": points({"one": (0, 0), "two": (0.01, 0.01), "three": (1, 1)})}, "x", "y")
    assert [t.get_text() for t in figure.axes[0].texts] == ["one, two", "three"]


def test_a_table_shows_its_numbers_and_leaves_out_what_there_is_not():
    figure = heat_tables({"t": pd.DataFrame({"a": [0.0, 1.0], "b": [np.nan, 0.5]}, ["x_1", "y"])}, "share")
    assert [t.get_text() for t in figure.axes[0].texts] == ["0.00", "1.00", "0.50"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["x 1", "y"]
    assert [t.get_color() for t in figure.axes[0].texts] == ["white", "black", "black"]      # each on its ground


def test_numbers_in_cells_have_contrast_on_every_ground():
    for signed in (False, True):
        for light in map(luminance, rgb(np.linspace(0, 1, 101), signed) / 255):
            assert (1.05 / (light + 0.05) if light < 0.18 else (light + 0.05) / 0.05) > 4.5


def curves(names: list[str]) -> pd.DataFrame:
    return pd.DataFrame({name: [0.0, 0.5, 1.0] for name in names})


def test_curves_that_coincide_can_be_told():
    """The colour of each is to be seen; and no two of forty have both colour and dashes in common."""
    figure = lines(curves(list("abcd")), "x", "y")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    ax, seen = figure.axes[0], np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    inside = seen[int(figure.bbox.y1 - ax.bbox.y1):int(figure.bbox.y1 - ax.bbox.y0), int(ax.bbox.x0):]
    for line in ax.lines:
        assert (np.abs(inside - 255 * np.array(to_rgb(line.get_color()))).sum(-1) < 40).sum() > 100, line.get_label()
    assert gcd(len(CYCLE), len(DASHES)) == 1
    assert lines(curves(["alone"]), "x", "y").axes[0].lines[0].get_linestyle() == "-"


@pytest.mark.parametrize("names", [["a", "b"], [f"a run with quite a long name, seed {i}" for i in range(11)], [f"run {i}" for i in range(11)]])
def test_a_legend_stands_above_the_axes_where_a_phone_shows_it(names):
    table = pd.DataFrame({"mean": [0.5], "low": [0.4], "high": [0.6]}, ["row"])
    for figure in (lines(curves(names), "x", "y"), intervals(dict.fromkeys(names, table), "x"),
                   scatter({name: points({"p": (i, i)}) for i, name in enumerate(names)}, "x", "y")):
        figure.draw_without_rendering()
        legend, = figure.legends
        box = legend.get_window_extent()
        assert len(legend.texts) == len(names) and box.x1 < NARROW * figure.dpi
        assert figure.axes[0].bbox.y1 < box.y0 and figure.axes[0].bbox.height > 0.4 * figure.dpi
        assert figure.bbox.y1 >= box.y1


def test_a_signed_map_has_a_frame_and_another_none():
    for values, framed in ((torch.linspace(-1, 1, 64), True), (torch.linspace(0, 1, 64), False)):
        figure = attention_rows({"row": values.view(1, 8, 8)}, ["map"], image=torch.zeros(3, 8, 8, dtype=torch.uint8))
        shown, picture = ([spine.get_visible() for spine in ax.spines.values()] for ax in figure.axes[:2])
        assert shown == [framed] * 4 and not any(picture)


def test_the_middle_of_a_signed_map_is_light_and_the_bottom_of_another_dark():
    assert rgb(np.array([0.5]), signed=True).min() > 230 and rgb(np.array([0.0])).max() < 100


@pytest.mark.parametrize("holds, word", [(True, "Holds"), (np.bool_(False), "Does not hold"), (None, "Not measured")])
def test_a_verdict_is_set_apart(holds, word):
    said = verdict({"Water is *wet*": True, "So it is": holds})
    assert said.data == f"> **Holds**: Water is *wet*.\n>\n> **{word}**: So it is."
