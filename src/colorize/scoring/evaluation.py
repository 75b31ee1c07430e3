"""The one protocol under which every system is scored, at the size S of the truth.

Truth is uint8 sRGB; the prediction is the truth's own L* with the predicted ab, scaled bilinearly to S, turned to
sRGB, clipped and rounded to uint8. Of a system with several colorings of a photograph, one is its prediction, the others
enter in `psnr_best` and `ab_spread`. A system of a smaller size sees the lightness of the truth area-resized to it. A
system that predicts RGB enters with the ab of its prediction; its RGB as it comes is measured beside it, in the raw
metrics. Source: section 4 of the specification.
"""

import sys
from collections.abc import Sequence
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
"""Photographs uint8 [n, S, S, 3], in memory or read when they are asked for."""
EXTREMES = 3
"""So many of the best and of the worst predictions of a system are worth a look."""


@dataclass(frozen=True)
class EvaluateConfig:
    """How models are scored and shown."""

    batch: Positive = 64
    sheet_size: Positive = 8
    """Photographs on the sample sheet."""
    gallery: Positive = 100
    """Photographs that the report shows: evenly spread over the test split, and each system's best and worst."""
    bootstrap: Positive = 1000
    """Resamples for the 95 % intervals."""
    samples: Annotated[int, Ge(2)] = 8
    """Colorings of each photograph from models that have several."""


class Prediction(NamedTuple):
    """What a system makes of n photographs."""

    image: np.ndarray
    """uint8 [n, S, S, 3]."""
    ab: np.ndarray
    """float32 [n, S, S, 2], Lab units, not clipped to the gamut."""
    scores: dict[str, np.ndarray]
    """What these two do not tell: `psnr_best`, `ab_spread`, `raw_mse` and `raw_mae`, each [n]."""


def _channels_last(maps: Tensor) -> np.ndarray:
    return maps.permute(0, 2, 3, 1).float().cpu().numpy()


@torch.inference_mode()
def paint(truth: np.ndarray, ab: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Give photographs other colors under the protocol: their own L*, ab scaled bilinearly to their size.

    Args:
        truth: uint8 [n, S, S, 3].
        ab: predicted, [n, 2, s, s] in Lab units; its device is where this happens.

    Returns:
        The pictures, uint8 [n, S, S, 3], and ab as it was painted, float32 [n, S, S, 2].
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
        size: side at which the model works, at most S.
        truth: uint8 [n, S, S, 3].
        colorings: how many are asked of a model that has several, beside its prediction; 1 asks for none.

    Raises:
        FloatingPointError: a prediction is not finite; its argument is the position of the first such photograph.
    """
    small = area_resize(torch.from_numpy(truth).to(device), size)
    light, _ = to_light_ab(small)
    colors = model.predict(light, colorings)
    given = [each for each in colors if each is not None]
    finite = torch.stack([torch.isfinite(each).flatten(1).all(1) for each in given]).all(0)
    if not finite.all():
        raise FloatingPointError(int((~finite).nonzero()[0]))
    image, painted = paint(truth, colors.ab)
    if colors.rgb is None:
        scores = metrics.raw_errors(truth / 255, image / 255)
    else:
        scores = metrics.raw_errors(small.cpu().numpy() / 255, _channels_last(colors.rgb))
    several = None if colors.samples is None else colors.samples.unbind(1)
    rendered = [paint(truth, each) for each in several] if several else [(image, painted)]
    scores["psnr_best"] = np.max([metrics.psnr(truth, picture) for picture, _ in rendered], axis=0)
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
        name: what errors and the progress bar call it.
        size: side at which the model works.
        names: of the photographs, for errors.
        batch: photographs at a time.
        colorings: of each photograph, from a model that has several, beside its prediction; 1 asks for none.
        critic: of these photographs, for `kid`; without one it is NaN.

    Returns:
        One row per photograph with every metric (see `metrics.compare`) and whether it is grey in truth.

    Raises:
        InputError: there is no photograph, they are too small for SSIM, or the model predicts something not finite.
    """
    if not len(truths):
        raise InputError(
            "there is no test photograph to score on; raise filter.test or give more photographs"
        )
    model = model.to(device)
    tables, seen = [], []
    for start in tqdm(range(0, len(truths), batch), desc=f"score {name}", file=sys.stderr, disable=None):
        truth = truths[start : start + batch]
        try:
            prediction = predict(model, size, truth, colorings, device)
        except FloatingPointError as error:
            photo = names[start + error.args[0]]
            raise InputError(
                f"model {name} predicts NaN or infinity for photo {photo}; train it again, with a lower learning rate"
            ) from error
        scores = metrics.per_image(truth, prediction.image, prediction.ab, threads)
        tables.append(scores.assign(**prediction.scores))
        if critic is not None:
            seen.append(critic.features(prediction.image))
    kid = np.nan if critic is None else plausibility.given_away(np.concatenate(seen), critic.truth)
    return pd.concat(tables, ignore_index=True).assign(kid=kid)


def pictures(
    model: Colorizer,
    size: int,
    positions: np.ndarray,
    truths: Truths,
    batch: int,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """What a system makes of the photographs at some positions, uint8 [n, S, S, 3]."""
    model = model.to(device)
    parts = np.array_split(positions, -(-len(positions) // batch))
    return np.concatenate([predict(model, size, truths[part], device=device).image for part in parts])


def notable(table: pd.DataFrame, shown: np.ndarray) -> np.ndarray:
    """Positions of the photographs that are worth a look: those in `shown`, and a system's best and worst by PSNR."""
    colored = np.flatnonzero(~table["grey_truth"].to_numpy(bool))
    ranked = colored[np.argsort(table["psnr"].to_numpy()[colored], kind="stable")]
    return np.unique(np.concatenate((shown, ranked[:EXTREMES], ranked[-EXTREMES:])))
