"""What age and scanners do to a photograph's lightness, so that a model colors old prints as well as new ones.

Each photograph of a batch gets its own random degradations: tone curve, fading, vignette, blur, grain and JPEG blocks. Half
of them stay as they are. Colors are not touched: the model learns the colors of the clean photograph from a poor
copy of its lightness. The strengths cover what scans of the years 1900 to 1960 show. Random numbers are torch's own.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

CLEAN = 0.5
"""Share of the photographs that stay as they are."""
SHARES = {"tone": 0.8, "fade": 0.6, "vignette": 0.3, "blur": 0.4, "grain": 0.5, "jpeg": 0.4}
"""Of the others: share that gets each degradation."""
GAMMA = 0.4
"""Natural logarithm of the strongest tone curve's exponent."""
FADE = 18.0
"""L* by which black is lifted, and white lowered, at most."""
VIGNETTE = 0.4
"""Share of the lightness that corners lose at most."""
BLUR = (0.4, 1.4)
"""Standard deviation of the blur, in pixels."""
GRAIN = (1.0, 7.0)
"""Standard deviation of the grain, in L*."""
QUALITY = (15.0, 70.0)
"""JPEG's quality, as the Independent JPEG Group defines it."""
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
"""Steps of the luminance's frequencies at quality 50 (ITU-T T.81, Table K.1)."""


def degrade(light: Tensor) -> Tensor:
    """Degrade half of the photographs, each in its own way.

    Args:
        light: [B, 1, H, W], L* in 0 to 100.

    Returns:
        The same shape and range.
    """
    count = len(light)
    spoilt = torch.rand(count, device=light.device) >= CLEAN

    def chosen(name: str) -> Tensor:
        return (spoilt & (torch.rand(count, device=light.device) < SHARES[name]))[:, None, None, None]

    def between(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(count, device=light.device))[:, None, None, None]

    exponent = torch.where(chosen("tone"), between(-GAMMA, GAMMA).exp(), 1)
    light = 100 * (light / 100).clamp(0, 1) ** exponent
    faded = chosen("fade")
    black, white = torch.where(faded, between(0, FADE), 0), torch.where(faded, between(0, FADE), 0)
    light = black + light * (1 - (black + white) / 100)
    light = light * (1 - torch.where(chosen("vignette"), between(0, VIGNETTE), 0) * _from_center(light))
    light = torch.where(chosen("blur"), blur(light, between(*BLUR)), light)
    light = light + torch.where(chosen("grain"), between(*GRAIN), 0) * torch.randn_like(light)
    light = light.clamp(0, 100)
    return torch.where(chosen("jpeg"), jpeg(light, between(*QUALITY)), light)


def _from_center(light: Tensor) -> Tensor:
    """Squared distance from the center, [1, 1, H, W]: 0 there, 1 in the corners."""
    down, across = (torch.linspace(-1, 1, side, device=light.device) ** 2 for side in light.shape[-2:])
    return ((down[:, None] + across) / 2)[None, None]


def blur(light: Tensor, sigma: Tensor) -> Tensor:
    """Blur each photograph [B, 1, H, W] by a Gaussian of its own sigma [B, 1, 1, 1], in pixels; edges are continued."""
    reach = 4
    steps = torch.arange(-reach, reach + 1, device=light.device)
    taps = torch.exp(-0.5 * (steps / sigma) ** 2)
    taps = taps / taps.sum(-1, keepdim=True)
    maps = F.pad(
        light.transpose(0, 1), (reach,) * 4, mode="replicate"
    )  # photographs as channels, each with its taps
    maps = F.conv2d(maps, taps, groups=len(light))
    return F.conv2d(maps, taps.mT, groups=len(light)).transpose(0, 1)


def jpeg(light: Tensor, quality: Tensor) -> Tensor:
    """Quantize the 8x8 blocks of each photograph [B, 1, H, W] as JPEG does at its quality [B, 1, 1, 1], 1 to 99.

    Levels are L* times 2.55, the table is that of the Independent JPEG Group's library.
    """
    rows, columns = light.shape[-2:]
    light = F.pad(light, (0, -columns % 8, 0, -rows % 8), mode="replicate")
    count, _, height, width = light.shape
    blocks = light.reshape(count, height // 8, 8, width // 8, 8).movedim(2, 3) * 2.55 - 128
    frequency = torch.arange(8, device=light.device)
    cosines = torch.cos((2 * frequency + 1) * frequency[:, None] * torch.pi / 16) / 2
    cosines[0] /= 2**0.5
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    table = torch.tensor(LUMINANCE, device=light.device)
    steps = ((table * scale[..., None] + 50) / 100).floor().clamp(1, 255)
    levels = (cosines @ blocks @ cosines.T / steps).round() * steps
    blocks = (cosines.T @ levels @ cosines + 128).round().clamp(0, 255) / 2.55
    return blocks.movedim(3, 2).reshape(light.shape)[..., :rows, :columns]
