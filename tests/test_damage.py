"""Damaged files of a project: every command and stage says so in one sentence, or goes on."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir
from importlib import import_module
from pathlib import Path

import pytest
from conftest import ROOT, _photographs
from dvc.repo import Repo
from PIL import Image
from ruamel.yaml import YAML

from colorize import files
from colorize.apply import cli
from pipeline import evaluate, params, train
from pipeline.check import AllParams
from pipeline.params import load

STAGES = ("check", "download", "crop", "filter", "prior", "train", "evaluate")
MODELS = ("grey", "mean_color", "cae", "tuned")
RECORD = "stages:\n  train:\n    cmd: 'true'\n    outs: [data/model]\n"
COMMANDS = {
    "models": "models",
    "verify": "verify",
    "apply": "apply photos/00.png -m data/model -o out",
    "score": "score photos/00.png photos/01.png -m data/model",
    "export": "export -m data/model -o exported",
    "app": "app --no-show --port 0",
}
ZOO = ("model.json", "per_image.csv", "history.csv", "pictures.npz")
MODEL = ("data/model/model.json", "data/model/weights.safetensors")
READ = {
    "models": (
        "params.yaml",
        MODEL[0],
        "metrics/metrics.json",
        *(f"data/zoo/tuned/{f}.json" for f in ("metrics", "model")),
    ),
    "verify": ("params.yaml", "dvc.yaml", "dvc.lock", ".dvc/config", "requirements/pipeline.txt"),
    "apply": MODEL,
    "score": MODEL,
    "export": MODEL,
    "app": (MODEL[0],),
    "check": ("params.yaml",),
    "crop": ("data/photos/photos.csv",),
    "filter": ("data/photos/photos.csv", "data/crops/crops.csv", "data/crops/crops-00000.npy"),
    "prior": ("data/splits.csv",),
    "train": ("data/splits.csv", "data/prior.npz"),
    "evaluate": ("data/splits.csv", MODEL[0]),
    "report": (MODEL[0], "metrics/comparison.csv", "metrics/per_image.csv", "data/pictures.npz"),
    "leaderboard": tuple(f"data/zoo/cae/{name}" for name in ZOO),
}
DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda _: None,
    "a folder": lambda _: None,
    "empty": lambda _: b"",
    "half": lambda content: content[: len(content) // 2],
    "binary": lambda _: bytes(range(256)),
    "an object": lambda _: b"{}",
    "a ragged row": lambda content: content + b"1,2\n",
    "other numbers": lambda content: content.replace(b"1", b"x"),
    "NUL": lambda content: content[:9] + b"\0" + content[10:],
}
OF_TEXT = ("a ragged row", "other numbers", "NUL")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("damage")]  # one project for all of these tests


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small project in which every stage ran."""
    folder = tmp_path_factory.mktemp("project")
    content = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    cae = {"arch": "cae", "network": {"channels": [4, 8]}, "recipe": {"epochs": 1}}
    content["models"] = {name: content["models"][name] for name in MODELS[:2]}
    content["models"] |= {"cae": cae, "tuned": cae | {"init_from": "cae"}}
    content["model"] = "cae"
    content["data"] |= {"source": "folder", "path": "photos"}
    content["crop"] |= {"size": 16, "workers": 1}
    content["evaluate"]["bootstrap"], content["train"]["threads"] = 10, 1
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        Path("photos").mkdir()
        for number, pixels in enumerate(_photographs(24, 24)):
            Image.fromarray(pixels).save(f"photos/{number:02}.png")
        YAML().dump(content, Path("params.yaml"))
        patch.setattr(sys, "argv", ["stage"])
        for stage in STAGES:
            import_module(f"pipeline.{stage}").main(load(AllParams))
        for name in MODELS:
            patch.setattr(sys, "argv", ["stage", "--model", name])
            train.main(load(AllParams))
            evaluate.main(load(AllParams), name)
        files.write_text(Path("dvc.yaml"), RECORD)
        files.write_text(Path("requirements/pipeline.txt"), "numpy==0.0.1\n")
        files.write_text(Path("requirements/torch.txt"), "torch==0.0.1\n")
        with Repo.init(".", no_scm=True) as repo:
            repo.commit("train", force=True)
        shutil.rmtree("runs")
        patch.setattr("uvicorn.Server.run", lambda *_, **__: None)
        yield folder


def run(name: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """The exit status, or the sentence, with which a command or a stage ends."""
    monkeypatch.setattr(sys, "argv", ["colorize", *COMMANDS.get(name, "").split()])
    try:
        if name in COMMANDS:
            cli.main()
        else:
            main = import_module(f"pipeline.{name}").main
            params.stage(main.__annotations__["params"], main)
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize(("name", "path"), [(name, path) for name, read in READ.items() for path in read])
def test_a_damaged_file_is_one_sentence(project, tmp_path, monkeypatch, name, path) -> None:
    """No traceback, whatever became of a file."""
    for damage, change in DAMAGES.items():
        if damage in OF_TEXT and path.endswith((".npy", ".npz", ".safetensors")):
            continue
        monkeypatch.chdir(shutil.copytree(project, tmp_path / damage, copy_function=os.link))
        content = change(Path(path).read_bytes())
        Path(path).unlink()
        if content is not None:
            Path(path).write_bytes(content)
        elif damage == "a folder":
            Path(path).mkdir()
        said = run(name, monkeypatch)
        assert said in (0, 1) or str(said).startswith("error: ") and "\n" not in str(said), damage


def test_without_damage_all_is_well(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a refusal is one of the damage."""
    monkeypatch.chdir(shutil.copytree(project, tmp_path / "project", copy_function=os.link))
    for name in READ:
        if name not in ("export", "score"):  # ONNX may not be installed, workers take long to start
            assert run(name, monkeypatch) == 0, name
