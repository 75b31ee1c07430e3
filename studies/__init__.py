"""The documents' experiments: what a YAML file here lists is run, and our figures stand beside the printed ones."""

import pipeline  # noqa: F401 - before NumPy and torch, which read when they are loaded what it sets
