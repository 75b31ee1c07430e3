"""The structure holds: who imports whom, what dvc.yaml depends on, what params.yaml and the tree say."""

import ast
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from colorize.models import architectures
from pipeline.params import load

LAYERS = [
    {"files", "formats", "settings", "color"},
    {"compute", "device", "distributed", "bins", "images", "palette", "fetch"},
    {"batches", "metrics", "sources", "selection"},
    {"heads"},
    {"models"},
    {"training", "evaluation", "figures", "photographs"},
    {"ceilings", "coloring", "export", "project"},
    {"scoring", "app"},
    {"cli"},
]
GRAPH = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
ZOO = YAML(typ="safe").load((ROOT / "pipeline/zoo/dvc.yaml").read_text())["stages"]


@cache
def imported(path: Path) -> frozenset[Path]:
    """The project's own files that a file imports, relative to the root."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            base = {"colorize": Path("src"), "pipeline": Path()}.get(name.split(".")[0])
            if base is not None:
                stem = base.joinpath(*name.split("."))
                found |= {f for f in (stem.with_suffix(".py"), stem / "__init__.py") if (ROOT / f).exists()}
    return frozenset(found)


def closure(path: Path) -> set[Path]:
    """A file and all of the project's files that running it imports."""
    seen, todo = {path}, [path]
    while todo:
        new = imported(todo.pop()) - seen
        seen |= new
        todo += new
    return seen


def uncovered(stage_file: str, deps: list[str]) -> set[str]:
    """Files that a stage imports but does not depend on; __init__.py without code in it are no dependencies."""
    listed = [Path(dep) for dep in deps]
    needed = {f for f in closure(Path(stage_file)) if f.name != "__init__.py" or imported(f)}
    return {str(f) for f in needed if not any(f == dep or dep in f.parents for dep in listed)}


@pytest.mark.parametrize("stage", GRAPH)
def test_a_stage_depends_on_everything_it_imports(stage: str) -> None:
    """A missing dependency would silently keep stale results."""
    assert uncovered(f"pipeline/{stage}.py", GRAPH[stage]["deps"]) == set()


@pytest.mark.parametrize("stage", GRAPH)
def test_a_stage_depends_on_no_source_that_it_does_not_import(stage: str) -> None:
    """A superfluous one would retrain after an edit elsewhere."""
    needed = closure(Path(f"pipeline/{stage}.py"))
    for dep in GRAPH[stage]["deps"]:
        if dep.endswith(".py"):
            assert Path(dep) in needed, dep


def test_the_zoo_depends_on_what_its_stages_import_and_on_one_model_file() -> None:
    """Editing one model's file trains that model only."""
    deps = ZOO["score"]["do"]["deps"]
    assert uncovered("pipeline/train.py", deps) | uncovered("pipeline/evaluate.py", deps) == set()
    model_files = {dep for dep in deps if dep.startswith("src/colorize/models/")}
    shared = ("__init__", "_base", "_blocks", "_resnet")
    assert model_files == {f"src/colorize/models/{name}.py" for name in (*shared, "${item.arch}")}
    assert uncovered("pipeline/leaderboard.py", ZOO["leaderboard"]["deps"]) == set()


def test_layers_import_downwards_only() -> None:
    """files formats settings color < bins images ... < heads < models < training figures < ... < cli, pipeline."""
    level = {name: height for height, names in enumerate(LAYERS) for name in names}
    for path in (ROOT / "src/colorize").rglob("*.py"):
        parts = path.relative_to(ROOT / "src/colorize").with_suffix("").parts
        if parts == ("__init__",):
            continue
        for other in imported(path.relative_to(ROOT)):
            assert other.parts[0] == "src", f"{path.name} imports the pipeline"
            target = other.relative_to("src/colorize").with_suffix("").parts[0]
            # training and device know what a model promises, not the models
            if target in ("__init__", parts[0]) or (parts[0] == "training" and other.name == "_base.py"):
                continue
            assert level[target] < level[parts[0]], f"{'/'.join(parts)} imports {target}"


def test_stages_never_import_each_other() -> None:
    """Only params and paths are shared, and what the two pages have in common."""
    for stage in [*GRAPH, "leaderboard"]:
        others = {f.stem for f in imported(Path(f"pipeline/{stage}.py")) if f.parts[0] == "pipeline"}
        assert others <= {"params", "paths", "page", "__init__"}, stage


def test_every_architecture_file_names_its_source_and_has_a_block() -> None:
    """Its docstring opens with what it is; some block of params.yaml uses it."""
    used = {block.arch for block in load(ROOT / "params.yaml").blocks.values()}
    for name in architectures():
        docstring = ast.get_docstring(ast.parse((ROOT / f"src/colorize/models/{name}.py").read_text())) or ""
        assert len(docstring.splitlines()) >= 3 and "document" in docstring, name
        assert name in used, name


def test_model_files_are_imported_only_when_asked_for() -> None:
    """One broken model file cannot break the others."""
    code = (
        "import sys, colorize.models, colorize.training; print([m for m in sys.modules if m.startswith('colorize.models.')])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT,
                            capture_output=True, text=True, check=True)  # fmt: skip
    assert eval(result.stdout) == ["colorize.models._base"]


def test_every_model_is_a_stage_of_the_zoo() -> None:
    """The zoo loops over params.yaml; a new block needs no edit there."""
    assert ZOO["score"]["foreach"] == "${models}"
    assert ZOO["tune"]["foreach"] == "${fine_tuned}"


def test_a_fine_tuned_model_depends_on_the_one_it_starts_from() -> None:
    """On its folder and on its block; in all else its stage is that of every model."""
    score, tune = ZOO["score"]["do"], ZOO["tune"]["do"]
    assert set(tune["deps"]) == {*score["deps"], "data/zoo/${item.start}"}
    assert set(tune["params"]) == {*score["params"], "models.${item.start}", "fine_tuned.${key}"} - {"models.${key}"}
    assert (tune["cmd"], tune["outs"], tune["wdir"]) == (score["cmd"], score["outs"], score["wdir"])


def test_paths_of_the_graph_are_those_of_the_code() -> None:
    """What dvc.yaml calls an out stands in pipeline/paths.py or under metrics/."""
    from pipeline import paths

    known = {str(value) for value in vars(paths).values() if isinstance(value, Path)}
    for stage in GRAPH.values():
        for out in stage.get("outs", []):
            path = out if isinstance(out, str) else next(iter(out))
            assert path in known or path.startswith("metrics/"), path


def test_no_source_file_is_a_grab_bag() -> None:
    """One obvious place for everything."""
    names = {path.stem for folder in ("src", "pipeline", "tests") for path in (ROOT / folder).rglob("*.py")}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


def test_a_copy_of_the_project_runs_its_own_library(tmp_path: Path) -> None:
    """DVC runs queued experiments in a copy; the installed library is the original's, edited since perhaps."""
    for folder in ("pipeline", "src"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    code = "import pipeline.paths, colorize.files; print(colorize.files.__file__)"
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=kept, capture_output=True, text=True, check=True)
    assert Path(result.stdout.strip()).is_relative_to(tmp_path)
