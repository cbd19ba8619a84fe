"""Plots: pictures, scores and curves. Functions take frames or tensors, on any device, and return
a matplotlib Figure. Figures of the data are in `data_figures`, those of heads in `head_figures`.

Red and blue are kept for the objects in the pictures; everything else uses colours that the
colour-blind can tell apart (after Okabe and Ito), and a token role has the same colour in every
chapter: purple for object 1, orange for object 2, green for the relation, greys for the rest.
"""
from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from html import escape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import EngFormatter
from torch import Tensor

WIDTH = 7.2  # inches: the page's width at 100 dots an inch
NARROW = 0.62 * WIDTH  # what a phone shows of it without scrolling
CYCLE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C", "#000000")
DASHES: tuple = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 2)))  # of curves
ROLE_COLORS = {"colour1": "#CC79A7", "shape1": "#882D71", "relation": "#009E73",
               "colour2": "#F0B840", "shape2": "#B87A00", "filler": "#8C8C8C", "end": "#4D4D4D",
               "pad": "#D0D0D0"}
ENCODER_COLORS = {"rte": "#0072B2", "rte-nopos": "#8C8C8C", "t5-untrained": "#E69F00",
                  "minilm": "#CC79A7", "t5": "#882D71", "clip": "#009E73"}
STYLE: dict = {
    "figure.dpi": 150, "figure.facecolor": "white", "figure.constrained_layout.use": True,
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "xtick.labelsize": 8,
    "ytick.labelsize": 8, "legend.fontsize": 8, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.prop_cycle": cycler(color=CYCLE),
    "axes.edgecolor": "#4D4D4D", "lines.linewidth": 1.5, "image.cmap": "viridis",
    "image.interpolation": "nearest",
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorator: draw in STYLE and leave no figure open, so that a notebook shows it once."""
    @wraps(draw)
    def wrapper(*args, **kwargs) -> Figure:
        with plt.rc_context(STYLE):
            figure = draw(*args, **kwargs)
        plt.close(figure)
        return figure
    return wrapper


class Captioned:
    """A figure with a caption below it and a text for readers who do not see it."""

    def __init__(self, figure: Figure, caption: str, alt: str | None = None):
        self.figure, self.caption, self.alt = figure, caption, alt or caption

    def _repr_html_(self) -> str:
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", metadata={"Software": None})
        source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        return (f'<figure><img style="max-width: 100%" src="{source}" alt="{escape(self.alt)}">'
                f'<figcaption>{escape(self.caption)}</figcaption></figure>')

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"


def spaced(name) -> str:
    """A name of the code as it is read: "unique_binding" -> "unique binding"."""
    return str(name).replace("_", " ")


def legend_above(figure: Figure) -> None:
    """What the first axes show, above them from the left, where a phone shows it; the figure grows
    by it."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    room = max(map(len, labels)) * 0.065 + 0.55        # inches a column takes
    columns = min(3, max(1, int(NARROW / room)))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, handlelength=2.8)
    figure.set_figheight(figure.get_figheight() + 0.16 * math.ceil(len(labels) / columns))


def outline(ax: Axes, shown: bool) -> None:
    """A thin grey frame or none: values about zero of a signed map are as light as the page."""
    ax.spines[:].set(visible=shown, color="#B0B0B0", linewidth=0.6)


def shade(ax: Axes, values: Tensor, top: float, signed: bool, **options) -> AxesImage:
    """Draw a map [H, W] in the book's colours: from 0 to `top`, or, signed, framed about zero."""
    outline(ax, signed)
    return ax.imshow(values.float().cpu().numpy(), vmin=-top if signed else 0, vmax=top,
                     cmap="PuOr_r" if signed else "viridis", **options)


def rgb(values: np.ndarray, signed: bool = False) -> np.ndarray:
    """Values in 0..1 in the book's colours (0.5 being zero where `signed`), uint8 [..., 3]."""
    colours = plt.get_cmap("PuOr_r" if signed else "viridis")(values)
    return (colours[..., :3] * 255).round().astype(np.uint8)


def scale_of(values: Tensor, top: float | None = None) -> tuple[float, bool]:
    """`top` and `signed` of `shade` for values of any shape; a map of zeros gets the top 1."""
    return top or float(values.abs().max()) or 1.0, bool((values < 0).any())


def show_picture(ax: Axes, image: Tensor) -> AxesImage:
    """Draw a picture, uint8 [3, H, W]."""
    return ax.imshow(image.permute(1, 2, 0).cpu().numpy())


@styled
def grid(images: Tensor, titles: Sequence[str] | None = None, columns: int = 8) -> Figure:
    """Pictures, uint8 [B, 3, H, W], in rows of `columns`, each under its title.

    Raises ValueError unless there is one title an image.
    """
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"{len(titles)} titles for {len(images)} images; give one title an image")
    rows, side = math.ceil(len(images) / columns), WIDTH / columns
    room = max(8, int(side * 16))  # characters
    wrapped = ["\n".join(textwrap.wrap(t, room)) for t in titles or [""] * len(images)]
    lines = max(t.count("\n") + 1 for t in wrapped) if titles else 0
    size = (WIDTH, rows * (side + 0.13 * lines))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, image, title in zip(axes.flat, images, wrapped):
        show_picture(ax, image)
        ax.set_title(title, fontsize=7, pad=2)
    return figure


@styled
def bars(mean: pd.DataFrame, low: pd.DataFrame | None = None, high: pd.DataFrame | None = None,
         ylabel: str = "", colors: dict[str, str] | None = None,
         lines: dict[str, float] | None = None) -> Figure:
    """Grouped bars: a group a row, a colour a column; intervals and dashed `lines` if given."""
    figure, ax = plt.subplots(figsize=(WIDTH, 2.6))
    width, colors = 0.8 / mean.shape[1], colors or {}
    for i, name in enumerate(mean.columns):
        x = np.arange(len(mean)) + (i - (mean.shape[1] - 1) / 2) * width
        error = None
        if low is not None and high is not None:
            error = [mean[name] - low[name], high[name] - mean[name]]
        ax.bar(x, mean[name], width * 0.92, yerr=error, label=name, color=colors.get(name),
               capsize=2, error_kw={"elinewidth": 1})
    for (name, y), style in zip((lines or {}).items(), ("--", ":", "-.")):
        ax.axhline(y, color="#4D4D4D", linewidth=1, linestyle=style, label=name)
    ax.set_xticks(np.arange(len(mean)), [textwrap.fill(spaced(i), 14) for i in mean.index])
    ax.set_ylabel(ylabel)
    legend_above(figure)
    return figure


@styled
def heatmaps(matrices: dict[str, Tensor], labels: Sequence[str] | None = None,
             vmin: float = -1.0, vmax: float = 1.0, label: str = "cosine") -> Figure:
    """Square matrices side by side, by name, on one scale; `labels` name rows and columns."""
    count = len(matrices)
    size = (WIDTH, 0.5 + min(WIDTH / count, 5.2))
    figure, axes = plt.subplots(1, count, figsize=size, squeeze=False)
    for ax, (name, matrix) in zip(axes.flat, matrices.items()):
        drawn = ax.imshow(matrix.cpu().numpy(), cmap="PuOr_r", vmin=vmin, vmax=vmax)
        ax.set_title(name)
        if labels is not None:
            ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
            ax.set_yticks(range(len(labels)), labels, fontsize=7)
    figure.colorbar(drawn, ax=axes, label=label, shrink=0.8, fraction=0.04)
    return figure


@styled
def lines(frames: pd.DataFrame | dict[str, pd.DataFrame], xlabel: str, ylabel: str, *,
          band: tuple[pd.DataFrame, pd.DataFrame] | None = None,
          levels: dict[str, float] | None = None,
          marks: dict[str, tuple[float, float]] | None = None, height: float = 2.6,
          **axes_options) -> Figure:
    """The columns of a frame against its index; several frames, by title, as panels in fours.

    band: frames of the lower and upper bound of every column. levels: dashed lines by name.
    marks: a diamond (x, y) in the colour of a column. height: of a row of panels, in inches.
    Further options (xscale, ylim, ...) go to `Axes.set`.
    """
    panels = frames if isinstance(frames, dict) else {"": frames}
    rows = math.ceil(len(panels) / 4)
    columns, size = math.ceil(len(panels) / rows), (WIDTH, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
    for ax in axes.flat[len(panels):]:
        ax.set_axis_off()
    for ax, (title, frame) in zip(axes.flat, panels.items()):
        _curves(ax, frame, band, marks or {})
        for name, y in (levels or {}).items():
            ax.axhline(y, color="#8C8C8C", linewidth=1, linestyle="--")
            ax.annotate(name, (0.01, y), xycoords=("axes fraction", "data"), va="bottom",
                        fontsize=7, color="#4D4D4D")
        ax.set(title=title, xlabel=xlabel, **axes_options)
        ax.grid(color="#EBEBEB", linewidth=0.6)
        if ax.get_yscale() == "symlog":
            ax.set_yticks((0, 0.5, 1, 2, 5, 10), labels=("0", "0.5", "1", "2", "5", "10"))
        if ax.get_xscale() == "linear" and frame.index.max() >= 10_000:
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    for line in axes:
        line[0].set_ylabel(ylabel)
    if len(next(iter(panels.values())).columns) > 1:
        legend_above(figure)
    return figure


def _curves(ax: Axes, frame: pd.DataFrame, band: tuple[pd.DataFrame, pd.DataFrame] | None,
            marks: dict[str, tuple[float, float]]) -> None:
    """Each in a style of its own, and narrower than those below it: none hides another."""
    widths = np.linspace(2.8, 1.2, frame.shape[1]) if frame.shape[1] > 1 else [1.5]
    for i, ((name, column), width) in enumerate(zip(frame.items(), widths)):
        color, style = CYCLE[i % len(CYCLE)], DASHES[i % len(DASHES)]
        ax.plot(column.dropna(), color=color, linestyle=style, linewidth=width, label=spaced(name))
        if band:
            low, high = (bound[name] for bound in band)
            ax.fill_between(frame.index, low, high, color=color, alpha=0.2, linewidth=0)
        if name in marks:
            ax.plot(*marks[name], "D", color=color, markersize=6)


@styled
def intervals(series: dict[str, pd.DataFrame], xlabel: str,
              xlim: tuple[float, float] | None = None) -> Figure:
    """Means with intervals: a row an index entry, a dot a series (columns mean, low, high)."""
    rows = list(next(iter(series.values())).index)
    figure, ax = plt.subplots(figsize=(WIDTH, 0.7 + len(rows) * (0.12 + 0.1 * len(series))))
    for k, (name, table) in enumerate(series.items()):
        mean, low, high = (table.reindex(rows)[c] for c in ("mean", "low", "high"))
        y = np.arange(len(rows)) + (k - (len(series) - 1) / 2) * 0.7 / len(series)
        error = [(mean - low).clip(lower=0), (high - mean).clip(lower=0)]
        ax.errorbar(mean, y, xerr=error, fmt="o", markersize=4, label=spaced(name))
    ax.set(yticks=range(len(rows)), yticklabels=[spaced(r) for r in rows], xlabel=xlabel,
           xlim=xlim)
    ax.invert_yaxis()
    ax.grid(axis="x", color="#EBEBEB", linewidth=0.6)
    legend_above(figure)
    return figure


@styled
def maps(values: Tensor, titles: Sequence[str], label: str, columns: int = 8,
         top: float | None = None) -> Figure:
    """Maps [N, H, W] on one colour scale up to `top`, about zero where a value is negative."""
    rows, (top, signed) = math.ceil(len(values) / columns), scale_of(values, top)
    size = (WIDTH, rows * WIDTH / columns)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for ax in axes.flat[len(values):]:
        ax.set_axis_off()
    for ax, value, title in zip(axes.flat, values, titles):
        image = shade(ax, value, top, signed)
        ax.set(xticks=(), yticks=())
        ax.set_title(title, fontsize=7, pad=2)
    figure.colorbar(image, ax=axes, label=label, shrink=0.9, aspect=30)
    return figure
