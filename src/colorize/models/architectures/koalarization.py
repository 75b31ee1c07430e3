"""Deep Koalarization, and document 000's Model 1, which is the same without the feature extractor.

Baldassarre, Morín, Rodés-Guirao, 2017, arXiv:1712.03400, and "Colourising Greyscale Images with
Autoencoders", 2022, section 2.4.1. Encoder of 8 convolutions to an eighth of the size, a 1x1 convolution, and
a decoder that ends with an upsampling. The document omits the extractor: its 1x1 convolution has 256 inputs
and outputs, which gives the 6.32 M parameters of the published code. The document also has L1 on the
encoder's weights, and optional batch norm, which it leaves out because of green artifacts.

With an extractor, a feature vector of the whole photograph is repeated over the encoder's maps and fused by
the 1x1 convolution. The original uses the 1,001 logits of Inception-ResNet-v2; we use the 512 features of
ResNet-18 after its global average. `weights` (path or URL, with `sha256`) are loaded and frozen, as in the
original; without them the extractor is trained from scratch. It reads photographs at the working size, not at
299.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from colorize.files import InputError
from colorize.models.base import Colorizer, Setup, with_l1
from colorize.models.blocks import conv, kaiming_, upsampling_decoder
from colorize.models.heads import Head
from colorize.models.resnet import WIDTHS, Trunk, load_torchvision_

ENCODER = ((64, 2), (128, 1), (128, 2), (256, 1), (256, 2), (512, 1), (512, 1), (256, 1))  # channels, stride


class Network(nn.Module):
    """Light [B, 1, H, W] in -1..1 to maps [B, outputs, H, W]."""

    def __init__(self, outputs: int, extractor: Trunk | None, batch_norm: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential()
        inputs = 1
        for channels, stride in ENCODER:
            self.encoder.append(conv(inputs, channels, 3, stride, batch_norm))
            inputs = channels
        self.extractor = extractor
        self.fusion = conv(inputs + (0 if extractor is None else WIDTHS[-1]), inputs, 1, 1, batch_norm)
        self.decoder = upsampling_decoder(inputs, outputs, batch_norm)

    def forward(self, light: Tensor) -> Tensor:
        maps = self.encoder(light)
        if self.extractor is not None:
            features = self.extractor(light).mean((2, 3), keepdim=True)
            maps = torch.cat((maps, features.expand(-1, -1, *maps.shape[-2:])), dim=1)
        return self.decoder(self.fusion(maps))


class Model(Colorizer):
    monitor = "reconstruction"
    net: Network

    def __init__(
        self,
        head: Head,
        setup: Setup,
        batch_norm: bool = False,
        l1: float = 0,
        extractor: Literal["none", "resnet18"] = "none",
        weights: str = "",
        sha256: str = "",
    ) -> None:
        if extractor not in ("none", "resnet18") or (weights and extractor == "none"):
            problem = f"weights belong to resnet18, not to {extractor!r}"
            raise InputError(f"network.extractor is none or resnet18, and {problem}")
        super().__init__(head, setup)
        self.l1 = l1
        trunk = Trunk(4, frozen=bool(weights)) if extractor == "resnet18" else None
        self.net = Network(head.channels, trunk, batch_norm)
        kaiming_(self.net)
        if trunk is not None and setup.pretrained is not None:
            load_torchvision_(trunk, setup.pretrained, weights)

    def losses(self, phase: str, light: Tensor, ab: Tensor) -> dict[str, Tensor]:
        return with_l1(super().losses(phase, light, ab), self.head.monitor, self.net.encoder, self.l1)
