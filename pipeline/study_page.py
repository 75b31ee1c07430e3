"""What a study shows: the document's figures beside ours as markdown tables, curves and bars as pictures.

A value is chosen by a selector: the name of a metric on the test split, of a curve (its last epoch) or of a fact
(parameters, minutes). `ma20:val_loss` is the mean of a curve's last 20 epochs, `val_loss@600` its value after 600 seconds of
training; both go together. `psnr over grey` is what the model has more than that baseline, with its paired interval.
"""

import itertools
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from annotated_types import MinLen
from pydantic import BaseModel, ConfigDict, model_validator

from colorize.files import InputError
from colorize.scoring import figures
from colorize.scoring.metrics import BASELINES, with_interval
from colorize.training.loop import AVERAGED_EPOCHS

Record = dict[str, Any]
"""One run: run, seed, settings, device, hardware, torch, and what `experiments.results` gives."""


class Row(BaseModel):
    """One run in a table, and what the document prints of it, column by column; null where it prints nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    label: str
    run: str
    printed: tuple[float | None, ...] = ()
    """Empty if the document has no numbers for this run."""

    def document(self, column: int) -> float | None:
        """What the document prints of the run in a column."""
        return self.printed[column] if self.printed else None


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
    ranked: bool = False
    """Best row first by `order`, instead of the document's order."""
    rows: Annotated[tuple[Row, ...], MinLen(1)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.order not in self.columns:
            raise ValueError(f"{self.title}: order has to be one of its columns, {', '.join(self.columns)}")
        for row in self.rows:
            if row.printed and len(row.printed) != len(self.columns):
                raise ValueError(
                    f"{self.title}: {row.label} prints {len(row.printed)} values for {len(self.columns)} columns"
                )
        return self


class Figure(BaseModel):
    """One figure: curves and bars from what was measured, the others from the trained models (study_pictures.py)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    title: str
    kind: Literal["curves", "bars", "priors", "sheet", "strips", "temperatures"]
    """sheet: a column for each run; strips: for many runs; temperatures: a column for each, of one run."""
    runs: tuple[str, ...]
    show: tuple[str, ...] = ()
    """curves: which; bars: selectors."""
    photographs: str = "test"
    """sheet, strips, temperatures: train, test, or the name under which --path gives a folder."""
    count: int = 6
    """The same: how many photographs."""
    over: Literal["epoch", "minutes"] = "epoch"
    averaged: bool = False
    """curves: means of the last 20 epochs, of what there is in the first ones."""

    @property
    def photographic(self) -> bool:
        """Whether it shows photographs: WebP, a tenth of the size, and not in Git, as they are others' property."""
        return self.kind in ("sheet", "strips", "temperatures")

    def file(self, study: str) -> str:
        """Its file's name, beside the study's page."""
        return f"{study}-{self.name}{'.webp' if self.photographic else '.png'}"


def value(record: Record, selector: str) -> float:
    """What a selector picks out of a record.

    Raises:
        InputError: there is no such metric, curve or fact.
    """
    try:
        return _value(record, selector)
    except KeyError as error:
        raise InputError(
            f"run {record['run']} has no {selector!r}; name a metric, a curve, parameters, epochs or minutes"
        ) from error


def _value(record: Record, selector: str) -> float:
    metric, _, baseline = selector.partition(" over ")
    if baseline:
        return record["metrics"][baseline][metric][3]
    name, _, seconds = selector.removeprefix("ma20:").partition("@")
    if name in ("parameters", "epochs"):
        return record["model"][name]
    if name == "minutes":
        return [0, *record["curves"]["seconds"]][-1] / 60
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
    """Mean over the seeds, and the range if they differ; large numbers are whole."""
    scaled = [each / table.unit for each in values]
    low, middle, high = (
        f"{each:,.0f}" if each >= 1000 else f"{each:.{table.decimals}f}"
        for each in (min(scaled), float(np.mean(scaled)), max(scaled))
    )
    return middle if low == high else f"{middle} ({low} to {high})"


def gain(records: Sequence[Record], selector: str, decimals: int) -> str:
    """What a model has more than a baseline: mean over the seeds, and what the paired intervals of all seeds cover."""
    metric, _, baseline = selector.partition(" over ")
    found = np.array([record["metrics"][baseline][metric][3:6] for record in records], float)  # None becomes NaN
    return with_interval((found[:, 0].mean(), found[:, 1].min(), found[:, 2].max()), f"+.{decimals}f")


def mean(records: Sequence[Record], run: str, selector: str) -> float:
    """A run's value, averaged over its seeds."""
    return float(np.mean([value(record, selector) for record in of_run(records, run)]))


def steadiness(table: Table, records: Sequence[Record]) -> str:
    """One sentence: how many pairs of rows stand in one order whatever the seed; empty for one seed."""
    selector = table.columns[table.order]
    by_run = [[value(record, selector) for record in of_run(records, row.run)] for row in table.rows]
    if min(map(len, by_run)) < 2 or len(set(map(len, by_run))) > 1:
        return ""
    pairs = list(itertools.combinations(by_run, 2))
    steady = sum(len({a < b for a, b in zip(one, other, strict=True)}) == 1 for one, other in pairs)
    return f"By {table.order}, {steady} of {len(pairs)} pairs stand in one order with every seed."


def agreement(table: Table, records: Sequence[Record]) -> str:
    """One sentence: which pairs of rows stand in the document's order, and which do not; empty if it has none."""
    column = list(table.columns).index(table.order)
    selector = table.columns[table.order]
    known: list[tuple[str, float, float]] = []
    for row in table.rows:
        number = row.document(column)
        if number is not None:
            known.append((row.label, number, mean(records, row.run, selector)))
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
    """A table in markdown, the baselines below it, how the orders compare and how steady ours is.

    A column of which the document prints nothing is ours alone.
    """
    selectors = list(table.columns.values())
    both = [any(row.document(column) is not None for row in table.rows) for column in range(len(selectors))]
    heads = []
    for heading, has_document in zip(table.columns, both, strict=True):
        heads += [f"{heading}, document", f"{heading}, ours"] if has_document else [heading]
    lines = [f"### {table.title}", "", "| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    rows = list(table.rows)
    if table.ranked:
        rows.sort(key=lambda row: mean(records, row.run, table.columns[table.order]), reverse=table.better == "higher")
    for row in rows:
        cells = [row.label]
        own = of_run(records, row.run)
        for column, selector in enumerate(selectors):
            number = row.document(column)
            cells += ["" if number is None else f"{number:g}"] * both[column]
            over = " over " in selector
            cells.append(gain(own, selector, table.decimals) if over else cell([value(r, selector) for r in own], table))
        lines.append("| " + " | ".join(cells) + " |")
    first = of_run(records, table.rows[0].run)
    for baseline in BASELINES:
        cells = [f"*{baseline}*"]
        for column, selector in enumerate(selectors):
            found = [record["metrics"][baseline][selector][0] for record in first if selector in record["metrics"][baseline]]
            cells += [""] * both[column] + [cell(found, table) if found else ""]
        if any(cells[1:]):
            lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", " ".join(filter(None, (agreement(table, records), steadiness(table, records)))), ""]


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


def page(study: Any, name: str, device: str, records: Sequence[Record]) -> str:
    """The whole study, a `pipeline.study.Study`, as markdown."""
    seeds = sorted({record["seed"] for record in records})
    versions = sorted({record["torch"] for record in records})
    commits = sorted({record["commit"] for record in records})
    machines = sorted({record["hardware"] for record in records})
    options = " ".join(f"--path {each}=PATH" for each in study.paths)
    lines = [
        f"# {study.title}",
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
    if study.figures:
        lines += ["## Figures", ""]
    for figure in study.figures:
        file = figure.file(name)
        if figure.photographic:
            text = (
                f"{figure.title}: `{file}`, drawn beside this page by that command; the photographs are not ours to publish."
            )
        else:
            text = f"**{figure.title}**\n\n![{figure.title}]({file})"
        lines += [text, ""]
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
