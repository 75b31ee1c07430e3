"""The structure holds: who imports whom, what dvc.yaml depends on, what params.yaml and the tree say."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, _photographs
from PIL import Image
from ruamel.yaml import YAML

from pipeline import imports, leaderboard, paths
from pipeline.check import AllParams

ROOMS = ["", "data", "models", "scoring", "training", "apply"]
"""Of the library: each imports only from itself and from those before it; "" are the files beside them."""
GRAPH = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
ZOO = YAML(typ="safe").load((ROOT / "pipeline/zoo/dvc.yaml").read_text())["stages"]


def imported(path: Path) -> set[Path]:
    """The project's own files that a file imports, relative to the root."""
    return {file.relative_to(ROOT) for file in imports.imported(ROOT / path)}


def test_stages_depend_on_the_sources_that_they_run() -> None:
    """On all, or results would be stale in silence; on no others, or an edit elsewhere would train again."""
    for path, content in imports.graphs().items():
        assert path.read_text() == content, f"{path} is out of date; run `make deps`"


def leaves(value: Any, path: str) -> set[str]:
    """The names of all parameters in a block, or of it if it is one."""
    inner = {f.name: getattr(value, f.name) for f in fields(value)} if is_dataclass(value) else value
    if not is_dataclass(value) and not (isinstance(value, dict) and all(map(is_dataclass, value.values()))):
        return {path}
    return {leaf for name, each in inner.items() for leaf in leaves(each, f"{path}.{name}")}


def noted(value: Any, path: str, read: set[str]) -> Any:
    """A copy of a block that notes in `read` which of its parameters are looked at."""
    if isinstance(value, dict) and all(map(is_dataclass, value.values())):
        return {name: noted(each, f"{path}.{name}", read) for name, each in value.items()}
    if not is_dataclass(value):
        return value
    inner = {field.name: getattr(value, field.name) for field in fields(value)}

    def look(self: Any, name: str) -> Any:
        if name in inner and not is_dataclass(inner[name]):
            read.add(f"{path}.{name}")
        return object.__getattribute__(self, name)

    copy = object.__new__(type("Noted", (type(value),), {"__getattribute__": look}))
    for name, each in inner.items():
        object.__setattr__(copy, name, noted(each, f"{path}.{name}", read))
    return copy


def noting(params: AllParams, read: set[str]) -> AllParams:
    class Noted(AllParams):
        def __getattribute__(self, name: str) -> Any:
            if name in ("seed", "model"):
                read.add(name)
            return super().__getattribute__(name)

    blocks = {name: noted(getattr(params, name), name, read) for name in AllParams.model_fields}
    return Noted.model_construct(**blocks)


READ_ONLY = {
    "crop": {"crop.workers", "crop.cluster", "data.path"},  # who crops, and where: the same bytes
    "train": {"models"},  # data/blocks/NAME.json holds the chosen block
    "score": {"models"},
}
"""Parameters that a stage reads and does not depend on, by stage; whole blocks, or single ones."""
LISTED_ONLY = {
    "check": {"seed", "data", "crop", "filter", "prior", "train", "evaluate", "models"},  # refuses all
    "download": {"data"},  # most of it is for the sources that fetch
    "crop": {"crop.small"},  # for photographs that are too small
    "prior": {"prior.sha256"},  # if there is a released one
    "leaderboard": {"models"},  # which there are: DVC cannot depend on the keys alone
}
"""Parameters that a stage depends on though this run of it does not read them."""


@pytest.mark.slow
def test_a_stage_depends_on_the_parameters_that_it_reads_and_on_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_params: Callable[..., AllParams]
) -> None:
    """Every stage is run, and what it looks at compared with `params:`.

    What is missing leaves results stale in silence, what is superfluous runs a stage for nothing.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "RUNS", Path("runs"))
    Path("photos").mkdir()
    for number, pixels in enumerate(_photographs(24, 24)):
        Image.fromarray(pixels).save(f"photos/{number:02}.png")
    blocks = {
        name: {"arch": "constant", "network": {"color": color}}
        for name, color in (("grey", "zero"), ("mean_color", "mean"))
    }
    blocks["cae"] = {"arch": "cae", "network": {"channels": [4, 8]}, "recipe": {"epochs": 1}}
    blocks["tuned"] = blocks["cae"] | {"init_from": "cae"}
    small = {"crop.size": 16, "crop.workers": 1, "train.threads": 1, "evaluate.bootstrap": 10}
    source = {"data.source": "folder", "data.path": "photos"}
    params = make_params(small | source | {"model": "cae", "models": blocks})

    def within(leaf: str, blocks: set[str]) -> bool:
        return any(f"{leaf}.".startswith(f"{block}.") for block in blocks)

    def compare(stage: str, listed: list[str], *runs: Callable[[AllParams], None], model: str = "") -> None:
        monkeypatch.setattr(sys, "argv", ["stage", "--model", model] if model else ["stage"])
        read: set[str] = set()
        for run in runs:
            run(noting(params, read))
        everything = {leaf for name in AllParams.model_fields for leaf in leaves(getattr(params, name), name)}
        depends = {leaf for leaf in everything if within(leaf, set(listed))}
        unlisted = {leaf for leaf in read - depends if not within(leaf, READ_ONLY.get(stage, set()))}
        assert unlisted == set(), f"{stage} reads these"
        unread = {leaf for leaf in depends - read if not within(leaf, LISTED_ONLY.get(stage, set()))}
        assert unread == set(), f"{stage} depends on these and reads none"

    main = {name: import_module(f"pipeline.{name}").main for name in GRAPH}
    for stage, entry in GRAPH.items():
        compare(stage, entry["params"], main[stage])
    for name in params.models:
        both = (main["train"], partial(main["evaluate"], name=name))
        compare("score", ZOO["score"]["do"]["params"], *both, model=name)
    compare("leaderboard", ZOO["leaderboard"]["params"], leaderboard.main)


def test_rooms_import_only_from_those_before_them() -> None:
    """And no file of the library imports the pipeline."""

    def room(path: Path) -> int:
        inner = path.relative_to("src/colorize")
        return ROOMS.index(inner.parts[0] if len(inner.parts) > 1 else "")

    for path in (ROOT / "src/colorize").rglob("*.py"):
        own = path.relative_to(ROOT)
        for other in imported(own):
            assert other.parts[0] == "src", f"{own} imports {other}"
            assert room(other) <= room(own), f"{own} imports {other}"


def test_stages_never_import_each_other() -> None:
    """Only params and paths are shared, and what the two pages have in common."""
    for stage in [*GRAPH, "leaderboard"]:
        others = {f.stem for f in imported(Path(f"pipeline/{stage}.py")) if f.parts[0] == "pipeline"}
        assert others <= {"fingerprint", "imports", "params", "paths", "page", "__init__"}, stage


FIRST = """
import importlib, os, sys

class Watch:
    def find_spec(self, name, *_):
        if name in ("numpy", "torch"):
            print(os.environ.get("OMP_WAIT_POLICY"))
            sys.exit()

sys.meta_path.insert(0, Watch())
importlib.import_module(sys.argv[1])
"""


@pytest.mark.parametrize(
    ("module", "given"),
    [("colorize.apply.coloring", "ACTIVE"), ("pipeline.crop", None), ("pipeline.train", None)],
)
def test_how_threads_wait_is_settled_before_torch_is_imported(module: str, given: str | None) -> None:
    """And before NumPy: both read it when they are loaded. A thread that waits sleeps by default."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"} | ({"OMP_WAIT_POLICY": given} if given else {})
    command = [sys.executable, "-c", FIRST, module]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == f"{given or 'PASSIVE'}\n"


def test_a_copy_of_the_project_runs_its_own_library(tmp_path: Path) -> None:
    """DVC runs queued experiments in a copy, while the installed library may have been edited since."""
    for folder in ("pipeline", "src"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    code = "import pipeline.paths, colorize.files; print(colorize.files.__file__)"
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=kept, capture_output=True, text=True, check=True
    )
    assert Path(result.stdout.strip()).is_relative_to(tmp_path)


def test_imports_are_found_wherever_and_however_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In functions and conditions, relative, under another name, by name; with the packages around them."""
    sources = {
        "__init__": "",
        "inner/__init__": "from . import first",
        "inner/first": "from .. import second",
        "inner/alone": "",
        "second": "def run():\n    import project.third as other",
        "third": "if None:\n    from .fourth import name\nelse:\n    from project.fifth import *",
        "fourth": "import importlib\nimportlib.import_module('project.sixth')",
        "fifth": "",
        "sixth": "import project.main",
        "main": "from project.inner.first import first",
        "unused": "import project.main",
    }
    for name, source in sources.items():
        (tmp_path / f"project/{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"project/{name}.py").write_text(source)
    monkeypatch.setattr(imports, "PACKAGES", {"project": tmp_path / "project"})
    found = imports.closure([tmp_path / "project/main.py"])
    used = sources.keys() - {"unused", "inner/alone"}
    assert found == {tmp_path / f"project/{name}.py" for name in used}
