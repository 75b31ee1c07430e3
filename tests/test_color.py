"""sRGB <-> Lab against scikit-image."""

import numpy as np
import torch
from skimage.color import lab2rgb, rgb2lab

from colorize.color import bytes_to_lab, bytes_to_light, grey_rgb, lab_to_clipped_rgb, lab_to_rgb, rgb_to_lab


def channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.moveaxis(images, -1, -3), dtype=torch.float32)


def test_lab_of_many_colors_equals_scikit_image() -> None:
    """Every 5th level of each channel, to 1e-3."""
    levels = np.arange(0, 256, 5) / 255
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(52, -1, 3)
    ours = np.moveaxis(rgb_to_lab(channels_first(cube)).numpy(), -3, -1)
    assert np.abs(ours - rgb2lab(cube)).max() < 1e-3


def test_lab_of_bytes_is_that_of_their_shares() -> None:
    """All levels of each channel, bit for bit, and to 1e-3 scikit-image's."""
    levels = (
        np.random.default_rng(2)
        .permuted(np.tile(np.arange(256), (3, 1)), axis=1)
        .T.reshape(16, 16, 3)
        .astype(np.uint8)
    )
    found = bytes_to_lab(torch.from_numpy(levels).permute(2, 0, 1))
    assert torch.equal(found, rgb_to_lab(channels_first(levels) / 255))
    assert np.abs(np.moveaxis(found.numpy(), 0, -1) - rgb2lab(levels)).max() < 1e-3


def test_lab_of_a_batch_of_bytes_is_scikit_images_to_a_ten_thousandth() -> None:
    """Every third level of each channel as photographs of odd sides, more than a cache holds, in either layout."""
    levels = np.arange(0, 256, 3, dtype=np.uint8)
    images = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(86, 43, 172, 3)
    for batch in (
        torch.from_numpy(images).permute(0, 3, 1, 2),
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
    ):
        assert np.abs(bytes_to_lab(batch).permute(0, 2, 3, 1).numpy() - rgb2lab(images)).max() < 1e-4
        assert np.abs(bytes_to_light(batch)[:, 0].numpy() - rgb2lab(images)[..., 0]).max() < 1e-4


def test_the_way_back_is_exact_in_uint8() -> None:
    """RGB -> Lab -> RGB gives every level back."""
    rgb = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3))
    back = lab_to_rgb(rgb_to_lab(channels_first(rgb / 255)))
    assert torch.equal((back * 255).round(), channels_first(rgb))


def test_clipped_are_the_colors_that_do_not_come_back() -> None:
    """Of random L*, a and b: what is not clipped is the same color again, what is clipped is another one."""
    lab = torch.from_numpy(
        np.random.default_rng(2).uniform([1, -120, -120], [99, 120, 120], (64, 64, 3))
    ).float()
    lab = lab.permute(2, 0, 1)
    rgb, clipped = lab_to_clipped_rgb(lab)
    off = (rgb_to_lab(rgb) - lab).abs().amax(0)
    assert off[~clipped].max() < 0.01 < 0.5 < off[clipped].median() and 0.2 < clipped.float().mean() < 0.9


def test_colors_outside_the_gamut_are_clipped_as_scikit_image_clips_them() -> None:
    """Saturated ab that no sRGB color has, to half a level."""
    random = np.random.default_rng(1)
    lab = random.uniform([5, -110, -110], [95, 110, 110], (32, 32, 3))
    ours = np.moveaxis(lab_to_rgb(channels_first(lab)).numpy(), -3, -1)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about negative Z
        theirs = lab2rgb(lab)
    assert np.abs(ours - theirs).max() < 0.5 / 255
    assert ours.min() >= 0 and ours.max() <= 1


def test_conversion_has_finite_gradients_everywhere() -> None:
    """Black, white and out-of-gamut colors included."""
    lab = (
        torch.tensor([[0.0, 0, 0], [100, 0, 0], [50, 110, -110], [1, -80, 80]])
        .T.reshape(3, 4, 1)
        .requires_grad_()
    )
    lab_to_rgb(lab).sum().backward()
    rgb = torch.tensor([[0.0, 0, 0], [1, 1, 1], [0.04045, 0.5, 0]]).T.reshape(3, 3, 1).requires_grad_()
    rgb_to_lab(rgb).sum().backward()
    assert torch.isfinite(lab.grad).all() and torch.isfinite(rgb.grad).all()


def test_gradients_of_lab_are_its_slopes() -> None:
    """Of colors on both sides of either knee, against differences."""
    rgb = torch.tensor(
        [[0.01, 0.03, 0.02], [0.08, 0.1, 0.12], [0.2, 0.01, 0.9], [1, 0, 0.5]], dtype=torch.float64
    )
    assert torch.autograd.gradcheck(rgb_to_lab, rgb.T.reshape(3, 4, 1).requires_grad_(), eps=1e-7, atol=1e-4)


def test_grey_photograph_has_equal_channels() -> None:
    """ab = 0 is grey, and L* = 100 is white."""
    grey = grey_rgb(torch.tensor([0.0, 50, 100]).reshape(1, 3, 1))
    assert (grey.amax(0) - grey.amin(0)).max() < 1e-4
    assert torch.allclose(grey[:, -1], torch.ones(3, 1), atol=1e-4)
