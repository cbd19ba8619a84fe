"""Plots of the data: where objects lie in scenes and pictures, what role each token has."""
from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..data.scenes import ALIGN, OFFSETS, RELATIONS, SIZE, Scenes
from ..text.batch import TextBatch
from .figures import ROLE_COLORS, WIDTH, spaced, styled

PRESET_COLORS = {"clean": "#0072B2", "paper": "#E69F00"}


@styled
def separations(presets: dict[str, Scenes]) -> Figure:
    """Distance of the two centroids (px) along the axes a relation names (left) and others."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.4))
    edges = [np.array(r) - 0.5 for r in (range(0, 98, 2), range(0, 8))]
    for preset, scenes in presets.items():
        distance = (scenes.xy[:, 0] - scenes.xy[:, 1]).abs()           # [B, 2] px
        named = OFFSETS[scenes.relation] != 0                          # [B, 2]
        for ax, chosen, bins in zip(axes, (distance[named], distance[~named]), edges):
            ax.hist(chosen.numpy(), bins, density=True, label=preset, color=PRESET_COLORS[preset],
                    alpha=0.6)
    across = "distance of the centroids (px)"
    axes[0].set(title="axis that the relation names", xlabel=across, ylabel="density")
    axes[1].set(title="axis that it does not name", xlabel=across)
    axes[1].legend()
    return figure


@styled
def density(presets: dict[str, Scenes], bins: int = 16) -> Figure:
    """Where the centroids lie, by relation: a row for each preset and object, all scaled alike."""
    rows = [(preset, scenes, i) for preset, scenes in presets.items() for i in (0, 1)]
    size = (WIDTH, 0.95 * len(rows) + 0.3)
    figure, axes = plt.subplots(len(rows), len(RELATIONS), figsize=size, squeeze=False)
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
    """The first prompt of each batch, by encoder, as a strip of tokens in their roles' colours."""
    figure, ax = plt.subplots(figsize=(WIDTH, 0.34 * len(batches) + 0.6))
    longest = max(len(batch.tokens[0]) for batch in batches.values())
    for y, batch in enumerate(batches.values()):
        for x, (token, role) in enumerate(zip(batch.tokens[0], batch.roles[0])):
            ink = "white" if role in ("shape1", "relation", "end", "filler") else "black"
            ax.add_patch(plt.Rectangle((x + 0.03, y - 0.42), 0.94, 0.84, color=ROLE_COLORS[role],
                                       linewidth=0))
            ax.text(x + 0.5, y, token, ha="center", va="center", color=ink,
                    fontsize=min(8, 62 / longest))
    ax.set(xlim=(0, longest), ylim=(len(batches) - 0.5, -0.5), xticks=(),
           yticks=range(len(batches)), yticklabels=list(batches))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    shown = [r for r in ROLE_COLORS if any(r in b.roles[0] for b in batches.values())]
    patches = [plt.Rectangle((0, 0), 1, 1, color=ROLE_COLORS[r], label=r) for r in shown]
    figure.legend(handles=patches, loc="outside upper left", ncols=len(shown))
    return figure


@styled
def distances(frame: pd.DataFrame, truth: pd.DataFrame) -> Figure:
    """dx and dy (px) by relation, over those of true scenes; green is where `strict` is passed."""
    figure, axes = plt.subplots(2, 4, figsize=(WIDTH, 4.2), sharex=True, sharey=True)
    spans = {-1: (-SIZE, -ALIGN), 0: (-ALIGN, ALIGN), 1: (ALIGN, SIZE)}
    for ax, relation, (x, y) in zip(axes.flat, RELATIONS, OFFSETS.tolist()):
        ax.fill_between(spans[x], *spans[y], color="#009E73", alpha=0.15, linewidth=0)
        for part, color, name in ((truth, "#8C8C8C", "true scenes"), (frame, "#D55E00", "model")):
            rows = part[part["relation"] == relation]
            ax.plot(rows["dx"], rows["dy"], ".", color=color, markersize=2.5, alpha=0.6, label=name)
        ax.set(title=spaced(relation), xlim=(-110, 110), ylim=(110, -110), aspect="equal")
    figure.supxlabel("dx = x1 - x2 (px)", fontsize=9)
    figure.supylabel("dy = y1 - y2 (px, down)", fontsize=9)
    names = axes.flat[0].get_legend_handles_labels()
    figure.legend(*names, loc="outside upper left", ncols=2, markerscale=3)
    return figure
