"""Plots of heads: scores on the grid of layers and heads, attention over the image grid, the circuit as a diagram."""
from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor

from .plots import WIDTH, styled

COLORS = {"relation": "#009E73", "object": "#882D71", "colour": "#B87A00", "rest": "#8C8C8C"}  # as the text roles


@styled
def head_grid(scores: dict[str, Tensor], label: str, marked: dict[str, Sequence[tuple[int, int]]] | None = None,
              columns: int = 4, tall: float = 1.2) -> Figure:
    """Scores [L, H] side by side, layers down and heads across, on one colour scale (symmetric if any is negative).

    marked: sets of heads by a key of COLORS, framed in its colour. tall: a panel's height over its width, at most.
    """
    values = torch.stack(list(scores.values())).float()
    top, signed = float(values.abs().max()) or 1.0, bool((values < 0).any())
    rows = math.ceil(len(scores) / columns)
    across = min(columns, len(scores))
    height = WIDTH / across * min(tall, values.shape[1] / values.shape[2]) + 0.5
    figure, axes = plt.subplots(rows, across, figsize=(WIDTH, rows * height), squeeze=False)
    for ax in axes.flat[len(scores):]:
        ax.set_axis_off()
    for ax, (title, score) in zip(axes.flat, scores.items()):
        image = ax.imshow(score.float().cpu(), vmin=-top * signed, vmax=top, cmap="PuOr_r" if signed else "viridis", aspect="auto")
        ax.set_title("\n".join(textwrap.wrap(title, 24)))
        ax.set(xticks=range(score.shape[1]), yticks=range(score.shape[0]), xlabel="head")
        ax.spines[:].set_visible(False)
        for role, heads in (marked or {}).items():
            for layer, head in heads:
                ax.add_patch(plt.Rectangle((head - 0.46, layer - 0.46), 0.92, 0.92, fill=False, linewidth=2, edgecolor=COLORS[role]))
    for line in axes:
        line[0].set_ylabel("layer")
    figure.colorbar(image, ax=axes, label=label, shrink=0.9, aspect=30)
    return figure


@styled
def attention_rows(rows: dict[str, Tensor], titles: Sequence[str], label: str = "attention", image: Tensor | None = None,
                   top: float | None = None) -> Figure:
    """Maps [K, 8, 8] in named rows, K titled columns, one scale; `image` uint8 [3, H, W] is drawn at the end of each row,
    or one of several [rows, 3, H, W]."""
    count = len(titles) + (image is not None)
    values = torch.stack(list(rows.values())).float()
    top, signed = top or float(values.abs().max()) or 1.0, bool((values < 0).any())
    side = WIDTH / (count + 1.2)
    figure, axes = plt.subplots(len(rows), count, figsize=(WIDTH, len(rows) * side + 0.35), squeeze=False)
    for y, (line, (name, maps)) in enumerate(zip(axes, rows.items())):
        for x, ax in enumerate(line):
            ax.set(xticks=(), yticks=())
            ax.spines[:].set_visible(False)
            if x < len(titles):
                drawn = ax.imshow(maps[x].float().cpu(), vmin=-top * signed, vmax=top, cmap="PuOr_r" if signed else "viridis")
            else:
                ax.imshow((image[y] if image.ndim == 4 else image).permute(1, 2, 0).cpu().numpy())
            if y == 0:
                ax.set_title(titles[x] if x < len(titles) else "picture", fontsize=7, pad=2)
        line[0].set_ylabel("\n".join(textwrap.wrap(name, 14)), fontsize=7)
    figure.colorbar(drawn, ax=axes, label=label, shrink=0.9, aspect=30)
    return figure


@styled
def scatter(groups: dict[str, pd.DataFrame], xlabel: str, ylabel: str) -> Figure:
    """Labelled points: a colour a group, frames with columns x, y and an index of labels; lines mark both zeros.

    Points of a group that lie close together share a label.
    """
    figure, ax = plt.subplots(figsize=(WIDTH, 3.6))
    span = pd.concat(groups).agg(lambda c: c.max() - c.min())[["x", "y"]] / 20
    for k, (name, frame) in enumerate(groups.items()):
        points = ax.plot(frame["x"], frame["y"], "o", markersize=4, label=name)[0]
        labels: dict[tuple[float, float], list[str]] = {}
        for label, x, y in frame[["x", "y"]].itertuples():
            near = [(a, b) for a, b in labels if abs(a - x) < span["x"] and abs(b - y) < span["y"]]
            labels.setdefault(near[0] if near else (x, y), []).append(label)
        for (x, y), names in labels.items():
            ax.annotate(textwrap.fill(", ".join(names), 10 if x >= 0 else 24), (x, y), (4 if x >= 0 else -4, -3 if k % 2 else 3), fontsize=7,
                        textcoords="offset points", color=points.get_color(), ha="left" if x >= 0 else "right",
                        va="top" if k % 2 else "bottom")
    ax.axhline(0, color="#8C8C8C", linewidth=0.8)
    ax.axvline(0, color="#8C8C8C", linewidth=0.8)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.margins(x=0.1, y=0.1)
    figure.legend(loc="outside right center")
    return figure


_PLACES = {"text": (0, 0), "shape words": (0, 1), "relation words": (0, 0), "colour words": (0, -1), "relation": (1.55, 0),
           "object": (3.1, 1), "colour": (3.1, -1), "picture": (4.65, 0)}  # column and row of each stage of `diagram`


@styled
def diagram(members: dict[str, Sequence[str]], edges: Sequence[tuple[str, str, str]], captions: dict[str, str]) -> Figure:
    """A circuit from the text on the left to the picture on the right: a box for each stage, arrows (from, to, label).

    `members` names the heads of the stages relation, object and colour. Edges may also start at text (or shape words,
    relation words, colour words) and end at picture; `captions` say below a box what the stage does. Raises ValueError for
    another stage.
    """
    stages = list(dict.fromkeys([*members, *(s for a, b, _ in edges for s in (a, b))]))
    if unknown := [s for s in stages if s not in _PLACES]:
        raise ValueError(f"stage {unknown[0]!r} is unknown; choose from {', '.join(_PLACES)}")
    figure, ax = plt.subplots(figsize=(WIDTH, 3.9))
    wide, high = 0.42, 0.27                                                                    # half the size of a box
    for stage in stages:
        x, y = _PLACES[stage]
        color, heads = COLORS.get(stage, "#4D4D4D"), list(members.get(stage, []))
        text = "\n".join(textwrap.wrap(", ".join(heads) or ("none" if stage in members else stage), 14))
        ax.add_patch(FancyBboxPatch((x - wide, y - high), 2 * wide, 2 * high, boxstyle="round,pad=0.03", linewidth=1.5,
                                    facecolor=to_rgba(color, 0.15), edgecolor=color, zorder=3))
        ax.text(x, y, text, ha="center", va="center", fontsize=8, weight="bold", zorder=4)
        said, above = textwrap.wrap(captions.get(stage, ""), 19), y > 0                        # clear of the arrows between rows
        ax.text(x, y + (high + 0.07) * (1 if above else -1), "\n".join(said), ha="center", va="bottom" if above else "top", fontsize=7)
        if stage in members:
            ax.text(x, y + high + 0.07 + 0.13 * len(said) * above, f"{stage} head{'s' * (len(heads) != 1)}", ha="center", va="bottom",
                    fontsize=8, color=color)
    for a, b, label in edges:
        (x0, y0), (x1, y1) = _PLACES[a], _PLACES[b]
        start, end = (x0 + wide + 0.05, y0 + 0.15 * (y1 - y0)), (x1 - wide - 0.06, y1 - 0.15 * (y1 - y0))
        ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color="#4D4D4D", shrinkA=0, shrinkB=0, zorder=1))
        ax.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, label, ha="center", va="center", fontsize=7, linespacing=1.1,
                zorder=2, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})
    ax.set(xlim=(-wide - 0.1, 4.65 + wide + 0.1), ylim=(-1.75, 1.85))
    ax.set_axis_off()
    return figure


@styled
def tables(frames: dict[str, pd.DataFrame], label: str, columns: int = 3, vmin: float = 0.0, vmax: float = 1.0,
           xlabel: str = "", ylabel: str = "") -> Figure:
    """Frames side by side as heat maps with their numbers written in; all share rows, columns and one colour scale.

    The scale is diverging about zero if `vmin` is negative. NaN cells stay empty.
    """
    first, across = next(iter(frames.values())), min(columns, len(frames))
    down, names = math.ceil(len(frames) / across), [str(c).replace("_", " ") for c in first.columns]
    room = int((WIDTH - 1.8) / across / len(names) / 0.062)                                    # characters a column holds
    level = max(len(word) for name in names for word in name.split()) <= room
    names = [textwrap.fill(name, max(1, room)) if level else name for name in names]
    height = 0.24 * len(first) + (0.12 * max(n.count("\n") + 1 for n in names) if level else 0.06 * max(map(len, names))) + 0.6
    figure, axes = plt.subplots(down, across, figsize=(WIDTH, max(1.7, down * height)), squeeze=False, sharey=True)
    for ax in axes.flat[len(frames):]:
        ax.set_axis_off()
    for ax, (title, frame) in zip(axes.flat, frames.items()):
        values = frame.to_numpy(float)
        image = ax.imshow(values, vmin=vmin, vmax=vmax, cmap="PuOr_r" if vmin < 0 else "viridis", aspect="auto")
        for (y, x), value in np.ndenumerate(values):
            if not np.isnan(value):
                r, g, b, _ = image.cmap(image.norm(value))
                ax.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color="white" if r + g + b < 1.5 else "black")
        ax.set_xticks(range(frame.shape[1]), names, fontsize=7, rotation=0 if level else 90)
        ax.set_yticks(range(len(frame)), [str(i).replace("_", " ") for i in frame.index], fontsize=7)
        ax.set_title(title)
        ax.set_xlabel(xlabel)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
    for line in axes:
        line[0].set_ylabel(ylabel)
    figure.colorbar(image, ax=axes, label=label, shrink=0.9, aspect=25)
    return figure
