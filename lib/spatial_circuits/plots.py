"""Plots: every figure of the book, one style. Functions take frames or tensors and return a matplotlib Figure.

Red and blue are kept for the objects in the pictures; everything else uses colours that the colour-blind can tell
apart (after Okabe and Ito), and a token role has the same colour in every chapter: purple for object 1, orange for
object 2, green for the relation, greys for the rest.
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
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from torch import Tensor

from .scenes import ALIGN, OFFSETS, RELATIONS, SIZE, Scenes
from .text import TextBatch

WIDTH = 7.2  # inches: the page's width at 100 dots an inch
CYCLE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C", "#000000")
ROLE_COLORS = {"colour1": "#CC79A7", "shape1": "#882D71", "relation": "#009E73", "colour2": "#F0B840",
               "shape2": "#B87A00", "filler": "#8C8C8C", "end": "#4D4D4D", "pad": "#D0D0D0"}
ENCODER_COLORS = {"rte": "#0072B2", "rte-nopos": "#8C8C8C", "t5-untrained": "#E69F00", "minilm": "#CC79A7",
                  "t5": "#882D71", "clip": "#009E73"}
PRESET_COLORS = {"clean": "#0072B2", "paper": "#E69F00"}
STYLE = {
    "figure.dpi": 150, "figure.facecolor": "white", "figure.constrained_layout.use": True,
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "legend.fontsize": 8, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=CYCLE), "axes.edgecolor": "#4D4D4D", "lines.linewidth": 1.5,
    "image.cmap": "viridis", "image.interpolation": "nearest",
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
        data = base64.b64encode(buffer.getvalue()).decode()
        return (f'<figure><img style="max-width: 100%" src="data:image/png;base64,{data}" alt="{escape(self.alt)}">'
                f'<figcaption>{escape(self.caption)}</figcaption></figure>')

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"


@styled
def grid(images: Tensor, titles: Sequence[str] | None = None, columns: int = 8) -> Figure:
    """Pictures, uint8 [B, 3, H, W], in rows of `columns`, each under its title. ValueError if the titles do not fit."""
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"{len(titles)} titles for {len(images)} images; give one title an image")
    rows, side = math.ceil(len(images) / columns), WIDTH / columns
    wrapped = ["\n".join(textwrap.wrap(t, max(8, int(side * 16)))) for t in titles or [""] * len(images)]
    lines = max(t.count("\n") + 1 for t in wrapped) if titles else 0
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, rows * (side + 0.13 * lines)), squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, image, title in zip(axes.flat, images, wrapped):
        ax.imshow(image.permute(1, 2, 0).cpu().numpy())  # [H, W, 3]
        ax.set_title(title, fontsize=7, pad=2)
    return figure


@styled
def bars(mean: pd.DataFrame, low: pd.DataFrame | None = None, high: pd.DataFrame | None = None, ylabel: str = "",
         colors: dict[str, str] | None = None, lines: dict[str, float] | None = None) -> Figure:
    """Grouped bars: one group a row, one colour a column, with intervals if given and dashed reference `lines`."""
    figure, ax = plt.subplots(figsize=(WIDTH, 2.6))
    width = 0.8 / mean.shape[1]
    for i, name in enumerate(mean.columns):
        x = np.arange(len(mean)) + (i - (mean.shape[1] - 1) / 2) * width
        error = None if low is None else [mean[name] - low[name], high[name] - mean[name]]
        ax.bar(x, mean[name], width * 0.92, yerr=error, label=name, color=(colors or {}).get(name), capsize=2,
               error_kw={"elinewidth": 1})
    for (name, y), style in zip((lines or {}).items(), ("--", ":", "-.")):
        ax.axhline(y, color="#4D4D4D", linewidth=1, linestyle=style, label=name)
    ax.set_xticks(np.arange(len(mean)), [textwrap.fill(str(i).replace("_", " "), 14) for i in mean.index])
    ax.set_ylabel(ylabel)
    figure.legend(loc="outside upper center", ncols=6)
    return figure


@styled
def heatmaps(matrices: dict[str, Tensor], labels: Sequence[str] | None = None, vmin: float = -1.0, vmax: float = 1.0,
             label: str = "cosine") -> Figure:
    """Square matrices side by side, each under its name, on one scale; `labels` name rows and columns of all."""
    count = len(matrices)
    figure, axes = plt.subplots(1, count, figsize=(WIDTH, 0.5 + min(WIDTH / count, 5.2)), squeeze=False)
    for ax, (name, matrix) in zip(axes.flat, matrices.items()):
        drawn = ax.imshow(matrix.cpu().numpy(), cmap="PuOr_r", vmin=vmin, vmax=vmax)
        ax.set_title(name)
        if labels is not None:
            ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
            ax.set_yticks(range(len(labels)), labels, fontsize=7)
    figure.colorbar(drawn, ax=axes, label=label, shrink=0.8, fraction=0.04)
    return figure


@styled
def separations(presets: dict[str, Scenes]) -> Figure:
    """Distance of the two centroids along each axis: one the relation names (left) and one it does not (right)."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.4))
    for preset, scenes in presets.items():
        distance = (scenes.xy[:, 0] - scenes.xy[:, 1]).abs()           # [B, 2] px
        named = OFFSETS[scenes.relation] != 0                          # [B, 2]
        for ax, chosen, bins in zip(axes, (distance[named], distance[~named]), (range(0, 98, 2), range(0, 8))):
            ax.hist(chosen.numpy(), np.array(bins) - 0.5, density=True, label=preset, color=PRESET_COLORS[preset],
                    alpha=0.6)
    axes[0].set(title="axis that the relation names", xlabel="distance of the centroids (px)", ylabel="density")
    axes[1].set(title="axis that it does not name", xlabel="distance of the centroids (px)")
    axes[1].legend()
    return figure


@styled
def density(presets: dict[str, Scenes], bins: int = 16) -> Figure:
    """Where the centroids lie, by relation: for each preset a row for object 1 and one for object 2, scaled alike."""
    rows = [(preset, scenes, i) for preset, scenes in presets.items() for i in (0, 1)]
    figure, axes = plt.subplots(len(rows), len(RELATIONS), figsize=(WIDTH, 0.95 * len(rows) + 0.3), squeeze=False)
    for line, (preset, scenes, i) in zip(axes, rows):
        for r, ax in enumerate(line):
            x, y = scenes.xy[scenes.relation == r, i].T.numpy()
            counts = np.histogram2d(y, x, bins, ((0, SIZE), (0, SIZE)))[0]
            ax.imshow(counts / max(1, counts.max()), cmap="Greys", extent=(0, SIZE, SIZE, 0))
            ax.set(xticks=(), yticks=())
            ax.spines[:].set_visible(True)
        line[0].set_ylabel(f"{preset}\nobject {i + 1}")
    for ax, relation in zip(axes[0], RELATIONS):
        ax.set_title(relation.replace("_", "\n"), fontsize=8)
    return figure


@styled
def token_roles(batches: dict[str, TextBatch]) -> Figure:
    """The first prompt of each batch as a strip of tokens in the colours of their roles, one strip an encoder."""
    figure, ax = plt.subplots(figsize=(WIDTH, 0.34 * len(batches) + 0.6))
    longest = max(len(batch.tokens[0]) for batch in batches.values())
    for y, batch in enumerate(batches.values()):
        for x, (token, role) in enumerate(zip(batch.tokens[0], batch.roles[0])):
            ink = "white" if role in ("shape1", "relation", "end", "filler") else "black"
            ax.add_patch(plt.Rectangle((x + 0.03, y - 0.42), 0.94, 0.84, color=ROLE_COLORS[role], linewidth=0))
            ax.text(x + 0.5, y, token, ha="center", va="center", color=ink, fontsize=min(8, 62 / longest))
    ax.set(xlim=(0, longest), ylim=(len(batches) - 0.5, -0.5), xticks=(), yticks=range(len(batches)),
           yticklabels=list(batches))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    said = [r for r in ROLE_COLORS if any(r in b.roles[0] for b in batches.values())]
    figure.legend(handles=[plt.Rectangle((0, 0), 1, 1, color=ROLE_COLORS[r], label=r) for r in said],
                  loc="outside lower center", ncols=len(said))
    return figure


@styled
def lines(frames: pd.DataFrame | dict[str, pd.DataFrame], xlabel: str, ylabel: str, *,
          band: tuple[pd.DataFrame, pd.DataFrame] | None = None, levels: dict[str, float] | None = None,
          marks: dict[str, tuple[float, float]] | None = None, height: float = 2.6, **axes_options) -> Figure:
    """The columns of a frame against its index; several frames, by title, are panels with the same axes, four in a row.

    band: frames of the lower and upper bound of every column. levels: dashed lines by name. marks: a diamond (x, y)
    in the colour of a column. Further options (xscale, ylim, ...) go to `Axes.set`.
    """
    panels = frames if isinstance(frames, dict) else {"": frames}
    rows = math.ceil(len(panels) / 4)
    columns = math.ceil(len(panels) / rows)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height * rows), sharey=True, squeeze=False)
    for ax in axes.flat[len(panels):]:
        ax.set_axis_off()
    for ax, (title, frame) in zip(axes.flat, panels.items()):
        for i, (name, column) in enumerate(frame.items()):
            color, style = CYCLE[i % len(CYCLE)], ("-", "--", ":")[i // len(CYCLE) % 3]
            ax.plot(column.dropna(), style, color=color, label=str(name).replace("_", " "))
            if band:
                ax.fill_between(frame.index, band[0][name], band[1][name], color=color, alpha=0.2, linewidth=0)
            if name in (marks or {}):
                ax.plot(*marks[name], "D", color=color, markersize=6)
        for name, y in (levels or {}).items():
            ax.axhline(y, color="#8C8C8C", linewidth=1, linestyle="--")
            ax.annotate(name, (0.01, y), xycoords=("axes fraction", "data"), va="bottom", fontsize=7, color="#4D4D4D")
        ax.set(title=title, xlabel=xlabel, **axes_options)
        ax.grid(color="#EBEBEB", linewidth=0.6)
        if ax.get_yscale() == "symlog":
            ax.set_yticks((0, 0.5, 1, 2, 5, 10), labels=("0", "0.5", "1", "2", "5", "10"))
        if ax.get_xscale() == "linear" and frame.index.max() >= 10_000:
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    for line in axes:
        line[0].set_ylabel(ylabel)
    if len(next(iter(panels.values())).columns) > 1:
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside right center")
    return figure


@styled
def intervals(series: dict[str, pd.DataFrame], xlabel: str, xlim: tuple[float, float] | None = None) -> Figure:
    """Means with their intervals: a row for each index entry, a dot for each series (columns mean, low, high)."""
    rows = list(next(iter(series.values())).index)
    height = 0.7 + len(rows) * (0.12 + 0.1 * len(series))
    figure, ax = plt.subplots(figsize=(WIDTH, height))
    for k, (name, table) in enumerate(series.items()):
        mean, low, high = (table.reindex(rows)[c] for c in ("mean", "low", "high"))
        y = np.arange(len(rows)) + (k - (len(series) - 1) / 2) * 0.7 / len(series)
        ax.errorbar(mean, y, xerr=[(mean - low).clip(lower=0), (high - mean).clip(lower=0)], fmt="o", markersize=4,
                    label=name.replace("_", " "))
    ax.set(yticks=range(len(rows)), yticklabels=[str(r).replace("_", " ") for r in rows], xlabel=xlabel, xlim=xlim)
    ax.invert_yaxis()
    ax.grid(axis="x", color="#EBEBEB", linewidth=0.6)
    figure.legend(loc="outside right center")
    return figure


@styled
def maps(values: Tensor, titles: Sequence[str], label: str, columns: int = 8, top: float | None = None) -> Figure:
    """Arrays [N, H, W] on one colour scale up to `top`, symmetric about zero where a value is negative."""
    rows, top = math.ceil(len(values) / columns), top or float(values.abs().max())
    signed = bool((values < 0).any())
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, rows * WIDTH / columns), squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, value, title in zip(axes.flat, values, titles):
        image = ax.imshow(value.cpu().numpy(), vmin=-top * signed, vmax=top, cmap="PuOr_r" if signed else "viridis")
        ax.set_title(title, fontsize=7, pad=2)
    figure.colorbar(image, ax=axes, label=label, shrink=0.9, aspect=30)
    return figure


@styled
def distances(frame: pd.DataFrame, truth: pd.DataFrame) -> Figure:
    """Scatter of dx and dy (px) for each relation over that of true scenes; green is where a picture passes `strict`."""
    figure, axes = plt.subplots(2, 4, figsize=(WIDTH, 4.2), sharex=True, sharey=True)
    spans = {-1: (-SIZE, -ALIGN), 0: (-ALIGN, ALIGN), 1: (ALIGN, SIZE)}
    for ax, relation, (x, y) in zip(axes.flat, RELATIONS, OFFSETS.tolist()):
        (left, right), (top, bottom) = spans[x], spans[y]
        ax.fill_between([left, right], top, bottom, color="#009E73", alpha=0.15, linewidth=0)
        for part, color, name in ((truth, "#8C8C8C", "true scenes"), (frame, "#D55E00", "model")):
            rows = part[part["relation"] == relation]
            ax.plot(rows["dx"], rows["dy"], ".", color=color, markersize=2.5, alpha=0.6, label=name)
        ax.set(title=relation.replace("_", " "), xlim=(-110, 110), ylim=(110, -110), aspect="equal")
    figure.supxlabel("dx = x1 - x2 (px)", fontsize=9)
    figure.supylabel("dy = y1 - y2 (px, down)", fontsize=9)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, markerscale=3)
    return figure
