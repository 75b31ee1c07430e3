"""Metrics against scikit-image and cases worked by hand."""

import numpy as np
import pandas as pd
import pytest
from skimage import data
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from colorize.data.palette import to_lab
from colorize.files import InputError
from colorize.scoring import metrics


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Four photographs of 48 pixels and the same with noise: uint8 [4, 48, 48, 3] each."""
    photo = data.astronaut()
    truth = np.stack([photo[y : y + 48, x : x + 48] for y, x in ((0, 100), (60, 200), (200, 200), (300, 40))])
    noise = np.random.default_rng(0).normal(0, 12, truth.shape)
    return truth, np.clip(truth + noise, 0, 255).astype(np.uint8)


def scores(**columns: list) -> pd.DataFrame:
    """A table of scores, 0.5 in every metric that is not given; each photograph is its own group."""
    length = len(next(iter(columns.values())))
    names = [name for name in metrics.METRICS if name != "psnr_pooled"]
    known = {"group": range(length), "grey_truth": [False] * length}
    return pd.DataFrame(known | {name: [0.5] * length for name in names} | columns)


def of(found: pd.DataFrame, metric: str, system: str = "model") -> pd.Series:
    """One row of a comparison."""
    return found.set_index(["metric", "system"]).loc[(metric, system)]


def test_psnr_of_identical_photographs_is_100_db() -> None:
    """Not infinitely many; and no prediction with an error has more."""
    truth = np.full((2, 400, 400, 3), 7, np.uint8)
    other = truth.copy()
    other[1, 0, 0, 0] += 1
    assert metrics.psnr(truth, other).tolist() == [100, 100]


def test_figures_agree_with_scikit_image(pair) -> None:
    """PSNR, SSIM, CIEDE2000 and rmse_ab of every photograph equal scikit-image's on the same arrays."""
    truth, prediction = pair
    ab = rgb2lab(prediction)[..., 1:]
    table = metrics.per_image(truth, prediction, ab)
    for i, (a, b) in enumerate(zip(truth, prediction, strict=True)):
        assert table["psnr"][i] == pytest.approx(peak_signal_noise_ratio(a, b))
        published = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 255}
        ssim = structural_similarity(a, b, channel_axis=-1, **published)
        assert table["ssim"][i] == pytest.approx(ssim, abs=1e-4)
        lab, other = rgb2lab(a), rgb2lab(b)
        assert table["ciede2000"][i] == pytest.approx(deltaE_ciede2000(lab, other).mean(), abs=1e-4)
        expected = np.sqrt(((lab - other)[..., 1:] ** 2).mean())
        assert table["rmse_ab"][i] == pytest.approx(expected, abs=1e-4)


def test_errors_are_relative_to_the_full_scale() -> None:
    """Errors of 0 and 51 levels on half the pixels each: mae 0.1, rmse 0.2 / sqrt(2)."""
    truth = np.zeros((1, 12, 12, 3), np.uint8)
    prediction = truth.copy()
    prediction[:, :6] = 51
    assert metrics.mae(truth, prediction) == pytest.approx([0.1])
    assert metrics.rmse(truth, prediction) == pytest.approx([0.2 / np.sqrt(2)])


def test_raw_errors_have_the_documents_units() -> None:
    """An error of 0.1 over RGB in 0 to 1 is 0.2 over -1 to 1: MSE 0.04, MAE 0.1."""
    truth = np.full((2, 4, 4, 3), 0.5)
    found = metrics.raw_errors(truth, truth + 0.1)
    assert found["raw_mse"] == pytest.approx([0.04] * 2)
    assert found["raw_mae"] == pytest.approx([0.1] * 2)


def test_colorfulness_of_a_hand_computed_image() -> None:
    """Red, green, blue and white: rg = 255, -255, 0, 0; yb = 127.5, 127.5, -255, 0."""
    image = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    expected = np.sqrt(2 * 255**2 / 4 + (2 * 127.5**2 + 255**2) / 4)  # both means are 0
    assert metrics.colorfulness(image[None]) == pytest.approx([expected])


def test_grey_is_judged_by_the_maximum_or_the_mean_chroma() -> None:
    """Equal channels are grey; one red pixel in 400 is (mean chroma); a red photograph is not."""
    images = np.full((3, 20, 20, 3), 128, np.uint8)
    images[1, 0, 0] = 255, 0, 0
    images[2] = 200, 40, 40
    assert metrics.is_grey(to_lab(images)).tolist() == [True, True, False]


def test_ssim_refuses_photographs_below_its_window() -> None:
    """10 pixels are one sentence, not a traceback."""
    small = np.zeros((1, 10, 10, 3), np.uint8)
    with pytest.raises(InputError, match="at least 11 pixels, not 10; raise crop.size"):
        metrics.per_image(small, small, np.zeros((1, 10, 10, 2)))


def test_averages_are_over_the_same_photographs_for_every_system() -> None:
    """Of 20, 30, 90 (grey) and infinite dB the mean counts 20, 30 and 100, the pooled error all four."""
    psnr, rmse = [20.0, 30.0, 90.0, np.inf], [0.1, 10**-1.5, 10**-4.5, 0.0]
    table = scores(psnr=psnr, psnr_best=psnr, rmse=rmse, grey_truth=[False, False, True, False])
    found = metrics.compare({"model": table}, 1)
    assert of(found, "psnr")["mean"] == of(found, "psnr_best")["mean"] == pytest.approx(50)
    assert of(found, "psnr_pooled")["mean"] == pytest.approx(-10 * np.log10((0.01 + 0.001 + 1e-9) / 4))
    assert of(found, "rmse")["mean"] == pytest.approx(np.mean(rmse))


def test_a_system_that_is_nowhere_worse_is_not_reported_worse() -> None:
    """It is exact on some photographs, equal or better on the others; a few truths are grey."""
    random = np.random.default_rng(8)
    for _ in range(20):
        worse = random.uniform(10, 80, 12)
        better = np.where(random.random(12) < 0.4, np.inf, worse + random.choice([0, 5], 12))
        grey = np.append(random.random(11) < 0.1, False)
        tables = {
            name: scores(psnr=psnr, psnr_best=psnr, rmse=10 ** (-psnr / 20), grey_truth=grey)
            for name, psnr in (("model", better), ("grey", worse))
        }
        found = metrics.compare(tables, 50)
        for metric in ("psnr", "psnr_best", "psnr_pooled"):
            row = of(found, metric)
            assert row["over_grey"] >= 0 and not row["over_grey_low"] < 0


def test_spread_is_the_standard_deviation_over_the_colorings() -> None:
    """a* of 0 and 6 on half the pixels: 3 there, 0 elsewhere and in b*; a single coloring has none."""
    colorings = np.zeros((1, 2, 4, 4, 2))
    colorings[0, 1, :2, :, 0] = 6
    assert metrics.ab_spread(colorings) == pytest.approx([3 / 4])
    assert metrics.ab_spread(colorings[:, 1:]) == pytest.approx([0])


@pytest.mark.parametrize("cells", [1, 100, 10**6])
def test_photographs_are_drawn_whole_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    """Against a loop over the same draws: 40 tiles of 15 photographs, a sixth of the tiles grey."""
    random = np.random.default_rng(6)
    group = random.permutation(np.append(np.arange(15), random.integers(0, 15, 25)))
    grey = random.random(40) < 1 / 6
    psnr, ssim = random.uniform(15, 30, (2, 40)), random.uniform(0, 1, (2, 40))
    tables = {
        name: scores(group=group, grey_truth=grey, psnr=psnr[i], rmse=10 ** (-psnr[i] / 20), ssim=ssim[i])
        for i, name in enumerate(("model", "mean_color"))
    }
    names = list(dict.fromkeys(group))  # in the order in which they come
    expected: dict[str, list] = {"psnr": [], "psnr_pooled": [], "ssim": []}
    for draw in np.random.default_rng(1).multinomial(15, np.full(15, 1 / 15), size=200):
        drawn = zip(names, draw, strict=True)
        tiles = [tile for name, times in drawn for tile in np.flatnonzero(group == name).repeat(times)]
        colored = [tile for tile in tiles if not grey[tile]]
        pooled = [-10 * np.log10(np.mean(10 ** (-each[tiles] / 10))) for each in psnr]
        expected["psnr"].append((psnr[0][colored] - psnr[1][colored]).mean())
        expected["psnr_pooled"].append(pooled[0] - pooled[1])
        expected["ssim"].append((ssim[0][tiles] - ssim[1][tiles]).mean())
    monkeypatch.setattr(metrics, "CELLS_AT_ONCE", cells)
    found = metrics.compare(tables, 200)
    for metric, values in expected.items():
        row = of(found, metric)[["over_mean_color_low", "over_mean_color_high"]]
        assert row.to_list() == pytest.approx(np.percentile(values, [2.5, 97.5]).tolist())


def test_tiles_of_one_photograph_say_no_more_than_the_photograph() -> None:
    """Each of 12 photographs cut into 20 tiles that score alike: the interval is that of the 12."""
    values = np.random.default_rng(7).normal(0.7, 0.1, 12)
    tiles = scores(ssim=values.repeat(20), group=np.arange(12).repeat(20))
    both = (metrics.compare({"model": table}, 300) for table in (scores(ssim=values), tiles))
    whole, cut = (of(found, "ssim")[["low", "high"]] for found in both)
    assert cut.to_list() == pytest.approx(whole.to_list())
    assert metrics.scored(tiles) == "240 tiles of 12 photographs"


@pytest.mark.parametrize(
    ("group", "grey", "said", "known"),
    [
        ([0] * 22, 0, "22 tiles of 1 photograph", False),
        (range(9), 0, "9 photographs", False),
        (range(10), 0, "10 photographs", True),
        (range(40), 31, "40 photographs", False),
    ],
)
@pytest.mark.filterwarnings("error")
def test_too_few_photographs_have_no_interval(group, grey: int, said: str, known: bool) -> None:
    """Fewer than ten with color; the means are there all the same."""
    table = scores(group=group, grey_truth=[True] * grey + [False] * (len(group) - grey))
    found = metrics.compare({"model": table, "grey": table}, 50)
    assert metrics.scored(table) == said
    assert found[["mean", "over_grey"]].notna().all(axis=None)
    ends = found[["low", "high", "over_grey_low", "over_grey_high"]].notna()
    assert ends.all(axis=None) if known else not ends.any(axis=None)


@pytest.mark.filterwarnings("error")
def test_a_draw_of_grey_truths_only_does_not_spoil_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten color photographs and ten grey ones; one of two draws holds none of the former."""
    table = scores(psnr=[20.0] * 10 + [90.0] * 10, grey_truth=[False] * 10 + [True] * 10)
    monkeypatch.setattr(metrics, "draws", lambda *_: [np.repeat([[1.0, 1.0], [0.0, 2.0]], 10, axis=1)])
    assert of(metrics.compare({"model": table}, 2), "psnr")[["mean", "low", "high"]].to_list() == [20] * 3
