"""Convolutional autoencoders: document 000's Models 0 and 0T.

"Colourising Greyscale Images with Autoencoders", 2022, section 2.4. The document gives 5 encoder layers, 3x3
kernels, channels that are powers of two, and a decoder of convolution + upsampling, but neither channel
numbers nor strides. Ours: 32 to 512 channels, all encoder layers strided, a mirrored decoder. Model 0T has
transposed convolutions of stride 2 instead of upsampling + convolution. The document blames its artifacts on
a kernel that the stride does not divide, so they are 3x3 too. The loss includes L1 on the encoder's weights
(lambda 1e-3 in the document, which drives the encoder to zero: see LOG.md). Batch norm is optional, and off
in the document.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from colorize.models.base import Colorizer, Setup, with_l1
from colorize.models.blocks import conv, kaiming_
from colorize.models.heads import Head


def transposed_conv(inputs: int, outputs: int, batch_norm: bool) -> nn.Sequential:
    """Build a transposed convolution that doubles the size, an optional batch norm and a ReLU."""
    convolution = nn.ConvTranspose2d(inputs, outputs, 3, 2, 1, output_padding=1)
    norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
    return nn.Sequential(convolution, *norm, nn.ReLU(inplace=True))


class Model(Colorizer):
    monitor = "reconstruction"
    net: nn.Sequential

    def __init__(
        self,
        head: Head,
        setup: Setup,
        channels: Sequence[int],
        batch_norm: bool = False,
        l1: float = 0,
        transposed: bool = False,
    ) -> None:
        super().__init__(head, setup)
        self.l1 = l1
        encoder = nn.Sequential()
        for i, o in pairwise((1, *channels)):
            encoder.append(conv(i, o, 3, 2, batch_norm))
        decoder = nn.Sequential()
        for i, o in pairwise((*reversed(channels), channels[0])):
            if transposed:
                decoder.append(transposed_conv(i, o, batch_norm))
            else:
                decoder.append(nn.Upsample(scale_factor=2)).append(conv(i, o, 3, 1, batch_norm))
        self.net = nn.Sequential(encoder, decoder, nn.Conv2d(channels[0], head.channels, 3, padding=1))
        kaiming_(self.net)

    def losses(self, phase: str, light: Tensor, ab: Tensor) -> dict[str, Tensor]:
        return with_l1(super().losses(phase, light, ab), self.head.monitor, self.net[0], self.l1)
