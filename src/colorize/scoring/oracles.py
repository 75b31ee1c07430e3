"""Systems that are given the truth: what a model of a kind would score if it made no mistake.

`ceiling_mean` paints each photograph in its own mean ab, the best that can be done without knowing where a color
goes. `ceiling_onehot` and `ceiling_soft` are classifiers over the 313 bins at a quarter of the size (document 001)
that reproduce their targets exactly: the truth averaged over 4x4 pixels, encoded as in training, decoded, scaled up
bilinearly. One-hot decodes to the nearest bin. Soft, of 5 neighbors with sigma 5, decodes to the expectation,
temperature 1: sharpening a target towards its nearest bin, as the annealed mean does, only loses (on 115 COCO
photographs at 64 pixels PSNR is 30.6 dB one-hot, 31.4 at temperature 0.38, 31.9 at 1 and also without any bins).

A oracle sees ab and so is no Colorizer. It is scored under the models' protocol, and never ranked among them.
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
from colorize.scoring import metrics, plausibility
from colorize.scoring.evaluation import Truths, paint
from colorize.scoring.plausibility import Critic

QUARTER = 4
"""Pixels along a side that one output of Zhang et al.'s network stands for."""


def mean_ab(ab: Tensor) -> Tensor:
    """The mean color of each photograph: ab [B, 2, H, W] to [B, 2, 1, 1]."""
    return ab.mean((2, 3), keepdim=True)


def binned(ab: Tensor, neighbors: int) -> Tensor:
    """What the soft encoding over so many bins keeps: ab [B, 2, H, W] to [B, 2, ceil(H / 4), ceil(W / 4)]."""
    head = Classification(neighbors, sigma=5, temperature=1, class_weights=torch.ones(bins.Q)).to(ab.device)
    index, weight = head.encode(average_to(ab, ab[..., ::QUARTER, ::QUARTER]))
    return torch.einsum("bkhw,bkhwc->bchw", weight, head.centers[index])


ORACLES: dict[str, Callable[[Tensor], Tensor]] = {
    "ceiling_mean": mean_ab,
    "ceiling_onehot": lambda ab: binned(ab, neighbors=1),
    "ceiling_soft": lambda ab: binned(ab, neighbors=5),
}
"""From the true ab [B, 2, H, W] to what the system makes of it, at whatever size."""


@torch.inference_mode()
def color(name: str, truth: np.ndarray, device: torch.device | str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """Color photographs, uint8 [n, S, S, 3], as one of `ORACLES` does: `evaluation.paint`'s picture and ab."""
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
    """Score one of `ORACLES` on photographs.

    Args:
        batch: photographs at a time.
        critic: of these photographs, for `kid`; without one it is NaN.

    Returns:
        One row per photograph with every metric, like `evaluation.score`.

    Raises:
        InputError: the photographs are too small for SSIM.
    """
    tables, seen = [], []
    for start in range(0, len(truths), batch):
        truth = truths[start : start + batch]
        image, ab = color(name, truth, device)
        scores = metrics.raw_errors(truth / 255, image / 255)
        scores |= {"psnr_best": metrics.psnr(truth, image), "ab_spread": np.zeros(len(truth))}
        tables.append(metrics.per_image(truth, image, ab, threads).assign(**scores))
        if critic is not None:
            seen.append(critic.features(image))
    kid = np.nan if critic is None else plausibility.given_away(np.concatenate(seen), critic.truth)
    return pd.concat(tables, ignore_index=True).assign(kid=kid)
