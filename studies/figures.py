"""Draw the figures of a study: curves, bars, and predictions of its trained models.

Predictions need the models and photographs of the experiments, so they are drawn only where these ran.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from colorize.bins import Statistics
from colorize.data.images import CropConfig, Refused, crop_square
from colorize.data.shards import Crops
from colorize.files import InputError
from colorize.models import build_baseline, load_description, load_model
from colorize.models.heads import Classification
from colorize.scoring import evaluation, figures, sheets
from colorize.training.loop import AVERAGED_EPOCHS
from pipeline import paths
from studies import experiments
from studies.study import Figure
from studies.tables import Record

TEMPERATURES = (0, 0.1, 0.2, 0.38, 0.5, 0.75, 1)
"""Temperatures of the annealed mean, from the mode to the mean (document 001, figure 7)."""


def draw(figure: Figure, records: Sequence[Record], values: pd.DataFrame) -> bytes:
    """Draw curves or bars of the first seed as PNG.

    Args:
        values: of `tables.frame`.
    """
    if figure.kind == "bars":
        first = values.groupby(level=0, sort=False).first().loc[list(figure.runs), list(figure.show)]
        return figures.bars({name: dict(zip(figure.runs, first[name], strict=True)) for name in figure.show})
    panels = {}
    for run in figure.runs:
        curves = pd.DataFrame(next(record["curves"] for record in records if record["run"] == run))
        x = curves["epoch"] if figure.over == "epoch" else curves["seconds"] / 60
        if figure.averaged:
            curves = curves.rolling(AVERAGED_EPOCHS, min_periods=1).mean()
        panels[run] = {name: (x.to_numpy(), curves[name].to_numpy()) for name in figure.show}
    return figures.curves(panels, "epoch" if figure.over == "epoch" else "minutes of training")


def _photographs(figure: Figure, commit: str, below: Path, places: Mapping[str, Path]) -> np.ndarray:
    """Read photographs, uint8 [n, S, S, 3]: spread over a split of the experiment, or the first of a folder.

    Raises:
        InputError: the folder was not given, or holds no photograph.
    """
    crops = experiments.fetch(commit, paths.CROPS, below)
    if figure.photographs in ("train", "test"):
        splits = pd.read_csv(experiments.fetch(commit, paths.SPLITS_CSV, below))
        indices = splits.loc[splits["split"] == figure.photographs, "index"].astype(int).to_numpy()
        return Crops(crops, indices[sheets.spread(len(indices), figure.count)])[:]
    if figure.photographs not in places:
        raise InputError(f"figure {figure.name} needs --path {figure.photographs}=FOLDER")
    config = CropConfig(size=Crops(crops).side)
    squares: list[np.ndarray] = []
    for path in sorted(p for p in places[figure.photographs].rglob("*") if p.is_file()):
        if len(squares) < figure.count:
            with suppress(Refused):
                squares.append(crop_square(path.read_bytes(), config)[0])
    if not squares:
        raise InputError(f"--path {figure.photographs}={places[figure.photographs]} holds no photograph")
    return np.stack(squares)


def paint(figure: Figure, commits: Mapping[str, str], places: Mapping[str, Path]) -> bytes:
    """Draw predictions of trained models as WebP, or the priors as PNG.

    Args:
        commits: run of the figure to the commit of its experiment.
        places: name in `figure.photographs` to folder.
    """
    first = commits[figure.runs[0]]
    with tempfile.TemporaryDirectory() as temporary:
        below = Path(temporary)
        prior = Statistics.read(experiments.fetch(first, paths.PRIOR, below))
        if figure.kind == "priors":
            return figures.prior(prior.arrays)
        photographs = _photographs(figure, first, below, places)
        grey = build_baseline("grey", prior)
        columns = {"grey": evaluation.predict(grey, photographs.shape[1], photographs).image}
        if figure.photographs in ("train", "test"):
            columns["truth"] = photographs
        for run, commit in commits.items():
            folder = experiments.fetch(commit, paths.MODEL, below / run)
            model, size = load_model(folder), load_description(folder)["size"]
            if figure.kind != "temperatures":
                columns[run] = evaluation.predict(model, size, photographs).image
                continue
            if not isinstance(model.head, Classification):
                raise InputError(f"figure {figure.name}: {run} has no temperature; name one that has")
            for temperature in TEMPERATURES:
                model.head.temperature = temperature
                columns[f"T = {temperature:g}"] = evaluation.predict(model, size, photographs).image
        picture = sheets.strips(columns) if figure.kind == "strips" else sheets.sheet(columns)
        return sheets.encode(picture, "webp")
