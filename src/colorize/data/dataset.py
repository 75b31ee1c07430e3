"""A data set on the device: uint8 photographs in, lightness and color out.

An epoch is a permutation; crops and mirroring are one gather; Lab conversion happens in the batch. No workers, no
loader: 4,000 crops of 256x256 are 0.8 GB. What does not fit is streamed: mapped shards, read by one thread that is a few
batches ahead. Everything random is a function of the seed it is given.
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
"""Batches that are read before they are asked for."""
READ_AT_ONCE = 256
"""Photographs, where all are read one after the other."""


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
        F.interpolate(part.permute(0, 3, 1, 2).float(), size=(size, size), mode="area")
        .round()
        .to(torch.uint8)
        for part in images.split(256)
    ]
    return (
        torch.cat(parts).permute(0, 2, 3, 1).contiguous() if parts else images.new_zeros((0, size, size, 3))
    )


def share_of(side: int, share: float) -> int:
    """A share of a side in pixels, rounded to a multiple of 8, at least 8 and at most the side; 1 is the side itself."""
    return side if share == 1 else min(side, max(8, 8 * round(side * share / 8)))


def zoomed(images: Tensor, side: Tensor, top: Tensor, left: Tensor, mirror: Tensor, size: int) -> Tensor:
    """Scale one square window of each photograph bilinearly: uint8 [B, S, S, 3] to [B, size, size, 3].

    Args:
        side, top, left: of the windows, [B], in pixels.
        mirror: [B], whether the window is mirrored.
    """
    steps = (torch.arange(size, device=images.device) + 0.5) / size
    down = top[:, None] + side[:, None] * steps
    across = left[:, None] + side[:, None] * torch.where(mirror[:, None], 1 - steps, steps)
    shape = (len(images), size, size)
    grid = (
        torch.stack((across[:, None].expand(shape), down[:, :, None].expand(shape)), dim=-1)
        * 2
        / images.shape[1]
        - 1
    )
    maps = images.permute(0, 3, 1, 2).float()
    maps = F.grid_sample(maps, grid, padding_mode="border", align_corners=False)
    return maps.round().to(torch.uint8).permute(0, 2, 3, 1)


def to_light_ab(images: Tensor) -> tuple[Tensor, Tensor]:
    """Split uint8 sRGB [B, H, W, 3] into light [B, 1, H, W] (L*, 0 to 100) and ab [B, 2, H, W], both float32."""
    lab = bytes_to_lab(images.permute(0, 3, 1, 2))
    return lab[:, :1].contiguous(), lab[:, 1:].contiguous()


class Streamed:
    """Photographs that stay on the disk: rows are read when they are asked for, moved to the device, and scaled there.

    Args:
        crops: gives uint8 [n, S, S, 3] for the rows asked for.
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
        """The photographs of each part, uint8 [n, s, s, 3]; the next ones are read while one is worked on."""
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
    """Photographs handed out in batches, from the device's memory or streamed to it: the same ones in the same order.

    Args:
        images: uint8 sRGB [N, S, S, 3], or what is streamed.
        size: side at which they are handed out, at most S.
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
        """What they take in memory."""
        return len(self) * self.size**2 * 3

    def held(self) -> "Photos":
        """The same photographs in the device's memory."""
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
        """`count` photographs (all, if there are fewer), evenly spaced: the first ones may all be of one kind."""
        chosen = torch.linspace(0, len(self) - 1, min(count, len(self))).round().long()
        if isinstance(self.images, Streamed):
            return Photos(self.images.subset(chosen), self.size)
        return Photos(self.images[chosen.to(self.device)], self.size, self.device)

    def scaled(self, share: float) -> "Photos":
        """The same photographs at a share of their side, as `share_of` rounds it."""
        return Photos(self.images, share_of(self.size, share), self.device)

    def batches(
        self, size: int, rank: int = 0, ranks: int = 1, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Every photograph once, in order, whole: (light, ab) of at most `size` each; of several ranks, this one's share.

        Args:
            start: the first batch that is read and handed out.
        """
        own = torch.arange(len(self)).tensor_split(ranks)[rank]
        for pixels in self._parts(own.split(size)[start:] if len(own) else ()):
            yield to_light_ab(pixels)

    def order(self, seed: int, size: int) -> list[list[int]]:
        """The photographs of every batch of `epoch` with that seed and size, by their positions."""
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
        """Every photograph once, in an order, at crop positions and mirrored as `seed` says.

        The last batch is never a crumb: an epoch is cut into equal batches of at most `size`, their lengths at most
        one apart, so that batch normalization always sees more than one photograph where there are two.

        Args:
            crop: side of the random crops as a share of the photograph's, as `share_of` rounds it.
            rank: which of the `ranks` parts of each batch is handed out.
            start: the first batch that is read and handed out; those before it cost nothing.
            zoom: below 1, square windows with sides from this share of the photograph to all of it are scaled to the crops'.
        """
        count = len(self)
        random = torch.Generator().manual_seed(seed)  # on the CPU, so that every device sees the same epoch
        window = share_of(self.size, crop)
        order = torch.randperm(count, generator=random)
        tops, lefts = torch.randint(0, self.size - window + 1, (2, count), generator=random)
        mirrored = torch.rand(count, generator=random) < (0.5 if flip else 0)
        steps = torch.arange(window)
        sides = (
            self.size * (zoom + (1 - zoom) * torch.rand(count, generator=random))
            if zoom < 1
            else torch.zeros(count)
        )
        corners = (
            torch.rand((2, count), generator=random) * (self.size - sides)
            if zoom < 1
            else torch.zeros(2, count)
        )

        def own(numbers: Tensor) -> list[Tensor]:
            return [
                batch.tensor_split(ranks)[rank] for batch in numbers.tensor_split(-(-count // size))[start:]
            ]

        windows = zip(
            own(tops), own(lefts), own(mirrored), own(sides), own(corners[0]), own(corners[1]), strict=True
        )
        for pixels, (top, left, mirror, side, upper, outer) in zip(
            self._parts(own(order)), windows, strict=True
        ):
            if zoom < 1:
                side, upper, outer, mirror = (t.to(self.device) for t in (side, upper, outer, mirror))
                yield to_light_ab(zoomed(pixels, side, upper, outer, mirror, window))
                continue
            i = top[:, None] + steps
            j = left[:, None] + torch.where(mirror[:, None], steps.flip(0), steps)
            photos, i, j = (
                t.to(self.device)
                for t in (torch.arange(len(pixels))[:, None, None], i[:, :, None], j[:, None, :])
            )
            yield to_light_ab(pixels[photos, i, j])
