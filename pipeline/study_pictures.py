"""The figures of a study that need its trained models: contact sheets, one photograph at many temperatures, the priors.

Models and photographs come out of the experiments' own outs, so they are drawn only where the experiments were run.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from colorize.bins import Statistics
from colorize.data.images import CropConfig, Refused, crop_square
from colorize.data.shards import Crops
from colorize.files import InputError
from colorize.models import build_baseline, load_description, load_model
from colorize.models.base import Colorizer
from colorize.models.heads import Classification
from colorize.scoring import evaluation, figures, sheets
from pipeline import experiments, paths
from pipeline.study_page import Figure

TEMPERATURES = (0, 0.1, 0.2, 0.38, 0.5, 0.75, 1)
"""Of the annealed mean, from the mode to the mean (document 001, figure 7)."""


def _fetch(commit: str, path: Path, below: Path) -> Path:
    """An out of an experiment, copied once below a folder."""
    target = below / commit[:12] / path.name
    if not target.exists():
        experiments.fetch(commit, path, target)
    return target


def _model(commit: str, below: Path) -> tuple[Colorizer, int]:
    folder = _fetch(commit, paths.MODEL, below)
    return load_model(folder), load_description(folder)["size"]


def _photographs(figure: Figure, commit: str, below: Path, folders: Mapping[str, Path]) -> np.ndarray:
    """uint8 [n, S, S, 3]: spread over a split of the experiment, or the first of a folder.

    Raises:
        InputError: a folder is asked for that was not given, or holds no photograph.
    """
    crops = _fetch(commit, paths.CROPS, below)
    if figure.photographs in ("train", "test"):
        splits = pd.read_csv(_fetch(commit, paths.SPLITS_CSV, below), dtype=str, keep_default_na=False)
        indices = splits.loc[splits["split"] == figure.photographs, "index"].astype(int).to_numpy()
        return Crops(crops, indices[sheets.spread(len(indices), figure.count)])[:]
    if figure.photographs not in folders:
        raise InputError(f"figure {figure.name} needs --path {figure.photographs}=FOLDER")
    rule = CropConfig(size=Crops(crops)[:1].shape[1])
    found = []
    for path in sorted(p for p in folders[figure.photographs].rglob("*") if p.is_file()):
        try:
            found.append(crop_square(path.read_bytes(), rule)[0])
        except Refused:
            continue
        if len(found) == figure.count:
            break
    if not found:
        raise InputError(f"--path {figure.photographs}={folders[figure.photographs]} holds no photograph")
    return np.stack(found)


def draw(figure: Figure, commits: Mapping[str, str], folders: Mapping[str, Path]) -> bytes:
    """A figure, in the format of its suffix.

    Args:
        commits: run to the commit of its experiment, for each of the figure's runs.
        folders: folders of photographs by the names that figures use.
    """
    first = next(iter(commits.values()))
    with tempfile.TemporaryDirectory() as temporary:
        below = Path(temporary)
        if figure.kind == "priors":
            return figures.prior(Statistics.read(_fetch(first, paths.PRIOR, below)).arrays)
        photographs = _photographs(figure, first, below, folders)
        grey = build_baseline("grey", Statistics.read(_fetch(first, paths.PRIOR, below)))
        columns = {"grey": evaluation.predict(grey, photographs.shape[1], photographs).image}
        if figure.photographs in ("train", "test"):
            columns["truth"] = photographs
        for run, commit in commits.items():
            model, size = _model(commit, below)
            for temperature in TEMPERATURES if figure.kind == "temperatures" else [None]:
                if temperature is not None:
                    if not isinstance(model.head, Classification):
                        raise InputError(f"figure {figure.name}: run {run} has no temperature; choose one that classifies")
                    model.head.temperature = temperature
                label = run if temperature is None else f"T = {temperature:g}"
                columns[label] = evaluation.predict(model, size, photographs).image
        picture = sheets.strips(columns) if figure.kind == "strips" else sheets.sheet(columns)
        return sheets.encode(picture, "webp")
