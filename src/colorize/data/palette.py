"""The colors of a photograph in a few numbers: ten main colors, weighted lightness, chroma.

Document 000, section 2.2.3: the lightness of a photograph is that of its ten main colors, weighted by coverage.
The main colors come from the data set where it lists them and from a quantizer otherwise; all that follows is one
function of (colors, coverage). It does not decide what is removed; selection.py does.
"""

import numpy as np
import pandas as pd
from PIL import Image
from skimage.color import rgb2lab

from colorize.files import InputError

COLORS = 10
_METHODS = {"fastoctree": Image.Quantize.FASTOCTREE, "mediancut": Image.Quantize.MEDIANCUT}


def main_colors(crops: np.ndarray, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Quantize each photograph to its ten main colors.

    Args:
        crops: uint8 [n, S, S, 3], sRGB
        method: fastoctree or mediancut, both Pillow's

    Returns:
        colors uint8 [n, 10, 3], and coverage float64 [n, 10] in falling order, each row of which sums to 1.
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
    """Main colors as the data set gives them.

    Args:
        listing: photo, red, green, blue (0..255), coverage (0..1); the ten largest of a photograph are taken
        photos: names, one per photograph wanted

    Returns:
        colors uint8 [n, 10, 3] and coverage float64 [n, 10] as `main_colors`; coverage is 0 throughout where a
        photograph is not listed, and need not sum to 1 where it is.

    Raises:
        InputError: a color or a coverage is no number or out of range; the sentence names the photograph.
    """
    numbers = ["red", "green", "blue", "coverage"]
    listing = listing[listing.photo.isin(photos)].copy()
    listing[numbers] = listing[numbers].apply(pd.to_numeric, errors="coerce").astype(float)
    sound = listing[numbers[:3]].isin(range(256)).all(axis=1) & listing.coverage.between(0, 1)
    if not sound.all():
        raise InputError(
            f"colors.csv lists a color of photograph {listing.photo[~sound].iloc[0]!r} outside 0..255, or its "
            "coverage outside 0..1; mend that row of the data set's list of colors"
        )
    listing = listing.sort_values("coverage", ascending=False, kind="stable")
    place = listing.groupby("photo").cumcount()
    listing, place = listing[place < COLORS], place[place < COLORS]
    row = pd.Index(photos).get_indexer(listing.photo)
    colors = np.zeros((len(photos), COLORS, 3), np.uint8)
    coverage = np.zeros((len(photos), COLORS))
    colors[row, place] = listing[numbers[:3]]
    coverage[row, place] = listing.coverage
    return colors, coverage


def weighted_lightness(colors: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """L_w = the sum over the main colors of L* times coverage (document 000, section 2.2.3).

    Args:
        colors: uint8 [n, 10, 3], sRGB
        coverage: [n, 10], 0..1

    Returns:
        float64 [n], 0..100 where coverage sums to 1.
    """
    return (rgb2lab(colors)[..., 0] * coverage).sum(axis=1)


def to_lab(images: np.ndarray) -> np.ndarray:
    """sRGB uint8 [..., 3] in Lab units, exact to 1e-3; about thirty times their bytes are held at once."""
    # float32 is twice as fast as float64 here and differs by less than 1e-4.
    return rgb2lab(images.astype(np.float32) / np.float32(255))


def chroma(lab: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far from grey photographs [..., S, S, 3] in Lab units are, over all their pixels.

    Returns:
        the largest |a*| or |b*| and the mean of sqrt(a*^2 + b*^2), each [...], in Lab units.
    """
    ab = lab[..., 1:]
    return np.abs(ab).max((-3, -2, -1)), np.hypot(ab[..., 0], ab[..., 1]).mean((-2, -1), dtype=np.float64)
