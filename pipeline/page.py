"""One self-contained page about systems that were scored on the same photographs: for a trained model, and for the zoo.

Numbers stand in it as HTML tables; a few lines of script sort them, choose curves and compare photographs. Nothing is
loaded from anywhere. Photographs are WebP, one strip per photograph with all systems side by side, scaled down and then left
out until they fit the budget; what is left out is said.
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
"""Bytes of all photographs, before base64 makes them a third larger."""
SIDES = (256, 192, 128, 96, 64)
"""Sides in pixels at which photographs are tried, the largest first, until they fit the budget."""
OF_SEVERAL = ("psnr_best", "ab_spread")
"""Metrics over several colorings of one photograph: shown if a system has several."""
QUARTERS = ("least color", "less color", "more color", "most color")
NAMESPACE = re.compile(r"<metadata>.*?</metadata>| xmlns(:\w+)?=\"[^\"]*\"", re.DOTALL)
"""Of an SVG: what stands in no page."""
ASKED = re.compile(r", not \S+, because ")
"""In a note of pipeline/train.py: what the block asks for."""


@dataclass
class Shown:
    """A system on the page."""

    name: str
    kind: str
    """model, baseline or oracle."""
    table: pd.DataFrame
    """Its scores per photograph, in the order of the test split."""
    summary: dict[str, list[float]]
    """Metric to mean, low, high; without an interval the last two are NaN."""
    over: dict[str, list[float]] = field(default_factory=dict)
    """Baseline to what its PSNR is more: difference, low, high."""
    pictures: dict[int, np.ndarray] = field(default_factory=dict)
    """Position in the test split to uint8 [S, S, 3]."""
    facts: dict[str, str] = field(default_factory=dict)
    """Heading to text: parameters, epochs and the like."""
    history: pd.DataFrame | None = None
    notes: Sequence[str] = ()


def read_scores(path: Path, needed: Iterable[str] = (), remedy: str = files.AGAIN) -> pd.DataFrame:
    """A per_image.csv, with the metrics that are `needed`.

    Raises:
        InputError: it is missing or damaged, or an earlier version wrote it, which did not know source photographs.
    """
    texts = dict.fromkeys(("photo", "group", "class", "system"), str)
    needed = ("index", "photo", "group", "grey_truth", "psnr", *needed)
    return files.read_table(path, texts | {"index": int, "grey_truth": bool}, float, needed, remedy=remedy)


def summary_of(scores: pd.DataFrame, system: str) -> dict[str, list[float]]:
    """A system's rows of `metrics.compare`: metric to mean, low, high."""
    own = scores[scores["system"] == system].set_index("metric")
    return {str(metric): row.to_list() for metric, row in own[["mean", "low", "high"]].iterrows()}


def basis(table: pd.DataFrame, scores: pd.DataFrame, size: int, resamples: int) -> str:
    """What the figures of a page stand on, and its intervals, or why it has none."""
    known = scores["low"].notna().any()
    end = (
        f", with 95 % intervals from {resamples} bootstrap resamples of the photographs" if known else TOO_FEW
    )
    return f"Means at {size} × {size} pixels over {scored(table)}{end}"


def strip(photos: Sequence[np.ndarray | None], side: int) -> bytes:
    """Pictures of one photograph side by side as WebP; where a system has none, its place is grey."""
    sheet = Image.new("RGB", (side * len(photos), side), "#808080")
    for place, pixels in enumerate(photos):
        if pixels is not None:
            sheet.paste(
                Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS), (place * side, 0)
            )
    return sheets.encode(sheet, "webp")


def gallery(systems: Sequence[Shown], truth: Mapping[int, np.ndarray]) -> list[dict[str, Any]]:
    """The photographs of the page: name, strip and, system by system, whether it has a picture and its PSNR.

    Those of which every system has a picture come first when not all fit; they stand in the order of the test split.
    """
    complete = [p for p in truth if all(p in system.pictures for system in systems)]
    wanted = [*complete, *(p for p in truth if p not in set(complete))]
    largest = next(iter(truth.values())).shape[0]
    sides = [side for side in SIDES if side <= max(largest, SIDES[-1])]
    for side in sides:
        strips: dict[int, bytes] = {}
        for position in wanted:
            strips[position] = strip([truth[position], *(s.pictures.get(position) for s in systems)], side)
            if sum(map(len, strips.values())) > BUDGET:
                break
        else:
            break
    while sum(map(len, strips.values())) > BUDGET:
        strips.popitem()
    found = []
    for position in sorted(strips):
        rows = [system.table.iloc[position] for system in systems]
        found.append(
            {
                "name": rows[0]["photo"],
                "strip": "data:image/webp;base64," + base64.b64encode(strips[position]).decode(),
                "has": [position in system.pictures for system in systems],
                "psnr": [round(float(row["psnr"]), 2) for row in rows],
            }
        )
    return found


def failures(systems: Sequence[Shown]) -> list[dict[str, Any]]:
    """Where each model loses: its PSNR over grey by how much color the truth has, and by class where there are several.

    How much color a photograph has is told by grey's own PSNR: the higher, the less there was to paint.
    """
    grey = next(system.table for system in systems if system.name == "grey")
    counted = ~grey["grey_truth"].to_numpy(bool)
    if counted.sum() < len(QUARTERS):
        return []
    edges = np.quantile(grey["psnr"].to_numpy()[counted], [0.25, 0.5, 0.75])
    quarter = 3 - np.searchsorted(edges, grey["psnr"].to_numpy(), side="left")
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
        gain = system.table["psnr"].to_numpy() - grey["psnr"].to_numpy()
        cells = [
            (f"{gain[mask].mean():+.2f}" if mask.any() else "").replace("-", "−") for mask in groups.values()
        ]
        worse = float((gain[counted] < 0).mean())
        rows.append({"name": system.name, "cells": cells, "worse": f"{100 * worse:.0f} %"})
    return [{"name": "", "cells": list(groups), "worse": "worse than grey"}, *rows]


def curves(history: pd.DataFrame) -> Markup:
    """A model's losses as an SVG: of each epoch, and their means over 20 epochs."""
    names = [name for name in figures.CURVES if name in history]
    epochs, losses = history["epoch"].to_numpy(), history[names]
    shown = {"each epoch": losses, "mean of 20 epochs": losses.rolling(20, min_periods=1).mean()}
    panels = {
        title: {name: (epochs, table[name].to_numpy()) for name in names} for title, table in shown.items()
    }
    svg = figures.curves(panels, "epoch", "svg").decode()
    return Markup(NAMESPACE.sub("", svg[svg.index("<svg") :]))


def remarks(notes: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The systems that each note is about, from the notes of each system.

    Notes that differ only in what each block asks for ("64 pixels, not 256, because ...") become one, without it.
    """
    about: dict[str, list[str]] = {}
    wordings: dict[str, set[str]] = {}
    for name, said in notes.items():
        for note in said:
            reason = ASKED.sub(", because ", note)
            about.setdefault(reason, []).append(name)
            wordings.setdefault(reason, set()).add(note)
    return {
        (reason if len(wordings[reason]) > 1 else wordings[reason].pop()): names
        for reason, names in about.items()
    }


def number(value: float, decimals: int, signed: bool = False) -> str:
    """A figure with a true minus sign."""
    return f"{value:{'+' if signed else ''}.{decimals}f}".replace("-", "−")


def numbers(values: Sequence[float], decimals: int, signed: bool = False) -> list[str]:
    """A figure and, where it has one, its interval: low and high."""
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
    """The page.

    Args:
        template: page.html.j2 or one that extends it.
        lead: the sentence under the title.
        truth: position in the test split to uint8 [S, S, 3], of every photograph that a system has a picture of.
        basis: of the figures, as the function of that name gives it.
        size: side in pixels at which systems were scored.
        extra: what only one of the pages has, for the template.
    """
    photos = gallery(systems, truth)
    several = any(system.summary["ab_spread"][0] for system in systems)
    shown = {name: metric for name, metric in METRICS.items() if several or name not in OF_SEVERAL}
    data = {
        "systems": [system.name for system in systems],
        "photos": photos,
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
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
        # "<" never stands in it, so no text of a file name can end the script
        data=Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")),
        **extra,
    )
