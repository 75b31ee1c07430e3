"""Pictures: their geometry and that equal inputs give equal bytes."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from colorize.bins import centers
from colorize.scoring import figures, sheets


def losses(epochs: int, first: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Epochs, and losses that fall by a tenth in each."""
    return np.arange(1, epochs + 1), first * 0.9 ** np.arange(epochs)


def arrays(*names: str) -> dict[str, np.ndarray]:
    """A prior that lives in one bin, and flat weights, under each name."""
    one = np.zeros(313)
    one[150] = 1
    weights = {f"weights_{name}": np.ones(313) for name in names}
    return {"bins": centers()} | {name: one for name in names} | weights


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def test_shown_photographs_are_spread_from_the_first_to_the_last() -> None:
    assert sheets.spread(10, 4).tolist() == [0, 3, 6, 9]
    assert sheets.spread(3, 8).tolist() == [0, 1, 2]


def test_a_sheet_shows_each_photograph_in_its_column_and_row() -> None:
    """Flat photographs are found again by their colors in the middle of their cells."""
    colors = np.array([[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [100, 110, 120]]], np.uint8)
    columns = {
        name: np.broadcast_to(c[:, None, None], (2, 128, 128, 3))
        for name, c in zip("ab", colors, strict=True)
    }
    picture = np.asarray(sheets.sheet(columns))
    step = 128 + sheets.GAP
    top = picture.shape[0] - 2 * step + sheets.GAP
    for column in range(2):
        for row in range(2):
            found = picture[top + row * step + 64, column * step + 64]
            assert found.tolist() == [*colors[column, row], 255]


def test_strips_show_each_systems_photographs_side_by_side() -> None:
    """Five systems of two photographs, three strips in a row, found again by their colors."""
    colors = np.arange(1, 31).reshape(5, 2, 3) * 8
    flat = np.broadcast_to(colors[:, :, None, None], (5, 2, 32, 32, 3)).astype(np.uint8)
    picture = np.asarray(sheets.strips({f"system {i}": images for i, images in enumerate(flat)}))
    wide, high = 2 * sheets.STRIP + sheets.GAP, picture.shape[0] // 2
    for system in range(5):
        for photo in range(2):
            left = system % 3 * wide + photo * sheets.STRIP
            bottom = (system // 3 + 1) * high - sheets.GAP
            assert (
                picture[bottom - sheets.STRIP // 2, left + sheets.STRIP // 2].tolist()
                == colors[system, photo].tolist()
            )


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.curves({"a": {"val_loss": losses(40)}}, "epoch"),
        lambda: figures.prior(arrays("empirical", "smoothed")),
        lambda: figures.prior_panels(arrays("empirical"))["Empirical"],
        lambda: sheets.encode(sheets.sheet({"a": np.zeros((2, 96, 96, 3), np.uint8)}), "webp"),
        lambda: sheets.encode(sheets.strips({"a": np.zeros((2, 96, 96, 3), np.uint8)}), "jpeg"),
    ],
)
def test_pictures_have_the_same_bytes_twice(draw: Callable[[], bytes]) -> None:
    """No date, version or random number gets in."""
    first = draw()
    assert first == draw()
    assert b"Software" not in first and b"matplotlib" not in first
