"""Compare methods that scale predicted color up to full size: `python benchmarks/upsampling.py FOLDER`.

Every photograph's own ab is reduced to a model's size (short side 64, 128, 256) and scaled up again by four
methods that know the full lightness. Prints the mean root mean squared error against the photograph's ab in
Lab units, and its ratio to bilinear.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from colorize.apply.coloring import find
from colorize.apply.fullsize import slope
from colorize.color import rgb_to_lab

SIDES = (64, 128, 256)


def window(maps: Tensor, radius: int) -> Tensor:
    return F.avg_pool2d(maps, 2 * radius + 1, 1, radius, count_include_pad=False)


def up(maps: Tensor, full: Tensor) -> Tensor:
    return F.interpolate(maps, full.shape[-2:], mode="bilinear", align_corners=False)


def bilinear(light: Tensor, ab: Tensor, full: Tensor) -> Tensor:
    return up(ab, full)


def ours(light: Tensor, ab: Tensor, full: Tensor) -> Tensor:
    """The method of colorize.apply.fullsize.paint."""
    return up(ab, full) + up(slope(light, ab), full) * (full - up(light, full))


def guided(light: Tensor, ab: Tensor, full: Tensor) -> Tensor:
    """Fast guided filter (He and Sun 2015), radius 1, with our ridge."""
    gain = slope(light, ab)
    offset = window(ab, 1) - gain * window(light, 1)
    return up(window(gain, 1), full) * full + up(window(offset, 1), full)


def joint_bilateral(light: Tensor, ab: Tensor, full: Tensor, sigma: float = 8) -> Tensor:
    """Joint bilateral upsampling (Kopf et al. 2007): bilinear weights times a Gaussian of lightness."""
    (low, wide), (height, width) = light.shape[-2:], full.shape[-2:]
    down = (torch.arange(height) + 0.5) * low / height - 0.5
    across = (torch.arange(width) + 0.5) * wide / width - 0.5
    total, weights = torch.zeros(1, 2, height, width), torch.zeros(1, 1, height, width)
    for dy in (0, 1):
        for dx in (0, 1):
            rows, columns = down.floor().long() + dy, across.floor().long() + dx
            near = (1 - (down - rows).abs())[:, None] * (1 - (across - columns).abs())
            rows, columns = rows.clamp(0, low - 1), columns.clamp(0, wide - 1)
            alike = torch.exp(-((full - light[:, :, rows][..., columns]) ** 2) / (2 * sigma**2)) + 1e-4
            total += near * alike * ab[:, :, rows][..., columns]
            weights += near * alike
    return total / weights


METHODS: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (bilinear, ours, joint_bilateral, guided)


def lab(image: Image.Image) -> Tensor:
    return rgb_to_lab(torch.tensor(np.asarray(image)).permute(2, 0, 1)[None].float() / 255)


def main(folder: Path) -> None:
    errors = {(side, method.__name__): [] for side in SIDES for method in METHODS}
    for item in tqdm(find([folder]), unit="photo"):
        image = Image.open(item.source).convert("RGB")
        full = lab(image)
        for side in SIDES:
            scale = side / min(image.size)
            if scale >= 1:
                continue
            size = round(image.width * scale), round(image.height * scale)
            small = lab(image.resize(size, Image.Resampling.BICUBIC))
            for method in METHODS:
                ab = method(small[:, :1], small[:, 1:], full[:, :1])
                errors[side, method.__name__].append(float((ab - full[:, 1:]).square().mean().sqrt()))
    for side in SIDES:
        means = {method.__name__: np.mean(errors[side, method.__name__]) for method in METHODS}
        cells = [f"{name} {mean:.3f} ({mean / means['bilinear']:.3f})" for name, mean in means.items()]
        print(f"{side} pixels, {len(errors[side, 'bilinear'])} photographs: {', '.join(cells)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
