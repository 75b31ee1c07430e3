"""The page of a study: the document's numbers beside ours as markdown tables, and what every run took."""

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
"""One run: run, seed, settings, device, hardware, torch, and what `experiments.results` gives."""


def measured(record: Record, hour: float) -> dict[str, float]:
    """Every value of a run that a study can name.

    A metric on the test split, `psnr` say; `psnr of grey`, a baseline's; `psnr over grey`, what the model
    has more, and the ends of its paired interval, `psnr over grey low` and `high`. A curve's last epoch,
    `val_loss`; the mean of its last 20, `ma20:val_loss`; that mean after `hour` seconds of training,
    `ma20:val_loss@hour`. And `parameters`, `epochs` and `minutes` of training.
    """
    curves = pd.DataFrame(record["curves"], dtype=float)
    averaged = curves.rolling(AVERAGED_EPOCHS, min_periods=1).mean().add_prefix("ma20:")
    rows = [curves[-1:], averaged[-1:]]
    found = {name: record["model"][name] for name in ("parameters", "epochs")}
    found["minutes"] = np.nan if len(curves) else 0
    if len(curves) and "seconds" in curves:  # they are measured, so not every machine has them
        done = max(1, int(np.searchsorted(curves["seconds"], hour, "right")))
        rows.append(averaged[done - 1 : done].add_suffix("@hour"))
        found["minutes"] = curves["seconds"].max() / 60
    for row in rows:
        found |= {str(name): values.iloc[0] for name, values in row.items() if len(values)}
    for system, metrics in record["metrics"].items():
        for metric, values in metrics.items():
            found[metric if system == "model" else f"{metric} of {system}"] = values[0]
            for end, value in zip(("", " low", " high"), values[3:], strict=False):
                found[f"{metric} over {system}{end}"] = value
    return found


def frame(records: Sequence[Record], hour: float) -> pd.DataFrame:
    """A row for each record, by run: its seed, and what `measured` gives."""
    rows = [{"run": record["run"], "seed": record["seed"]} | measured(record, hour) for record in records]
    return pd.DataFrame(rows).set_index("run")


def markdown(cells: pd.DataFrame) -> str:
    """Cells of text as a markdown table, the first column to the left, all others to the right."""
    sides = ["left", *["right"] * (len(cells.columns) - 1)]
    return cells.to_markdown(index=False, disable_numparse=True, colalign=sides)


def cell(own: pd.DataFrame, name: str, table: Table) -> str:
    """A value of one run, given its rows of `frame`: the seeds' mean, their range if they differ."""
    if name not in own or own[name].isna().all():
        return ""
    values = own[name] / table.unit
    if " over " in name:  # the interval covers those of all seeds
        ends = own[f"{name} low"].min(skipna=False), own[f"{name} high"].max(skipna=False)
        return with_interval((values.mean(), *ends), f"+.{table.decimals}f")
    form = ",.0f" if values.max() >= 1000 else f".{table.decimals}f"
    low, middle, high = (format(each, form) for each in (values.min(), values.mean(), values.max()))
    return middle if low == high else f"{middle} ({low} to {high})"


def compared(table: Table, values: pd.DataFrame) -> str:
    """A table's runs and baselines as markdown; a column of which the document prints nothing is ours alone.

    Raises:
        InputError: a column names what no run has.
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
    """How many pairs of rows stand in the document's order, which do not, how many in one with every seed."""
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
    said = []
    if printed:
        agree = printed - len(differ)
        said.append(f"By {table.order}, {agree} of {printed} pairs stand in the document's order.")
    if differ:
        said.append(f"Not ours: {'; '.join(differ)}.")
    if by_seed.shape[1] > 1:
        said.append(f"By {table.order}, {steady} of {len(pairs)} pairs stand in one order with every seed.")
    return " ".join(said)


def costs(records: Sequence[Record], values: pd.DataFrame) -> str:
    """What every run took, as markdown."""
    rows = []
    for run, minutes in values["minutes"].groupby(level=0, sort=False).mean().items():
        own = [record for record in records if record["run"] == run]
        models = [record["model"] for record in own]
        rows.append(
            {
                "run": run,
                "seeds": ", ".join(str(record["seed"]) for record in own),
                "parameters": f"{models[0]['parameters']:,}",
                "epochs": ", ".join(str(model["epochs"]) for model in models),
                "weights of epoch": ", ".join(str(model["best_epoch"]) for model in models),
                "training, minutes": with_interval([minutes], ".1f"),
            }
        )
    return markdown(pd.DataFrame(rows))


def page(study: Study, name: str, device: Device, records: Sequence[Record], values: pd.DataFrame) -> str:
    """The whole study as markdown."""
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
