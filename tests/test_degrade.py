"""Degradations of the lightness, against SciPy and Pillow."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from colorize.data import degrade


def _light(photographs, count: int = 4) -> torch.Tensor:
    grey = photographs(count, 64).mean(-1).round()
    return torch.from_numpy(grey[:, None] / 2.55).float()


def test_about_half_stay_as_they_are_and_none_leaves_the_range(photographs) -> None:
    """Every degraded photograph differs from the others; equal seeds degrade equally."""
    light = _light(photographs, 1).repeat(200, 1, 1, 1)
    torch.manual_seed(0)
    found = degrade.degrade(light)
    torch.manual_seed(0)
    assert torch.equal(degrade.degrade(light), found)
    assert found.shape == light.shape and found.min() >= 0 and found.max() <= 100
    same = sum(torch.allclose(one, light[0], atol=1e-3) for one in found)
    assert 75 < same < 130
    assert len({round(float(one.mean()), 4) for one in found}) > 60


def test_blur_is_scipy_s_gaussian(photographs) -> None:
    """Each photograph by its own sigma."""
    light = _light(photographs, 2)
    found = degrade.blur(light, torch.tensor([0.6, 1.3])[:, None, None, None])
    for one, blurred, sigma in zip(light, found, (0.6, 1.3), strict=True):
        expected = gaussian_filter(one[0].numpy(), sigma, mode="nearest", radius=4)
        assert np.abs(blurred[0].numpy() - expected).max() < 1e-3


@pytest.mark.parametrize("quality", [15, 50, 70])
def test_blocks_are_those_of_a_jpeg(photographs, quality: int) -> None:
    """Pillow's file of the same grey levels and quality differs by rounding only."""
    light = _light(photographs, 1)
    levels = (light[0, 0] * 2.55).round().numpy().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "JPEG", quality=quality)
    expected = np.asarray(Image.open(buffer)).astype(float)
    found = degrade.jpeg(light, torch.full((1, 1, 1, 1), float(quality)))[0, 0].numpy() * 2.55
    assert np.abs(found - expected).mean() < 0.3 < np.abs(levels - expected).mean()
