"""The stages of the pipeline: one thin file per stage of dvc.yaml, run as `python -m pipeline.<stage>`."""

import sys
from pathlib import Path

# DVC runs queued experiments in a copy of the project: the library must be that copy's, not the one that is installed,
# whose files may have been edited since.
sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

import colorize  # noqa: E402, F401 - before NumPy and torch, which read when they are loaded what it sets
