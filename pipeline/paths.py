"""Where each artefact lies: the only place with path strings. dvc.yaml names the same paths."""

import os
from collections.abc import Collection
from pathlib import Path

PARAMS = Path("params.yaml")

CHECKED = Path("data/checked.txt")
BLOCKS = Path("data/blocks")
PHOTOS = Path("data/photos")
PHOTOS_CSV = PHOTOS / "photos.csv"
COLORS_CSV = PHOTOS / "colors.csv"
CROPS = Path("data/crops")
CROPS_CSV = CROPS / "crops.csv"
SPLITS_CSV = Path("data/splits.csv")
SPLIT: dict[str, type | Collection[str]] = {"index": int, "split": ("train", "val", "test", "")}
"""Columns of splits.csv by which its readers find photographs, and what they hold."""
REMOVED_PNG = Path("data/removed.png")
PRIOR = Path("data/prior.npz")
MODEL = Path("data/model")
ZOO = Path("data/zoo")
PICTURES = Path("data/pictures.npz")
"""What the report shows of the test split; a model of the zoo has its own in a file of this name."""

METRICS = Path("metrics")
LOCKS = (Path("dvc.lock"), Path("pipeline/zoo/dvc.lock"))
RWLOCK = Path(".dvc/tmp/rwlock")
"""DVC's own list of what its processes read and write."""

# DVC deletes a stage's outs before it runs, and runs queued experiments in a temporary copy of the repository.
# What must survive both (downloads, training states) lies under the main checkout and is no stage's out.
ROOT = Path(os.environ.get("DVC_ROOT", "."))
RUNS = ROOT / "runs"
DOWNLOADS = ROOT / "downloads"
TIMING = "timing.csv"
"""In a run's folder: the measured seconds of each epoch, no stage's out, because they never repeat."""


def run_folder(name: str, fingerprint: str) -> Path:
    """Where a training keeps its state and its seconds."""
    return RUNS / f"{name}-{fingerprint[:12]}"
