"""The Q = 313 color bins of Zhang et al. 2016, derived from first principles, and what is counted over them.

The bins are the points of the step-10 grid over ab that lie within one step, in a and in b, of the sRGB gamut's
convex hull: project the sRGB cube on ab, take the hull, grow it by the square of half-width 10 (Minkowski sum), keep
the grid points inside. That gives exactly the set and order of the released `pts_in_hull.npy`. The hull's own edge
normals alone are not the sum and give 314: they let (80, -120) in.

Beside them, document 001's own grid: 25 x 25 cells of floor(ab / 10), of which those that the training photographs occupy
are the bins. The document does not say to which color such a bin is decoded; ours is the middle of its cell. Four cells meet
at grey, so that it is decoded to a color at least 5 away in a and in b.

Source: Zhang, Isola, Efros, Colorful Image Colorization, ECCV 2016, section 2; document 001, sections 3.2 to 3.4.
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
"""How far along a and b `candidates` reach; every sRGB color is within 110."""
TILE = 5
"""Side of the squares of `candidates`: half a step, so that the bins' midlines are edges."""


@dataclass(frozen=True)
class PriorConfig:
    """The prior over the color bins and the rebalancing weights (document 001, section 3.3)."""

    sigma: Annotated[float, Gt(0)] = 5
    """Width of the smoothing Gaussian, in ab units."""
    uniform_mix: Annotated[float, Gt(0), Le(1)] = 0.5
    """lambda: the share of the uniform distribution in the weights' denominator."""
    released: str = ""
    """Path or URL of the released ImageNet prior, prior_probs.npy; empty for none."""
    sha256: str = ""
    """Of the released prior: another file of that name is about, with its largest value elsewhere."""


@cache
def centers() -> np.ndarray:
    """The bins' centers: int64 [313, 2] in ab units, ordered by a, then b."""
    from scipy.spatial import ConvexHull  # late, as who colors has no use for it
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
    """Bin of each lattice cell: int16 [27, 27], indexed by a / 10 + 13 and b / 10 + 13; -1 outside the set."""
    table = np.full((27, 27), -1, np.int16)
    table[tuple((centers() // STEP + 13).T)] = np.arange(Q)
    return table


def nearest(ab: np.ndarray) -> np.ndarray:
    """The nearest bin of each color: [..., 2] in ab units becomes int16 [...].

    No search: the centers lie on the grid, and every sRGB color rounds to a grid point of the set.

    Raises:
        ValueError: a color is outside the sRGB gamut and rounds to no bin.
    """
    cells = np.clip(np.rint(ab / STEP).astype(np.int64) + 13, 0, 26)
    bins = _lattice()[cells[..., 0], cells[..., 1]]
    if (bins < 0).any():
        raise ValueError("a color lies outside the sRGB gamut, where there is no bin")
    return bins


def candidates(middles: np.ndarray, neighbors: int) -> np.ndarray:
    """Where the nearest bins of a color are to be looked for.

    A bin can be among the K nearest of some color in a square only if it is nowhere farther from the square than the K-th
    smallest of the bins' largest distances to it. That leaves some 13 of the 313 for K = 5, 20 for K = 10.

    Args:
        middles: centers [Q, 2] of any bins, in ab units.
        neighbors: K, at most Q.

    Returns:
        int64 [52, 52, M]: bins in ascending order for each square of side `TILE` from -`EDGE` to `EDGE`, along a and b;
        they hold the K nearest of every color in it.
    """
    low = np.arange(-EDGE, EDGE, TILE)[:, None, None]
    least = np.maximum(0, np.maximum(low - middles, middles - low - TILE)) ** 2
    most = np.maximum(np.abs(low - middles), np.abs(low + TILE - middles)) ** 2
    least, most = (along[:, None, :, 0] + along[None, :, :, 1] for along in (least, most))
    enough = np.partition(most, neighbors - 1)[..., neighbors - 1, None]
    count = (least <= enough).sum(-1).max()
    return np.sort(np.argpartition(least, count - 1)[..., :count])


def color_counts(chunks: Iterable[np.ndarray]) -> np.ndarray:
    """How often each of the 2^24 sRGB colors occurs: chunks of photographs, uint8 [N, H, W, 3], become int64 [16777216]."""
    counts = np.zeros(1 << 24, np.int64)
    part = (
        1 << 18
    )  # what a cache holds: fresh memory for 16 million at once would cost more than the counting
    for chunk in chunks:
        pixels = chunk.reshape(-1, 3)
        for start in range(0, len(pixels), part):
            red, green, blue = pixels[start : start + part].T
            np.add.at(counts, (red.astype(np.int64) << 8 | green) << 8 | blue, 1)
    return counts


def count_bins(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fold color counts [16777216] into int64 counts of the bins [313] and of the grid's cells [25, 25], indexed by
    floor(a / 10) + 12 and floor(b / 10) + 12, and into the mean color float64 [2] in ab units."""
    from skimage.color import rgb2lab  # late, as above

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
    """Smooth a distribution [Q] over bins with centers [Q, 2] by a Gaussian of `sigma` ab units; each bin's mass is kept."""
    distance = ((middles[:, None] - middles[None]) ** 2).sum(-1)
    kernel = np.exp(-distance / (2 * sigma**2))
    return (kernel / kernel.sum(axis=0)) @ prior


def rebalancing_weights(prior: np.ndarray, uniform_mix: float) -> np.ndarray:
    """Weights [Q], w proportional to 1 / ((1 - lambda) prior + lambda / Q), with sum(prior * w) = 1.

    Source: Zhang et al. 2016, equation 4; document 001, section 3.3. Lambda is `uniform_mix`.
    """
    weights = 1 / ((1 - uniform_mix) * prior + uniform_mix / len(prior))
    return weights / (prior * weights).sum()


def _distributions(
    middles: np.ndarray, counts: np.ndarray, rule: PriorConfig, **others: np.ndarray
) -> dict[str, np.ndarray]:
    """The priors over one set of bins, each also smoothed, and the rebalancing weights of them all."""
    priors = {"empirical": counts / counts.sum()} | {
        name: prior / prior.sum() for name, prior in others.items()
    }
    smoothed = {
        "smoothed" if name == "empirical" else f"{name}_smoothed": smooth(prior, middles, rule.sigma)
        for name, prior in priors.items()
    }
    weights = {
        f"weights_{name}": rebalancing_weights(prior, rule.uniform_mix)
        for name, prior in (priors | smoothed).items()
    }
    return {"bins": middles, "counts": counts} | priors | smoothed | weights


@dataclass(frozen=True)
class Statistics:
    """What is known of the training split's colors; the prior stage counts it, models and figures read it."""

    arrays: dict[str, np.ndarray]
    """`mean_ab` [2]; `bins` [313, 2], `counts`, `empirical`, `smoothed` and, if there, `released`, `released_smoothed`
    [313], and of all four `weights_*`; the same over the grid's occupied cells as `grid_*`, but for the released prior."""

    @staticmethod
    def measure(
        chunks: Iterable[np.ndarray], rule: PriorConfig, released: np.ndarray | None = None
    ) -> "Statistics":
        """Count the colors of photographs, uint8 [N, H, W, 3] or chunks of that read one by one; `released` [313] joins as a
        second prior."""
        bins, cells, mean_ab = count_bins(color_counts(chunks))
        occupied = np.argwhere(cells)
        gamut = _distributions(centers(), bins, rule, **({} if released is None else {"released": released}))
        grid = _distributions((occupied - CELLS // 2 + 0.5) * STEP, cells[tuple(occupied.T)], rule)
        return Statistics(
            {"mean_ab": mean_ab} | gamut | {f"grid_{name}": array for name, array in grid.items()}
        )

    @staticmethod
    def read(path: Path) -> "Statistics":
        """Read what `write` wrote; InputError: it is missing or damaged."""
        own = ("bins", "counts", "empirical", "smoothed", "weights_empirical", "weights_smoothed")
        return Statistics(files.read_arrays(path, "mean_ab", *own, *(f"grid_{name}" for name in own)))

    def write(self, path: Path) -> None:
        files.write_arrays(path, self.arrays)

    def centers(self, bins: Bins) -> np.ndarray:
        """The centers [Q, 2] of the gamut's bins or of the grid's occupied cells, in ab units."""
        return self.arrays["bins" if bins == "gamut" else "grid_bins"]

    def weights(self, prior: str, bins: Bins = "gamut") -> np.ndarray:
        """The rebalancing weights [Q] of one of the priors.

        Raises:
            InputError: that prior was not given to the prior stage, or is not over these bins.
        """
        try:
            return self.arrays[f"weights_{prior}" if bins == "gamut" else f"grid_weights_{prior}"]
        except KeyError as error:
            raise files.InputError(
                f"a model asks for the {prior!r} prior, which is not there; set prior.released to the path or URL of "
                "prior_probs.npy and leave head.bins at gamut"
            ) from error
