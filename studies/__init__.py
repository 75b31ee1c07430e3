"""The documents' experiments: runs that a YAML here lists, and our figures beside the printed."""

import pipeline  # noqa: F401 - before NumPy and torch, which read when they are loaded what it sets
