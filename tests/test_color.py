"""sRGB <-> Lab against scikit-image."""

import numpy as np
import pytest
import torch
from skimage.color import lab2rgb, rgb2lab

from colorize.color import bytes_to_lab, bytes_to_light, grey_rgb, lab_to_clipped_rgb, lab_to_rgb, rgb_to_lab


def channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.moveaxis(images, -1, -3), dtype=torch.float32)


def test_lab_of_many_colors_equals_scikit_image() -> None:
    """Every 5th level of each channel, to 1e-3; bytes are their shares of 255, bit for bit."""
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(52, -1, 3)
    ours = rgb_to_lab(channels_first(cube) / 255)
    assert np.abs(np.moveaxis(ours.numpy(), 0, -1) - rgb2lab(cube)).max() < 1e-3
    assert torch.equal(bytes_to_lab(torch.from_numpy(cube).permute(2, 0, 1)), ours)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_lab_of_a_batch_of_bytes_equals_scikit_image(layout: torch.memory_format) -> None:
    """Every third level of each channel as photographs of odd sides, more than a cache holds, to 1e-4."""
    levels = np.arange(0, 256, 3, dtype=np.uint8)
    images = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(86, 43, 172, 3)
    batch, lab = (
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=layout),
        rgb2lab(images),
    )
    assert np.abs(bytes_to_lab(batch).permute(0, 2, 3, 1).numpy() - lab).max() < 1e-4
    assert np.abs(bytes_to_light(batch)[:, 0].numpy() - lab[..., 0]).max() < 1e-4


def test_the_way_back_is_exact_in_uint8() -> None:
    """RGB -> Lab -> RGB gives every level back; ab = 0 is grey, and L* = 100 is white."""
    rgb = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3))
    back = lab_to_rgb(rgb_to_lab(channels_first(rgb / 255)))
    assert torch.equal((back * 255).round(), channels_first(rgb))
    grey = grey_rgb(torch.tensor([0.0, 50, 100]).reshape(1, 3, 1))
    assert (grey.amax(0) - grey.amin(0)).max() < 1e-4
    assert torch.allclose(grey[:, -1], torch.ones(3, 1), atol=1e-4)


def test_clipped_are_the_colors_that_do_not_come_back() -> None:
    """Of random L*, a and b: what is not clipped is the same color again, what is clipped is another one."""
    random = np.random.default_rng(2).uniform([1, -120, -120], [99, 120, 120], (64, 64, 3))
    lab = channels_first(random)
    rgb, clipped = lab_to_clipped_rgb(lab)
    off = (rgb_to_lab(rgb) - lab).abs().amax(0)
    assert off[~clipped].max() < 0.01 < 0.5 < off[clipped].median() and 0.2 < clipped.float().mean() < 0.9


@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")
def test_colors_outside_the_gamut_are_clipped_as_scikit_image_clips_them() -> None:
    """To half a level."""
    lab = np.random.default_rng(1).uniform([5, -110, -110], [95, 110, 110], (32, 32, 3))
    ours = np.moveaxis(lab_to_rgb(channels_first(lab)).numpy(), -3, -1)
    assert np.abs(ours - lab2rgb(lab)).max() < 0.5 / 255
    assert ours.min() >= 0 and ours.max() <= 1


def test_gradients_of_lab_are_its_slopes() -> None:
    """Of colors on both sides of either knee, against differences; finite everywhere."""
    rgb = torch.tensor([[0.01, 0.03, 0.02], [0.08, 0.1, 0.12], [0.2, 0.01, 0.9], [1, 0, 0.5]]).double()
    assert torch.autograd.gradcheck(rgb_to_lab, rgb.T.reshape(3, 4, 1).requires_grad_(), eps=1e-7, atol=1e-4)
    lab = [[0.0, 0, 0], [100, 0, 0], [50, 110, -110], [1, -80, 80]]
    for there, colors in ((lab_to_rgb, lab), (rgb_to_lab, [[0.0, 0, 0], [1, 1, 1], [0.04045, 0.5, 0]])):
        given = torch.tensor(colors).T[..., None].contiguous().requires_grad_()
        there(given).sum().backward()
        assert torch.isfinite(given.grad).all()
