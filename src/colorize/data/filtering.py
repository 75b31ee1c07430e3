"""Filter rules: tone (document 000, section 2.2.3), and our rules for grey photographs and near-duplicates.

Each rule sees the full set. Ties are broken by index.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge
from PIL import Image

from colorize.settings import Share, count_of

THUMBNAIL = 8
_BLOCK = 4096
Rule = Literal["dark", "bright", "monotone", "grey", "duplicates"]


@dataclass(frozen=True)
class FilterConfig:
    """What to remove, and how to split the rest (document 000, section 2.2.3)."""

    classes: tuple[str, ...] = ()
    """Classes of the source to keep; empty keeps all."""
    rules: tuple[Rule, ...] = ("dark", "bright", "monotone", "grey", "duplicates")
    dark: str | int | float = "1000/24996"
    """Count or share to remove by lowest weighted L*."""
    bright: str | int | float = "500/24996"
    """Count or share to remove by highest weighted L*."""
    monotone: Share = 0.9
    """Remove if one color covers more than this share."""
    grey_max: Annotated[float, Ge(0)] = 5
    """Grey if max(|a*|, |b*|) over all pixels is below this, in Lab units ..."""
    grey_mean: Annotated[float, Ge(0)] = 2
    """... or if the mean chroma is below this, in Lab units."""
    duplicates: Annotated[float, Ge(0)] = 6
    """Near-duplicates if the RMS difference of 8x8 RGB thumbnails is below this, in levels of 0..255."""
    palette: Literal["fastoctree", "mediancut"] = "fastoctree"
    """Pillow's quantizer for the ten main colors, unless the source lists them."""
    stratify: bool = False
    """Split every class of the source in the same proportions (document 002)."""
    train: str | int | float = 0.8
    val: str | int | float = 0.1
    test: str | int | float = 0.1


def tone_rules(
    lightness: np.ndarray, coverage: np.ndarray, extreme: np.ndarray, mean: np.ndarray, config: FilterConfig
) -> dict[str, np.ndarray]:
    """Return a bool mask [n] of removed photographs for each enabled rule: dark, bright, monotone, grey.

    Args:
        lightness: [n], weighted L*
        coverage: [n], of the main color, 0..1
        extreme: [n], largest |a*| or |b*|
        mean: [n], mean chroma in Lab units
    """
    n = len(lightness)
    order = np.argsort(lightness, kind="stable")
    falling = np.argsort(-lightness, kind="stable")
    everyone = np.arange(n)
    masks = {
        "dark": np.isin(everyone, order[: count_of(config.dark, n)]),
        "bright": np.isin(everyone, falling[: count_of(config.bright, n)]),
        "monotone": coverage > config.monotone,
        "grey": (extreme < config.grey_max) | (mean < config.grey_mean),
    }
    return {name: mask for name, mask in masks.items() if name in config.rules}


def thumbnails(crops: np.ndarray) -> np.ndarray:
    """Average areas: uint8 [n, S, S, 3] to uint8 [n, 8 * 8 * 3]."""
    small = np.empty((len(crops), THUMBNAIL, THUMBNAIL, 3), np.uint8)
    for i, pixels in enumerate(crops):
        thumbnail = Image.fromarray(pixels).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        small[i] = np.asarray(thumbnail)
    return small.reshape(len(crops), -1)


def near_any(candidates: np.ndarray, others: np.ndarray, threshold: float) -> np.ndarray:
    """Mark thumbnails that differ from one of `others` by an RMS below `threshold`, in levels of 0..255.

    Takes uint8 [m, d] and [n, d], d at most 256; returns bool [m].
    """
    near = np.zeros(len(candidates), bool)
    limit = threshold**2 * candidates.shape[1]
    for start in range(0, len(candidates), _BLOCK):
        left = candidates[start : start + _BLOCK].astype(np.float32)
        nearest = np.full(len(left), -np.inf)
        for other in range(0, len(others), _BLOCK):
            right = others[other : other + _BLOCK].astype(np.float32)
            # (l - r)^2 < limit if l r - r^2 / 2 > (l^2 - limit) / 2. Float32 is exact here, in any order:
            # 256 products of bytes are below 2**24, and half of that, the largest result, is below 2**23.
            products = left @ right.T
            products -= (right**2).sum(axis=1) / 2
            nearest = np.maximum(nearest, products.max(axis=1))
        near[start : start + _BLOCK] = nearest > ((left**2).sum(axis=1, dtype=np.float64) - limit) / 2
    return near


def duplicates(small: np.ndarray, splits: np.ndarray, threshold: float) -> np.ndarray:
    """Mark near-duplicates across splits: of train in val and test, then of val in test.

    Nothing in train is marked, and duplicates within one split stay.

    Args:
        small: uint8 [n, 192], thumbnails
        splits: [n], train, val, test or empty
        threshold: RMS difference in levels of 0..255; 0 marks nothing

    Returns:
        bool [n]
    """
    marked = np.zeros(len(small), bool)
    if not threshold:
        return marked
    for name, against in (("val", "train"), ("test", "train"), ("test", "val")):
        places = np.flatnonzero((splits == name) & ~marked)
        others = (splits == against) & ~marked
        marked[places] = near_any(small[places], small[others], threshold)
    return marked
