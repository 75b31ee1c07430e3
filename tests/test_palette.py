"""Main colors, weighted lightness and chroma against hand-computed values and scikit-image."""

import numpy as np
import pandas as pd
import pytest
from skimage.color import rgb2lab

from colorize.data.palette import chroma, listed_colors, main_colors, to_lab, weighted_lightness
from colorize.files import InputError


def picture(*areas: tuple[int, tuple[int, int, int]]) -> np.ndarray:
    """A 16 x 16 crop of so many pixels of each color, in this order."""
    pixels = np.concatenate([np.tile(np.array(color, np.uint8), (count, 1)) for count, color in areas])
    return pixels.reshape(1, 16, 16, 3)


@pytest.mark.parametrize("method", ["fastoctree", "mediancut"])
def test_flat_areas_are_their_own_main_colors(method):
    """Three colors over 128, 96 and 32 of 256 pixels: coverage 1/2, 3/8, 1/8, largest first."""
    crops = picture((32, (0, 0, 255)), (128, (255, 0, 0)), (96, (0, 255, 0)))
    colors, coverage = main_colors(crops, method)
    assert coverage[0].tolist() == [0.5, 0.375, 0.125, 0, 0, 0, 0, 0, 0, 0]
    expected = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255)])
    assert np.abs(colors[0, :3].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("method", ["fastoctree", "mediancut"])
def test_coverage_sums_to_one_and_falls(method) -> None:
    """Noise uses all ten colors, one color uses one."""
    crops = np.random.default_rng(2).integers(0, 256, (5, 24, 24, 3), np.uint8)
    crops[3] = 77
    colors, coverage = main_colors(crops, method)
    assert colors.shape == (5, 10, 3) and coverage.shape == (5, 10)
    assert np.allclose(coverage.sum(axis=1), 1) and (np.diff(coverage, axis=1) <= 0).all()
    assert coverage[3, 0] == 1 and np.abs(colors[3, 0].astype(int) - 77).max() <= 1


def test_weighted_lightness_of_hand_computed_colors() -> None:
    """White (L* 100) over a quarter, black (0) over the rest is 25; red alone is 53.24, mid grey 53.59."""
    colors, coverage = np.zeros((3, 10, 3), np.uint8), np.zeros((3, 10))
    colors[0, 0], coverage[0, :2] = 255, (0.25, 0.75)
    colors[1, 0], coverage[1, 0] = (255, 0, 0), 1
    colors[2, 0], coverage[2, 0] = 128, 1
    assert weighted_lightness(colors, coverage) == pytest.approx([25, 53.2408, 53.5850], abs=2e-3)


def test_listed_colors_follow_the_photographs():
    """In any order; the ten largest are taken; an unlisted photograph has no coverage."""
    rows = [("b", 1, 2, 3, 0.3), ("a", 250, 0, 0, 0.2), ("b", 4, 5, 6, 0.7), ("zzz", 9, 9, 9, 1.0)]
    rows += [("c", i, i, i, (i + 1) / 100) for i in range(12)]
    listing = pd.DataFrame(rows, columns=["photo", "red", "green", "blue", "coverage"])
    colors, coverage = listed_colors(listing, pd.Series(["a", "b", "nobody", "c"]))
    assert colors[0, 0].tolist() == [250, 0, 0] and coverage[0].tolist() == [0.2] + [0] * 9
    assert colors[1, :2].tolist() == [[4, 5, 6], [1, 2, 3]] and coverage[1, :2].tolist() == [0.7, 0.3]
    assert not coverage[2].any()
    assert colors[3, :, 0].tolist() == list(range(11, 1, -1)) and coverage[3, 9] == 0.03


@pytest.mark.parametrize(
    ("column", "value"),
    [("red", 256), ("blue", -1), ("green", 1.5), ("coverage", 1.2), ("coverage", None), ("red", "x")],
)
def test_a_listed_color_out_of_range_is_refused_by_name(column, value):
    """The sentence names the photograph."""
    row = {"photo": "DwKRT7tVI6w", "red": 1, "green": 2, "blue": 3, "coverage": 0.5}
    with pytest.raises(InputError, match="DwKRT7tVI6w"):
        listed_colors(pd.DataFrame([row | {column: value}]), pd.Series(["DwKRT7tVI6w"]))


def test_chroma_agrees_with_scikit_image_in_float64() -> None:
    """To a thousandth of a Lab unit; grey has none."""
    crops = np.random.default_rng(5).integers(0, 256, (3, 20, 20, 3), np.uint8)
    crops[2] = 13
    ab = rgb2lab(crops)[..., 1:].reshape(3, -1, 2)
    extreme, mean = chroma(to_lab(crops))
    assert extreme == pytest.approx(np.abs(ab).max(axis=(1, 2)), abs=1e-3)
    assert mean == pytest.approx(np.sqrt((ab**2).sum(axis=-1)).mean(axis=1), abs=1e-3)
