"""The Q = 313 color bins of Zhang et al. 2016, a second grid of bins, and color statistics over both.

The 313 bins are the points of the step-10 grid over ab that lie within one step, in a and in b, of the convex
hull of the sRGB gamut. We project the sRGB cube on ab, take the hull, grow it by the square of half-width 10
(Minkowski sum) and keep the grid points inside. This gives the set and the order of the released
`pts_in_hull.npy`. Shifting the hull's own edges alone would give 314 points: it adds (80, -120).

The grid of document 001 has 25 x 25 cells of floor(ab / 10). Its bins are the cells that the training images
occupy. The document does not say which color decodes a bin; we take the center of the cell. Four cells meet
at grey, so grey decodes to a color at least 5 away in a and in b.

Source: Zhang, Isola, Efros, Colorful Image Colorization, ECCV 2016, section 2; document 001, 3.2 to 3.4.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Gt, Le

from colorize import files
from colorize.settings import Bins

STEP = 10
Q = 313
CELLS = 25
"""Cells of document 001's grid along a and along b, -12 to 12; every sRGB color lies in them."""
EDGE = 130
"""`candidates` covers -EDGE to EDGE along a and b; every sRGB color is within 110."""
TILE = 5
"""Side of the tiles of `candidates`: half a step, so that the borders between bins lie on tile edges."""


@dataclass(frozen=True)
class PriorConfig:
    """Settings of the prior over the bins and of the rebalancing weights (document 001, section 3.3)."""

    sigma: Annotated[float, Gt(0)] = 5
    """Width of the smoothing Gaussian, in ab units."""
    uniform_mix: Annotated[float, Gt(0), Le(1)] = 0.5
    """lambda: weight of the uniform distribution in the denominator of the weights."""
    released: str = ""
    """Path or URL of the released ImageNet prior, prior_probs.npy; empty for none."""
    sha256: str = ""
    """sha256 of the released prior. There is another file of that name with its largest value elsewhere."""


@cache
def centers() -> np.ndarray:
    """Return the centers of the bins: int64 [313, 2] in ab units, ordered by a, then b."""
    from scipy.spatial import ConvexHull  # slow to import, and coloring does not need it
    from skimage.color import rgb2lab

    ramp = np.linspace(0, 1, 65)
    faces = [np.stack(np.meshgrid(ramp, ramp, [end], indexing="ij"), -1).reshape(-1, 3) for end in (0.0, 1.0)]
    cube = np.concatenate([np.roll(face, axis, axis=1) for face in faces for axis in range(3)])
    ab = rgb2lab(cube)[:, 1:]
    corners = STEP * np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)])
    grown = ConvexHull((ab[ConvexHull(ab).vertices][:, None] + corners).reshape(-1, 2))
    line = np.arange(-13, 14) * STEP
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    inside = (grid @ grown.equations[:, :2].T + grown.equations[:, 2] <= 1e-9).all(axis=1)
    return grid[inside]


@cache
def _lattice() -> np.ndarray:
    """Return the bin at each grid point: int16 [27, 27] by a / 10 + 13 and b / 10 + 13; -1 for none."""
    table = np.full((27, 27), -1, np.int16)
    table[tuple((centers() // STEP + 13).T)] = np.arange(Q)
    return table


def nearest(ab: np.ndarray) -> np.ndarray:
    """Find the nearest bin of each color: [..., 2] in ab units becomes int16 [...].

    Rounding is enough: the centers lie on the grid, and every sRGB color rounds to one of them.

    Raises:
        ValueError: a color is outside the sRGB gamut and rounds to no bin.
    """
    points = np.clip(np.rint(ab / STEP).astype(np.int64) + 13, 0, 26)
    bins = _lattice()[points[..., 0], points[..., 1]]
    if (bins < 0).any():
        raise ValueError("a color lies outside the sRGB gamut, where there is no bin")
    return bins


def candidates(middles: np.ndarray, neighbors: int) -> np.ndarray:
    """List, for each tile of the ab plane, the bins that can be among the K nearest of a color in it.

    A bin can be one only if its smallest distance to the tile is at most the K-th smallest of all bins'
    largest distances. About 13 of the 313 bins are left for K = 5, and 20 for K = 10.

    Args:
        middles: centers [Q, 2] of any bins, in ab units.
        neighbors: K, at most Q.

    Returns:
        int64 [52, 52, M]: ascending bins, for tiles of side `TILE` from -`EDGE` to `EDGE` along a and b.
    """
    low = np.arange(-EDGE, EDGE, TILE)[:, None, None]
    least = np.maximum(0, np.maximum(low - middles, middles - low - TILE)) ** 2
    most = np.maximum(np.abs(low - middles), np.abs(low + TILE - middles)) ** 2
    least, most = (along[:, None, :, 0] + along[None, :, :, 1] for along in (least, most))
    enough = np.partition(most, neighbors - 1)[..., neighbors - 1, None]
    count = (least <= enough).sum(-1).max()
    return np.sort(np.argpartition(least, count - 1)[..., :count])


def color_counts(chunks: Iterable[np.ndarray]) -> np.ndarray:
    """Count the 2^24 sRGB colors in chunks of images, uint8 [N, H, W, 3]; returns int64 [16777216]."""
    counts = np.zeros(1 << 24, np.int64)
    part = 1 << 18  # fits into the cache, which is faster than all pixels at once
    for chunk in chunks:
        pixels = chunk.reshape(-1, 3)
        for start in range(0, len(pixels), part):
            red, green, blue = pixels[start : start + part].T
            np.add.at(counts, (red.astype(np.int64) << 8 | green) << 8 | blue, 1)
    return counts


def count_bins(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turn color counts [16777216] into counts over the bins and the grid, and into the mean color.

    Returns:
        int64 [313]; int64 [25, 25] by floor(a / 10) + 12 and floor(b / 10) + 12; float64 [2] in ab units.
    """
    from skimage.color import rgb2lab  # slow to import

    colors = np.flatnonzero(counts)
    bins, cells = np.zeros(Q, np.int64), np.zeros((CELLS, CELLS), np.int64)
    total = np.zeros(2)
    for part in np.array_split(colors, -(-len(colors) // (1 << 14))):
        rgb = np.stack((part >> 16, (part >> 8) & 255, part & 255), -1) / 255
        ab = rgb2lab(rgb)[:, 1:]
        np.add.at(bins, nearest(ab), counts[part])
        np.add.at(cells, tuple(np.floor(ab / STEP).astype(np.int64).T + CELLS // 2), counts[part])
        total += (ab * counts[part, None]).sum(axis=0)
    return bins, cells, total / counts.sum()


def smooth(prior: np.ndarray, middles: np.ndarray, sigma: float) -> np.ndarray:
    """Smooth a distribution [Q] over bins at [Q, 2] by a Gaussian of `sigma` ab units; keep its mass."""
    distance = ((middles[:, None] - middles[None]) ** 2).sum(-1)
    kernel = np.exp(-distance / (2 * sigma**2))
    return (kernel / kernel.sum(axis=0)) @ prior


def rebalancing_weights(prior: np.ndarray, uniform_mix: float) -> np.ndarray:
    """Return w [Q], proportional to 1 / ((1 - lambda) prior + lambda / Q), with sum(prior * w) = 1.

    Source: Zhang et al. 2016, equation 4; document 001, section 3.3. Lambda is `uniform_mix`.
    """
    weights = 1 / ((1 - uniform_mix) * prior + uniform_mix / len(prior))
    return weights / (prior * weights).sum()


def _distributions(
    middles: np.ndarray, counts: np.ndarray, config: PriorConfig, **others: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the priors over one set of bins, plain and smoothed, and the rebalancing weights of each."""
    priors = {"empirical": counts / counts.sum()}
    priors |= {name: prior / prior.sum() for name, prior in others.items()}
    for name, prior in list(priors.items()):
        smoothed = "smoothed" if name == "empirical" else f"{name}_smoothed"
        priors[smoothed] = smooth(prior, middles, config.sigma)
    weights = {
        f"weights_{name}": rebalancing_weights(prior, config.uniform_mix) for name, prior in priors.items()
    }
    return {"bins": middles, "counts": counts} | priors | weights


@dataclass(frozen=True)
class Statistics:
    """Color statistics of the training split: counted by the prior stage, read by models and figures."""

    arrays: dict[str, np.ndarray]
    """`mean_ab` [2]; `bins` [313, 2]; `counts`, `empirical`, `smoothed` and, if available, `released` and
    `released_smoothed` [313]; `weights_*` for each of these four. `grid_*` holds the same over the occupied
    cells of the grid, without the released prior."""

    @staticmethod
    def measure(
        chunks: Iterable[np.ndarray], config: PriorConfig, released: np.ndarray | None = None
    ) -> "Statistics":
        """Measure images, uint8 [N, H, W, 3] or chunks of it; `released` [313] is a second prior."""
        bins, cells, mean_ab = count_bins(color_counts(chunks))
        occupied = np.argwhere(cells)
        others = {} if released is None else {"released": released}
        gamut = _distributions(centers(), bins, config, **others)
        grid = _distributions((occupied - CELLS // 2 + 0.5) * STEP, cells[tuple(occupied.T)], config)
        return Statistics(
            {"mean_ab": mean_ab} | gamut | {f"grid_{name}": array for name, array in grid.items()}
        )

    @staticmethod
    def read(path: Path) -> "Statistics":
        """Read what `write` wrote; InputError: the file is missing or damaged."""
        names = ("bins", "counts", "empirical", "smoothed", "weights_empirical", "weights_smoothed")
        return Statistics(files.read_arrays(path, "mean_ab", *names, *(f"grid_{name}" for name in names)))

    def write(self, path: Path) -> None:
        files.write_arrays(path, self.arrays)

    def centers(self, bins: Bins) -> np.ndarray:
        """Return the centers [Q, 2] of the 313 bins or of the occupied cells, in ab units."""
        return self.arrays["bins" if bins == "gamut" else "grid_bins"]

    def weights(self, prior: str, bins: Bins = "gamut") -> np.ndarray:
        """Return the rebalancing weights [Q] of a prior.

        Raises:
            InputError: the prior stage did not get this prior, or it does not cover these bins.
        """
        try:
            return self.arrays[f"weights_{prior}" if bins == "gamut" else f"grid_weights_{prior}"]
        except KeyError as error:
            raise files.InputError(
                f"a model asks for the {prior!r} prior, which is missing; set prior.released to the path or "
                "URL of prior_probs.npy and leave head.bins at gamut"
            ) from error
