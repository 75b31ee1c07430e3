"""Oracles against the whole chain written with scikit-image and a KD-tree, and the orders that must hold."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial import cKDTree
from skimage import data
from skimage.color import lab2rgb, rgb2lab
from skimage.metrics import peak_signal_noise_ratio
from skimage.transform import downscale_local_mean, resize

from colorize.bins import centers
from colorize.scoring import metrics, oracles
from colorize.scoring.oracles import ORACLES

SIDE = 64


def photographs() -> np.ndarray:
    """The middles of three photographs at a quarter of their size, uint8 [3, SIDE, SIDE, 3]."""
    found = []
    for photo in (data.astronaut(), data.coffee(), data.chelsea()):
        top, left = (photo.shape[0] - 4 * SIDE) // 2, (photo.shape[1] - 4 * SIDE) // 2
        found.append(
            downscale_local_mean(photo[top : top + 4 * SIDE, left : left + 4 * SIDE], (4, 4, 1)).round()
        )
    return np.stack(found).astype(np.uint8)


TRUTH = photographs()


def scores(name: str, batch: int = 2) -> pd.DataFrame:
    return oracles.score(name, TRUTH, batch)


def reference(photo: np.ndarray, name: str) -> np.ndarray:
    """One photograph, uint8 [SIDE, SIDE, 3], as the oracle paints it."""
    lab = rgb2lab(photo)
    if name == "oracle_mean":
        ab = np.broadcast_to(lab[..., 1:].mean((0, 1)), (SIDE, SIDE, 2))
    else:
        small = downscale_local_mean(lab[..., 1:], (4, 4, 1))
        distance, index = cKDTree(centers()).query(small, 5)
        weight = np.exp(-(distance**2) / 50)
        if name == "oracle_onehot":
            weight[..., 1:] = 0
        decoded = (centers()[index] * weight[..., None]).sum(-2) / weight.sum(-1, keepdims=True)
        ab = resize(decoded, (SIDE, SIDE), order=1, mode="edge", anti_aliasing=False)
    return np.round(lab2rgb(np.dstack((lab[..., :1], ab))) * 255).astype(np.uint8)


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.filterwarnings("ignore:.*negative Z")
def test_an_oracle_equals_the_chain_written_anew(name: str) -> None:
    """The whole chain agrees within two levels, but for ties between bins, and in PSNR to 0.02 dB."""
    image, _ = oracles.color(name, TRUTH)
    table = scores(name)
    for i, photo in enumerate(TRUTH):
        expected = reference(photo, name)
        off = np.abs(image[i].astype(int) - expected).max(-1)
        assert (off > 2).mean() < 0.001
        assert table["psnr"][i] == pytest.approx(peak_signal_noise_ratio(photo, expected), abs=0.02)
        assert table["raw_mae"][i] == pytest.approx(np.abs(photo / 255 - expected / 255).mean(), rel=0.01)


def test_each_oracle_knows_more_than_the_one_before() -> None:
    """One color for all, each photograph's own, its nearest bins, its soft bins: PSNR rises with each."""
    lab = rgb2lab(TRUTH)
    lab[..., 1:] = lab[..., 1:].mean((0, 1, 2))
    one_color = metrics.psnr(TRUTH, np.round(lab2rgb(lab) * 255).astype(np.uint8)).mean()
    found = [scores(name)["psnr"].mean() for name in ("oracle_mean", "oracle_onehot", "oracle_soft")]
    assert one_color < found[0] < found[1] < found[2]


@pytest.mark.parametrize(("side", "quarter"), [(64, 16), (32, 8), (30, 8)])
def test_bins_are_at_a_quarter_of_the_size(side: int, quarter: int) -> None:
    """Rounded up."""
    assert oracles.binned(torch.zeros(1, 2, side, side), 5).shape == (1, 2, quarter, quarter)
