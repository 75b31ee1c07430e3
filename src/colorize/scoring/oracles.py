"""Oracles: systems that see the true ab. Each is the upper bound of one kind of model.

`oracle_mean` paints each photograph in its mean ab: the best result without spatial information.
`oracle_onehot` and `oracle_soft` are classifiers over the 313 bins at a quarter of the size (document 001)
that reproduce their targets exactly: the truth is averaged over 4x4 pixels, encoded as in training, decoded
and scaled up bilinearly. One-hot decodes to the nearest bin. Soft encoding uses 5 neighbors and sigma 5 and
decodes to the expectation, at temperature 1. Sharpening with the annealed mean only loses here: on 115 COCO
photographs at 64 pixels PSNR is 30.6 dB for one-hot, 31.4 dB at temperature 0.38, and 31.9 dB at 1, the same
as without any bins.

An oracle sees ab, so it is no Colorizer. It is scored under the models' protocol but not ranked among them.

Source: section 1 of the specification; Zhang et al. 2016, section 2.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from colorize import bins
from colorize.data.dataset import to_light_ab
from colorize.models.heads import Classification, average_to
from colorize.scoring import metrics
from colorize.scoring.evaluation import Prediction, Truths, paint, score_batches
from colorize.scoring.plausibility import Critic

QUARTER = 4
"""Side in pixels of the input patch per output of Zhang et al.'s network."""


def binned(ab: Tensor, neighbors: int) -> Tensor:
    """Encode ab [B, 2, H, W] over its nearest bins and decode it: [B, 2, ceil(H / 4), ceil(W / 4)]."""
    head = Classification(neighbors, sigma=5, temperature=1, class_weights=torch.ones(bins.Q)).to(ab.device)
    index, weight = head.encode(average_to(ab, ab[..., ::QUARTER, ::QUARTER]))
    return torch.einsum("bkhw,bkhwc->bchw", weight, head.centers[index])


ORACLES: dict[str, Callable[[Tensor], Tensor]] = {
    "oracle_mean": lambda ab: ab.mean((2, 3), keepdim=True),
    "oracle_onehot": lambda ab: binned(ab, neighbors=1),
    "oracle_soft": lambda ab: binned(ab, neighbors=5),
}
"""Map the true ab [B, 2, H, W] to predicted ab [B, 2, h, w]."""


@torch.inference_mode()
def color(name: str, truth: np.ndarray, device: torch.device | str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """Color photographs, uint8 [n, S, S, 3], with one of `ORACLES`; return image and ab like `paint`."""
    _, ab = to_light_ab(torch.from_numpy(truth).to(device))
    return paint(truth, ORACLES[name](ab))


def score(
    name: str,
    truths: Truths,
    batch: int,
    device: torch.device | str = "cpu",
    threads: int = 1,
    critic: Critic | None = None,
) -> pd.DataFrame:
    """Score one of `ORACLES`; arguments, table and errors are those of `evaluation.score`."""

    def predict(_: int, truth: np.ndarray) -> Prediction:
        image, ab = color(name, truth, device)
        scores = metrics.raw_errors(truth / 255, image / 255)
        scores |= {"psnr_best": metrics.psnr(truth, image), "ab_spread": np.zeros(len(truth))}
        return Prediction(image, ab, scores)

    return score_batches(name, predict, truths, batch, threads, critic)
