"""Plots of paths: which tokens carry what, and circuits drawn from their tables alone."""
from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from .figures import ROLE_COLORS, WIDTH, styled
from .head_figures import CIRCUIT_COLORS, filled

MOVED = (("side, opposite donor", "opposite", "side"), ("axis, turned donor", "turned", "axis"),
         ("side given axis, turned donor", "turned", "side given axis"))
_STAGE = {"words": 0.0, "heads": 1.5, "object": 3.0, "picture": 4.5}    # where a box stands
_FEWEST = 0.05      # a share of the tag below which a way is not drawn


@styled
def token_matrix(table: Sequence[dict[str, Any]], level: float = 0.05) -> Figure:
    """Tokens x parts, from the rows of `token_exchange.exchange_table` as an exchange record holds
    them: the share that follows the donor, with its interval; bold where it is beyond the control
    (p below `level`)."""
    frame, parts = pd.DataFrame(table), {}
    for name, kind, part in MOVED:
        rows = frame[(frame["kind"] == kind) & (frame["part"] == part)].set_index("tokens")
        parts[name] = rows[["share", "low", "high", "p"]].astype(float)
    shares = pd.DataFrame({name: rows["share"] for name, rows in parts.items()})
    beyond = pd.DataFrame({name: rows["p"] < level for name, rows in parts.items()})
    texts = pd.DataFrame({name: rows.apply("{share:.2f} [{low:.2f}, {high:.2f}]".format_map, axis=1)
                          for name, rows in parts.items()})
    figure, ax = plt.subplots(figsize=(WIDTH, 0.24 * len(shares) + 0.7))
    image = filled(ax, shares.rename(index=lambda t: t.replace("+", " + ")), texts, beyond, 7,
                   vmin=0, vmax=1)
    ax.set_xticks(range(len(MOVED)), list(parts))
    figure.colorbar(image, ax=ax, label="follows the donor", aspect=25)
    return figure


@styled
def two_circuits(edges: dict[str, Any], fused: dict[str, Any],
                 titles: Sequence[str] = ("in two stages", "fused"),
                 handed: dict[str, Any] | None = None) -> Figure:
    """Two circuits, words to heads to picture, one above the other: in two stages from an edges
    record, where arrows into the object head show which way how much of the tag comes; fused from a
    fused record, with the share of the pictures that the readers turn alone. `handed`: the fused
    model's edges record, from which tags from one of its readers to another are drawn.

    Raises ValueError for an edges record without a reader.
    """
    if not edges["readers"]:
        raise ValueError("the record holds no reader, as no object head comes after a relation "
                         "head; there are no two stages to draw")
    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 5.0))
    _two_stages(axes[0], edges["readers"][0])
    _fused(axes[1], fused["readings"][0], handed["readers"] if handed else [])
    for ax, title in zip(axes, titles):
        ax.set_title(title, loc="left")
        ax.set(xlim=(-0.6, 5.1), ylim=(-1.0, 1.0))
        ax.set_axis_off()
    return figure


def _two_stages(ax: Axes, record: dict[str, Any]) -> None:
    _box(ax, "words", 0.5, "relation word", ROLE_COLORS["relation"])
    _box(ax, "words", -0.5, "shape words", ROLE_COLORS["shape1"])
    _box(ax, "heads", 0.5, ", ".join(record["relation"]), CIRCUIT_COLORS["relation"])
    _box(ax, "object", -0.1, record["reader"], CIRCUIT_COLORS["object"])
    _box(ax, "picture", -0.1, "picture", CIRCUIT_COLORS["rest"])
    _arrow(ax, ("words", 0.5), ("heads", 0.5), "read")
    _arrow(ax, ("words", -0.5), ("object", -0.1), "key, value")
    _arrow(ax, ("object", -0.1), ("picture", -0.1), "shape")
    told = {row["way"]: row["of_all"] for row in record["ways"]}
    ways = [f"straight {told['straight']:.0%}"]
    for way, share in told.items():
        kind = way.removeprefix("without ")
        if way != kind and 1 - share >= _FEWEST:
            ways.append(f"by {kind} {1 - share:.0%}")
    _arrow(ax, ("heads", 0.5), ("object", -0.1), "tag: " + ", ".join(ways))


def _fused(ax: Axes, record: dict[str, Any], handed: Sequence[dict[str, Any]]) -> None:
    role = record["tokens"]
    turned = {row["part"]: row for row in record["turned"] if row["heads"] == "readers"}
    other = {row["name"]: row for row in record["roles"]}
    names = [row["name"] for row in record["found"]]
    _box(ax, "words", 0, f"{role}: shape and relation", ROLE_COLORS[role.split("+")[0]])
    _box(ax, "picture", 0, "picture", CIRCUIT_COLORS["rest"])
    told_by = {one["reader"]: one for one in handed
               if one["reader"] in names and set(one["relation"]) <= set(names)}
    height = {name: 0.75 - 1.5 * (i + 0.5) / len(names) for i, name in enumerate(names)}
    for name, y in height.items():
        stage = "object" if name in told_by else "heads"
        carries = [f"{factor} {other[name][factor]:.0%}" for factor in ("shape", "colour")
                   if other[name][factor] >= _FEWEST]
        color = CIRCUIT_COLORS["object" if carries else "relation"]
        _box(ax, stage, y, "; ".join([name, *carries]), color, 0.22)
        _arrow(ax, ("words", 0), (stage, y), "")
        _arrow(ax, (stage, y), ("picture", 0), "")
    for name, one in told_by.items():
        turns = next(row["turned"] for row in one["ways"] if row["way"] == "all paths")
        for sender in one["relation"]:
            _arrow(ax, ("heads", height[sender]), ("object", height[name]),
                   f"turns {turns:.0%} of its query")
    told = ", ".join(f"{part} {row['share']:.0%}" for part, row in turned.items())
    ax.text(_STAGE["object"], 0.85, f"these heads alone turn: {told}", ha="center", fontsize=8)


def _box(ax: Axes, stage: str, y: float, text: str, color: str, high: float = 0.3) -> None:
    x = _STAGE[stage]
    ax.add_patch(FancyBboxPatch((x - 0.45, y - high / 2), 0.9, high, boxstyle="round,pad=0.04",
                                linewidth=1.5, edgecolor=color, facecolor="white", zorder=3))
    ax.text(x, y, textwrap.fill(text, 18), ha="center", va="center", fontsize=7, zorder=4)


def _arrow(ax: Axes, start: tuple[str, float], end: tuple[str, float], label: str) -> None:
    (x0, y0), (x1, y1) = (_STAGE[start[0]] + 0.5, start[1]), (_STAGE[end[0]] - 0.5, end[1])
    ax.add_patch(FancyArrowPatch((x0, y0), (x1, y1), arrowstyle="-|>", mutation_scale=10,
                                 shrinkA=0, shrinkB=0, color="#4D4D4D", zorder=1))
    if label:
        ax.text((x0 + x1) / 2, (y0 + y1) / 2, textwrap.fill(label, 13), ha="center",
                va="center", fontsize=7, zorder=5,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
