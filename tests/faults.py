"""The table in docs/faults.md, which `python tests/faults.py` makes from the tests with the mark `fault`.

A mark holds the number of a row, what goes wrong, and what happens then. Where the last one is missing, the
first paragraph of the test's docstring says it.
"""

import importlib
import inspect
import sys
from pathlib import Path

import pandas as pd
import pytest

from colorize import files

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs/faults.md"
INTRODUCTION = """# What goes wrong, and what happens then

Made by `python tests/faults.py` from the tests named in the last column, which `make check` runs.

`test_faults.test_all_faults_at_once` runs the stages download and crop over many faults at once.
It asserts that every item is one row with one reason, that nothing half-written is left, that a second run
asks only for what may have healed and gives the same bytes, and that the crops of all other photographs are,
bit for bit, those of a run without the faults.

"""
fault = pytest.mark.fault


def rows() -> list[tuple[int, str, str, str]]:
    """Number, fault, what happens, and the test that shows it, of every mark."""
    found = []
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        try:
            module = importlib.import_module(path.stem)
        except pytest.skip.Exception:  # it needs a package that is not installed
            continue
        for name, test in inspect.getmembers(module, inspect.isfunction):
            for mark in getattr(test, "pytestmark", []):
                if mark.name == "fault" and test.__module__ == path.stem:
                    said = " ".join((inspect.getdoc(test) or "").split("\n\n")[0].split())
                    number, what, happens = (*mark.args, said)[:3]
                    found.append((number, what, happens, f"`{path.stem}.{name}`"))
    return sorted(found)


def table() -> str:
    """The whole page as Markdown."""
    cells = pd.DataFrame(rows(), columns=["", "what goes wrong", "what happens", "shown by"], dtype=str)
    escaped = cells.map(lambda cell: cell.replace("|", "\\|"))
    return f"{INTRODUCTION}{escaped.to_markdown(index=False, disable_numparse=True, stralign=None)}\n"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    files.write_text(TABLE, table())
