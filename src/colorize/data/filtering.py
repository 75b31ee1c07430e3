"""Which photographs are kept: the tone rules of document 000, section 2.2.3, grey ones and near-duplicates (ours).

Each rule is evaluated on the full set. Everything is a function of the arrays; ties go by index.
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
    """What is removed, and how the rest is split (document 000, section 2.2.3)."""

    classes: tuple[str, ...] = ()
    """The source's classes that are kept; empty keeps all."""
    rules: tuple[Rule, ...] = ("dark", "bright", "monotone", "grey", "duplicates")
    dark: str | int | float = "1000/24996"
    """So many (or such a share) with the lowest weighted L* are removed."""
    bright: str | int | float = "500/24996"
    """So many (or such a share) with the highest weighted L* are removed."""
    monotone: Share = 0.9
    """Removed if one color covers more than this share."""
    grey_max: Annotated[float, Ge(0)] = 5
    """Grey if max(|a*|, |b*|) over all pixels is below this, in Lab units ..."""
    grey_mean: Annotated[float, Ge(0)] = 2
    """... or if the mean chroma is below this, in Lab units."""
    duplicates: Annotated[float, Ge(0)] = 6
    """RMS difference of 8x8 RGB thumbnails, in levels of 0..255, below which two photographs are near-duplicates."""
    palette: Literal["fastoctree", "mediancut"] = "fastoctree"
    """Pillow's quantizer for the ten main colors of photographs whose source does not list them."""
    stratify: bool = False
    """Split every class of the source in the same proportions (document 002)."""
    train: str | int | float = 0.8
    val: str | int | float = 0.1
    test: str | int | float = 0.1


def tone_rules(
    lightness: np.ndarray, coverage: np.ndarray, extreme: np.ndarray, mean: np.ndarray, rule: FilterConfig
) -> dict[str, np.ndarray]:
    """The photographs that each rule removes, all rules evaluated on the full set.

    Args:
        lightness: [n], weighted L*
        coverage: [n], of the main color, 0..1
        extreme: [n], largest |a*| or |b*|
        mean: [n], mean chroma in Lab units

    Returns:
        a bool mask [n] for each of dark, bright, monotone and grey that is switched on, in this order.
    """
    n = len(lightness)
    order = np.argsort(lightness, kind="stable")
    falling = np.argsort(-lightness, kind="stable")
    everyone = np.arange(n)
    masks = {
        "dark": np.isin(everyone, order[: count_of(rule.dark, n)]),
        "bright": np.isin(everyone, falling[: count_of(rule.bright, n)]),
        "monotone": coverage > rule.monotone,
        "grey": (extreme < rule.grey_max) | (mean < rule.grey_mean),
    }
    return {name: mask for name, mask in masks.items() if name in rule.rules}


def thumbnails(crops: np.ndarray) -> np.ndarray:
    """Area-averaged thumbnails: uint8 [n, S, S, 3] to uint8 [n, 8 * 8 * 3]."""
    small = np.empty((len(crops), THUMBNAIL, THUMBNAIL, 3), np.uint8)
    for i, pixels in enumerate(crops):
        thumbnail = Image.fromarray(pixels).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        small[i] = np.asarray(thumbnail)
    return small.reshape(len(crops), -1)


def near_any(candidates: np.ndarray, others: np.ndarray, threshold: float) -> np.ndarray:
    """Which of `candidates` differ from one of `others` by an RMS below `threshold`, in levels of 0..255.

    Args:
        candidates: uint8 [m, d], thumbnails; d at most 256
        others: uint8 [n, d]

    Returns:
        bool [m]
    """
    near = np.zeros(len(candidates), bool)
    limit = threshold**2 * candidates.shape[1]
    for start in range(0, len(candidates), _BLOCK):
        left = candidates[start : start + _BLOCK].astype(np.float32)
        nearest = np.full(len(left), -np.inf)
        for other in range(0, len(others), _BLOCK):
            right = others[other : other + _BLOCK].astype(np.float32)
            # (l - r)^2 < limit where l r - r^2 / 2 > (l^2 - limit) / 2. Exact in float32, in any order of sums: 256
            # products of bytes are below 2**24, and a half of them, as large as what decides gets, below 2**23.
            products = left @ right.T
            products -= (right**2).sum(axis=1) / 2
            nearest = np.maximum(nearest, products.max(axis=1))
        near[start : start + _BLOCK] = nearest > ((left**2).sum(axis=1, dtype=np.float64) - limit) / 2
    return near


def duplicates(small: np.ndarray, splits: np.ndarray, threshold: float) -> np.ndarray:
    """Near-duplicates across splits: those of val and test near one of train, then those of test near one of val.

    Args:
        small: uint8 [n, 192], thumbnails
        splits: [n], train, val, test or empty
        threshold: RMS difference in levels of 0..255; 0 compares nothing, since nothing is nearer than that

    Returns:
        bool [n]; nothing in train is marked, and duplicates within one split stay.
    """
    marked = np.zeros(len(small), bool)
    if not threshold:
        return marked
    for name, against in (("val", "train"), ("test", "train"), ("test", "val")):
        places = np.flatnonzero((splits == name) & ~marked)
        others = (splits == against) & ~marked
        marked[places] = near_any(small[places], small[others], threshold)
    return marked
