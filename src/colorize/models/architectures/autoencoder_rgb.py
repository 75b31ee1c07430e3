"""Convolutional autoencoder from grey to RGB: document 002's baseline.

"Image Colorization", APS360 group 10: five encoding and five decoding layers, batch 128, learning rate 1e-4,
25 epochs; its text says no more. Ours: 3x3 kernels, ReLU, encoding layers that halve the size, decoding
layers that upsample and convolve, tanh at the end, and no skips, which only its generator has. The loss is
the mean absolute error, which the document prefers to the squared error; `mae` is logged over RGB in 0..1,
the document's metric.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from colorize.color import grey_rgb
from colorize.files import InputError
from colorize.models.base import Colorizer, Setup
from colorize.models.blocks import conv, kaiming_
from colorize.models.heads import Head, Rgb


class Model(Colorizer):
    monitor = "mae"
    any_size = False
    head: Rgb

    def __init__(self, head: Head, setup: Setup, channels: Sequence[int]) -> None:
        if not isinstance(head, Rgb):
            raise InputError("an autoencoder_rgb predicts RGB; set its head.kind to rgb")
        super().__init__(head, setup)
        encoder, decoder = nn.Sequential(), nn.Sequential()
        inputs, sides = 1, [setup.size]
        for outputs in channels:
            encoder.append(conv(inputs, outputs, 3, 2))
            inputs = outputs
            sides.append(-(-sides[-1] // 2))
        for outputs, side in zip(channels[-2::-1], sides[-2:0:-1], strict=True):
            decoder.append(nn.Upsample(size=(side, side))).append(conv(inputs, outputs))
            inputs = outputs
        decoder.append(nn.Upsample(size=(setup.size, setup.size)))
        decoder.append(nn.Conv2d(inputs, head.channels, 3, padding=1))
        self.net = nn.Sequential(encoder, decoder)
        kaiming_(self.net)

    def out(self, light: Tensor) -> Tensor:
        return torch.tanh(self.net(2 * grey_rgb(light)[:, :1] - 1))

    def losses(self, phase: str, light: Tensor, ab: Tensor) -> dict[str, Tensor]:
        error = F.l1_loss(self.out(light).float(), self.head.target(light, ab))
        return {"loss": error, "mae": error.detach() / 2}
