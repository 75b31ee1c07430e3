"""Score every system under one protocol, at the size S of the truth.

The truth is uint8 sRGB. The prediction is the truth's own L* with the predicted ab, which is scaled
bilinearly to S, converted to sRGB, clipped and rounded to uint8. If a model samples several colorings, one of
them is its prediction; all of them enter `psnr_best` and `ab_spread`. A model that works at a smaller size
gets the lightness of the area-resized truth. A model that predicts RGB is scored by the ab of that RGB; the
RGB itself is measured by the raw metrics.

Source: section 4 of the specification.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import torch
from annotated_types import Ge
from torch import Tensor
from tqdm import tqdm

from colorize.color import lab_to_rgb
from colorize.data.dataset import area_resize, to_light_ab
from colorize.data.shards import Crops
from colorize.files import InputError
from colorize.models.base import Colorizer
from colorize.models.heads import scale_to
from colorize.scoring import metrics, plausibility
from colorize.scoring.plausibility import Critic
from colorize.settings import Positive

Truths = np.ndarray | Crops
"""Photographs uint8 [n, S, S, 3], in memory or on disk."""
EXTREMES = 3
"""Number of best and of worst predictions shown per system."""


@dataclass(frozen=True)
class EvaluateConfig:
    """How models are scored and shown."""

    batch: Positive = 64
    sheet_size: Positive = 8
    """Photographs on the sample sheet."""
    gallery: Positive = 100
    """Photographs in the report, spread evenly over the test split; each system's extremes are added."""
    bootstrap: Positive = 1000
    """Resamples for the 95 % intervals."""
    samples: Annotated[int, Ge(2)] = 8
    """Colorings per photograph, for models that sample."""


class Prediction(NamedTuple):
    """A system's predictions for n photographs."""

    image: np.ndarray
    """uint8 [n, S, S, 3]."""
    ab: np.ndarray
    """float32 [n, S, S, 2], Lab units, not clipped to the gamut."""
    scores: dict[str, np.ndarray]
    """`psnr_best`, `ab_spread`, `raw_mse` and `raw_mae`, each [n]."""


def _channels_last(maps: Tensor) -> np.ndarray:
    return maps.permute(0, 2, 3, 1).float().cpu().numpy()


@torch.inference_mode()
def paint(truth: np.ndarray, ab: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Combine the L* of photographs with predicted ab, scaled bilinearly to their size.

    Args:
        truth: uint8 [n, S, S, 3].
        ab: predicted, [n, 2, s, s] in Lab units; its device computes.

    Returns:
        The images, uint8 [n, S, S, 3], and the scaled ab, float32 [n, S, S, 2].
    """
    light, _ = to_light_ab(torch.from_numpy(truth).to(ab.device))
    ab = scale_to(ab, light)
    rgb = lab_to_rgb(torch.cat((light, ab), dim=1))
    return (_channels_last(rgb) * 255).round().astype(np.uint8), _channels_last(ab)


@torch.inference_mode()
def predict(
    model: Colorizer, size: int, truth: np.ndarray, colorings: int = 1, device: torch.device | str = "cpu"
) -> Prediction:
    """Color the lightness of photographs.

    Args:
        size: side in pixels at which the model works, at most S.
        truth: uint8 [n, S, S, 3].
        colorings: samples to draw per photograph beside the prediction, for models that sample; 1 draws none.

    Raises:
        FloatingPointError: a prediction is not finite; the argument is the position of the first such
            photograph.
    """
    small = area_resize(torch.from_numpy(truth).to(device), size)
    light, _ = to_light_ab(small)
    colors = model.predict(light, colorings)
    outputs = [maps for maps in colors if maps is not None]
    finite = torch.stack([torch.isfinite(maps).flatten(1).all(1) for maps in outputs]).all(0)
    if not finite.all():
        raise FloatingPointError(int((~finite).nonzero()[0]))
    image, painted = paint(truth, colors.ab)
    if colors.rgb is None:
        scores = metrics.raw_errors(truth / 255, image / 255)
    else:
        scores = metrics.raw_errors(small.cpu().numpy() / 255, _channels_last(colors.rgb))
    rendered = [(image, painted)]
    if colors.samples is not None:
        rendered = [paint(truth, ab) for ab in colors.samples.unbind(1)]
    scores["psnr_best"] = np.max([metrics.psnr(truth, sample) for sample, _ in rendered], axis=0)
    scores["ab_spread"] = metrics.ab_spread(np.stack([ab for _, ab in rendered], axis=1))
    return Prediction(image, painted, scores)


def score(
    name: str,
    model: Colorizer,
    size: int,
    names: Sequence[str],
    truths: Truths,
    batch: int,
    colorings: int = 1,
    device: torch.device | str = "cpu",
    threads: int = 1,
    critic: Critic | None = None,
) -> pd.DataFrame:
    """Score one system on photographs.

    Args:
        name: of the system, for errors and the progress bar.
        size: side in pixels at which the model works.
        names: of the photographs, for errors.
        batch: photographs at a time.
        colorings: see `predict`.
        critic: of these photographs; without a critic `kid` is NaN.

    Returns:
        One row per photograph: every metric (see `metrics.compare`) and `grey_truth`.

    Raises:
        InputError: there is no photograph, they are too small for SSIM, or a prediction is not finite.
    """
    if not len(truths):
        raise InputError("there is no test photograph to score on; raise filter.test or add photographs")
    model = model.to(device)

    def color(start: int, truth: np.ndarray) -> Prediction:
        try:
            return predict(model, size, truth, colorings, device)
        except FloatingPointError as error:
            failure = f"model {name} predicts NaN or infinity for photo {names[start + error.args[0]]}"
            raise InputError(f"{failure}; train it again, with a lower learning rate") from error

    return score_batches(name, color, truths, batch, threads, critic)


def score_batches(
    name: str,
    color: Callable[[int, np.ndarray], Prediction],
    truths: Truths,
    batch: int,
    threads: int,
    critic: Critic | None,
) -> pd.DataFrame:
    """Color and score photographs batch by batch; arguments and result are those of `score`.

    Args:
        color: maps the position of a batch's first photograph, and the batch, to its predictions.
    """
    tables, features = [], []
    for start in tqdm(range(0, len(truths), batch), desc=f"score {name}", file=sys.stderr, disable=None):
        truth = truths[start : start + batch]
        prediction = color(start, truth)
        scores = metrics.per_image(truth, prediction.image, prediction.ab, threads)
        tables.append(scores.assign(**prediction.scores))
        if critic is not None:
            features.append(critic.features(prediction.image))
    kid = np.nan if critic is None else plausibility.given_away(np.concatenate(features), critic.truth)
    return pd.concat(tables, ignore_index=True).assign(kid=kid)


def pictures(
    model: Colorizer,
    size: int,
    positions: np.ndarray,
    truths: Truths,
    batch: int,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Predictions for the photographs at these positions, uint8 [n, S, S, 3]."""
    model = model.to(device)
    parts = np.array_split(positions, -(-len(positions) // batch))
    return np.concatenate([predict(model, size, truths[part], device=device).image for part in parts])


def notable(table: pd.DataFrame, shown: np.ndarray) -> np.ndarray:
    """Positions of the photographs to show: `shown`, and the system's best and worst by PSNR."""
    colored = np.flatnonzero(~table["grey_truth"].to_numpy(bool))
    ranked = colored[np.argsort(table["psnr"].to_numpy()[colored], kind="stable")]
    return np.unique(np.concatenate((shown, ranked[:EXTREMES], ranked[-EXTREMES:])))
