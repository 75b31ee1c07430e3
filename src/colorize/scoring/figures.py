"""Draw figures of results with matplotlib: loss curves, bars, priors over the ab plane.

Backgrounds are transparent and text is middle grey, so that figures are readable on light and on dark pages.
Equal inputs give equal bytes. Nothing here writes files.
"""

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from skimage.color import lab2rgb

from colorize.scoring.sheets import INK

CURVES = {
    "train_loss": ("training, running", "#9aa7b1"),
    "train_eval_loss": ("training, evaluation mode", "#2b83ba"),
    "val_loss": ("validation", "#d95f0e"),
}
OTHER_CURVES = ("#7a9a3c", "#8e6bb0", "#c05a5a", "#4aa0a0")
PRIORS = {
    "empirical": "Empirical",
    "smoothed": "Smoothed",
    "released": "Released, ImageNet",
    "released_smoothed": "Released, smoothed",
}
FAINTEST = 1e-6
"""Probability at which a bin's square has side 0."""
STYLE: dict[Any, Any] = {
    "figure.dpi": 200,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "colorize",
}


def _encode(figure: Figure, kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata={"Date" if kind == "svg" else "Software": None})
    return buffer.getvalue()


def curves(
    panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]], xlabel: str, kind: str = "png"
) -> bytes:
    """Draw losses in panels on one scale, as "png" or "svg".

    Args:
        panels: title of a panel to name of a curve to its x and y.
    """
    rows = -(-len(panels) // 4)
    columns = -(-len(panels) // rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * columns + 0.4, 2.2 * rows + 0.4), layout="constrained")
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes, (title, lines) in zip(grid.flat, panels.items(), strict=False):
            for color, (name, (x, y)) in zip(OTHER_CURVES, lines.items(), strict=False):
                label, color = CURVES.get(name, (name.replace("_", " "), color))
                axes.plot(x, y, color=color, label=label, linewidth=1.2)
            axes.set_title(title)
            axes.set_xlabel(xlabel)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        values = np.concatenate([y for lines in panels.values() for _, y in lines.values()])
        if values.min() > 0 and values.max() > 10 * values.min():
            grid[0, 0].set_yscale("log")
        grid[0, 0].legend(fontsize=7)
        return _encode(figure, kind)


def bars(values: Mapping[str, Mapping[str, float]]) -> bytes:
    """Draw one panel per metric with one bar per run, as PNG.

    Args:
        values: metric to run to value.
    """
    runs = list(next(iter(values.values())))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.4 * len(values) + 1.2, 0.3 * len(runs) + 0.9), layout="constrained")
        grid = figure.subplots(1, len(values), sharey=True, squeeze=False)
        for axes, (metric, by_run) in zip(grid[0], values.items(), strict=True):
            drawn = axes.barh(runs, list(by_run.values()), color=CURVES["train_eval_loss"][1])
            axes.bar_label(drawn, fmt="%.3g", padding=2, color=INK, fontsize=7)
            axes.set_title(metric)
            axes.margins(x=0.2)
        axes.invert_yaxis()
        return _encode(figure)


def _over_ab(axes: Axes, bins: np.ndarray, shares: np.ndarray, title: str) -> None:
    """Draw the bins as squares in their colors (at L* 65); `shares`, 0 to 1, are sides per grid step."""
    colors = lab2rgb(np.insert(bins.astype(float), 0, 65, axis=1))
    for sides, alpha in ((np.full(len(bins), 9.6), 0.22), (9.6 * shares, 1.0)):
        squares = [
            Rectangle((a - side / 2, b - side / 2), side, side)
            for (a, b), side in zip(bins, sides, strict=True)
        ]
        axes.add_collection(
            PatchCollection(squares, facecolors=colors, alpha=alpha, linewidths=0, snap=False)
        )
    axes.set(xlim=(-118, 118), ylim=(-118, 118), aspect="equal", title=title, xlabel="a*", ylabel="b*")
    axes.set_xticks(range(-100, 101, 50))
    axes.set_yticks(range(-100, 101, 50))


def _panels(arrays: Mapping[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """Title and shares [313] of every prior, then of its weights."""
    names = [name for name in PRIORS if name in arrays]
    heaviest = max(arrays[f"weights_{name}"].max() for name in names)
    faintest = np.log10(FAINTEST)
    priors = [(PRIORS[name], 1 - np.log10(np.maximum(arrays[name], FAINTEST)) / faintest) for name in names]
    return priors + [(f"{PRIORS[name]}: weights", arrays[f"weights_{name}"] / heaviest) for name in names]


def prior(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Draw every prior over the ab plane, and its rebalancing weights below it, as one PNG.

    Args:
        arrays: of `colorize.bins.Statistics`.
    """
    panels = _panels(arrays)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.6 * len(panels), 6.6), layout="constrained")
        for axes, (title, shares) in zip(figure.subplots(2, len(panels) // 2).flat, panels, strict=True):
            _over_ab(axes, arrays["bins"], shares, title)
        return _encode(figure)


def prior_panels(arrays: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """Draw the panels of `prior` one by one, title to PNG, for a page that arranges them."""
    panels = {}
    with matplotlib.rc_context(STYLE):
        for title, shares in _panels(arrays):
            figure = Figure(figsize=(3.4, 3.4), layout="constrained")
            _over_ab(figure.subplots(), arrays["bins"], shares, title)
            panels[title] = _encode(figure)
    return panels
