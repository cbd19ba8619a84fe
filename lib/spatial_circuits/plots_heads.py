"""Plots of heads: scores on the grid of layers and heads, attention over the image grid, the circuit as a diagram."""
from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor

from .plots import WIDTH, styled

COLORS = {"relation": "#009E73", "object": "#882D71", "colour": "#B87A00", "rest": "#8C8C8C"}  # as the text roles


@styled
def head_grid(scores: dict[str, Tensor], label: str, marked: dict[str, Sequence[tuple[int, int]]] | None = None,
              columns: int = 4) -> Figure:
    """Scores [L, H] side by side, layers down and heads across, on one colour scale (symmetric if any is negative).

    marked: sets of heads by a key of COLORS, framed in its colour.
    """
    values = torch.stack(list(scores.values())).float()
    top, signed = float(values.abs().max()) or 1.0, bool((values < 0).any())
    rows = math.ceil(len(scores) / columns)
    across = min(columns, len(scores))
    height = WIDTH / across * min(1.2, values.shape[1] / values.shape[2]) + 0.5
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
    """Maps [K, 8, 8] in named rows, K titled columns, one scale; `image` uint8 [3, H, W] is drawn at the end of each row."""
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
                ax.imshow(image.permute(1, 2, 0).cpu().numpy())
            if y == 0:
                ax.set_title(titles[x] if x < len(titles) else "picture", fontsize=7, pad=2)
        line[0].set_ylabel("\n".join(textwrap.wrap(name, 14)), fontsize=7)
    figure.colorbar(drawn, ax=axes, label=label, shrink=0.9, aspect=30)
    return figure


@styled
def diagram(members: dict[str, Sequence[str]], edges: Sequence[tuple[str, str, str]], captions: dict[str, str]) -> Figure:
    """A circuit from left to right: stages by role in the order of `members` (names of heads), arrows (from, to, text).

    The stages "text" and "picture" are drawn at the ends; `captions` say below each stage what it does.
    """
    stages = ["text", *members, "picture"]
    figure, ax = plt.subplots(figsize=(WIDTH, 2.9))
    place = {stage: 2.0 * i for i, stage in enumerate(stages)}
    for stage, x in place.items():
        color = COLORS.get(stage, "#4D4D4D")
        ax.add_patch(FancyBboxPatch((x - 0.55, -0.45), 1.1, 0.9, boxstyle="round,pad=0.05", facecolor=color, alpha=0.15))
        ax.add_patch(FancyBboxPatch((x - 0.55, -0.45), 1.1, 0.9, boxstyle="round,pad=0.05", fill=False, edgecolor=color, linewidth=1.5))
        named = "\n".join(members[stage]) if stage in members else stage
        ax.text(x, 0, named, ha="center", va="center", fontsize=8, weight="bold")
        ax.text(x, 0.6, f"{stage} heads" if stage in members else "", ha="center", fontsize=8, color=color)
        ax.text(x, -0.62, "\n".join(textwrap.wrap(captions.get(stage, ""), 17)), ha="center", va="top", fontsize=7)
    for a, b, text in edges:
        x0, x1 = place[a] + 0.6, place[b] - 0.6
        bend = 0.0 if stages.index(b) - stages.index(a) == 1 else -0.35
        ax.add_patch(FancyArrowPatch((x0 if not bend else place[a] + 0.3, 0.5 * bool(bend)), (x1 if not bend else place[b] - 0.3, 0.5 * bool(bend)),
                                     arrowstyle="-|>", mutation_scale=10, color="#4D4D4D", connectionstyle=f"arc3,rad={bend}"))
        middle = (place[a] + place[b]) / 2
        ax.text(middle, 1.15 + 0.18 * (stages.index(b) - stages.index(a) - 2) if bend else 0.08, text, ha="center", va="bottom", fontsize=7)
    ax.set(xlim=(-0.8, place["picture"] + 0.8), ylim=(-1.7, 1.8))
    ax.set_axis_off()
    return figure


@styled
def tables(frames: dict[str, pd.DataFrame], label: str, columns: int = 3, vmin: float = 0.0, vmax: float = 1.0,
           xlabel: str = "", ylabel: str = "") -> Figure:
    """Frames side by side as heat maps with their numbers written in; all share rows, columns and one colour scale.

    The scale is diverging about zero if `vmin` is negative. NaN cells stay empty.
    """
    first, across = next(iter(frames.values())), min(columns, len(frames))
    down = math.ceil(len(frames) / across)
    height = 0.24 * len(first) + 0.11 * max(len(str(c)) for c in first.columns) ** 0.8 + 0.5
    figure, axes = plt.subplots(down, across, figsize=(WIDTH, down * height), squeeze=False, sharey=True)
    for ax in axes.flat[len(frames):]:
        ax.set_axis_off()
    for ax, (title, frame) in zip(axes.flat, frames.items()):
        values = frame.to_numpy(float)
        image = ax.imshow(values, vmin=vmin, vmax=vmax, cmap="PuOr_r" if vmin < 0 else "viridis", aspect="auto")
        for (y, x), value in np.ndenumerate(values):
            if not np.isnan(value):
                r, g, b, _ = image.cmap(image.norm(value))
                ax.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color="white" if r + g + b < 1.5 else "black")
        wrapped = [textwrap.fill(str(c).replace("_", " "), 14) for c in frame.columns]
        ax.set_xticks(range(frame.shape[1]), wrapped, fontsize=7, rotation=90 if max(len(w) for w in wrapped) * frame.shape[1] * across > 70 else 0)
        ax.set_yticks(range(len(frame)), [str(i).replace("_", " ") for i in frame.index], fontsize=7)
        ax.set_title(title)
        ax.set_xlabel(xlabel)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
    for line in axes:
        line[0].set_ylabel(ylabel)
    figure.colorbar(image, ax=axes, label=label, shrink=0.9, aspect=25)
    return figure
