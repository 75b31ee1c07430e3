"""Where each artefact lies: the only place with path strings. dvc.yaml names the same paths."""

import os
from pathlib import Path

PARAMS = Path("params.yaml")

CHECKED = Path("data/checked.txt")
BLOCK = Path("data/block.json")
PHOTOS = Path("data/photos")
PHOTOS_CSV = PHOTOS / "photos.csv"
COLORS_CSV = PHOTOS / "colors.csv"
CROPS = Path("data/crops")
CROPS_CSV = CROPS / "crops.csv"
SPLITS_CSV = Path("data/splits.csv")
REMOVED_PNG = Path("data/removed.png")
PRIOR = Path("data/prior.npz")
MODEL = Path("data/model")
ZOO = Path("data/zoo")

METRICS = Path("metrics")

# DVC deletes a stage's outs before it runs, and runs queued experiments in a temporary copy of the repository.
# What must survive both (downloads, training states) lies under the main checkout and is no stage's out.
ROOT = Path(os.environ.get("DVC_ROOT", "."))
RUNS = ROOT / "runs"
DOWNLOADS = ROOT / "downloads"


def timing(name: str, fingerprint: str) -> Path:
    """The measured seconds of each epoch of a training on this machine: no stage's out, because they never repeat."""
    return RUNS / f"{name}-{fingerprint[:12]}" / "timing.csv"
