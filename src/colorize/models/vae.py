"""Variational autoencoder: document 000's Model 2V, after Deshpande et al.

"Colourising Greyscale Images with Autoencoders", 2022, sections 2.4 and 2.5.8: the encoder of Model 2 (11 layers for
256x256 input, 5x5 kernels in some), 64 latent dimensions, loss = reconstruction + alpha KL(N(mu, sigma^2) || N(0, I)).
It reads the lightness, as all of that document's models do, not the color that Deshpande et al. (CVPR 2017) encode. The
document gives neither channels nor alpha; ours are below and in the params block. Trained with a sample of the latent
vector, scored with its mean.
"""

import torch
from torch import Tensor, nn

from colorize.heads import Head
from colorize.models._base import Colorizer, Setup
from colorize.models._blocks import conv, fitting, kaiming_

ENCODER = (  # channels, kernel, stride
    (32, 5, 2), (32, 3, 1), (64, 5, 2), (64, 3, 1), (128, 5, 2), (128, 3, 1),
    (256, 3, 2), (256, 3, 1), (512, 3, 2), (512, 3, 1), (512, 3, 2),
)  # fmt: skip


class Latent(nn.Module):
    """The whole network: encoder, latent vector, decoder. It keeps the last mu and log variance for the loss."""

    def __init__(self, outputs: int, size: int, latent: int, batch_norm: bool) -> None:
        super().__init__()
        layers, inputs, sides = [], 1, [size]
        for channels, kernel, stride in ENCODER:
            layers.append(conv(inputs, channels, fitting(kernel, sides[-1]), stride, batch_norm))
            inputs = channels
            if stride == 2:
                sides.append(-(-sides[-1] // 2))
        self.encoder = nn.Sequential(*layers)
        self.narrow = (inputs, sides[-1], sides[-1])
        flat = inputs * sides[-1] ** 2
        self.to_moments = nn.Linear(flat, 2 * latent)
        self.from_latent = nn.Linear(latent, flat)
        self.decoder = nn.Sequential()
        widths = [channels for channels, _, stride in ENCODER if stride == 2]
        for i, o, side in zip(widths[::-1], [*widths[-2::-1], widths[0]], sides[-2::-1], strict=True):
            self.decoder.append(nn.Upsample(size=(side, side))).append(conv(i, o, 3, 1, batch_norm))
        self.decoder.append(nn.Conv2d(widths[0], outputs, 3, padding=1))

    def forward(self, light: Tensor) -> Tensor:
        moments = self.to_moments(self.encoder(light).flatten(1)).float()
        self.mean, log_variance = moments.chunk(2, dim=1)
        self.log_variance = log_variance.clamp(-10, 10)  # exp beyond that overflows early in training
        code = self.mean
        if self.training:
            code = code + torch.randn_like(code) * (self.log_variance / 2).exp()
        return self.decoder(self.from_latent(code).unflatten(1, self.narrow))


class Model(Colorizer):
    any_size = False
    monitor = "reconstruction"
    net: Latent

    def __init__(self, head: Head, setup: Setup, latent: int = 64, batch_norm: bool = False, kl: float = 1e-5) -> None:
        super().__init__(head, setup)
        self.kl = kl
        self.net = Latent(head.channels, setup.size, latent, batch_norm)
        kaiming_(self.net)

    def losses(self, phase: str, light: Tensor, ab: Tensor) -> dict[str, Tensor]:
        losses = super().losses(phase, light, ab)
        losses["reconstruction"] = losses[self.head.monitor].detach()
        mean, log_variance = self.net.mean, self.net.log_variance
        losses["kl"] = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=1).mean()
        losses["loss"] = losses["loss"] + self.kl * losses["kl"]
        return losses
