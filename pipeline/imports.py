"""Which of the project's own files run when one of them does: read from the import statements, not from a list.

`python -m pipeline.imports` (`make deps`) writes the source files of every stage into dvc.yaml and pipeline/zoo/dvc.yaml.
Imports within functions and conditions count, and so do the packages around a module. A name that is put together while the
program runs (`import_module(f"...")`, an architecture's) is not seen: whoever does that adds the file.
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
    return next(
        path.relative_to(folder.parent) for folder in PACKAGES.values() if path.is_relative_to(folder)
    )


def imported(path: Path) -> set[Path]:
    """The project's files that a file of it imports itself."""
    package = _below(path).parent.parts
    return {
        file for name in (".".join(package), *_names(path.read_bytes(), package)) for file in _files(name)
    }


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


def sources(stages: Iterable[str], architecture: str = "") -> list[str]:
    """The source files that the commands of a stage run, as dvc.yaml lists them.

    Args:
        stages: names of files of pipeline/, without .py.
        architecture: the one file among the architectures, or the whole folder, on which a stage with a model depends.
    """
    root = Path(__file__).parents[1]
    found = closure([PACKAGES["pipeline"] / f"{stage}.py" for stage in stages])
    if ARCHITECTURES.with_name("__init__.py") in found:
        found = closure([*found, *ARCHITECTURES.glob("*.py")])
    own = {file for file in found if file.parent != ARCHITECTURES}
    names = {file.relative_to(root).as_posix() for file in own}
    if own != found:
        names.add((ARCHITECTURES.relative_to(root) / architecture).as_posix())
    return sorted(names)


def with_sources(path: Path, commands: dict[str, tuple[list[str], str]]) -> str:
    """A dvc.yaml whose stages depend on the sources that they run; their other dependencies stay as they are.

    Args:
        commands: for each stage, the arguments of `sources`.
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
    """Both dvc.yaml files as they should be."""
    root, zoo = Path("dvc.yaml"), Path("pipeline/zoo/dvc.yaml")
    stages = YAML(typ="safe").load(root.read_text(encoding="utf-8"))["stages"]
    of_zoo = {"score": (["train", "evaluate"], "${item.arch}.py"), "leaderboard": (["leaderboard"], "")}
    return {root: with_sources(root, {name: ([name], "") for name in stages}), zoo: with_sources(zoo, of_zoo)}


if __name__ == "__main__":
    for file, content in graphs().items():
        files.write_text(file, content)
