"""Repeat the experiments of the documents: each YAML lists runs, tables and figures."""

import pipeline  # noqa: F401 - sets what NumPy and torch read on import
