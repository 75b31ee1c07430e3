"""Degrade lightness as age and scanners do, so that a model can color old prints too.

Half of the photographs stay clean; each other one gets its own random tone curve, fading, vignette, blur,
grain and JPEG blocks. The target colors are not changed. The strengths match scans from the years 1900 to
1960. Random numbers come from torch's global generator.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

CLEAN = 0.5
"""Share of the photographs that stay as they are."""
SHARES = {"tone": 0.8, "fade": 0.6, "vignette": 0.3, "blur": 0.4, "grain": 0.5, "jpeg": 0.4}
"""Share of the other photographs that gets each degradation."""
GAMMA = 0.4
"""Largest absolute logarithm of the tone curve's exponent."""
FADE = 18.0
"""Largest L* by which black is lifted and white is lowered."""
VIGNETTE = 0.4
"""Largest share of the lightness that the corners lose."""
BLUR = (0.4, 1.4)
"""Standard deviation of the blur, in pixels."""
GRAIN = (1.0, 7.0)
"""Standard deviation of the grain, in L*."""
QUALITY = (15.0, 70.0)
"""JPEG quality of the Independent JPEG Group."""
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
"""Quantization steps of luminance at quality 50 (ITU-T T.81, Table K.1)."""


def degrade(light: Tensor) -> Tensor:
    """Degrade half of the photographs, each in its own way: L* [B, 1, H, W], 0 to 100, to the same."""
    count = len(light)
    degraded = torch.rand(count, device=light.device) >= CLEAN

    def chosen(name: str) -> Tensor:
        return (degraded & (torch.rand(count, device=light.device) < SHARES[name]))[:, None, None, None]

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
    """Return the squared distance from the center, [1, 1, H, W]: 0 at the center, 1 in the corners."""
    down, across = (torch.linspace(-1, 1, side, device=light.device) ** 2 for side in light.shape[-2:])
    return ((down[:, None] + across) / 2)[None, None]


def blur(light: Tensor, sigma: Tensor) -> Tensor:
    """Blur each photograph [B, 1, H, W] by a Gaussian of its own sigma [B, 1, 1, 1], in pixels."""
    reach = 4
    steps = torch.arange(-reach, reach + 1, device=light.device)
    taps = torch.exp(-0.5 * (steps / sigma) ** 2)
    taps = taps / taps.sum(-1, keepdim=True)
    # Photographs become channels, each with its own taps.
    maps = F.pad(light.transpose(0, 1), (reach,) * 4, mode="replicate")
    maps = F.conv2d(maps, taps, groups=len(light))
    return F.conv2d(maps, taps.mT, groups=len(light)).transpose(0, 1)


def jpeg(light: Tensor, quality: Tensor) -> Tensor:
    """Quantize the 8x8 blocks of each photograph [B, 1, H, W] as JPEG does at its quality [B, 1, 1, 1], 1 to
    99.

    Levels are L* times 2.55; the table is scaled as in the library of the Independent JPEG Group.
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
