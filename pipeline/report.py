"""Show one experiment on one self-contained page, metrics/report.html, and draw metrics/prior.png.

The report only shows what other stages wrote; page.py makes what the zoo's page shares with it.
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
"""Values of model.json on the page, beside the block."""
WIDEST = 1200
"""Largest width in pixels of a sheet on the page."""


def mark(metric: Metric, low: float, high: float) -> str:
    """Tell whether a difference with this interval is "better" or "worse"; "" if it may be zero."""
    if metric.better == "neither" or not (low > 0 or high < 0):  # both are NaN without an interval
        return ""
    return "better" if (low > 0) == (metric.better == "higher") else "worse"


def results(comparison: pd.DataFrame) -> list[dict[str, Any]]:
    """Make the rows of the headline table: a metric, its cells by system, its differences by baseline.

    Metrics over samples are left out for a model without samples.
    """
    scores = {(row["metric"], row["system"]): row for row in comparison.to_dict("records")}
    samples = scores["ab_spread", "model"]["mean"] != 0
    rows = []
    for name, metric in METRICS.items():
        if name in OF_SEVERAL and not samples:
            continue
        cells, differences = {}, {}
        for system in SYSTEMS:
            row = scores[name, system]
            cells[system] = numbers([row[column] for column in ("mean", "low", "high")], metric.decimals)
        for system in BASELINES:
            gain = [scores[name, "model"][f"over_{system}{end}"] for end in ("", "_low", "_high")]
            figures = numbers(gain, metric.decimals, signed=True)
            differences[system] = {"figures": figures, "mark": mark(metric, *gain[1:])}
        rows.append({"name": name, "metric": metric, "cells": cells, "differences": differences})
    return rows


def flatten(block: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested parameters to `a.b: value`."""
    flat: dict[str, Any] = {}
    for key, value in block.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def inline(content: bytes, kind: str) -> str:
    """Encode an image file as a data: URL."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def inline_sheet(path: Path) -> dict[str, Any]:
    """Encode a sheet of photographs as WebP, at most `WIDEST` pixels wide."""
    with Image.open(path) as image:
        image.thumbnail((WIDEST, 10 * WIDEST))
        address = inline(sheets.encode(image, "webp"), "webp")
        return {"address": address, "width": image.width, "height": image.height}


def removed_because(splits: pd.DataFrame) -> dict[str, int]:
    """Count the photographs that each reason removed, most frequent first; a + joins several reasons."""
    reasons = splits.loc[splits["reason"] != "", "reason"].str.split("+", regex=False).explode()
    counts = reasons.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    return {str(reason): int(count) for reason, count in counts.items()}


def systems(
    name: str, history: pd.DataFrame, comparison: pd.DataFrame, tested: int
) -> tuple[list[Shown], dict[int, np.ndarray]]:
    """Collect the model and both baselines for the page, and the true photographs by position.

    Args:
        tested: number of photographs in the test split.

    Raises:
        InputError: an output of the evaluate stage is missing or damaged.
    """
    path = paths.METRICS / "per_image.csv"
    per_image = page.read_scores(path, ["system"])
    all_shown = []
    with files.reading(paths.PICTURES):
        pictures = files.read_arrays(paths.PICTURES)
        for system in SYSTEMS:
            table = per_image[per_image["system"] == system].reset_index(drop=True)
            position = {index: place for place, index in enumerate(table["index"])}
            if len(table) != tested:
                raise InputError(f"{path} lists other photographs than the test split; {files.AGAIN}")
            pairs = zip(pictures["index"], pictures[system], strict=True)
            shown = Shown(
                name=name if system == "model" else system,
                kind="model" if system == "model" else "baseline",
                table=table,
                summary=page.summary_of(comparison, system),
                pictures={position[index]: picture for index, picture in pairs},
                history=history if system == "model" else None,
            )
            all_shown.append(shown)
        return all_shown, dict(zip(all_shown[0].pictures, pictures["truth"], strict=True))


class ReportParams(Params):
    crop: CropConfig
    filter: FilterConfig
    train: TrainConfig
    evaluate: EvaluateConfig


def build(params: ReportParams) -> tuple[str, bytes, str]:
    """Build the report, prior.png, and a summary for the screen.

    Raises:
        InputError: an output of an earlier stage is missing or damaged.
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
    trained = {label: f"{description[key]:,}" for key, label in TRAINED.items()}
    extra = {
        "rows": rows,
        "trained": trained | flatten(description["recipe"]),
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
    """Format the main metrics for the screen."""
    shown = [row for row in rows if row["name"] in ("psnr", "ssim", "rmse")]
    labels = dict(zip(SYSTEMS, (name, *BASELINES), strict=True))
    width = max(map(len, labels.values()))
    heads = "".join(f"  {row['name'] + ' ' + row['metric'].unit:<26}" for row in shown)
    lines = [" " * width + heads.rstrip()]
    for system, label in labels.items():
        values = [row["cells"][system] for row in shown]
        cells = ["{} [{}, {}]".format(*cell) if cell[1:] else cell[0] for cell in values]
        lines.append(f"{label:<{width}}" + "".join(f"  {cell:<26}" for cell in cells).rstrip())
    pictures = f"{(paths.METRICS / 'samples.png').as_posix()}, {(paths.METRICS / 'report.html').as_posix()}"
    return "\n".join([*lines, basis, f"pictures: {pictures}"])


def main(params: ReportParams) -> None:
    html, prior, text = build(params)
    files.write_bytes(paths.METRICS / "prior.png", prior)
    files.write_text(paths.METRICS / "report.html", html)
    print(text)


if __name__ == "__main__":
    stage(ReportParams, main)
