"""Find the project's files that a file imports, directly or not, from the import statements.

`python -m pipeline.imports` (`make deps`) writes the source files of every stage into dvc.yaml and
pipeline/zoo/dvc.yaml. Imports inside functions and conditions count, and so do the packages around a module.
Names that are built at run time (`import_module(f"...")`, for architectures) are not found: the caller adds
these files.
"""

import ast
import io
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from ruamel.yaml import YAML

import colorize
from colorize import files
from colorize.models import ARCHITECTURES

PACKAGES = {"colorize": Path(colorize.__file__).parent, "pipeline": Path(__file__).parent}


@cache
def _names(source: bytes, package: tuple[str, ...]) -> tuple[str, ...]:
    """Every dotted name that a source of a package may import: modules, and names inside modules."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            around = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*around, *([node.module] if node.module else [])])
            names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names += [str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant)]
    return tuple(names)


def _files(name: str) -> Iterator[Path]:
    """Files of a dotted name: those of the packages around the module, then the module's."""
    first, *others = name.split(".")
    if first in PACKAGES:
        path = PACKAGES[first]
        yield path / "__init__.py"
        for part in others:
            path = path / part
            yield from (file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists())


def _below(path: Path) -> Path:
    """Path of a file relative to the parent of its package, for example colorize/files.py."""
    folder = next(folder for folder in PACKAGES.values() if path.is_relative_to(folder))
    return path.relative_to(folder.parent)


def imported(path: Path) -> set[Path]:
    """The project's files that a file imports directly."""
    package = _below(path).parent.parts
    names = (".".join(package), *_names(path.read_bytes(), package))
    return {file for name in names for file in _files(name)}


def closure(paths: Iterable[Path]) -> set[Path]:
    """The given files and all of the project's files that they import, directly or not."""
    seen, todo = set(paths), list(paths)
    while todo:
        new = imported(todo.pop()) - seen
        seen |= new
        todo += new
    return seen


def digests(paths: Iterable[Path]) -> dict[str, str]:
    """sha256 of each file of the closure, by its path as in `_below`."""
    return {_below(path).as_posix(): files.sha256(path) for path in sorted(closure(paths))}


def sources(stages: Iterable[str], architecture: str = "") -> list[str]:
    """List the source files of a stage's commands, as in dvc.yaml.

    Args:
        stages: names of files of pipeline/, without .py.
        architecture: file of the stage's architecture; "" makes a stage with a model depend on the whole
            folder.
    """
    root = Path(__file__).parents[1]
    all_files = closure([PACKAGES["pipeline"] / f"{stage}.py" for stage in stages])
    if ARCHITECTURES.with_name("__init__.py") in all_files:
        all_files = closure([*all_files, *ARCHITECTURES.glob("*.py")])
    others = {file for file in all_files if file.parent != ARCHITECTURES}
    names = {file.relative_to(root).as_posix() for file in others}
    if others != all_files:
        names.add((ARCHITECTURES.relative_to(root) / architecture).as_posix())
    return sorted(names)


def with_sources(path: Path, commands: dict[str, tuple[list[str], str]]) -> str:
    """Update the source dependencies of every stage in a dvc.yaml; keep the other dependencies.

    Args:
        commands: stage to arguments of `sources`.
    """
    yaml = YAML()
    yaml.width = 1000
    yaml.indent(sequence=2, offset=0)
    content = yaml.load(path.read_text(encoding="utf-8"))
    for name, stage in content["stages"].items():
        deps = stage.get("do", stage)["deps"]
        data = [dep for dep in deps if not dep.endswith(".py") and not dep.startswith("src/")]
        deps[:] = data + sources(*commands[name])
    text = io.StringIO()
    yaml.dump(content, text)
    return text.getvalue()


def graphs() -> dict[Path, str]:
    """Both dvc.yaml files with updated dependencies."""
    root, zoo = Path("dvc.yaml"), Path("pipeline/zoo/dvc.yaml")
    stages = YAML(typ="safe").load(root.read_text(encoding="utf-8"))["stages"]
    of_zoo = {"score": (["train", "evaluate"], "${item.arch}.py"), "leaderboard": (["leaderboard"], "")}
    return {root: with_sources(root, {name: ([name], "") for name in stages}), zoo: with_sources(zoo, of_zoo)}


if __name__ == "__main__":
    for file, content in graphs().items():
        files.write_text(file, content)
