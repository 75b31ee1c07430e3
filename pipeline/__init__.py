"""The stages of the pipeline: one file per stage of dvc.yaml, run as `python -m pipeline.<stage>`."""

import sys
from pathlib import Path

# DVC runs queued experiments in a copy of the project and must import the library from that copy, because the
# installed one may have been edited since.
sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

import colorize  # noqa: E402, F401 - sets what NumPy and torch read on import
