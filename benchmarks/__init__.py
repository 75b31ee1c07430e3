"""Measurements, run as `python -m benchmarks.<name>`."""

import colorize  # noqa: F401 - before NumPy and torch, which read when they are loaded what it sets
