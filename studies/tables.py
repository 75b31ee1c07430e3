"""Write the page of a study: the document's numbers beside ours as markdown tables, and the costs."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from colorize.files import InputError
from colorize.scoring.metrics import BASELINES, with_interval
from colorize.training.loop import AVERAGED_EPOCHS
from studies.study import Device, Study, Table

Record = Mapping[str, Any]
"""One run: run, seed, settings, device, hardware, torch, and the content of `experiments.results`."""


def measured(record: Record, hour: float) -> dict[str, float]:
    """Collect every value of a run that a study can name.

    - A metric on the test split: `psnr`; of a baseline: `psnr of grey`; the paired difference and its
    interval:
      `psnr over grey`, `psnr over grey low`, `psnr over grey high`.
    - A curve in its last epoch: `val_loss`; the mean of its last 20 epochs: `ma20:val_loss`; that mean after
      `hour` seconds of training: `ma20:val_loss@hour`.
    - `parameters`, `epochs`, and `minutes` of training.
    """
    curves = pd.DataFrame(record["curves"], dtype=float)
    averaged = curves.rolling(AVERAGED_EPOCHS, min_periods=1).mean().add_prefix("ma20:")
    rows = [curves[-1:], averaged[-1:]]
    named = {name: record["model"][name] for name in ("parameters", "epochs")}
    named["minutes"] = np.nan if len(curves) else 0
    if len(curves) and "seconds" in curves:  # only the training machine knows the seconds
        done = max(1, int(np.searchsorted(curves["seconds"], hour, "right")))
        rows.append(averaged[done - 1 : done].add_suffix("@hour"))
        named["minutes"] = curves["seconds"].max() / 60
    for row in rows:
        named |= {str(name): values.iloc[0] for name, values in row.items() if len(values)}
    for system, metrics in record["metrics"].items():
        for metric, values in metrics.items():
            named[metric if system == "model" else f"{metric} of {system}"] = values[0]
            for end, value in zip(("", " low", " high"), values[3:], strict=False):
                named[f"{metric} over {system}{end}"] = value
    return named


def frame(records: Sequence[Record], hour: float) -> pd.DataFrame:
    """Make one row per record, indexed by run: seed and the values of `measured`."""
    rows = [{"run": record["run"], "seed": record["seed"]} | measured(record, hour) for record in records]
    return pd.DataFrame(rows).set_index("run")


def markdown(cells: pd.DataFrame) -> str:
    """Format text cells as a markdown table; only the first column is left-aligned."""
    sides = ["left", *["right"] * (len(cells.columns) - 1)]
    return cells.to_markdown(index=False, disable_numparse=True, colalign=sides)


def cell(rows: pd.DataFrame, name: str, table: Table) -> str:
    """Format a value of one run from its rows of `frame`: mean over seeds, and range if they differ."""
    if name not in rows or rows[name].isna().all():
        return ""
    values = rows[name] / table.unit
    if " over " in name:  # the interval covers the intervals of all seeds
        ends = rows[f"{name} low"].min(skipna=False), rows[f"{name} high"].max(skipna=False)
        return with_interval((values.mean(), *ends), f"+.{table.decimals}f")
    form = ",.0f" if values.max() >= 1000 else f".{table.decimals}f"
    low, middle, high = (format(each, form) for each in (values.min(), values.mean(), values.max()))
    return middle if low == high else f"{middle} ({low} to {high})"


def compared(table: Table, values: pd.DataFrame) -> str:
    """Format a table's runs and baselines as markdown, with the document's values if it prints any.

    Raises:
        InputError: a column names an unknown value.
    """
    if unknown := sorted(set(table.columns.values()) - set(values)):
        raise InputError(f"table {table.title!r}: no run has {unknown[0]!r}; name a metric or a curve")
    rows, first = list(table.rows), values.loc[[table.rows[0].run]]
    if table.ranked:
        best = values[table.columns[table.order]].groupby(level=0).mean()
        rows.sort(key=lambda row: best[row.run], reverse=table.better == "higher")
    cells = {"": [row.label for row in rows] + [f"*{baseline}*" for baseline in BASELINES]}
    for column, (heading, name) in enumerate(table.columns.items()):
        ours = [cell(values.loc[[row.run]], name, table) for row in rows]
        ours += [cell(first, f"{name} of {baseline}", table) for baseline in BASELINES]
        printed = [row.printed[column] if row.printed else None for row in rows] + [None] * len(BASELINES)
        if any(number is not None for number in printed):
            cells[f"{heading}, document"] = ["" if number is None else f"{number:g}" for number in printed]
            heading += ", ours"
        cells[heading] = ours
    board = pd.DataFrame(cells)
    return markdown(board[(board.drop(columns="") != "").any(axis=1)])


def order(table: Table, values: pd.DataFrame) -> str:
    """Count the pairs of rows in the document's order and in one order with every seed; name the others."""
    by_seed = values.pivot_table(table.columns[table.order], "run", "seed")
    ours, column = by_seed.mean(axis=1), list(table.columns).index(table.order)
    pairs = list(itertools.combinations(table.rows, 2))
    printed, steady, differ = 0, 0, []
    for one, other in pairs:
        steady += len(set(by_seed.loc[one.run] < by_seed.loc[other.run])) == 1
        a, b = (row.printed[column] if row.printed else None for row in (one, other))
        if a is not None and b is not None and a != b:
            printed += 1
            best, worst = (one, other) if (a < b) == (table.better == "lower") else (other, one)
            if (ours[best.run] < ours[worst.run]) != (table.better == "lower"):
                differ.append(f"{best.label} better than {worst.label}")
    sentences = []
    if printed:
        agree = printed - len(differ)
        sentences.append(f"By {table.order}, {agree} of {printed} pairs stand in the document's order.")
    if differ:
        sentences.append(f"Not ours: {'; '.join(differ)}.")
    if by_seed.shape[1] > 1:
        stable = f"{steady} of {len(pairs)} pairs stand in one order with every seed"
        sentences.append(f"By {table.order}, {stable}.")
    return " ".join(sentences)


def costs(records: Sequence[Record], values: pd.DataFrame) -> str:
    """Tabulate the cost of every run as markdown."""
    rows = []
    for run, minutes in values["minutes"].groupby(level=0, sort=False).mean().items():
        of_run = [record for record in records if record["run"] == run]
        models = [record["model"] for record in of_run]
        rows.append(
            {
                "run": run,
                "seeds": ", ".join(str(record["seed"]) for record in of_run),
                "parameters": f"{models[0]['parameters']:,}",
                "epochs": ", ".join(str(model["epochs"]) for model in models),
                "weights of epoch": ", ".join(str(model["best_epoch"]) for model in models),
                "training, minutes": with_interval([minutes], ".1f"),
            }
        )
    return markdown(pd.DataFrame(rows))


def page(study: Study, name: str, device: Device, records: Sequence[Record], values: pd.DataFrame) -> str:
    """Render the whole study as markdown."""
    kinds = ("seed", "torch", "commit", "hardware", "images")
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, trim_blocks=True, undefined=StrictUndefined)
    return environment.get_template("page.md.j2").render(
        study=study,
        name=name,
        device=device,
        count=len(records),
        facts={kind: sorted({str(record[kind]) for record in records}) for kind in kinds},
        tables=[(table.title, compared(table, values), order(table, values)) for table in study.tables],
        costs=costs(records, values),
    )
