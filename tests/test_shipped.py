"""The trained model that comes with the library: what a person gets who has nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, _photographs
from PIL import Image
from safetensors.torch import load_file
from skimage import color, data
from skimage.metrics import peak_signal_noise_ratio
from test_cli import call, make_model

from colorize.bins import PriorConfig, Statistics
from colorize.data import fetch
from colorize.models import SHIPPED_FOLDER, WEIGHTS, build_model, load_description, load_model, start_from
from pipeline import paths, ship
from pipeline.check import AllParams
from pipeline.params import load

PHOTOGRAPHS = {
    "astronaut": data.astronaut,
    "chelsea": data.chelsea,
    "coffee": data.coffee,
    "rocket": data.rocket,
}
"""It was trained on none of them."""


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four grey photographs in a folder that holds nothing else."""
    monkeypatch.chdir(tmp_path)
    for name, read in PHOTOGRAPHS.items():
        Image.fromarray(read()).convert("L").save(f"{name}.png")
    return tmp_path


def test_photographs_are_colored_in_a_folder_without_a_project(album: Path) -> None:
    """No model is named and none is trained; the size stays; less saturation is less color."""
    assert "4 colored, 0 were done before, 0 failed" in call("apply", *sorted(album.glob("*.png")))
    chroma = {}
    for saturation in (0, 1):
        call("apply", "rocket.png", "--saturation", saturation, "-o", f"{saturation}")
    for folder in ("0", "1", "colored"):
        with Image.open(f"{folder}/rocket.png") as image:
            assert image.size == (640, 427)
            chroma[folder] = np.hypot(*np.moveaxis(color.rgb2lab(image)[..., 1:], -1, 0)).mean()
    assert chroma["0"] < 1 < 8 < chroma["1"] < chroma["colored"]


def test_it_is_closer_to_the_truth_than_grey(album: Path) -> None:
    """In the mean of photographs that it has never seen, by scikit-image's PSNR."""
    call("apply", *sorted(album.glob("*.png")), "--saturation", 1)
    gains = []
    for name, read in PHOTOGRAPHS.items():
        truth, grey = read(), np.asarray(Image.open(f"{name}.png").convert("RGB"))
        colored = np.asarray(Image.open(f"colored/{name}.png"))
        gains.append(peak_signal_noise_ratio(truth, colored) - peak_signal_noise_ratio(truth, grey))
    assert np.mean(gains) > 0.5


def test_it_tells_where_it_comes_from() -> None:
    """Name, recipe, data's mean color; and it works as params.yaml says that it decodes."""
    about, block = (
        load_description(SHIPPED_FOLDER),
        load(AllParams, ROOT / "params.yaml").models["efficientnet_unet"],
    )
    assert about["name"] == "shipped" and about["recipe"]["epochs"]["in_force"] == about["epochs"] > 0
    assert about["block"]["head"]["saturation"] == block.head.saturation
    assert (about["block"]["network"], about["block"]["arch"]) == (block.network, block.arch)


def test_a_model_may_start_from_it_without_the_pretrained_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are the start, so nothing else is read; what came pretrained keeps its lower rate."""
    monkeypatch.setattr(fetch, "read_pinned", lambda *_: pytest.fail("read"))
    block, shipped = load(AllParams, ROOT / "params.yaml").models["tuned"], load_model(SHIPPED_FOLDER)
    model = build_model(block, 128, Statistics.measure(_photographs(2, 32), PriorConfig()))
    start_from(model, shipped)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in shipped.state_dict().items())
    assert model.pretrained == ("net.encoder",)


@pytest.mark.slow
def test_the_wheel_holds_it_in_less_than_10_megabytes(tmp_path: Path) -> None:
    """Whoever installs the library has it."""
    for name in ("src", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        ".",
    ]
    subprocess.run(command, cwd=tmp_path, check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        sizes = {entry.filename: entry.file_size for entry in wheel.infolist()}
    shipped = {name: size for name, size in sizes.items() if name.startswith("colorize/shipped/")}
    assert {Path(name).name for name in shipped} == {path.name for path in SHIPPED_FOLDER.iterdir()}
    assert sum(shipped.values()) < 10_000_000 and "colorize/apply/app.html" in sizes


def test_a_trained_model_becomes_the_one_that_ships(
    make_params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In half precision, under the name, the size and the saturation that it is to have; the colors stay."""
    monkeypatch.chdir(tmp_path)
    make_model(paths.MODEL, "cae", channels=[4, 8])
    monkeypatch.setattr(ship, "SHIPPED_FOLDER", tmp_path / "shipped")
    monkeypatch.setattr(sys, "argv", ["ship", "--size", "64"])
    ship.main(make_params({"models.cae.head": {"saturation": 1.5}}))
    about = load_description(tmp_path / "shipped")
    assert (about["name"], about["size"], about["block"]["head"]["saturation"]) == ("shipped", 64, 1.5)
    tensors = load_file(tmp_path / "shipped" / WEIGHTS).values()
    assert all(tensor.dtype == torch.float16 for tensor in tensors)
    light = torch.rand(1, 1, 32, 32) * 100
    before, after = (load_model(folder).colorize(light) for folder in (paths.MODEL, tmp_path / "shipped"))
    assert (after - (1.5 * before).clamp(-128, 128)).abs().max() < 0.5 < 10 < before.abs().max()
