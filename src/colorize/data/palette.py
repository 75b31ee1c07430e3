"""Color statistics of crops: ten main colors, weighted lightness, chroma.

The lightness of a photograph is that of its ten main colors, weighted by coverage (document 000, section
2.2.3). The main colors come from the data set if it lists them, otherwise from a quantizer.
"""

import numpy as np
import pandas as pd
from PIL import Image
from skimage.color import rgb2lab

from colorize.files import InputError

COLORS = 10
_METHODS = {"fastoctree": Image.Quantize.FASTOCTREE, "mediancut": Image.Quantize.MEDIANCUT}


def main_colors(crops: np.ndarray, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Quantize sRGB crops, uint8 [n, S, S, 3], to ten main colors by a method of Pillow.

    Returns:
        colors uint8 [n, 10, 3], and coverage float64 [n, 10] in falling order; each row sums to 1.
    """
    colors = np.zeros((len(crops), COLORS, 3), np.uint8)
    counts = np.zeros((len(crops), COLORS), np.int64)
    for i, pixels in enumerate(crops):
        quantized = Image.fromarray(pixels).quantize(COLORS, method=_METHODS[method])
        palette = np.array(quantized.getpalette(), np.uint8).reshape(-1, 3)[:COLORS]
        used = np.array(quantized.histogram()[:COLORS])
        order = np.argsort(-used, kind="stable")
        counts[i] = used[order]
        colors[i, : len(palette)] = palette[order[order < len(palette)]]
    return colors, counts / (crops.shape[1] * crops.shape[2])


def listed_colors(listing: pd.DataFrame, photos: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Take the ten main colors of each photograph from the data set's list.

    Args:
        listing: photo, red, green, blue (0..255), coverage (0..1)
        photos: names of the n photographs

    Returns:
        colors uint8 [n, 10, 3] and coverage float64 [n, 10], which is 0 for photographs that are not listed
        and need not sum to 1 for others.

    Raises:
        InputError: a color or a coverage is not a number or out of range; the sentence names the photograph.
    """
    numbers = ["red", "green", "blue", "coverage"]
    listing = listing[listing.photo.isin(photos)].copy()
    listing[numbers] = listing[numbers].apply(pd.to_numeric, errors="coerce").astype(float)
    valid = listing[numbers[:3]].isin(range(256)).all(axis=1) & listing.coverage.between(0, 1)
    if not valid.all():
        problem = f"{listing.photo[~valid].iloc[0]!r} outside 0..255, or its coverage outside 0..1"
        remedy = "mend that row of the data set's list of colors"
        raise InputError(f"colors.csv lists a color of photograph {problem}; {remedy}")
    listing = listing.sort_values("coverage", ascending=False, kind="stable")
    rank = listing.groupby("photo").cumcount()
    listing, rank = listing[rank < COLORS], rank[rank < COLORS]
    row = pd.Index(photos).get_indexer(listing.photo)
    colors = np.zeros((len(photos), COLORS, 3), np.uint8)
    coverage = np.zeros((len(photos), COLORS))
    colors[row, rank] = listing[numbers[:3]]
    coverage[row, rank] = listing.coverage
    return colors, coverage


def weighted_lightness(colors: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Sum L* times coverage (0..1) over the main colors (document 000, section 2.2.3).

    Takes colors uint8 [n, 10, 3] and coverage [n, 10]; returns float64 [n], 0..100 if coverage sums to 1.
    """
    return (rgb2lab(colors)[..., 0] * coverage).sum(axis=1)


def to_lab(images: np.ndarray) -> np.ndarray:
    """Convert sRGB uint8 [..., 3] to Lab, exact to 1e-3; this takes about thirty times the memory of the
    images."""
    # float32 is twice as fast as float64 and differs by less than 1e-4.
    return rgb2lab(images.astype(np.float32) / np.float32(255))


def chroma(lab: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest |a*| or |b*| and the mean of sqrt(a*^2 + b*^2) of Lab images [..., S, S, 3], each
    [...]."""
    ab = lab[..., 1:]
    return np.abs(ab).max((-3, -2, -1)), np.hypot(ab[..., 0], ab[..., 1]).mean((-2, -1), dtype=np.float64)
