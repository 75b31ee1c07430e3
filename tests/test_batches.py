"""The data set on the device: nothing lost, everything a function of the seed."""

import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.transform import downscale_local_mean, resize

from colorize import files
from colorize.color import lab_to_rgb
from colorize.data.dataset import READ_AHEAD, Photos, Streamed, area_resize, share_of, zoomed
from colorize.data.shards import Crops


def epoch_images(photos: Photos, **options) -> torch.Tensor:
    return torch.cat([torch.cat(batch, dim=1) for batch in photos.epoch(**options)])


def test_area_resize_averages_as_scikit_image_does(photographs) -> None:
    """To the rounding of uint8; it never enlarges, and a share of 1 copies nothing."""
    images = photographs(3, 32)
    for factor in (2, 4):
        ours = area_resize(torch.tensor(images), 32 // factor).numpy()
        assert np.abs(ours - downscale_local_mean(images, (1, factor, factor, 1))).max() <= 0.5
    photos = Photos(images, 32)
    assert np.array_equal(photos.scaled(0.25).images, ours)
    assert photos.scaled(1).images.data_ptr() == photos.images.data_ptr()
    with pytest.raises(ValueError, match="only shrinks"):
        area_resize(torch.tensor(images), 64)


@pytest.mark.parametrize(
    ("side", "share", "expected"),
    [(608, 0.3684, 224), (256, 0.6875, 176), (64, 0.3684, 24), (14, 0.99, 14), (64, 0.01, 8)],
)
def test_shares_of_a_side_are_multiples_of_8(side: int, share: float, expected: int) -> None:
    """224 of 608 in document 004, 176 of 256 in document 001; never below 8, never above the side."""
    assert share_of(side, share) == expected


def test_an_epoch_hands_out_every_photograph_once(photographs) -> None:
    """In batches whose lengths differ by at most one; the order is another each epoch."""
    photos = Photos(photographs(23, 16), 16)
    sizes = [len(light) for light, _ in photos.epoch(seed=1, size=5)]
    assert sum(sizes) == 23 and max(sizes) <= 5 and max(sizes) - min(sizes) <= 1
    # Batch norm needs two: 23 photographs in batches of 22 become 12 and 11.
    assert sorted(len(light) for light, _ in photos.epoch(1, 22)) == [11, 12]
    whole = torch.cat([torch.cat(batch, dim=1) for batch in photos.batches(10)])
    once, again, other = (epoch_images(photos, seed=seed, size=5) for seed in (1, 1, 2))
    assert torch.equal(once, again) and not torch.equal(once, other)
    for shuffled in (once, other):
        assert torch.equal(shuffled.flatten(1).sum(1).sort()[0], whole.flatten(1).sum(1).sort()[0])


def test_flips_mirror_about_half_the_photographs_and_nothing_else(photographs) -> None:
    photos = Photos(photographs(64, 16), 16)
    plain, flipped = (epoch_images(photos, seed=3, size=64, flip=flip) for flip in (False, True))
    same, mirrored = ((each == flipped).flatten(1).all(1) for each in (plain, plain.flip(-1)))
    assert (same | mirrored).all() and 16 < mirrored.sum() < 48


def test_random_crops_are_windows_of_their_photograph() -> None:
    """Of 0.6875 of the side; positions differ between photographs."""
    side = 64
    # red = column, green = row, so that a crop tells where it was taken
    ramp = np.arange(side, dtype=np.uint8)
    image = np.stack([*np.meshgrid(ramp, ramp), np.zeros((side, side), np.uint8)], -1)
    photos, corners = Photos(np.stack([image] * 20), side), set()
    for crop in epoch_images(photos, seed=1, size=1, crop=0.6875):
        assert crop.shape == (3, 48, 48)
        rgb = (lab_to_rgb(crop) * 255).round()
        column, row = int(rgb[0, 0, 0]), int(rgb[1, 0, 0])
        window = torch.from_numpy(image[row : row + 48, column : column + 48]).permute(2, 0, 1)
        assert torch.equal(rgb, window.float())
        corners.add((row, column))
    assert len(corners) > 10


def test_a_spread_sample_is_not_the_first_ones() -> None:
    photos = Photos(np.arange(10, dtype=np.uint8)[:, None, None, None].repeat(3, 3), 1)
    assert photos.spread(4).images.flatten()[::3].tolist() == [0, 3, 6, 9]
    assert len(photos.spread(99)) == 10


def streamed(images: np.ndarray, folder: Path, size: int) -> Photos:
    """The same photographs from shards of four, in another order than they lie in."""
    order = np.random.default_rng(1).permutation(len(images))
    lying = np.empty_like(images)
    lying[order] = images
    for number, shard in enumerate(np.split(lying, range(4, len(images), 4))):
        files.write_array(folder / f"crops-{number:05}.npy", shard)
    return Photos(Streamed(Crops(folder, order)), size)


@pytest.mark.parametrize("size", [32, 16])
def test_streamed_photographs_are_the_held_ones_in_the_same_order(photographs, tmp_path, size) -> None:
    """Bit for bit: scaled, cropped, mirrored, the part of one of two ranks."""
    images = photographs(23, 32)
    here, there = Photos(images, size), streamed(images, tmp_path, size)
    assert len(there) == 23 and there.bytes == here.bytes == 23 * size**2 * 3
    options = {"size": 5, "flip": True, "crop": 0.6875}
    pairs = [(here, there), (here.spread(6), there.spread(6)), (here.scaled(0.5), there.scaled(0.5))]
    for pair in (*pairs, (here, there.held())):
        held, other = (
            [*p.batches(4), *p.batches(4, 1, 2), *p.epoch(1, **options), *p.epoch(3, 5, rank=1, ranks=2)]
            for p in pair
        )
        for (light, ab), (other_light, other_ab) in zip(held, other, strict=True):
            assert torch.equal(light, other_light) and torch.equal(ab, other_ab)


def test_the_next_batches_are_read_while_one_is_worked_on(photographs, tmp_path: Path, monkeypatch) -> None:
    """So many and no more: the disk works ahead, and memory stays bounded."""
    photos, ahead = streamed(photographs(23, 16), tmp_path, 16), threading.Semaphore(0)
    read: list[int] = []
    original = Streamed._read

    def counted(self: Streamed, rows: np.ndarray) -> np.ndarray:
        read.append(len(rows))
        ahead.release()
        return original(self, rows)

    monkeypatch.setattr(Streamed, "_read", counted)
    batches = photos.epoch(1, 2)
    next(batches)
    assert all(ahead.acquire(timeout=30) for _ in range(1 + READ_AHEAD))
    assert not ahead.acquire(timeout=0.1) and read == [2] * (1 + READ_AHEAD)
    batches.close()


def test_ranks_share_every_batch(photographs) -> None:
    """Their parts, put together, are the batch of one process, crop positions and mirroring included."""
    photos = Photos(photographs(23, 16), 16)
    options = {"seed": 4, "size": 7, "flip": True, "crop": 0.5}
    parts = [list(photos.epoch(**options, rank=rank, ranks=3)) for rank in range(3)]
    for (light, ab), *own in zip(photos.epoch(**options), *parts, strict=True):
        assert torch.equal(light, torch.cat([part[0] for part in own]))
        assert torch.equal(ab, torch.cat([part[1] for part in own]))
    shares = [torch.cat([light for light, _ in photos.batches(4, rank, 3)]) for rank in range(3)]
    assert torch.equal(torch.cat(shares), torch.cat([light for light, _ in photos.batches(4)]))


def test_what_lies_before_the_first_batch_asked_for_is_not_read(photographs, tmp_path, monkeypatch) -> None:
    """The batches from there on are those of the whole epoch, held or streamed, also for the second rank."""
    images, read = photographs(23, 16), []
    original = Streamed._read
    monkeypatch.setattr(Streamed, "_read", lambda self, rows: read.extend(rows) or original(self, rows))
    for photos in (Photos(images, 16), streamed(images, tmp_path, 16)):
        epoch = partial(photos.epoch, 4, 5, flip=True, crop=0.5, rank=1, ranks=2)
        for ways in (epoch, partial(photos.batches, 4, 1, 2)):
            whole = list(ways())
            for start in (0, 2, len(whole)):
                read.clear()
                rest = list(ways(start=start))
                for (light, ab), (expected, color) in zip(rest, whole[start:], strict=True):
                    assert torch.equal(light, expected) and torch.equal(ab, color)
                lazily = isinstance(photos.images, Streamed)
                assert len(read) == (sum(len(light) for light, _ in rest) if lazily else 0)


def test_zoomed_windows_are_the_photograph_scaled(photographs) -> None:
    """As scikit-image scales bilinearly; the whole photograph at its own side is itself."""
    images = torch.from_numpy(photographs(2, 16))
    sides, corner, not_mirrored = torch.tensor([16.0, 16.0]), torch.zeros(2), torch.tensor([False, False])
    assert torch.equal(zoomed(images, sides, corner, corner, not_mirrored, 16), images)
    window = zoomed(images, sides / 2, corner + 4, corner + 2, torch.tensor([False, True]), 16).numpy()
    for image, found, mirrored in zip(images.numpy(), window, (False, True), strict=True):
        wanted = resize(image, (32, 32), order=1, mode="edge", preserve_range=True)[8:24, 4:20]
        wanted = wanted[:, ::-1] if mirrored else wanted
        assert np.abs(found - wanted).max() <= 1


def test_zoom_shows_other_windows_in_every_epoch_and_the_same_ones_for_a_seed(photographs) -> None:
    photos = Photos(photographs(4, 32), 32)
    first, again, other = (list(photos.epoch(seed, 2, crop=0.5, zoom=0.6)) for seed in (1, 1, 2))
    assert [light.shape for light, _ in first] == [(2, 1, 16, 16)] * 2
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])
    (late,) = photos.epoch(1, 2, crop=0.5, zoom=0.6, start=1)
    assert torch.equal(late[1], first[1][1])
