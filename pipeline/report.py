"""Gather one experiment on one self-contained page, metrics/report.html, and draw metrics/prior.png.

The page needs no network: pictures are inlined, there is no script and no foreign font. It shows what the other
stages wrote and computes nothing anew; what is measured is defined in colorize.metrics.
"""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from colorize import figures, files
from colorize.files import InputError
from colorize.metrics import BASELINES, METRICS, Metric
from pipeline import paths
from pipeline.params import Params, stage

SYSTEMS = ("model", *BASELINES)
TRAINED = {
    "seed": "seed",
    "size": "working size, pixels",
    "parameters": "trainable parameters",
    "epochs": "epochs",
    "best_epoch": "best epoch",
}
"""What the page shows of model.json beside the block."""
OF_SEVERAL = ("psnr_best", "ab_spread")
"""Metrics over several colorings of one photograph."""
WIDEST = 1200
"""Pixels to which photographic sheets are scaled down for the page."""


def number(value: float, metric: Metric, signed: bool = False) -> str:
    """A figure with as many decimals as its metric deserves, and a true minus sign."""
    return f"{value:{'+' if signed else ''}.{metric.decimals}f}".replace("-", "−")


def mark(metric: Metric, low: float, high: float) -> str:
    """Whether a difference with this interval is better, worse, or not distinguishable from none (empty)."""
    if metric.better == "neither" or low <= 0 <= high:
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
            cells[system] = [number(row[column], metric) for column in ("mean", "low", "high")]
        for system in BASELINES:
            row = found[name, system]
            columns = ("difference", "difference_low", "difference_high")
            differences[system] = {
                "figures": [number(row[column], metric, signed=True) for column in columns],
                "mark": mark(metric, row["difference_low"], row["difference_high"]),
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
            "address": inline(figures.encode(image, "webp"), "webp"),
            "width": image.width,
            "height": image.height,
        }


def removed_because(splits: pd.DataFrame) -> dict[str, int]:
    """How many photographs each reason removed, most frequent first; several reasons of one are joined by +."""
    reasons = splits.loc[splits["reason"] != "", "reason"].str.split("+", regex=False).explode()
    counts = reasons.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    return {str(reason): int(count) for reason, count in counts.items()}


def page(params: Params) -> tuple[str, bytes, list[dict[str, Any]], str]:
    """The report, prior.png, the rows of its headline table and the model's name.

    Raises:
        InputError: what an earlier stage should have written is missing.
    """
    try:
        description = json.loads((paths.MODEL / "model.json").read_text(encoding="utf-8"))
        scores = json.loads((paths.METRICS / "metrics.json").read_text(encoding="utf-8"))
        comparison = pd.read_csv(paths.METRICS / "comparison.csv")
        history = pd.read_csv(paths.METRICS / "loss.csv")
        splits = pd.read_csv(paths.SPLITS_CSV, dtype=str, keep_default_na=False)
        with np.load(paths.PRIOR, allow_pickle=False) as archive:
            arrays = dict(archive)
        samples = inline_sheet(paths.METRICS / "samples.png")
        removed = inline_sheet(paths.REMOVED_PNG)
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} is missing; run `dvc repro`") from error
    rows = results(comparison)
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html.j2")
    html = template.render(
        name=description["name"],
        trained={label: f"{description[key]:,}" for key, label in TRAINED.items()},
        best_epoch=description["best_epoch"],
        keep=params.train.keep,
        block=flatten(description["block"]),
        notes=description["notes"],
        scores=scores,
        rows=rows,
        baselines=BASELINES,
        bootstrap=params.evaluate.bootstrap,
        size=params.crop.size,
        epochs=len(history),
        curves=[inline(figures.loss_curves(history, averaged), "png") for averaged in (False, True) if len(history)],
        panels={title: inline(png, "png") for title, png in figures.prior_panels(arrays).items()},
        bins=len(arrays["bins"]),
        mean_ab=[f"{value:.2f}".replace("-", "−") for value in arrays["mean_ab"]],
        faintest=f"{figures.FAINTEST:.6f}",
        photographs=len(splits),
        splits={split: int((splits["split"] == split).sum()) for split in ("train", "val", "test")},
        because=removed_because(splits),
        removed_count=int((splits["reason"] != "").sum()),
        samples=samples,
        removed=removed,
    )
    return html, figures.prior(arrays), rows, description["name"]


def summary(rows: list[dict[str, Any]], name: str) -> str:
    """The few lines a person wants to see at the end of a run."""
    shown = [row for row in rows if row["name"] in ("psnr", "ssim", "rmse")]
    known_as = dict(zip(SYSTEMS, (name, *BASELINES), strict=True))
    width = max(map(len, known_as.values()))
    lines = [" " * width + "".join(f"  {row['name'] + ' ' + row['metric'].unit:<26}" for row in shown).rstrip()]
    for system, label in known_as.items():
        cells = ["{} [{}, {}]".format(*row["cells"][system]) for row in shown]
        lines.append(f"{label:<{width}}" + "".join(f"  {cell:<26}" for cell in cells).rstrip())
    pictures = f"{(paths.METRICS / 'samples.png').as_posix()}, {(paths.METRICS / 'report.html').as_posix()}"
    return "\n".join([*lines, f"pictures: {pictures}"])


def main(params: Params) -> None:
    html, prior, rows, name = page(params)
    files.write_bytes(paths.METRICS / "prior.png", prior)
    files.write_text(paths.METRICS / "report.html", html)
    print(summary(rows, name))


if __name__ == "__main__":
    stage(main)
