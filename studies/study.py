"""What a studies/*.yaml holds: its runs, their settings, and the tables and figures they answer.

A column of a table and a bar of a figure name a value of a run as `studies.tables.measured` does.
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
    """A block that refuses names it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(Strict):
    """One run in a table; what the document prints of it column by column, if anything; null is nothing."""

    label: str
    run: str
    printed: tuple[float | None, ...] = ()


class Table(Strict):
    """One table of the document, or several of its sentences in the form of one.

    `columns` gives a heading its value; our values are divided by `unit` to stand beside the printed ones.
    `order` is the heading by which the document's order and ours are compared; `ranked` tables stand in ours.
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
    """One figure: curves and bars of what was measured, the others of what the trained models are or paint.

    A sheet has a column for each run, strips are for many runs, temperatures have a column for each, of one
    run. `show` names the curves or the bars' values. Curves are `averaged` over 20 epochs, or what there is.
    `photographs` are of the train or test split, or of the folder that --path gives under this name.
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
        """Whether it shows photographs: as WebP, and not in Git, as they are others' property."""
        return self.kind in ("sheet", "strips", "temperatures")

    def file(self, study: str) -> str:
        """Its file's name, beside the study's page."""
        return f"{study}-{self.name}{'.webp' if self.photographic else '.png'}"


class Study(Strict):
    """The whole file.

    `paths` says what each --path NAME=PATH has to be; a setting's value "@NAME" becomes that path. `used`
    says how data and effort differ from the document's. `seeds` are of training: a split follows data.seed.
    `settings` are of every run, "parameter=value"; `runs` has those of each beside them. After `hour` seconds
    values "@hour" are taken.
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
        """Every run with every seed, one seed after the other: name to run, seed and settings, paths by name.

        A name ends in six digits over the settings, so that no run passes for another.
        """
        found = {}
        for seed, run in itertools.product(self.seeds[device], self.runs):
            given = [*self.settings[device], *self.runs[run], f"seed={seed}"]
            settings = list({each.split("=")[0]: each for each in given}.values())  # the last of a name wins
            digits = hashlib.sha256("\n".join(sorted(settings)).encode()).hexdigest()[:6]
            found[f"{run}-{seed}-{digits}"] = {"run": run, "seed": seed, "settings": settings}
        return found


def read(path: Path) -> Study:
    """Read and check a study.

    Raises:
        InputError: the file is missing or holds what does not fit.
    """
    study = checked(Study, files.read_yaml(path), path)
    named = {row.run for table in study.tables for row in table.rows}
    named |= {run for figure in study.figures for run in figure.runs}
    if unknown := sorted(named - set(study.runs)):
        raise InputError(f"{path}: tables or figures name the run {unknown[0]!r}; add it under runs")
    return study
