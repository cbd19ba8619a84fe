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
from torch import Tensor

WIDTH = 7.2  # inches: the page's width at 100 dots an inch
CYCLE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C", "#000000")
ROLE_COLORS = {"colour1": "#CC79A7", "shape1": "#882D71", "relation": "#009E73", "colour2": "#F0B840",
               "shape2": "#B87A00", "filler": "#8C8C8C", "end": "#4D4D4D", "pad": "#D0D0D0"}
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
