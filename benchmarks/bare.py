"""What a machine lacks that has PyTorch, scikit-image, Pillow, pandas and SciPy and no more: import this before the library.

Only what is missing is stood in for, by something with the same results: limits of parameters are not checked, no progress
is shown, no threads are started, nothing can be downloaded. `read_params` reads params.yaml without a YAML package.
"""

import importlib.util
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


class _Silent:
    """tqdm that prints what is written and draws no bar."""

    write = staticmethod(print)

    def __init__(self, iterable: Any = (), **options: Any) -> None:
        self.iterable = iterable

    def __iter__(self) -> Any:
        return iter(self.iterable)

    def update(self, count: int = 1) -> None: ...
    def set_postfix(self, **values: Any) -> None: ...
    def close(self) -> None: ...


def _delayed(function: Any) -> Any:
    return lambda *arguments: (function, arguments)


def _in_turn(*settings: Any, **options: Any) -> Any:
    return lambda calls: [function(*arguments) for function, arguments in calls]


def _unlimited(limit: Any) -> None:
    return None


REQUIRED = {"PyTorch": "torch", "scikit-image": "skimage", "Pillow": "PIL", "pandas": "pandas", "SciPy": "scipy"}
if absent := [name for name, module in REQUIRED.items() if importlib.util.find_spec(module) is None]:
    sys.exit(f"error: {sys.executable} lacks {', '.join(absent)}; install that, or name another with `make gpu PYTHON=PATH`")
STAND_INS: dict[str, dict[str, Any]] = {
    "tqdm": {"tqdm": _Silent},
    "joblib": {"Parallel": _in_turn, "delayed": _delayed, "cpu_count": lambda: 1, "ParallelBackendBase": object},
    "annotated_types": dict.fromkeys(("Ge", "Gt", "Le", "Lt", "MinLen"), _unlimited),
}
for name, content in STAND_INS.items():
    if importlib.util.find_spec(name) is None:
        sys.modules[name] = importlib.util.module_from_spec(ModuleSpec(name, None))
        sys.modules[name].__dict__.update(content)
if importlib.util.find_spec("requests") is None:
    sys.modules["colorize.fetch"] = ModuleType("colorize.fetch")


def read_params(path: Path) -> dict[str, Any]:
    """params.yaml as plain values: of YAML, only block maps, block lists and scalars on one line are read."""
    uncommented = (re.sub(r"(^|\s+)#.*$", "", line).rstrip() for line in path.read_text(encoding="utf-8").splitlines())
    lines = [(len(line) - len(line.lstrip()), line.strip()) for line in uncommented if line]
    lines.append((-1, ""))

    def block(start: int) -> tuple[Any, int]:
        """What begins at a line, and the line after it."""
        indent, at = lines[start][0], start
        found: Any = [] if lines[start][1].startswith("- ") else {}
        while lines[at][0] == indent and lines[at][1].startswith("- ") == isinstance(found, list):
            if isinstance(found, list):
                found.append(_scalar(lines[at][1][2:]))
                at += 1
                continue
            name, _, rest = lines[at][1].partition(":")
            deeper = lines[at + 1][0] > indent or (lines[at + 1][0] == indent and lines[at + 1][1].startswith("- "))
            if rest or not deeper:
                found[name], at = _scalar(rest.strip()), at + 1
            else:
                found[name], at = block(at + 1)
        return found, at

    return dict(block(0)[0])


def _scalar(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    if text == "[]":
        return []
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip("'")
