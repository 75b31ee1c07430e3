"""Conditional GAN: document 002, after pix2pix.

"Image Colorization", APS360 group 10, and Isola et al., CVPR 2017, arXiv:1611.07004. U-Net generator: 4
strided convolutions, 4 transposed ones, a last convolution, skips, batch norm, leaky ReLU, dropout. PatchGAN
discriminator, conditioned on the grey photograph: four 4x4 convolutions with strides 2, 2, 1, 1, whose
receptive field is the document's 34x34. No common padding gives the document's 27x27 patches at 144 pixels;
padding 1 gives 34x34. Generator loss = BCE + 80 MAE over RGB in -1..1; discriminator loss = mean of the BCE
on real and on generated. The document gives no initialization: N(0, 0.02), as in pix2pix. `mae` is logged
over RGB in 0..1, document 002's metric.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from colorize.color import grey_rgb
from colorize.files import InputError
from colorize.models.base import Colorizer, Setup
from colorize.models.heads import Head, Rgb

DISCRIMINATOR_STRIDES = (2, 2, 1, 1)


class Generator(nn.Module):
    """Grey [B, 1, H, W] in -1..1 to RGB [B, 3, H, W] in -1..1; H and W must divide by 16."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        inputs = 1
        for step, channels in enumerate(widths):
            norm = [nn.BatchNorm2d(channels)] if step else []
            self.down.append(nn.Sequential(nn.Conv2d(inputs, channels, 4, 2, 1), *norm, nn.LeakyReLU(0.2)))
            inputs = channels
        for step, channels in enumerate((*widths[-2::-1], width)):
            convolution = nn.ConvTranspose2d(inputs, channels, 4, 2, 1)
            layers = convolution, nn.BatchNorm2d(channels), nn.LeakyReLU(0.2)
            self.up.append(nn.Sequential(*layers, nn.Dropout(dropout if step < 2 else 0)))
            inputs = 2 * channels
        self.last = nn.Conv2d(width + 1, 3, 3, padding=1)

    def forward(self, grey: Tensor) -> Tensor:
        skips = [grey]
        for layer in self.down:
            skips.append(layer(skips[-1]))
        maps = skips.pop()
        for layer in self.up:
            maps = torch.cat((layer(maps), skips.pop()), dim=1)
        return torch.tanh(self.last(maps))


def discriminator(width: int) -> nn.Sequential:
    """Build the map from grey and RGB, stacked [B, 4, H, W], to one logit per 34x34 patch."""
    layers: list[nn.Module] = []
    inputs = 4
    for step, stride in enumerate(DISCRIMINATOR_STRIDES[:-1]):
        channels = width * 2**step
        layers.append(nn.Conv2d(inputs, channels, 4, stride, 1))
        if step:
            layers.append(nn.BatchNorm2d(channels))
        layers.append(nn.LeakyReLU(0.2))
        inputs = channels
    return nn.Sequential(*layers, nn.Conv2d(inputs, 1, 4, DISCRIMINATOR_STRIDES[-1], 1))


def _adversarial(logits: Tensor, real: bool) -> Tensor:
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))


class Model(Colorizer):
    any_size = False  # sides must divide by 16
    phases = ("generator", "discriminator")
    monitor = "mae"
    head: Rgb

    def __init__(
        self, head: Head, setup: Setup, width: int = 64, dropout: float = 0.5, mae: float = 80
    ) -> None:
        if not isinstance(head, Rgb) or setup.size % 16:
            raise InputError(f"a cgan needs head.kind rgb and a size that divides by 16, not {setup.size}")
        super().__init__(head, setup)
        self.mae = mae
        self.generator = Generator(width, dropout)
        self.discriminator = discriminator(width)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(layer.weight, 0, 0.02)

    def out(self, light: Tensor) -> Tensor:
        return self.generator(2 * grey_rgb(light)[:, :1] - 1)

    def losses(self, phase: str, light: Tensor, ab: Tensor) -> dict[str, Tensor]:
        grey = 2 * grey_rgb(light)[:, :1] - 1
        real = self.head.target(light, ab)
        if phase == "generator":
            fake = self.generator(grey)
            adversarial = _adversarial(self.discriminator(torch.cat((grey, fake), dim=1)), real=True)
            error = F.l1_loss(fake.float(), real)
            loss = adversarial + self.mae * error
            return {"loss": loss, "generator_loss": loss.detach(), "mae": error.detach() / 2}
        with torch.no_grad():
            fake = self.generator(grey)
        on_real = _adversarial(self.discriminator(torch.cat((grey, real), dim=1)), real=True)
        on_fake = _adversarial(self.discriminator(torch.cat((grey, fake), dim=1)), real=False)
        loss = (on_real + on_fake) / 2
        return {"loss": loss, "discriminator_loss": loss.detach()}
