"""What a study shows: the document's figures beside ours as markdown tables, curves and bars as pictures.

A value is chosen by a selector: the name of a metric on the test split, of a curve (its last epoch) or of a fact
(parameters, minutes). `ma20:val_loss` is the mean of a curve's last 20 epochs, `val_loss@600` its value after 600 seconds of
training; both go together.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from colorize import figures
from colorize.metrics import BASELINES
from colorize.training import AVERAGED_EPOCHS

Record = dict[str, Any]
"""One run: run, seed, settings, device, hardware, torch, and what `experiments.results` gives."""


class Row(BaseModel):
    """One run in a table, and what the document prints of it, column by column; null where it prints nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    label: str
    run: str
    printed: tuple[float | None, ...]


class Table(BaseModel):
    """One table of the document, or several of its sentences in the form of one."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    title: str
    columns: dict[str, str]
    """Heading to selector."""
    unit: float = 1
    """What our values are divided by to stand beside the printed ones."""
    decimals: int = 2
    order: str
    """The heading by which the document's order and ours are compared."""
    better: Literal["lower", "higher"] = "lower"
    rows: tuple[Row, ...]


class Figure(BaseModel):
    """One figure: curves and bars from what was measured, the others from the trained models (study_pictures.py)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    title: str
    kind: Literal["curves", "bars", "sheet", "temperatures", "priors"]
    runs: tuple[str, ...]
    show: tuple[str, ...] = ()
    """curves: which; bars: selectors."""
    photographs: str = "test"
    """sheet, temperatures: train, test, or the name under which --path gives a folder."""
    count: int = 6
    """sheet: how many photographs."""
    over: Literal["epoch", "minutes"] = "epoch"
    averaged: bool = False
    """curves: means of the last 20 epochs, of what there is in the first ones."""


def value(record: Record, selector: str) -> float:
    """What a selector picks out of a record.

    Raises:
        KeyError: there is no such metric, curve or fact.
    """
    name, _, seconds = selector.removeprefix("ma20:").partition("@")
    if name == "parameters":
        return record["model"]["parameters"]
    if name == "minutes":
        return record["curves"]["seconds"][-1] / 60
    if name in record["metrics"]["model"]:
        return record["metrics"]["model"][name][0]
    epochs = len(record["curves"]["epoch"])
    if seconds:
        epochs = max(1, int(np.searchsorted(record["curves"]["seconds"], float(seconds), "right")))
    first = max(0, epochs - AVERAGED_EPOCHS) if selector.startswith("ma20:") else epochs - 1
    return float(np.mean(record["curves"][name][first:epochs]))


def of_run(records: Sequence[Record], run: str) -> list[Record]:
    """A run's records, one per seed."""
    return [record for record in records if record["run"] == run]


def cell(values: Sequence[float], table: Table) -> str:
    """Mean over the seeds, and the range where there are several."""
    scaled = [each / table.unit for each in values]
    text = f"{np.mean(scaled):.{table.decimals}f}"
    if len(scaled) > 1:
        text += f" ({min(scaled):.{table.decimals}f} to {max(scaled):.{table.decimals}f})"
    return text


def agreement(table: Table, records: Sequence[Record]) -> str:
    """One sentence: which pairs of rows stand in the document's order, and which do not."""
    column = list(table.columns).index(table.order)
    selector = table.columns[table.order]
    known: list[tuple[str, float, float]] = []
    for row in table.rows:
        printed = row.printed[column]
        if printed is not None:
            known.append((row.label, printed, float(np.mean([value(r, selector) for r in of_run(records, row.run)]))))
    agree: list[str] = []
    differ: list[str] = []
    for (label, printed, ours), (other, other_printed, other_ours) in itertools.combinations(known, 2):
        if printed == other_printed:
            continue
        first, second = (label, other) if (printed < other_printed) == (table.better == "lower") else (other, label)
        same = (printed < other_printed) == (ours < other_ours)
        (agree if same else differ).append(f"{first} better than {second}")
    if not agree + differ:
        return ""
    text = f"By {table.order}, {len(agree)} of {len(agree) + len(differ)} pairs stand in the document's order."
    return text + (f" Not ours: {'; '.join(differ)}." if differ else "")


def table_lines(table: Table, records: Sequence[Record]) -> list[str]:
    """A table in markdown, the baselines below it, and how the orders compare."""
    heads = [f"{heading}, {whose}" for heading in table.columns for whose in ("document", "ours")]
    lines = [f"### {table.title}", "", "| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for row in table.rows:
        cells = [row.label]
        for printed, selector in zip(row.printed, table.columns.values(), strict=True):
            values = [value(record, selector) for record in of_run(records, row.run)]
            cells += ["" if printed is None else f"{printed:g}", cell(values, table)]
        lines.append("| " + " | ".join(cells) + " |")
    for baseline in BASELINES:
        cells = [f"*{baseline}*"]
        for selector in table.columns.values():
            found = records[0]["metrics"][baseline].get(selector)
            cells += ["", "" if found is None else cell(found[:1], table)]
        if any(cells[1:]):
            lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", agreement(table, records), ""]


def cost_lines(records: Sequence[Record]) -> list[str]:
    """What every run took."""
    lines = ["| run | seeds | parameters | epochs | weights of epoch | training, minutes |", "|---|---|---:|---:|---|---:|"]
    for run in dict.fromkeys(record["run"] for record in records):
        own = of_run(records, run)
        minutes = [value(record, "minutes") for record in own if "seconds" in record["curves"]]
        cells = [
            run,
            ", ".join(str(record["seed"]) for record in own),
            f"{own[0]['model']['parameters']:,}",
            ", ".join(str(record["model"]["epochs"]) for record in own),
            ", ".join(str(record["model"]["best_epoch"]) for record in own),
            f"{np.mean(minutes):.1f}" if minutes else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def at_hour(table: Table, seconds: float) -> Table:
    """The table with `@hour` in its selectors replaced."""
    return table.model_copy(update={"columns": {k: v.replace("@hour", f"@{seconds:g}") for k, v in table.columns.items()}})


def page(study: Any, name: str, device: str, records: Sequence[Record], pictures: Mapping[str, str]) -> str:
    """The whole study as markdown.

    Args:
        study: a `pipeline.study.Study`.
        pictures: file name to title of every figure there is.
    """
    seeds = sorted({record["seed"] for record in records})
    versions = sorted({record["torch"] for record in records})
    commits = sorted({record["commit"] for record in records})
    machines = sorted({record["hardware"] for record in records})
    options = " ".join(f"--path {each}=PATH" for each in study.paths)
    lines = [
        f"# Document {name}: {study.document}",
        "",
        f"Written by `python -m pipeline.study studies/{name}.yaml {options}`:",
        *(f"- {each}: {what}" for each, what in study.paths.items()),
        "",
        study.used[device].strip(),
        f"{len(records)} runs on {', '.join(machines)}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}, "
        f"torch {', '.join(versions)}, commit {', '.join(commits)}; {records[0]['images']} test photographs.",
        "",
    ]
    if study.remarks:
        lines += [study.remarks.strip(), ""]
    lines += ["## Tables", ""]
    for table in study.tables:
        lines += table_lines(at_hour(table, study.hour.get(device, 3600)), records)
    if pictures:
        lines += ["## Figures", ""]
        for file, title in pictures.items():
            lines += [f"**{title}**", "", f"![{title}]({file})", ""]
    lines += ["## Runs", "", "Settings of every run: " + ", ".join(f"`{each}`" for each in study.settings[device]) + ".", ""]
    lines += [f"- `{run}`: " + ", ".join(f"`{each}`" for each in changes) for run, changes in study.runs.items()]
    return "\n".join([*lines, "", *cost_lines(records), ""])


def draw(figure: Figure, records: Sequence[Record]) -> bytes:
    """Curves or bars as PNG; of several seeds, the first."""
    first = {run: of_run(records, run)[0] for run in figure.runs}
    if figure.kind == "bars":
        return figures.bars({each: {run: value(first[run], each) for run in first} for each in figure.show})
    panels = {}
    for run, record in first.items():
        curves = record["curves"]
        x = np.array(curves["epoch"]) if figure.over == "epoch" else np.array(curves["seconds"]) / 60
        lines = {}
        for name in figure.show:
            window = AVERAGED_EPOCHS if figure.averaged else 1
            lines[name] = (x, pd.Series(curves[name]).rolling(window, min_periods=1).mean().to_numpy())
        panels[run] = lines
    return figures.curves(panels, "epoch" if figure.over == "epoch" else "minutes of training")
