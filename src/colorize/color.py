"""Convert sRGB to CIE L*a*b* and back, in torch, on any device.

White point D65, 2 degree observer. The constants are scikit-image's; both agree to 1e-3 in float32. The
conversions are differentiable.

Source: IEC 61966-2-1 (sRGB); CIE 15 (L*a*b*).
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

WHITE = (0.95047, 1.0, 1.08883)
RGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
KNEE = 0.008856
"""Below this share of the white point, the cube root of L*a*b* continues as a line."""

_TO_XYZ = np.array(RGB_TO_XYZ) / np.array(WHITE)[:, None]
_MATRICES = _TO_XYZ.tolist(), np.linalg.inv(_TO_XYZ).tolist()  # plain numbers: constants of an exported model


@cache
def _matrices(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return linear RGB to XYZ relative to the white point, and its inverse. Cached: a copy to a GPU
    blocks."""
    with torch.inference_mode(False):  # a tensor made in inference mode passes no gradient
        forward, backward = (torch.tensor(matrix, dtype=dtype, device=device) for matrix in _MATRICES)
    return forward, backward


def _mix(matrix: Tensor, channels: Tensor) -> Tensor:
    return torch.einsum("ij,...jhw->...ihw", matrix, channels)


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Convert sRGB [..., 3, H, W], 0 to 1, to L*a*b*: L* 0 to 100, a* and b* about -110 to 110."""
    return _linear_to_lab(_to_linear(rgb))


def bytes_to_lab(images: Tensor) -> Tensor:
    """Convert uint8 sRGB [..., 3, H, W] to float32 L*a*b*; a table replaces the powers."""
    lab = torch.empty(images.shape, device=images.device)
    levels = _linear_bytes(images.device)
    photos, result = (t.reshape(-1, *images.shape[-3:]) for t in (images, lab))
    step = len(photos)
    if images.device.type == "cpu":  # as many images as fit into the cache, since memory is slow
        step = max(1, (1 << 16) // (images.shape[-2] * images.shape[-1]))
    for part, out in zip(photos.split(step), result.split(step), strict=True):
        linear = levels.index_select(0, part.int().flatten()).view(part.shape)
        out.copy_(_linear_to_lab(linear))
    return lab


def bytes_to_light(images: Tensor) -> Tensor:
    """Return only the L* of uint8 sRGB [..., 3, H, W]: float32 [..., 1, H, W], 0 to 100."""
    linear = _linear_bytes(images.device).index_select(0, images.int().flatten()).view(images.shape)
    red, green, blue = _TO_XYZ[1].tolist()
    y = red * linear[..., :1, :, :] + green * linear[..., 1:2, :, :] + blue * linear[..., 2:, :, :]
    return 116 * _compressed(y) - 16


@cache
def _linear_bytes(device: torch.device) -> Tensor:
    """Return the linear light [256] of each of the 256 levels."""
    return _to_linear(torch.arange(256, device=device) / 255)


def _to_linear(rgb: Tensor) -> Tensor:
    return torch.where(rgb > 0.04045, ((rgb.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)


def _linear_to_lab(linear: Tensor) -> Tensor:
    xyz = _mix(_matrices(linear.device, linear.dtype)[0], linear)
    x, y, z = _compressed(xyz).unbind(-3)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=-3)


def _compressed(xyz: Tensor) -> Tensor:
    """Take the cube root of L*a*b*, which is a line below `KNEE`."""
    # The sum takes half the time of torch.where, and log2 with exp2 half the time of pow.
    root = (xyz.clamp_min(KNEE).log2() / 3).exp2()
    return root + (7.787 * xyz + (16 / 116 - KNEE ** (1 / 3))).clamp_max(0)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Convert L*a*b* [..., 3, H, W] to sRGB, 0 to 1; colors outside the gamut are clipped to it."""
    return lab_to_clipped_rgb(lab)[0]


def lab_to_clipped_rgb(lab: Tensor) -> tuple[Tensor, Tensor]:
    """Convert as `lab_to_rgb`; also return which pixels were clipped: bool [..., H, W]."""
    lightness, a, b = lab.unbind(-3)
    y = (lightness + 16) / 116
    z = y - b / 200
    # A blue outside the gamut would need a negative Z; scikit-image clips it too.
    f = torch.stack((y + a / 500, y, z.clamp_min(0)), dim=-3)
    xyz = torch.where(f > 0.2068966, f**3, (f - 16 / 116) / 7.787)
    linear = _mix(_matrices(lab.device, lab.dtype)[1], xyz)
    encoded = 1.055 * (linear.clamp_min(0.0031308).log2() / 2.4).exp2() - 0.055
    rgb = torch.where(linear > 0.0031308, encoded, 12.92 * linear)
    least, most = linear.aminmax(dim=-3)
    return rgb.clamp(0, 1), (least < 0) | (most > 1) | (z < 0)


def grey_rgb(light: Tensor) -> Tensor:
    """Convert lightness [..., 1, H, W], L* 0 to 100, to a grey sRGB image [..., 3, H, W], 0 to 1."""
    return lab_to_rgb(torch.cat((light, torch.zeros_like(light), torch.zeros_like(light)), dim=-3))
