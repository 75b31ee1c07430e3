"""Metrics against scikit-image and cases worked by hand."""

import numpy as np
import pandas as pd
import pytest
from skimage import data
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from colorize import metrics
from colorize.files import InputError
from colorize.palette import to_lab


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Four photographs of 48 pixels and the same with noise: uint8 [4, 48, 48, 3] each."""
    photo = data.astronaut()
    truth = np.stack([photo[y : y + 48, x : x + 48] for y, x in ((0, 100), (60, 200), (200, 200), (300, 40))])
    noise = np.random.default_rng(0).normal(0, 12, truth.shape)
    return truth, np.clip(truth + noise, 0, 255).astype(np.uint8)


def scores(**columns: list) -> pd.DataFrame:
    """A table as `per_image` makes it, with 0.5 in every metric that is not given."""
    length = len(next(iter(columns.values())))
    names = [name for name in metrics.METRICS if name != "psnr_pooled"]
    table = {"grey_truth": [False] * length} | {name: [0.5] * length for name in names}
    return pd.DataFrame(table | columns)


def test_psnr_of_a_uniform_offset_is_20_log10_of_255_over_the_offset() -> None:
    """An error of 51 levels everywhere is 20 log10(5) dB."""
    truth = np.full((2, 12, 12, 3), 100, np.uint8)
    assert metrics.psnr(truth, truth + np.uint8(51)) == pytest.approx([20 * np.log10(5)] * 2)


def test_psnr_of_identical_photographs_is_infinite() -> None:
    """No error is infinitely many dB, without a warning."""
    truth = np.full((1, 12, 12, 3), 7, np.uint8)
    assert np.isposinf(metrics.psnr(truth, truth)).all()


def test_figures_agree_with_scikit_image(pair) -> None:
    """PSNR, SSIM, CIEDE2000 and rmse_ab of every photograph equal scikit-image's on the same arrays."""
    truth, prediction = pair
    ab = rgb2lab(prediction)[..., 1:]
    table = metrics.per_image(truth, prediction, ab)
    for i, (a, b) in enumerate(zip(truth, prediction, strict=True)):
        assert table["psnr"][i] == pytest.approx(peak_signal_noise_ratio(a, b))
        channels = [
            structural_similarity(a[..., c], b[..., c], gaussian_weights=True, use_sample_covariance=False, data_range=255)
            for c in range(3)
        ]
        assert table["ssim"][i] == pytest.approx(np.mean(channels), abs=1e-4)
        assert table["ciede2000"][i] == pytest.approx(deltaE_ciede2000(rgb2lab(a), rgb2lab(b)).mean(), abs=1e-4)
        expected = np.sqrt(((rgb2lab(a)[..., 1:] - rgb2lab(b)[..., 1:]) ** 2).mean())
        assert table["rmse_ab"][i] == pytest.approx(expected, abs=1e-4)


def test_color_differences_of_all_kinds_of_pairs_agree_with_scikit_image() -> None:
    """Random ones, equal ones, grey ones, hues to either side of red, and blue, where CIEDE2000 turns."""
    some = np.random.default_rng(6).integers(0, 256, (500, 1, 1, 3), dtype=np.uint8)
    greys = np.repeat(some[:100, ..., :1], 3, axis=-1)
    reds, blues = (np.array(color, np.uint8) + some[:100] // 16 for color in ([220, 10, 60], [10, 10, 220]))
    truth, prediction = (
        np.concatenate(side)
        for side in (
            (some, some, greys, greys, reds, blues),
            (some[::-1], some, greys[::-1], some[:100], reds[::-1], blues[::-1]),
        )
    )
    lab, other = rgb2lab(truth), rgb2lab(prediction)
    found = metrics.ciede2000(to_lab(truth), to_lab(prediction))
    np.testing.assert_allclose(found, deltaE_ciede2000(lab, other)[:, 0, 0], atol=1e-3)


def test_ssim_of_flat_bright_and_dark_photographs_agrees_with_scikit_image() -> None:
    """Variances near 0 beside means near 255, where float32 has the fewest digits left."""
    noise = np.random.default_rng(7).integers(0, 3, (2, 32, 32, 3), dtype=np.uint8)
    for level in (0, 100, 253):
        a, b = noise + np.uint8(level)
        expected = structural_similarity(
            a, b, gaussian_weights=True, use_sample_covariance=False, data_range=255, channel_axis=-1
        )
        assert metrics.ssim(a, b) == pytest.approx(expected, abs=1e-4)


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
    rg_variance = 2 * 255**2 / 4
    yb_variance = (2 * 127.5**2 + 255**2) / 4
    expected = np.sqrt(rg_variance + yb_variance)  # both means are 0
    assert metrics.colorfulness(image[None]) == pytest.approx([expected])


def test_colorfulness_keeps_the_signs_of_opponent_differences() -> None:
    """Half red, half green has mean rg = 0; absolute values first would make its spread 0 instead."""
    image = np.zeros((2, 2, 3), np.uint8)
    image[0, :, 0] = image[1, :, 1] = 200
    assert metrics.colorfulness(image) == pytest.approx(200 + 0.3 * 100)


def test_grey_photographs_have_no_colorfulness() -> None:
    """R = G = B everywhere is 0."""
    ramp = np.repeat(np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1), 3, axis=-1)
    assert metrics.colorfulness(ramp) == pytest.approx([0])


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


def test_threads_change_nothing(pair) -> None:
    """One thread and three give equal tables."""
    truth, prediction = pair
    ab = np.zeros((4, 48, 48, 2))
    pd.testing.assert_frame_equal(metrics.per_image(truth, prediction, ab, 1), metrics.per_image(truth, prediction, ab, 3))


def test_psnr_averages_leave_out_grey_truths_and_perfect_predictions() -> None:
    """Of 20, 30, 90 (grey) and infinite dB the mean is 25; pooled: the mean squared error of the first two."""
    table = scores(
        psnr=[20.0, 30.0, 90.0, np.inf],
        rmse=[0.1, 10**-1.5, 10**-4.5, 0.0],
        grey_truth=[False, False, True, False],
    )
    found = metrics.averages(table)
    assert found["psnr"] == pytest.approx([25])
    assert found["psnr_pooled"] == pytest.approx([-10 * np.log10((0.01 + 0.001) / 2)])
    assert found["rmse"] == pytest.approx([np.mean([0.1, 10**-1.5, 10**-4.5, 0.0])])


def test_the_best_of_several_leaves_out_grey_truths_and_perfect_ones_of_its_own() -> None:
    """Of 21, 31, 90 (grey) and infinite dB the mean is 26, though the last one's prediction has an error."""
    best = [21.0, 31.0, 90.0, np.inf]
    table = scores(psnr=[20.0, 30.0, 90.0, 40.0], psnr_best=best, grey_truth=[False, False, True, False])
    found = metrics.averages(table)
    assert found["psnr_best"] == pytest.approx([26]) and found["psnr"] == pytest.approx([30])


def test_spread_is_the_standard_deviation_over_the_colorings() -> None:
    """a* of 0 and 6 on half the pixels: 3 there, 0 elsewhere and in b*; a single coloring has none."""
    colorings = np.zeros((1, 2, 4, 4, 2))
    colorings[0, 1, :2, :, 0] = 6
    assert metrics.ab_spread(colorings) == pytest.approx([3 / 4])
    assert metrics.ab_spread(colorings[:, 1:]) == pytest.approx([0])


def test_a_perfect_prediction_leaves_the_intervals_finite() -> None:
    """An infinite PSNR among the photographs enters no draw, and nothing warns."""
    table = scores(psnr=[20.0, 30.0, np.inf], rmse=[0.1, 10**-1.5, 0.0])
    summary = metrics.summarize(table, metrics.resamples(3, 100, seed=1))
    assert np.isfinite(summary.to_numpy()).all()
    assert summary.loc["psnr", ["low", "high"]].between(20, 30).all()


def test_a_set_without_anything_for_psnr_is_refused() -> None:
    """All truths grey: a sentence with the counts."""
    table = scores(psnr=[40.0, 50.0], grey_truth=[True, True])
    with pytest.raises(InputError, match="of 2 test photographs 2 are grey"):
        metrics.summarize(table, metrics.resamples(2, 10, seed=1))


def test_intervals_cover_the_true_mean_as_often_as_they_say() -> None:
    """Of 200 samples of 60 normal values, about 95 % of the intervals hold the mean."""
    random = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        table = scores(ssim=random.normal(0.7, 0.1, 60))
        low, high = metrics.summarize(table, metrics.resamples(60, 400, trial)).loc["ssim", ["low", "high"]]
        covered += low <= 0.7 <= high
    assert 180 <= covered <= 198


def test_bootstrap_of_a_mean_has_the_width_of_the_normal_interval() -> None:
    """For 400 values the interval is within 10 % of mean +- 1.96 standard errors."""
    values = np.random.default_rng(4).normal(0, 1, 400)
    row = metrics.summarize(scores(mae=values), metrics.resamples(400, 4000, seed=1)).loc["mae"]
    half = 1.96 * values.std() / 20
    assert row["mean"] == pytest.approx(values.mean())
    assert row["low"] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert row["high"] == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_paired_difference_sees_what_separate_intervals_hide() -> None:
    """A gain of exactly 0.01 on very different photographs has an interval of no width."""
    base = np.random.default_rng(5).uniform(0, 1, 50)
    draws = metrics.resamples(50, 300, seed=1)
    better, worse = scores(ssim=base + 0.01), scores(ssim=base)
    row = metrics.paired_difference(better, worse, draws).loc["ssim"]
    assert row.to_list() == pytest.approx([0.01] * 3)
    assert metrics.summarize(better, draws).loc["ssim", "low"] < metrics.summarize(worse, draws).loc["ssim", "high"]


def test_resamples_are_seeded_and_keep_their_size() -> None:
    """Equal seeds, equal draws; each draw holds N photographs."""
    draws = metrics.resamples(7, 50, seed=2)
    assert (draws == metrics.resamples(7, 50, seed=2)).all()
    assert (draws != metrics.resamples(7, 50, seed=3)).any()
    assert draws.shape == (50, 7) and (draws.sum(axis=1) == 7).all()


def test_a_draw_of_grey_truths_only_does_not_spoil_the_interval() -> None:
    """With one color photograph among four, many draws hold none of it; the interval is still its value."""
    table = scores(psnr=[20.0, 90.0, 90.0, 90.0], grey_truth=[False, True, True, True])
    row = metrics.summarize(table, metrics.resamples(4, 200, seed=1)).loc["psnr"]
    assert row.to_list() == pytest.approx([20.0] * 3)
