"""A data set that lives on the device: uint8 photographs in, lightness and color out.

An epoch is a permutation; crops and mirroring are one gather; Lab conversion happens in the batch. No workers, no
loader: 4,000 crops of 256x256 are 0.8 GB. Everything random is a function of the seed it is given.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from colorize.color import bytes_to_lab


def area_resize(images: Tensor, size: int) -> Tensor:
    """Scale uint8 images [N, S, S, 3] to [N, size, size, 3] by averaging the area of each new pixel.

    Raises:
        ValueError: `size` is above S.
    """
    side = images.shape[1]
    if size == side:
        return images
    if size > side:
        raise ValueError(f"area resizing only shrinks: {side} to {size}")
    parts = [
        F.interpolate(part.permute(0, 3, 1, 2).float(), size=(size, size), mode="area").round().to(torch.uint8)
        for part in images.split(256)
    ]
    return torch.cat(parts).permute(0, 2, 3, 1).contiguous() if parts else images.new_zeros((0, size, size, 3))


def share_of(side: int, share: float) -> int:
    """A share of a side in pixels, rounded to a multiple of 8, at least 8 and at most the side; 1 is the side itself."""
    return side if share == 1 else min(side, max(8, 8 * round(side * share / 8)))


def to_light_ab(images: Tensor) -> tuple[Tensor, Tensor]:
    """Split uint8 sRGB [B, H, W, 3] into light [B, 1, H, W] (L*, 0 to 100) and ab [B, 2, H, W], both float32."""
    lab = bytes_to_lab(images.permute(0, 3, 1, 2))
    return lab[:, :1].contiguous(), lab[:, 1:].contiguous()


class Photos:
    """Photographs on a device, handed out in batches.

    Args:
        images: uint8 sRGB [N, S, S, 3].
        size: side at which they are handed out, at most S.
    """

    def __init__(self, images: np.ndarray | Tensor, size: int, device: str | torch.device = "cpu") -> None:
        self.images = area_resize(torch.as_tensor(images).to(device), size)

    def __len__(self) -> int:
        return len(self.images)

    def spread(self, count: int) -> "Photos":
        """`count` photographs (all, if there are fewer), evenly spaced: the first ones may all be of one kind."""
        chosen = torch.linspace(0, len(self) - 1, min(count, len(self))).round().long()
        return Photos(self.images[chosen.to(self.images.device)], self.images.shape[1], self.images.device)

    def scaled(self, share: float) -> "Photos":
        """The same photographs at a share of their side, as `share_of` rounds it."""
        return Photos(self.images, share_of(self.images.shape[1], share), self.images.device)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every photograph once, in order, whole: (light, ab) of at most `size` each."""
        for part in self.images.split(size):
            yield to_light_ab(part)

    def order(self, seed: int, size: int) -> list[list[int]]:
        """The photographs of every batch of `epoch` with that seed and size, by their positions."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return [part.tolist() for part in order.tensor_split(-(-len(self) // size))]

    def epoch(self, seed: int, size: int, flip: bool = False, crop: float = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Every photograph once, in an order, at crop positions and mirrored as `seed` says.

        The last batch is never a crumb: an epoch is cut into equal batches of at most `size`, their lengths at most
        one apart, so that batch normalization always sees more than one photograph where there are two.

        Args:
            crop: side of the random crops as a share of the photograph's, as `share_of` rounds it.
        """
        count, side = len(self.images), self.images.shape[1]
        device = self.images.device
        random = torch.Generator().manual_seed(seed)  # on the CPU, so that every device sees the same epoch
        window = share_of(side, crop)
        order = torch.randperm(count, generator=random)
        tops, lefts = torch.randint(0, side - window + 1, (2, count), generator=random)
        mirrored = torch.rand(count, generator=random) < (0.5 if flip else 0)
        steps = torch.arange(window)
        rows = tops[:, None] + steps
        columns = lefts[:, None] + torch.where(mirrored[:, None], steps.flip(0), steps)
        order, rows, columns = (t.to(device) for t in (order, rows, columns))
        for photos, i, j in zip(*(t.tensor_split(-(-count // size)) for t in (order, rows, columns)), strict=True):
            yield to_light_ab(self.images[photos[:, None, None], i[:, :, None], j[:, None, :]])
