"""Measurements, run as `python -m benchmarks.<name>`."""

import colorize  # noqa: F401 - sets what NumPy and torch read on import
