"""The 313 bins, the prior and the weights: against the published files and against independent counting."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree
from skimage.color import rgb2lab

from colorize import bins
from colorize.bins import PriorConfig, Statistics
from colorize.files import InputError

PUBLISHED = Path(__file__).parents[2] / "shared/data/zhang2016"

# Rows of the released set, a: (lowest b, highest b), as OpenCV's sample lists them.
ROWS = {
    -90: (50, 90), -80: (20, 90), -70: (0, 90), -60: (-20, 90), -50: (-30, 100), -40: (-40, 100),
    -30: (-50, 100), -20: (-50, 100), -10: (-60, 100), 0: (-70, 100), 10: (-80, 90), 20: (-80, 90),
    30: (-90, 90), 40: (-100, 90), 50: (-100, 80), 60: (-110, 80), 70: (-110, 80), 80: (-110, 70),
    90: (-110, 70), 100: (-90, 0),
}  # fmt: skip


def published(name: str) -> np.ndarray:
    if not (PUBLISHED / name).exists():
        pytest.skip(f"the published {name} is not on this machine")
    return np.load(PUBLISHED / name)


def test_bins_are_the_published_rows_in_order() -> None:
    expected = [(a, b) for a, (low, high) in ROWS.items() for b in range(low, high + 1, 10)]
    assert len(expected) == 313
    assert bins.centers().tolist() == [list(row) for row in expected]


def test_bins_equal_the_released_file() -> None:
    assert np.array_equal(bins.centers(), published("pts_in_hull.npy"))


def test_every_srgb_color_has_a_bin_and_it_is_the_nearest() -> None:
    """All colors on a lattice of 52^3, corners of the cube included, against a KD-tree."""
    levels = np.arange(0, 256, 5) / 255
    ab = rgb2lab(np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 1, 3))[:, 0, 1:]
    distance, _ = cKDTree(bins.centers()).query(ab)
    ours = np.linalg.norm(ab - bins.centers()[bins.nearest(ab)], axis=1)
    assert np.allclose(ours, distance)


def test_counts_equal_pixel_by_pixel_counting(photographs) -> None:
    images = photographs(5, 20)
    ab = rgb2lab(images)[..., 1:].reshape(-1, 2)
    expected = np.bincount(cKDTree(bins.centers()).query(ab)[1], minlength=313)
    found = Statistics.measure(images, PriorConfig()).arrays
    assert np.array_equal(found["counts"], expected)
    assert np.allclose(found["mean_ab"], ab.mean(axis=0), atol=1e-9)
    assert found["empirical"].sum() == pytest.approx(1)


def test_smoothing_keeps_the_mass_and_spreads_it_by_the_gaussian() -> None:
    """A single bin in the middle: its neighbor at 10 units gets exp(-10^2 / (2 * 5^2)) of its share."""
    prior = np.zeros(313)
    middle = int(np.flatnonzero((bins.centers() == 0).all(1))[0])
    prior[middle] = 1
    smoothed = bins.smooth(prior, bins.centers(), 5)
    assert smoothed.sum() == pytest.approx(1)
    assert smoothed[middle + 1] / smoothed[middle] == pytest.approx(np.exp(-2))


def test_weights_of_the_released_prior_reach_the_published_range() -> None:
    """From 0.0965 at (0, 0) to 6.175."""
    weights = bins.rebalancing_weights(published("prior_probs.npy"), 0.5)
    assert (weights.min(), weights.max()) == (pytest.approx(0.0965, abs=5e-5), pytest.approx(6.175, abs=5e-4))
    assert bins.centers()[weights.argmin()].tolist() == [0, 0]


def test_weights_of_a_hand_computed_prior() -> None:
    """3/4 and 1/4, lambda 1/2: 1 / (3/8 + 1/4) and 1 / (1/8 + 1/4), scaled to mean 1 under the prior."""
    weights = bins.rebalancing_weights(np.array([0.75, 0.25]), 0.5)
    raw = np.array([8 / 5, 8 / 3])
    assert np.allclose(weights, raw / (0.75 * raw[0] + 0.25 * raw[1]))


def test_statistics_survive_writing(photographs, tmp_path) -> None:
    """Same arrays after reading, same bytes when written twice."""
    statistics = Statistics.measure(photographs(2, 16), PriorConfig(), released=np.full(313, 1 / 313))
    statistics.write(tmp_path / "a.npz")
    statistics.write(tmp_path / "b.npz")
    again = Statistics.read(tmp_path / "a.npz")
    assert all(np.array_equal(again.arrays[name], array) for name, array in statistics.arrays.items())
    assert "weights_released_smoothed" in again.arrays
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_the_grid_counts_the_occupied_cells_of_ten_by_ten(photographs) -> None:
    """floor(ab / 10), decoded to the middle: a grey with ab a hair below zero, and two reds of one cell."""
    images = np.array([[[[255, 0, 0], [255, 1, 0], [128, 128, 128], [255, 0, 0]]]], np.uint8)
    ab = rgb2lab(images)[0, 0, :, 1:]
    assert np.allclose(ab[0], [80.1, 67.2], atol=0.1) and np.allclose(ab[1], [80.0, 67.1], atol=0.2)
    grey = [math.floor(value / 10) * 10 + 5 for value in ab[2]]
    statistics = Statistics.measure(images, PriorConfig())
    found = statistics.arrays
    order = np.lexsort((np.array([grey[1], 65]), np.array([grey[0], 85])))
    assert statistics.centers("grid").tolist() == np.array([grey, [85, 65]])[order].tolist()
    assert found["grid_counts"].tolist() == np.array([1, 3])[order].tolist()
    # Two cells at 3/4 and 1/4, lambda 1/2, as in the hand-computed prior; too far apart to smooth.
    raw = np.array([8 / 3, 8 / 5])[order]
    expected = raw / (found["grid_empirical"] * raw).sum()
    assert np.allclose(statistics.weights("empirical", "grid"), expected)
    assert np.allclose(statistics.weights("smoothed", "grid"), expected)
    many = photographs(3, 20)
    cells = np.unique(np.floor(rgb2lab(many)[..., 1:].reshape(-1, 2) / 10), axis=0)
    found = Statistics.measure(many, PriorConfig()).arrays
    assert found["grid_counts"].sum() == many.size / 3 and len(found["grid_bins"]) == len(cells)


def test_the_released_prior_is_for_the_313_bins_and_has_to_be_given(photographs) -> None:
    """The sentence says which parameter to set."""
    statistics = Statistics.measure(photographs(2, 16), PriorConfig(), released=np.full(313, 1 / 313))
    assert np.allclose(statistics.weights("released"), 1)
    with pytest.raises(InputError, match=r"'released'.*leave head.bins at gamut"):
        statistics.weights("released", "grid")
    with pytest.raises(InputError, match=r"'released'.*prior.released"):
        Statistics.measure(photographs(2, 16), PriorConfig()).weights("released")
