"""Gather one experiment on one self-contained page, metrics/report.html, and draw metrics/prior.png.

It shows what the other stages wrote and computes nothing anew; what is measured is defined in colorize.metrics. What it has
in common with the zoo's page is page.py's.
"""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from colorize import files
from colorize.data.filtering import FilterConfig
from colorize.data.images import CropConfig
from colorize.files import InputError
from colorize.scoring import figures, sheets
from colorize.scoring.evaluation import EvaluateConfig
from colorize.scoring.metrics import BASELINES, METRICS, Metric
from colorize.training.device import TrainConfig
from pipeline import page, paths
from pipeline.page import OF_SEVERAL, Shown, number, numbers
from pipeline.params import Params, stage

SYSTEMS = ("model", *BASELINES)
TRAINED = {
    "seed": "seed",
    "parameters": "trainable parameters",
    "epochs": "epochs done",
    "best_epoch": "best epoch",
}
"""What the page shows of model.json beside the block."""
WIDEST = 1200
"""Pixels to which photographic sheets are scaled down for the page."""


def mark(metric: Metric, low: float, high: float) -> str:
    """Whether a difference with this interval is better, worse, or not distinguishable from none (empty)."""
    if metric.better == "neither" or not (low > 0 or high < 0):  # without an interval they are NaN
        return ""
    return "better" if (low > 0) == (metric.better == "higher") else "worse"


def results(comparison: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of the headline table: a metric, its cells by system, its differences by baseline.

    What is measured over several colorings is left out for a model that has one.
    """
    found = {(row["metric"], row["system"]): row for row in comparison.to_dict("records")}
    one = found["ab_spread", "model"]["mean"] == 0
    rows = []
    for name, metric in METRICS.items():
        if one and name in OF_SEVERAL:
            continue
        cells, differences = {}, {}
        for system in SYSTEMS:
            row = found[name, system]
            cells[system] = numbers([row[column] for column in ("mean", "low", "high")], metric.decimals)
        for system in BASELINES:
            more = [found[name, "model"][f"over_{system}{end}"] for end in ("", "_low", "_high")]
            differences[system] = {
                "figures": numbers(more, metric.decimals, signed=True),
                "mark": mark(metric, *more[1:]),
            }
        rows.append({"name": name, "metric": metric, "cells": cells, "differences": differences})
    return rows


def flatten(block: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters as `a.b: value`."""
    flat: dict[str, Any] = {}
    for key, value in block.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def inline(content: bytes, kind: str) -> str:
    """Picture bytes as a data: address."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def inline_sheet(path: Path) -> dict[str, Any]:
    """A sheet of photographs as WebP, at most `WIDEST` pixels wide."""
    with Image.open(path) as image:
        image.thumbnail((WIDEST, 10 * WIDEST))
        return {
            "address": inline(sheets.encode(image, "webp"), "webp"),
            "width": image.width,
            "height": image.height,
        }


def removed_because(splits: pd.DataFrame) -> dict[str, int]:
    """How many photographs each reason removed, most frequent first; several reasons of one are joined by +."""
    reasons = splits.loc[splits["reason"] != "", "reason"].str.split("+", regex=False).explode()
    counts = reasons.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    return {str(reason): int(count) for reason, count in counts.items()}


def systems(
    name: str, history: pd.DataFrame, comparison: pd.DataFrame, tested: int
) -> tuple[list[Shown], dict[int, np.ndarray]]:
    """The model and both baselines for the page, and the truth of the photographs they are shown on.

    Args:
        tested: photographs of the test split.

    Raises:
        InputError: what the evaluate stage should have written is missing or damaged.
    """
    per_image = page.read_scores(paths.METRICS / "per_image.csv", ["system"])
    found = []
    with files.reading(paths.PICTURES):
        pictures = files.read_arrays(paths.PICTURES)
        for system in SYSTEMS:
            table = per_image[per_image["system"] == system].reset_index(drop=True)
            position = {index: place for place, index in enumerate(table["index"])}
            if len(table) != tested:
                where = paths.METRICS / "per_image.csv"
                raise InputError(f"{where} lists other photographs than the test split; {files.AGAIN}")
            pairs = zip(pictures["index"], pictures[system], strict=True)
            shown = Shown(
                name=name if system == "model" else system,
                kind="model" if system == "model" else "baseline",
                table=table,
                summary=page.summary_of(comparison, system),
                pictures={position[index]: picture for index, picture in pairs},
                history=history if system == "model" else None,
            )
            found.append(shown)
        return found, dict(zip(found[0].pictures, pictures["truth"], strict=True))


class ReportParams(Params):
    crop: CropConfig
    filter: FilterConfig
    train: TrainConfig
    evaluate: EvaluateConfig


def build(params: ReportParams) -> tuple[str, bytes, str]:
    """The report, prior.png, and a summary for the screen.

    Raises:
        InputError: what an earlier stage should have written is missing or damaged.
    """
    kinds = {"name": str, "block": dict, "recipe": dict, "notes": list} | dict.fromkeys(TRAINED, int)
    description = files.read_json(paths.MODEL / "model.json", kinds)
    table = paths.METRICS / "comparison.csv"
    comparison = files.read_table(table, {"metric": str, "system": SYSTEMS}, others=float)
    history = files.read_table(paths.METRICS / "loss.csv", {"epoch": float}, others=float)
    texts = dict.fromkeys(("group", "reason", "note"), str)
    splits = files.read_table(paths.SPLITS_CSV, texts | {"split": paths.SPLIT["split"]})
    with files.reading(paths.REMOVED_PNG):
        removed = inline_sheet(paths.REMOVED_PNG)
    with files.reading(table):
        rows = results(comparison)
        tested = int((splits["split"] == "test").sum())
        shown, truth = systems(description["name"], history, comparison, tested)
    with files.reading(paths.PRIOR):
        arrays = files.read_arrays(paths.PRIOR)
        panels, prior = figures.prior_panels(arrays), figures.prior(arrays)
    parts = {name: splits[splits["split"] == name] for name in ("train", "val", "test")}
    parts |= {"removed": splits[splits["reason"] != ""], "all": splits}
    shown[0].notes = description["notes"]
    extra = {
        "rows": rows,
        "trained": {label: f"{description[key]:,}" for key, label in TRAINED.items()}
        | flatten(description["recipe"]),
        "best_epoch": description["best_epoch"],
        "epochs": len(history),
        "keep": params.train.keep,
        "block": flatten(description["block"]),
        "panels": {title: inline(png, "png") for title, png in panels.items()},
        "bins": len(arrays["bins"]),
        "mean_ab": [number(value, 2) for value in arrays["mean_ab"]],
        "faintest": f"{figures.FAINTEST:.6f}",
        "splits": {name: (len(part), part["group"].nunique()) for name, part in parts.items()},
        "because": removed_because(splits),
        "compared": bool(params.filter.duplicates),
        "leaking": int((splits["note"] != "").sum()),
        "removed": removed,
    }
    size = params.crop.size
    basis = page.basis(shown[0].table, comparison, size, params.evaluate.bootstrap)
    html = page.render("report.html.j2", description["name"], "", shown, truth, basis, size, extra)
    return html, prior, summary(rows, description["name"], basis)


def summary(rows: list[dict[str, Any]], name: str, basis: str) -> str:
    """The few lines a person wants to see at the end of a run."""
    shown = [row for row in rows if row["name"] in ("psnr", "ssim", "rmse")]
    known_as = dict(zip(SYSTEMS, (name, *BASELINES), strict=True))
    width = max(map(len, known_as.values()))
    lines = [
        " " * width + "".join(f"  {row['name'] + ' ' + row['metric'].unit:<26}" for row in shown).rstrip()
    ]
    for system, label in known_as.items():
        found = [row["cells"][system] for row in shown]
        cells = ["{} [{}, {}]".format(*cell) if cell[1:] else cell[0] for cell in found]
        lines.append(f"{label:<{width}}" + "".join(f"  {cell:<26}" for cell in cells).rstrip())
    pictures = f"{(paths.METRICS / 'samples.png').as_posix()}, {(paths.METRICS / 'report.html').as_posix()}"
    return "\n".join([*lines, basis, f"pictures: {pictures}"])


def main(params: ReportParams) -> None:
    html, prior, said = build(params)
    files.write_bytes(paths.METRICS / "prior.png", prior)
    files.write_text(paths.METRICS / "report.html", html)
    print(said)


if __name__ == "__main__":
    stage(ReportParams, main)
