"""Which of the project's own files run when one of them does: read from the import statements, not from a list.

Imports within functions and conditions count, and so do the packages around a module. A name that is put together while the
program runs (`import_module(f"...")`, an architecture's) is not seen: whoever does that adds the file.
"""

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import colorize
from colorize import files

PACKAGES = {"colorize": Path(colorize.__file__).parent, "pipeline": Path(__file__).parent}


@cache
def _names(source: bytes, package: tuple[str, ...]) -> tuple[str, ...]:
    """Every dotted name that a source of that package may import; some are no modules but what stands in one."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            around = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*around, *([node.module] if node.module else [])])
            found += [module, *(f"{module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found += [str(each.value) for each in node.args[:1] if isinstance(each, ast.Constant)]
    return tuple(found)


def _files(name: str) -> Iterator[Path]:
    """The files of a dotted name: the module's and, before it, those of the packages around it."""
    first, *others = name.split(".")
    if first in PACKAGES:
        place = PACKAGES[first]
        yield place / "__init__.py"
        for part in others:
            place = place / part
            yield from (file for file in (place.with_suffix(".py"), place / "__init__.py") if file.exists())


def _below(path: Path) -> Path:
    """Where a file lies below the folder that holds its package: colorize/files.py, say."""
    return next(path.relative_to(folder.parent) for folder in PACKAGES.values() if path.is_relative_to(folder))


def imported(path: Path) -> set[Path]:
    """The project's files that a file of it imports itself."""
    package = _below(path).parent.parts
    return {file for name in (".".join(package), *_names(path.read_bytes(), package)) for file in _files(name)}


def closure(paths: Iterable[Path]) -> set[Path]:
    """Files of the project and all of its files that running them imports."""
    seen, todo = set(paths), list(paths)
    while todo:
        new = imported(todo.pop()) - seen
        seen |= new
        todo += new
    return seen


def digests(paths: Iterable[Path]) -> dict[str, str]:
    """The sha256 of each file of the closure, by its place below the folder of its package."""
    return {_below(path).as_posix(): files.sha256(path) for path in sorted(closure(paths))}
