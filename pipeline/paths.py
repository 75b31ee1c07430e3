"""Paths of all artefacts; dvc.yaml names the same paths."""

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
"""Columns of splits.csv that its readers need, and their values."""
REMOVED_PNG = Path("data/removed.png")
PRIOR = Path("data/prior.npz")
MODEL = Path("data/model")
ZOO = Path("data/zoo")
PICTURES = Path("data/pictures.npz")
"""Predictions that the report shows; each model of the zoo has a file of this name."""

METRICS = Path("metrics")
LOCKS = (Path("dvc.lock"), Path("pipeline/zoo/dvc.lock"))
RWLOCK = Path(".dvc/tmp/rwlock")
"""DVC's list of what its processes read and write."""

# DVC deletes a stage's outs before it runs, and runs queued experiments in a temporary copy of the project.
# Downloads and training states must survive both, so they lie in the main checkout and are no outs.
ROOT = Path(os.environ.get("DVC_ROOT", "."))
RUNS = ROOT / "runs"
DOWNLOADS = ROOT / "downloads"
TIMING = "timing.csv"
"""Measured seconds of each epoch, in the folder of a run; no out, because times are not reproducible."""


def run_folder(name: str, fingerprint: str) -> Path:
    """Folder for the state and the times of a training."""
    return RUNS / f"{name}-{fingerprint[:12]}"
