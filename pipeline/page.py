"""Build one self-contained HTML page that compares systems on the same photographs.

The page has tables and a short script that sorts them, chooses curves and compares photographs; it loads
nothing. Photographs are WebP strips with all systems side by side. They are scaled down, then left out, until
they fit the budget; the page gives their number.
"""

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from colorize import files
from colorize.scoring import figures, sheets
from colorize.scoring.metrics import BASELINES, METRICS, TOO_FEW, scored

BUDGET = 6_000_000
"""Largest size of all photographs in bytes, before base64."""
SIDES = (256, 192, 128, 96, 64)
"""Sides in pixels to try until the photographs fit the budget."""
OF_SEVERAL = ("psnr_best", "ab_spread")
"""Metrics over samples: shown if a system draws samples."""
QUARTERS = ("least color", "less color", "more color", "most color")
NAMESPACE = re.compile(r"<metadata>.*?</metadata>| xmlns(:\w+)?=\"[^\"]*\"", re.DOTALL)
"""Parts of an SVG that HTML does not need."""
ASKED = re.compile(r", not \S+, because ")
"""The part of a note of pipeline/train.py that differs between blocks."""


@dataclass
class Shown:
    """A system on the page."""

    name: str
    kind: str
    """model, baseline or oracle."""
    table: pd.DataFrame
    """Scores per photograph, in the order of the test split."""
    summary: dict[str, list[float]]
    """Metric to mean, low, high; low and high are NaN without an interval."""
    over: dict[str, list[float]] = field(default_factory=dict)
    """Baseline to the PSNR difference from it: mean, low, high."""
    pictures: dict[int, np.ndarray] = field(default_factory=dict)
    """Position in the test split to uint8 [S, S, 3]."""
    facts: dict[str, str] = field(default_factory=dict)
    """Heading to text: parameters, epochs and the like."""
    history: pd.DataFrame | None = None
    notes: Sequence[str] = ()


def read_scores(path: Path, needed: Iterable[str] = (), remedy: str = files.AGAIN) -> pd.DataFrame:
    """Read a per_image.csv with the columns `needed`.

    Raises:
        InputError: the file is missing or damaged, or lacks columns because an earlier version wrote it.
    """
    texts = dict.fromkeys(("photo", "group", "class", "system"), str)
    needed = ("index", "photo", "group", "grey_truth", "psnr", *needed)
    return files.read_table(path, texts | {"index": int, "grey_truth": bool}, float, needed, remedy=remedy)


def summary_of(scores: pd.DataFrame, system: str) -> dict[str, list[float]]:
    """Select a system from `metrics.compare`: metric to mean, low, high."""
    rows = scores[scores["system"] == system].set_index("metric")[["mean", "low", "high"]]
    return {str(metric): row.to_list() for metric, row in rows.iterrows()}


def basis(table: pd.DataFrame, scores: pd.DataFrame, size: int, resamples: int) -> str:
    """Describe the numbers of a page: what was scored, and how the intervals were made."""
    end = TOO_FEW
    if scores["low"].notna().any():
        end = f", with 95 % intervals from {resamples} bootstrap resamples of the photographs"
    return f"Means at {size} × {size} pixels over {scored(table)}{end}"


def strip(photos: Sequence[np.ndarray | None], side: int) -> bytes:
    """Show images of one photograph side by side as WebP; missing ones are grey."""
    sheet = Image.new("RGB", (side * len(photos), side), "#808080")
    for place, pixels in enumerate(photos):
        if pixels is not None:
            scaled = Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(scaled, (place * side, 0))
    return sheets.encode(sheet, "webp")


def gallery(systems: Sequence[Shown], truth: Mapping[int, np.ndarray]) -> list[dict[str, Any]]:
    """Choose the photographs of the page, in the order of the test split.

    If not all fit, those with an image of every system are preferred.

    Returns:
        For each photograph its name, its strip, and per system whether it has an image, and the PSNR.
    """
    complete = {p for p in truth if all(p in system.pictures for system in systems)}
    positions = sorted(truth, key=lambda p: p not in complete)
    largest = next(iter(truth.values())).shape[0]
    sides = [side for side in SIDES if side <= max(largest, SIDES[-1])]
    for side in sides:
        strips: dict[int, bytes] = {}
        for position in positions:
            strips[position] = strip([truth[position], *(s.pictures.get(position) for s in systems)], side)
            if sum(map(len, strips.values())) > BUDGET:
                break
        else:
            break
    while sum(map(len, strips.values())) > BUDGET:
        strips.popitem()
    return [
        {
            "name": systems[0].table["photo"].iloc[position],
            "strip": "data:image/webp;base64," + base64.b64encode(strips[position]).decode(),
            "has": [position in system.pictures for system in systems],
            "psnr": [round(float(system.table["psnr"].iloc[position]), 2) for system in systems],
        }
        for position in sorted(strips)
    ]


def failures(systems: Sequence[Shown]) -> list[dict[str, Any]]:
    """Tabulate each model's PSNR over grey by amount of color in the truth, and by class if it has several.

    The PSNR of `grey` measures the amount of color: it is low for colorful photographs.
    """
    grey = next(system.table for system in systems if system.name == "grey")
    counted, psnr = ~grey["grey_truth"].to_numpy(bool), grey["psnr"].to_numpy()
    if counted.sum() < len(QUARTERS):
        return []
    quarter = 3 - np.searchsorted(np.quantile(psnr[counted], [0.25, 0.5, 0.75]), psnr, side="left")
    groups = {name: counted & (quarter == number) for number, name in enumerate(QUARTERS)}
    classes = grey["class"].to_numpy(str) if "class" in grey else np.full(len(grey), "")
    names, sizes = np.unique(classes[counted], return_counts=True)
    if len(names) > 1:
        largest = names[np.argsort(-sizes, kind="stable")][:8]
        groups |= {f"{name}/": counted & (classes == name) for name in sorted(largest)}
    rows = []
    for system in systems:
        if system.kind != "model":
            continue
        gain = system.table["psnr"].to_numpy() - psnr
        cells = [number(gain[mask].mean(), 2, True) if mask.any() else "" for mask in groups.values()]
        worse = float((gain[counted] < 0).mean())
        rows.append({"name": system.name, "cells": cells, "worse": f"{100 * worse:.0f} %"})
    return [{"name": "", "cells": list(groups), "worse": "worse than grey"}, *rows]


def curves(history: pd.DataFrame) -> Markup:
    """Draw a model's losses as SVG: of each epoch, and their means over 20 epochs."""
    names = [name for name in figures.CURVES if name in history]
    epochs, losses = history["epoch"].to_numpy(), history[names]
    shown = {"each epoch": losses, "mean of 20 epochs": losses.rolling(20, min_periods=1).mean()}
    panels = {
        title: {name: (epochs, table[name].to_numpy()) for name in names} for title, table in shown.items()
    }
    svg = figures.curves(panels, "epoch", "svg").decode()
    return Markup(NAMESPACE.sub("", svg[svg.index("<svg") :]))


def remarks(notes: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Invert system to notes: map each note to its systems.

    Notes that differ only in what each block asks for ("64 pixels, not 256, because ...") are merged without
    it.
    """
    names: dict[str, list[str]] = {}
    wordings: dict[str, set[str]] = {}
    for name, texts in notes.items():
        for text in texts:
            merged = ASKED.sub(", because ", text)
            names.setdefault(merged, []).append(name)
            wordings.setdefault(merged, set()).add(text)
    return {texts.pop() if len(texts) == 1 else merged: names[merged] for merged, texts in wordings.items()}


def number(value: float, decimals: int, signed: bool = False) -> str:
    """Format a number with a true minus sign."""
    return f"{value:{'+' if signed else ''}.{decimals}f}".replace("-", "−")


def numbers(values: Sequence[float], decimals: int, signed: bool = False) -> list[str]:
    """Format mean, low and high; leave out what is NaN."""
    return [number(value, decimals, signed) for value in values if value == value]


def render(
    template: str,
    title: str,
    lead: str,
    systems: Sequence[Shown],
    truth: Mapping[int, np.ndarray],
    basis: str,
    size: int,
    extra: Mapping[str, Any],
) -> str:
    """Render the page.

    Args:
        template: page.html.j2 or a template that extends it.
        lead: the sentence below the title.
        truth: position in the test split to uint8 [S, S, 3], for every photograph with a prediction.
        basis: see the function `basis`.
        size: side in pixels at which systems were scored.
        extra: further values for the template.
    """
    photos = gallery(systems, truth)
    several = any(system.summary["ab_spread"][0] for system in systems)
    shown = {name: metric for name, metric in METRICS.items() if several or name not in OF_SEVERAL}
    data = json.dumps(
        {"systems": [system.name for system in systems], "photos": photos}, separators=(",", ":")
    )
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["numbers"] = numbers
    return environment.get_template(template).render(
        title=title,
        lead=lead,
        systems=systems,
        metrics=shown,
        baselines=BASELINES,
        size=size,
        basis=basis,
        tested=scored(systems[0].table),
        known=not np.isnan(systems[0].summary["psnr"][1]),
        grey_truths=int(systems[0].table["grey_truth"].sum()),
        remarks=remarks({system.name: system.notes for system in systems}),
        photos=photos,
        failures=failures(systems),
        curves={s.name: curves(s.history) for s in systems if s.history is not None and len(s.history)},
        data=Markup(data.replace("<", "\\u003c")),  # so that no file name can end the script
        **extra,
    )
