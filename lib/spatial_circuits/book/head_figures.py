"""Plots of heads: scores by layer and head, attention over the image grid, the circuit."""
from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike
from torch import Tensor

from .figures import WIDTH, legend_above, outline, scale_of, shade, show_picture, spaced, styled

CIRCUIT_COLORS = {"relation": "#009E73", "object": "#882D71", "colour": "#B87A00",
                  "rest": "#8C8C8C"}  # as the text roles
_GRID = {"text": (0, 0), "shape words": (0, 1), "relation words": (0, 0), "colour words": (0, -1),
         "relation": (1.55, 0), "object": (3.1, 1), "colour": (3.1, -1), "picture": (4.65, 0)}


@styled
def head_grid(scores: dict[str, Tensor], label: str,
              marked: dict[str, Sequence[tuple[int, int]]] | None = None, columns: int = 4,
              tall: float = 1.2) -> Figure:
    """Scores [L, H] side by side, layers down and heads across, on one colour scale.

    marked: sets of heads by a key of CIRCUIT_COLORS, framed in its colour. tall: a panel's
    height over its width, at most.
    """
    values = torch.stack([score.float().cpu() for score in scores.values()])
    top, signed = scale_of(values)
    rows, across = math.ceil(len(scores) / columns), min(columns, len(scores))
    height = WIDTH / across * min(tall, values.shape[1] / values.shape[2]) + 0.5
    figure, axes = plt.subplots(rows, across, figsize=(WIDTH, rows * height), squeeze=False)
    for ax in axes.flat[len(scores):]:
        ax.set_axis_off()
    for ax, title, score in zip(axes.flat, scores, values):
        image = shade(ax, score, top, signed, aspect="auto")
        ax.set_title("\n".join(textwrap.wrap(title, 24)))
        ax.set(xticks=range(score.shape[1]), yticks=range(score.shape[0]), xlabel="head")
        for role, heads in (marked or {}).items():
            for layer, head in heads:
                ax.add_patch(plt.Rectangle((head - 0.46, layer - 0.46), 0.92, 0.92, fill=False,
                                           linewidth=2, edgecolor=CIRCUIT_COLORS[role]))
    for line in axes:
        line[0].set_ylabel("layer")
    figure.colorbar(image, ax=axes, label=label, shrink=0.9, aspect=30)
    return figure


@styled
def attention_rows(rows: dict[str, Tensor], titles: Sequence[str], label: str = "attention",
                   image: Tensor | None = None, top: float | None = None) -> Figure:
    """Maps [K, 8, 8] in named rows under K titles, on one scale.

    image: a picture, uint8 [3, H, W], at the end of each row, or one for each, [rows, 3, H, W].
    """
    values = torch.stack([maps.float().cpu() for maps in rows.values()])
    top, signed = scale_of(values, top)
    count, titles = len(titles), [*titles, *(["picture"] if image is not None else [])]
    side = WIDTH / (len(titles) + 1.2)
    size = (WIDTH, len(rows) * side + 0.35)
    figure, axes = plt.subplots(len(rows), len(titles), figsize=size, squeeze=False)
    for y, (line, name) in enumerate(zip(axes, rows)):
        for ax in line:
            ax.set(xticks=(), yticks=())
            outline(ax, False)
        for ax, shown in zip(line, values[y, :count]):
            drawn = shade(ax, shown, top, signed)
        if image is not None:
            show_picture(line[-1], image[y] if image.ndim == 4 else image)
        line[0].set_ylabel("\n".join(textwrap.wrap(name, 14)), fontsize=7)
    for ax, title in zip(axes[0], titles):
        ax.set_title(title, fontsize=7, pad=2)
    figure.colorbar(drawn, ax=axes, label=label, shrink=0.9, aspect=30)
    return figure


@styled
def scatter(groups: dict[str, pd.DataFrame], xlabel: str, ylabel: str) -> Figure:
    """Labelled points, a colour a group: frames with columns x, y and an index of labels.

    Points of a group that lie close together share a label, "" is none; lines mark both zeros.
    """
    figure, ax = plt.subplots(figsize=(WIDTH, 3.6))
    for name, frame in groups.items():
        ax.plot(frame["x"], frame["y"], "o", markersize=4, label=name)
    ax.axhline(0, color="#8C8C8C", linewidth=0.8)
    ax.axvline(0, color="#8C8C8C", linewidth=0.8)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.margins(x=0.1, y=0.1)
    legend_above(figure)
    figure.draw_without_rendering()                    # from here on it is known where things lie
    every = pd.concat(groups)[["x", "y"]]
    span = (every.max() - every.min()) / 20
    edges = 9 * [*ax.spines.values()] + ax.lines[-2:]  # the axes' ends count most
    taken = [edge.get_window_extent() for edge in edges]
    taken += 5 * [Bbox.from_bounds(x - 5, y - 5, 10, 10)
                  for x, y in ax.transData.transform(every)]
    for frame in groups.values():
        labels: dict[tuple[float, float], list[str]] = {}
        for label, x, y in frame[frame.index != ""][["x", "y"]].itertuples():
            near = [(a, b) for a, b in labels if abs(a - x) < span["x"] and abs(b - y) < span["y"]]
            labels.setdefault(near[0] if near else (x, y), []).append(label)
        for point, names in labels.items():
            text = textwrap.fill(", ".join(dict.fromkeys(names)), 18)
            note = ax.annotate(text, point, (4, 1), fontsize=7, textcoords="offset points",
                               color="#333333", in_layout=False)
            taken += 4 * [_moved_clear(note, taken)]
    return figure


def _moved_clear(note: Annotation, taken: Sequence[Bbox]) -> Bbox:
    """Put a note at the corner of its point where it covers least of what is taken; its box."""
    def box(corner: tuple[float, float]) -> Bbox:
        x, y = corner
        note.set(position=corner, ha="left" if x > 0 else "right" if x else "center",
                 va="bottom" if y > 0 else "top" if y else "center")
        return note.get_window_extent()
    corners = [(x, y) for reach in (1, 6, 11) for x in (4, -4) for y in (reach, -reach)]
    corners += [(x, y) for x in (5, -5, 0) for y in (0, 5, -5, 12, -12) if (x, y) != (0, 0)]
    return box(min(corners, key=lambda corner: box(corner).count_overlaps(taken)))


@styled
def diagram(members: dict[str, Sequence[str]], edges: Sequence[tuple[str, str, str]],
            captions: dict[str, str]) -> Figure:
    """A circuit from the text (left) to the picture (right): a box a stage, labelled arrows.

    members: names of the heads of the stages relation, object and colour. edges: (from, to,
    label); they may start at text, or shape, relation or colour words, and end at picture.
    captions: what a stage does. Raises ValueError for another stage.
    """
    stages = list(dict.fromkeys([*members, *(s for a, b, _ in edges for s in (a, b))]))
    if unknown := [s for s in stages if s not in _GRID]:
        raise ValueError(f"stage {unknown[0]!r} is unknown; choose from {', '.join(_GRID)}")
    figure, ax = plt.subplots(figsize=(WIDTH, 3.9))
    wide, high = 0.42, 0.27                                            # half the size of a box
    for stage in stages:
        x, y = _GRID[stage]
        color, heads = CIRCUIT_COLORS.get(stage, "#4D4D4D"), list(members.get(stage, []))
        text = ", ".join(heads) or ("none" if stage in members else stage)
        ax.add_patch(FancyBboxPatch((x - wide, y - high), 2 * wide, 2 * high,
                                    boxstyle="round,pad=0.03", linewidth=1.5, edgecolor=color,
                                    facecolor=to_rgba(color, 0.15), zorder=3))
        ax.text(x, y, "\n".join(textwrap.wrap(text, 14)), ha="center", va="center", fontsize=8,
                weight="bold", zorder=4)
        does, above = textwrap.wrap(captions.get(stage, ""), 19), y > 0  # clear of the arrows
        side, edge = ("bottom", high + 0.07) if above else ("top", -high - 0.07)
        ax.text(x, y + edge, "\n".join(does), ha="center", va=side, fontsize=7)
        if stage in members:
            title = f"{stage} head{'s' * (len(heads) != 1)}"
            ax.text(x, y + high + 0.07 + 0.13 * len(does) * above, title, ha="center", va="bottom",
                    fontsize=8, color=color)
    for a, b, label in edges:
        (x0, y0), (x1, y1) = _GRID[a], _GRID[b]
        start = (x0 + wide + 0.05, y0 + 0.15 * (y1 - y0))
        end = (x1 - wide - 0.06, y1 - 0.15 * (y1 - y0))
        ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, shrinkA=0,
                                     shrinkB=0, color="#4D4D4D", zorder=1))
        ax.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, label, ha="center", va="center",
                fontsize=7, linespacing=1.1, zorder=2,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})
    ax.set(xlim=(-wide - 0.1, 4.65 + wide + 0.1), ylim=(-1.75, 1.85))
    ax.set_axis_off()
    return figure


def filled(ax: Axes, frame: pd.DataFrame, texts: pd.DataFrame, bold: pd.DataFrame | None = None,
           size: float = 6.5, **options) -> AxesImage:
    """Draw a frame as a heat map, with a text in each cell that is not NaN; its rows are named."""
    values = frame.to_numpy(float)
    image = ax.imshow(values, aspect="auto", **options)
    for (y, x), value in np.ndenumerate(values):
        if not np.isnan(value):
            ink = "white" if luminance(image.cmap(image.norm(value))) < 0.18 else "black"
            heavy = bold is not None and bold.iloc[y, x]
            ax.text(x, y, texts.iloc[y, x], ha="center", va="center", fontsize=size, color=ink,
                    weight="bold" if heavy else "normal")
    ax.set_yticks(range(len(frame)), [spaced(i) for i in frame.index], fontsize=7)
    outline(ax, options.get("vmin", 0) < 0)
    ax.tick_params(length=0)
    return image


def luminance(color: ArrayLike) -> float:
    """Relative luminance, 0 to 1, of a colour whose first three parts are red, green and blue."""
    parts = np.asarray(color)[:3]
    linear = np.where(parts <= 0.04, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


@styled
def heat_tables(frames: dict[str, pd.DataFrame], label: str, columns: int = 3, vmin: float = 0.0,
                vmax: float = 1.0, xlabel: str = "", ylabel: str = "") -> Figure:
    """Frames of equal rows and columns as heat maps on one scale, with their numbers written in.

    The scale is diverging about zero if `vmin` is negative. NaN cells stay empty.
    """
    first, across = next(iter(frames.values())), min(columns, len(frames))
    down, names = math.ceil(len(frames) / across), [spaced(c) for c in first.columns]
    room = int((WIDTH - 1.8) / across / len(names) / 0.062)            # characters a column holds
    level = max(len(word) for name in names for word in name.split()) <= room
    if level:
        names = [textwrap.fill(name, max(1, room)) for name in names]
        head = 0.12 * max(n.count("\n") + 1 for n in names)
    else:
        head = 0.06 * max(map(len, names))
    size = (WIDTH, max(1.7, down * (0.24 * len(first) + head + 0.6)))
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False, sharey=True)
    cmap = "PuOr_r" if vmin < 0 else "viridis"
    for ax in axes.flat[len(frames):]:
        ax.set_axis_off()
    for ax, (title, frame) in zip(axes.flat, frames.items()):
        texts = frame.astype(float).map("{:.2f}".format)
        image = filled(ax, frame, texts, vmin=vmin, vmax=vmax, cmap=cmap)
        ax.set_xticks(range(frame.shape[1]), names, fontsize=7, rotation=0 if level else 90)
        ax.set(title=title, xlabel=xlabel)
    for line in axes:
        line[0].set_ylabel(ylabel)
    figure.colorbar(image, ax=axes, label=label, shrink=0.9, aspect=25)
    return figure
