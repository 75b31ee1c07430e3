"""Define the content of studies/*.yaml: runs, their settings, tables and figures.

Columns of tables and bars of figures name the values of `studies.tables.measured`.
"""

import hashlib
import itertools
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from annotated_types import MinLen
from pydantic import BaseModel, ConfigDict, model_validator

from colorize import files
from colorize.files import InputError
from colorize.settings import checked

Device = Literal["cpu", "cuda"]


class Strict(BaseModel):
    """A block that refuses unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(Strict):
    """One run in a table; `printed` holds the document's value of each column, null if it prints none."""

    label: str
    run: str
    printed: tuple[float | None, ...] = ()


class Table(Strict):
    """One table of the document, or several of its sentences as a table.

    `columns` maps a heading to a value; our values are divided by `unit`. `order` is the heading by which we
    compare the document's order with ours; `ranked` tables are sorted by our values.
    """

    title: str
    columns: dict[str, str]
    unit: float = 1
    decimals: int = 2
    order: str
    better: Literal["lower", "higher"] = "lower"
    ranked: bool = False
    rows: Annotated[tuple[Row, ...], MinLen(1)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.order not in self.columns or {len(row.printed) for row in self.rows} - {0, len(self.columns)}:
            raise ValueError(f"{self.title}: order names a column, and a row prints a value or null of each")
        return self


class Figure(Strict):
    """One figure: measured curves or bars, priors, or predictions of trained models.

    A sheet has a column per run, strips are for many runs, temperatures have a column per temperature of one
    run. `show` names curves, or values for bars. Curves may be `averaged` over up to 20 epochs. `photographs`
    names the train or test split, or a folder of --path.
    """

    name: str
    title: str
    kind: Literal["curves", "bars", "priors", "sheet", "strips", "temperatures"]
    runs: tuple[str, ...]
    show: tuple[str, ...] = ()
    over: Literal["epoch", "minutes"] = "epoch"
    averaged: bool = False
    photographs: str = "test"
    count: int = 6

    @property
    def photographic(self) -> bool:
        """Tell whether it shows photographs; then it is a WebP and not in Git, for copyright reasons."""
        return self.kind in ("sheet", "strips", "temperatures")

    def file(self, study: str) -> str:
        """Name of its file, in the folder of the study's page."""
        return f"{study}-{self.name}{'.webp' if self.photographic else '.png'}"


class Study(Strict):
    """A whole study.

    `paths` explains each --path NAME=PATH; "@NAME" in a setting becomes that path. `used` tells how data and
    effort differ from the document's. `seeds` are seeds of training; splits depend on data.seed. `settings`,
    "parameter=value", apply to every run; `runs` adds those of each run. Values "@hour" are taken after
    `hour` seconds of training.
    """

    title: str
    paths: dict[str, str]
    used: dict[Device, str]
    seeds: dict[Device, tuple[int, ...]]
    settings: dict[Device, tuple[str, ...]]
    runs: dict[str, tuple[str, ...]]
    hour: dict[Device, float] = {"cpu": 3600, "cuda": 3600}
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...] = ()
    remarks: str = ""

    def wanted(self, device: Device) -> dict[str, dict[str, Any]]:
        """List every run with every seed: name to run, seed and settings.

        A name ends in six digits of the settings' hash, so that changed runs get new names.
        """
        wanted = {}
        for seed, run in itertools.product(self.seeds[device], self.runs):
            texts = [*self.settings[device], *self.runs[run], f"seed={seed}"]
            settings = list({text.split("=")[0]: text for text in texts}.values())  # the last of a name wins
            digits = hashlib.sha256("\n".join(sorted(settings)).encode()).hexdigest()[:6]
            wanted[f"{run}-{seed}-{digits}"] = {"run": run, "seed": seed, "settings": settings}
        return wanted


def read(path: Path) -> Study:
    """Read and check a study.

    Raises:
        InputError: the file is missing or invalid.
    """
    study = checked(Study, files.read_yaml(path), path)
    named = {row.run for table in study.tables for row in table.rows}
    named |= {run for figure in study.figures for run in figure.runs}
    if unknown := sorted(named - set(study.runs)):
        raise InputError(f"{path}: tables or figures name the run {unknown[0]!r}; add it under runs")
    return study
