"""U-Net on an ImageNet-pretrained EfficientNet-Lite0: the project's own colorizer.

No document describes it; document 000 asks for its two ideas, a feature extractor and more data. The encoder
(Tan and Le 2019, see efficientnet.py) recognizes what a photograph shows, which decides its colors. It reads
the grey photograph of the lightness. The decoder is a light U-Net (Ronneberger et al. 2015) up to a quarter
or a half of the size: 1x1 convolutions before each bilinear upsampling, one residual 3x3 convolution after
it. The pooled features of the whole photograph are added at every place.

With pretrained `weights`, the batch norms keep their statistics and the first `frozen` stages are not
trained, since small batches would damage both. Without weights, everything is trained from Kaiming
initialization.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from colorize.color import grey_rgb
from colorize.files import InputError
from colorize.models.base import Colorizer, Setup
from colorize.models.blocks import kaiming_
from colorize.models.efficientnet import FEATURES, STAGES, STRIDE, Trunk, load_lite0_
from colorize.models.heads import Head

SKIPPED = (112, 40, 24, 16)
"""Channels of the encoder's maps at strides 16, 8, 4 and 2."""


class Up(nn.Module):
    """Maps [B, inputs, h, w] to twice the size, added to the encoder's maps [B, skipped, 2h, 2w]."""

    def __init__(self, inputs: int, skipped: int, outputs: int) -> None:
        super().__init__()
        # A 1x1 convolution commutes with bilinear upsampling, and costs a quarter before it.
        self.below = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.beside = nn.Conv2d(skipped, outputs, 1, bias=False)
        self.joined = nn.BatchNorm2d(outputs)
        self.refine = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.refined = nn.BatchNorm2d(outputs)

    def forward(self, maps: Tensor, skip: Tensor) -> Tensor:
        larger = F.interpolate(self.below(maps), scale_factor=2.0, mode="bilinear", align_corners=False)
        maps = F.relu(self.joined(larger + self.beside(skip)))
        return maps + F.relu(self.refined(self.refine(maps)))


class Network(nn.Module):
    """Grey photographs [B, 1, H, W] in 0..1, H and W divisible by 32, to maps [B, outputs, h, w].

    With four numbers of `channels`, h and w are a quarter of the size; with five, a half.
    """

    def __init__(self, outputs: int, trunk: Trunk, channels: Sequence[int]) -> None:
        super().__init__()
        self.encoder = trunk
        widest = STAGES[-1][-1]
        self.bottom, self.whole = nn.Conv2d(widest, channels[0], 1), nn.Linear(FEATURES, channels[0])
        widths = zip(channels[:-1], SKIPPED, channels[1:], strict=False)
        self.decoder = nn.ModuleList(Up(below, beside, above) for below, beside, above in widths)
        self.last = nn.Conv2d(channels[-1], outputs, 1)
        kaiming_(self)
        nn.init.normal_(self.last.weight, std=0.01)  # the first predictions are nearly grey

    def forward(self, grey: Tensor) -> Tensor:
        *skips, top = self.encoder(grey)
        maps = F.relu(self.bottom(top) + self.whole(self.encoder.pooled(top))[:, :, None, None])
        for up, skip in zip(self.decoder, reversed(skips), strict=False):
            maps = up(maps, skip)
        return self.last(maps)


class Model(Colorizer):
    net: Network

    def __init__(
        self,
        head: Head,
        setup: Setup,
        channels: Sequence[int] = (192, 128, 80, 48),
        frozen: int = 2,
        weights: str = "",
        sha256: str = "",
    ) -> None:
        super().__init__(head, setup)
        if len(channels) not in (4, 5):
            problem = f"network.channels holds {len(channels)} numbers"
            raise InputError(f"{problem}; give 4 (a quarter of the size) or 5 (a half)")
        trunk = Trunk(1, fixed=bool(weights), frozen=frozen if weights else 0)
        self.net = Network(head.channels, trunk, channels)
        if weights:
            self.pretrained = ("net.encoder",)
        if setup.pretrained is not None:
            load_lite0_(trunk, setup.pretrained, weights)
        # A quarter faster on a CPU; torch's type stubs lack the argument.
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def out(self, light: Tensor) -> Tensor:
        height, width = light.shape[-2:]
        grey = F.pad(grey_rgb(light)[:, :1], (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        stride = STRIDE >> len(self.net.decoder)
        return self.net(grey)[..., : height // stride, : width // stride]
