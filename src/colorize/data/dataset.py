"""A data set on the device: uint8 images in, lightness and color out.

There are no workers and no loader: 4,000 crops of 256x256 take 0.8 GB. An epoch is a permutation, crops and
mirroring are one gather, and the batch is converted to Lab. A larger data set is streamed: a thread reads the
mapped shards a few batches ahead. All randomness depends on the given seed only.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from colorize.color import bytes_to_lab
from colorize.data.shards import Crops

READ_AHEAD = 3
"""Batches that are read in advance."""
READ_AT_ONCE = 256
"""Images per read when all are read in order."""


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
    maps = images.permute(0, 3, 1, 2)
    parts = [F.interpolate(part.float(), size=(size, size), mode="area").round() for part in maps.split(256)]
    return torch.cat([part.to(torch.uint8) for part in parts]).permute(0, 2, 3, 1).contiguous()


def share_of(side: int, share: float) -> int:
    """Return a share of a side in pixels: a multiple of 8, at least 8, at most the side; 1 is the side."""
    return side if share == 1 else min(side, max(8, 8 * round(side * share / 8)))


def zoomed(images: Tensor, side: Tensor, top: Tensor, left: Tensor, mirror: Tensor, size: int) -> Tensor:
    """Scale one square window of each image bilinearly: uint8 [B, S, S, 3] to [B, size, size, 3].

    Args:
        side, top, left: place of each window, [B], in pixels.
        mirror: bool [B].
    """
    steps = (torch.arange(size, device=images.device) + 0.5) / size
    down = top[:, None] + side[:, None] * steps
    across = left[:, None] + side[:, None] * torch.where(mirror[:, None], 1 - steps, steps)
    shape = (len(images), size, size)
    grid = torch.stack((across[:, None].expand(shape), down[:, :, None].expand(shape)), dim=-1)
    grid = grid * 2 / images.shape[1] - 1
    maps = images.permute(0, 3, 1, 2).float()
    maps = F.grid_sample(maps, grid, padding_mode="border", align_corners=False)
    return maps.round().to(torch.uint8).permute(0, 2, 3, 1)


def to_light_ab(images: Tensor) -> tuple[Tensor, Tensor]:
    """Split uint8 sRGB [B, H, W, 3] into light [B, 1, H, W] (L*, 0 to 100) and ab [B, 2, H, W], float32."""
    lab = bytes_to_lab(images.permute(0, 3, 1, 2))
    return lab[:, :1].contiguous(), lab[:, 1:].contiguous()


class Streamed:
    """Images that stay on the disk: rows are read on request, moved to the device and scaled there.

    Args:
        crops: yields uint8 [n, S, S, 3] for n rows.
        sizes: sides to scale to, one after the other.
    """

    def __init__(self, crops: Crops, device: str | torch.device = "cpu", sizes: tuple[int, ...] = ()) -> None:
        self.crops, self.device, self.sizes = crops, torch.device(device), sizes

    def __len__(self) -> int:
        return len(self.crops)

    def resized(self, size: int) -> "Streamed":
        return Streamed(self.crops, self.device, (*self.sizes, size))

    def subset(self, rows: Tensor) -> "Streamed":
        return Streamed(self.crops.subset(rows.numpy()), self.device, self.sizes)

    def _read(self, rows: Tensor) -> Tensor:
        pixels = torch.from_numpy(self.crops[rows.numpy()])
        return pixels.pin_memory() if self.device.type == "cuda" else pixels

    def parts(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the images of each part, uint8 [n, s, s, 3]; a thread reads the next parts meanwhile."""
        with ThreadPoolExecutor(1) as reader:
            ahead: deque[Future[Tensor]] = deque()
            for part in parts:
                ahead.append(reader.submit(self._read, part))
                if len(ahead) > READ_AHEAD:
                    yield self._arrived(ahead.popleft().result())
            while ahead:
                yield self._arrived(ahead.popleft().result())

    def _arrived(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.device, non_blocking=True)
        for size in self.sizes:
            pixels = area_resize(pixels, size)
        return pixels


class Photos:
    """Images in batches, held on the device or streamed to it; both ways give the same batches.

    Args:
        images: uint8 sRGB [N, S, S, 3], or streamed images.
        size: side of the images in the batches, at most S.
    """

    def __init__(
        self, images: np.ndarray | Tensor | Streamed, size: int, device: str | torch.device = "cpu"
    ) -> None:
        self.size, self.device = size, torch.device(device)
        self.images: Tensor | Streamed
        if isinstance(images, Streamed):
            self.images, self.device = images.resized(size), images.device
        else:
            self.images = area_resize(torch.as_tensor(images).to(device), size)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return len(self) * self.size**2 * 3

    def held(self) -> "Photos":
        """Load the images into the device's memory."""
        images = torch.empty((len(self), self.size, self.size, 3), dtype=torch.uint8, device=self.device)
        parts = torch.arange(len(self)).split(READ_AT_ONCE)
        for part, pixels in zip(parts, self._parts(parts), strict=True):
            images[part[0] : part[-1] + 1] = pixels
        return Photos(images, self.size, self.device)

    def _parts(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        if isinstance(self.images, Streamed):
            yield from self.images.parts(parts)
        else:
            yield from (self.images[part.to(self.device)] for part in parts)

    def spread(self, count: int) -> "Photos":
        """Select up to `count` images, evenly spaced, since neighbors may be alike."""
        chosen = torch.linspace(0, len(self) - 1, min(count, len(self))).round().long()
        if isinstance(self.images, Streamed):
            return Photos(self.images.subset(chosen), self.size)
        return Photos(self.images[chosen.to(self.device)], self.size, self.device)

    def scaled(self, share: float) -> "Photos":
        """Scale the images to a share of their side, rounded by `share_of`."""
        return Photos(self.images, share_of(self.size, share), self.device)

    def batches(
        self, size: int, rank: int = 0, ranks: int = 1, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the whole images of this rank in order: (light, ab) of at most `size` images, from batch
        `start`."""
        rows = torch.arange(len(self)).tensor_split(ranks)[rank]
        for pixels in self._parts(rows.split(size)[start:] if len(rows) else ()):
            yield to_light_ab(pixels)

    def order(self, seed: int, size: int) -> list[list[int]]:
        """Return the positions of the images in each batch of `epoch` with this seed and size."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return [part.tolist() for part in order.tensor_split(-(-len(self) // size))]

    def epoch(
        self,
        seed: int,
        size: int,
        flip: bool = False,
        crop: float = 1,
        rank: int = 0,
        ranks: int = 1,
        start: int = 0,
        zoom: float = 1,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, in random order, randomly cropped and mirrored, as (light, ab).

        An epoch is cut into batches of at most `size` images whose lengths differ by at most one, so that
        batch normalization never gets a tiny last batch.

        Args:
            crop: side of the random crops as a share of the image's side, rounded by `share_of`.
            rank: part of each batch, among `ranks` parts.
            start: first batch; earlier ones are not read.
            zoom: below 1, random square windows, with sides from this share of the image to all of it, are
                scaled to the side of the crops.
        """
        count = len(self)
        random = torch.Generator().manual_seed(seed)  # on the CPU, so that all devices see the same epoch
        window = share_of(self.size, crop)
        order = torch.randperm(count, generator=random)
        tops, lefts = torch.randint(0, self.size - window + 1, (2, count), generator=random)
        mirrored = torch.rand(count, generator=random) < (0.5 if flip else 0)
        columns = [order, tops, lefts, mirrored]
        if zoom < 1:
            sides = self.size * (zoom + (1 - zoom) * torch.rand(count, generator=random))
            corners = torch.rand((2, count), generator=random) * (self.size - sides)
            columns = [order, sides, *corners, mirrored]
        batches = -(-count // size)
        rows, *windows = (
            [batch.tensor_split(ranks)[rank] for batch in column.tensor_split(batches)[start:]]
            for column in columns
        )
        for pixels, places in zip(self._parts(rows), zip(*windows, strict=True), strict=True):
            if zoom < 1:
                side, top, left, mirror = (place.to(self.device) for place in places)
                yield to_light_ab(zoomed(pixels, side, top, left, mirror, window))
                continue
            top, left, mirror = places
            steps = torch.arange(window)
            i = top[:, None] + steps
            j = left[:, None] + torch.where(mirror[:, None], steps.flip(0), steps)
            index = torch.arange(len(pixels))[:, None, None], i[:, :, None], j[:, None, :]
            yield to_light_ab(pixels[tuple(part.to(self.device) for part in index)])
