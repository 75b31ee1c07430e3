"""What a project holds, and what `colorize verify` says of it; DVC itself is the reference."""

import os
import shutil
from contextlib import chdir
from pathlib import Path

import pytest
from dvc.repo import Repo

from colorize import files
from colorize.apply.project import find_model, list_models, verify_outs
from colorize.files import InputError

STAGES = """
stages:
  make:
    cmd: 'true'
    outs: [data/a.npy, data/b]
  score:
    cmd: 'true'
    params: [seed]
    metrics:
    - metrics/metrics.json:
        cache: false
"""
ZOO = """
vars:
- ../../params.yaml:models
stages:
  score:
    foreach: ${models}
    do:
      wdir: ../..
      cmd: 'true'
      outs:
      - data/zoo/${key}:
          cache: false
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages that ran, and a zoo of which one model did."""
    folder = tmp_path_factory.mktemp("made")
    written = {"dvc.yaml": STAGES, "pipeline/zoo/dvc.yaml": ZOO}
    written |= {"params.yaml": "seed: 1\nmodels:\n  cae: 1\n  vae: 2\n", "metrics/metrics.json": "{}"}
    written |= {"data/a.npy": "as it was", "data/b/c.txt": "as it was", "data/zoo/vae/x": ""}
    for name, text in written.items():
        files.write_text(folder / name, text)
    with chdir(folder), Repo.init(".", no_scm=True) as repo:
        for stage in ("make", "score", "pipeline/zoo/dvc.yaml:score@vae"):
            repo.commit(stage, force=True)
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "project"))


def told(project: Path) -> dict[str, str]:
    return {row["path"]: row["status"] for row in verify_outs(project)}


def sound(project: Path) -> bool:
    """Whether verify finds no difference."""
    try:
        return set(told(project).values()) <= {"ok", "never ran"}
    except InputError as error:
        assert "\n" not in str(error)
        return False


def test_a_model_of_the_zoo_that_never_ran_is_no_difference(project: Path) -> None:
    """One that did run is looked at like everything else, and so are results without a record."""
    outs = dict.fromkeys(("data/a.npy", "data/b", "metrics/metrics.json", "data/zoo/vae"), "ok")
    assert told(project) == outs | {"data/zoo/cae": "never ran"}
    files.write_text(project / "data/zoo/cae/x", "from elsewhere")
    assert told(project) == outs | {"data/zoo/cae": "not in dvc.lock"}


@pytest.mark.parametrize("name", ["dvc.lock", "dvc.yaml"])
def test_a_record_that_was_cut_short_is_noticed_wherever_the_cut_is(project: Path, name: str) -> None:
    """Line by line: what is still valid YAML lacks a stage, an out or its hash."""
    lines = (project / name).read_text().splitlines(keepends=True)
    told_by = ("md5:", "outs", "metrics")
    last = max(number for number, line in enumerate(lines) if any(word in line for word in told_by))
    for kept in range(last + 1):
        files.write_text(project / name, "".join(lines[:kept]))
        assert not sound(project), f"{kept} lines of {name}"
    files.write_text(project / name, "".join(lines))
    assert sound(project)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  make:", "  other:"),
        ("    md5: ", "    md4: "),
        ("schema:", "<<<<<<< HEAD\nschema:"),
        ("stages:", "stages: 5\nx:"),
        ("- path", "path"),
    ],
)
def test_a_record_that_lacks_something_is_a_difference(project: Path, old: str, new: str) -> None:
    """A stage, a hash; a merge that is not resolved; what is no record at all."""
    text = (project / "dvc.lock").read_text()
    files.write_text(project / "dvc.lock", text.replace(old, new, 1))
    assert not sound(project)
    (project / "dvc.lock").unlink()
    with pytest.raises(InputError, match="dvc.lock is missing; run `dvc repro` first"):
        verify_outs(project)


@pytest.mark.parametrize("name", ["data/a.npy", "data/b/c.txt", "metrics/metrics.json"])
def test_bytes_that_change_without_time_and_size_are_noticed(project: Path, name: str) -> None:
    """DVC itself goes by what it remembers of time, size and inode, and finds nothing."""
    path = project / name
    with chdir(project), Repo(".") as repo:
        assert repo.status(["make", "score"]) == {}
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:  # the same inode
        file.write(b"[")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with chdir(project), Repo(".") as repo:
        assert repo.status(["make", "score"]) == {}
    assert [status for status in told(project).values() if status not in ("ok", "never ran")] == ["differs"]


@pytest.mark.parametrize(
    "name", ["", ".", "a\0b", "x" * 5000, "HEAD~99", "@{u}", "-x", "HEAD^{tree}", "\ud800"]
)
def test_an_impossible_model_is_one_sentence(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever is typed after --model."""
    monkeypatch.chdir(project)
    with pytest.raises(InputError, match="there is no trained model"):
        find_model(name, project)


BLOCKS = """
crop: {size: 32}
models:
  cae:
    arch: cae
    network: {channels: [4, 8]}
    head: {kind: regression}
  mean_color:
    arch: constant
    network: {color: mean}
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("kind:", "knid:", "params.yaml: there is no parameter models.cae.head.knid; did you mean 'kind'"),
        ("[4, 8]", "[4, .inf]", "models.cae.network.channels.1: input should be a finite number"),
        ("size: 32", "size: 1e30", "crop.size: .*1e.30"),
        ("crop:", "crap:", "params.yaml: crop is missing"),
        ("models:", "models: 5\nothers:", "models: input should be a valid dictionary, but it is 5"),
        ("models:", "- models:", "is not valid YAML"),
        (BLOCKS, "5", "params.yaml holds no parameters"),
    ],
)
def test_a_damaged_params_yaml_is_one_sentence(tmp_path: Path, old: str, new: str, words: str) -> None:
    """The list of models reads it by the types by which the pipeline does."""
    files.write_text(tmp_path / "params.yaml", BLOCKS.replace(old, new))
    with pytest.raises(InputError, match=words):
        list_models(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[4, 8]", "abc", "architecture 'cae' cannot be built with channels abc"),
        ("[4, 8]", "[-1]", "architecture 'cae' cannot be built"),
        ("channels", "chanels", "architecture 'cae' does not take chanels"),
        ("arch: cae", "arch: ../cae", "there is no architecture '../cae'"),
    ],
)
def test_a_model_that_cannot_be_built_has_a_problem(tmp_path: Path, old: str, new: str, words: str) -> None:
    """The others are listed as ever."""
    files.write_text(tmp_path / "params.yaml", BLOCKS.replace(old, new))
    _, cae, mean = list_models(tmp_path)
    assert words in cae["problem"] and cae["parameters"] is None
    assert mean["problem"] is None and mean["parameters"] == 0
