"""The data set on the device: nothing lost, everything a function of the seed."""

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab
from skimage.transform import downscale_local_mean

from colorize.batches import Photos, area_resize, share_of, to_light_ab


def epoch_images(photos: Photos, **options) -> torch.Tensor:
    return torch.cat([torch.cat(batch, dim=1) for batch in photos.epoch(**options)])


def test_area_resize_averages_as_scikit_image_does(photographs) -> None:
    """Halving and quartering, to the rounding of uint8."""
    images = photographs(3, 32)
    for factor in (2, 4):
        ours = area_resize(torch.tensor(images), 32 // factor).numpy()
        theirs = downscale_local_mean(images, (1, factor, factor, 1))
        assert np.abs(ours - theirs).max() <= 0.5


def test_area_resize_refuses_to_enlarge(photographs) -> None:
    """It is for shrinking only."""
    with pytest.raises(ValueError, match="only shrinks"):
        area_resize(torch.tensor(photographs(1, 16)), 32)


def test_light_and_ab_are_those_of_scikit_image(photographs) -> None:
    """In Lab units, nothing normalized."""
    images = photographs(2, 16)
    light, ab = to_light_ab(torch.tensor(images))
    lab = np.moveaxis(rgb2lab(images), -1, 1)
    assert np.abs(torch.cat((light, ab), 1).numpy() - lab).max() < 1e-3


def test_an_epoch_hands_out_every_photograph_once(photographs) -> None:
    """In batches whose lengths differ by at most one; the order is another each epoch."""
    photos = Photos(photographs(23, 16), 16)
    sizes = [len(light) for light, _ in photos.epoch(seed=1, size=5)]
    assert sum(sizes) == 23 and max(sizes) <= 5 and max(sizes) - min(sizes) <= 1
    whole = torch.cat([torch.cat(batch, dim=1) for batch in photos.batches(10)])
    once, again, other = (epoch_images(photos, seed=seed, size=5) for seed in (1, 1, 2))
    assert torch.equal(once, again) and not torch.equal(once, other)
    for shuffled in (once, other):
        assert torch.equal(shuffled.flatten(1).sum(1).sort()[0], whole.flatten(1).sum(1).sort()[0])


def test_flips_mirror_about_half_the_photographs_and_nothing_else(photographs) -> None:
    """Every photograph comes as it is or as its mirror image."""
    photos = Photos(photographs(64, 16), 16)
    plain = epoch_images(photos, seed=3, size=64)
    flipped = epoch_images(photos, seed=3, size=64, flip=True)
    same = (plain == flipped).flatten(1).all(1)
    mirrored = (plain.flip(-1) == flipped).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 16 < mirrored.sum() < 48


def test_random_crops_are_windows_of_their_photograph() -> None:
    """176 of 256 in document 001: 0.6875 of the side, rounded to 8 pixels; positions differ between photographs."""
    side = 64
    # red = column, green = row, so that a crop tells where it was taken
    ramp = np.arange(side, dtype=np.uint8)
    image = np.stack([*np.meshgrid(ramp, ramp), np.zeros((side, side), np.uint8)], -1)
    photos = Photos(np.stack([image] * 20), side)
    assert [light.shape[-1] for light, _ in photos.epoch(1, 20, crop=0.6875)] == [48]
    whole = torch.cat(to_light_ab(torch.tensor(image[None])), 1)[0]
    corners = set()
    for crop in epoch_images(photos, seed=1, size=20, crop=0.6875):
        matches = [(i, j) for i in range(17) for j in range(17) if torch.equal(whole[:, i : i + 48, j : j + 48], crop)]
        assert len(matches) == 1
        corners.add(matches[0])
    assert len(corners) > 10


def test_two_photographs_never_make_a_batch_of_one() -> None:
    """Batch norm needs two: 17 photographs in batches of 16 become 9 + 8."""
    photos = Photos(np.zeros((17, 8, 8, 3), np.uint8), 8)
    assert sorted(len(light) for light, _ in photos.epoch(1, 16)) == [8, 9]


def test_a_spread_sample_is_not_the_first_ones() -> None:
    """Sets are sorted by source: 4 of 10 are numbers 0, 3, 6 and 9; asking for more than there are gives all."""
    photos = Photos(np.arange(10, dtype=np.uint8)[:, None, None, None].repeat(3, 3), 1)
    assert photos.spread(4).images.flatten()[::3].tolist() == [0, 3, 6, 9]
    assert len(photos.spread(99)) == 10


@pytest.mark.parametrize(
    ("side", "share", "expected"), [(608, 0.3684, 224), (256, 0.6875, 176), (64, 0.3684, 24), (14, 0.99, 14), (64, 0.01, 8)]
)
def test_shares_of_a_side_are_multiples_of_8(side: int, share: float, expected: int) -> None:
    """224 of 608 in document 004, 176 of 256 in document 001; never below 8, never above the side."""
    assert share_of(side, share) == expected


def test_scaled_photographs_are_averages_of_the_whole_ones(photographs) -> None:
    """All of them, in the same order; a share of 1 copies nothing."""
    photos = Photos(photographs(3, 32), 32)
    half = photos.scaled(0.5)
    assert np.abs(half.images.numpy() - downscale_local_mean(photos.images.numpy(), (1, 2, 2, 1))).max() <= 0.5
    assert photos.scaled(1).images.data_ptr() == photos.images.data_ptr()
