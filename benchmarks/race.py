"""Shared parts of the benchmarks: photographs, races between two sides, the documents' training loop."""

import io
import statistics
import time
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage import data
from skimage.color import rgb2lab
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from colorize import bins
from colorize.data.dataset import Photos
from colorize.models import ModelConfig
from colorize.models.base import Colorizer
from colorize.models.heads import Classification
from colorize.training.device import TrainConfig
from colorize.training.loop import Progress, fit

ROUNDS = 5
Row = dict[str, Any]


def tiles(side: int) -> np.ndarray:
    """Cut scikit-image's photographs into squares, uint8 [n, side, side, 3]."""
    squares = []
    for photograph in (data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), data.retina()):
        for top in range(0, photograph.shape[0] - side + 1, side):
            for left in range(0, photograph.shape[1] - side + 1, side):
                squares.append(photograph[top : top + side, left : left + side])
    return np.stack(squares)


def crops(count: int, side: int) -> np.ndarray:
    """Return `count` tiles; later ones are turned copies."""
    base = tiles(side)
    return np.stack([np.rot90(base[i % len(base)], i // len(base) % 4) for i in range(count)])


def jpeg(pixels: np.ndarray | Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of a piece of work, including its work on a GPU."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def race(
    units: int, unit: str, ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int = ROUNDS
) -> Row:
    """Time both sides in turns, after a warm-up unless there is only one (long) round."""
    if rounds > 1:
        seconds(ours), seconds(theirs)
    times = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    ratios = [slow / fast for fast, slow in times]
    fast, slow = (statistics.median(side) for side in zip(*times, strict=True))
    return {
        "unit": unit,
        "ours a second": round(units / fast, 2),
        "theirs a second": round(units / slow, 2),
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def losses(
    count: int, side: int, device: str | torch.device = "cpu"
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """The gradient of the soft cross-entropy over 313 bins, with our code and with dense targets."""
    head = Classification(5, 5, 0.38, torch.ones(bins.Q)).to(device)
    random = torch.Generator().manual_seed(1)
    ab = ((torch.rand(count, 2, side, side, generator=random) - 0.5) * 150).to(device)
    logits = torch.randn(count, bins.Q, side, side, generator=random).to(device).requires_grad_()

    def ours() -> Tensor:
        logits.grad = None
        head.losses(logits, ab, ab)["loss"].backward()
        return logits.grad

    def theirs() -> Tensor:
        logits.grad = None
        index, target = head.encode(ab)
        dense = torch.zeros_like(logits).scatter_(1, index, target)
        (-(dense * F.log_softmax(logits, dim=1)).sum() / len(ab)).backward()
        return logits.grad

    return ours, theirs


class PerItem(Dataset):
    """The documents' data set: every photograph is opened and converted on access."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        with Image.open(self.paths[index]) as image:
            converted = torch.from_numpy(rgb2lab(np.asarray(image))).permute(2, 0, 1).float()
        return converted[:1], converted[1:]


def train_theirs(model: Colorizer, folder: Path, block: ModelConfig, workers: int, epochs: int = 1) -> None:
    """Train like the documents: fp32, a loader with workers, no fused optimizer."""
    device = next(model.parameters()).device
    recipe = block.recipe
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learned, 1e-5, betas=recipe.betas, weight_decay=recipe.weight_decay)
    loader = DataLoader(PerItem(folder), recipe.batch, shuffle=True, num_workers=workers)
    for light, ab in chain.from_iterable(repeat(loader, epochs)):
        for phase in model.phases:
            optimizer.zero_grad()
            model.losses(phase, light.to(device), ab.to(device))["loss"].backward()
            optimizer.step()


def train_ours(
    model: Colorizer,
    photos: Photos,
    block: ModelConfig,
    config: TrainConfig,
    val: Photos | None = None,
    seed: int = 1,
    **options: Any,
) -> Progress:
    """Train with our loop and one validation photograph unless `val` is given; options are those of `fit`."""
    with TemporaryDirectory() as folder:
        state = options.pop("state", Path(folder) / "state.pt")
        return fit(model, photos, val or photos.spread(1), block.recipe, config, seed, state, **options)
