"""Autoencoder after Deshpande et al., plain and variational: document 000's Models 2 and 2V.

"Colourising Greyscale Images with Autoencoders", 2022, sections 2.4 and 2.5.8. Like all models of that
document, it reads the lightness; Deshpande et al. (CVPR 2017) encode color, see deshpande_mdn.py. The encoder
has 11 layers, some of them 5x5. Six of them halve the size, so that 256x256 ends at 4x4, like the original's
64x64. Model 2 decodes these maps. Model 2V (`latent: 64`) decodes them through a latent vector: loss =
reconstruction + alpha KL(N(mu, sigma^2) || N(0, I)), trained with a sample of the vector, evaluated with its
mean. The document gives neither channels nor alpha; ours are below and in the params block. It uses L1 on the
encoder's weights for all models except the VAE.
"""

import torch
from torch import Tensor, nn

from colorize.models.base import Colorizer, Setup, with_l1
from colorize.models.blocks import conv, kaiming_
from colorize.models.heads import Head

ENCODER = (  # channels, kernel, stride
    (32, 5, 2), (32, 3, 1), (64, 5, 2), (64, 3, 1), (128, 5, 2), (128, 3, 1),
    (256, 3, 2), (256, 3, 1), (512, 3, 2), (512, 3, 1), (512, 3, 2),
)  # fmt: skip


class Autoencoder(nn.Module):
    """Encoder, latent vector if `latent` > 0, decoder; it keeps the last mu and log variance for the loss."""

    def __init__(self, outputs: int, size: int, latent: int, batch_norm: bool) -> None:
        super().__init__()
        layers, inputs, sides = [], 1, [size]
        for channels, kernel, stride in ENCODER:
            layers.append(conv(inputs, channels, kernel, stride, batch_norm))
            inputs = channels
            if stride == 2:
                sides.append(-(-sides[-1] // 2))
        self.encoder = nn.Sequential(*layers)
        self.latent = latent
        if latent:
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
        maps = self.encoder(light)
        return self.decoder(self.through_latent(maps) if self.latent else maps)

    def through_latent(self, maps: Tensor) -> Tensor:
        """Encode maps to the latent vector (in training, a sample of it) and decode it to maps."""
        moments = self.to_moments(maps.flatten(1)).float()
        self.mean, log_variance = moments.chunk(2, dim=1)
        self.log_variance = log_variance.clamp(-10, 10)  # exp would overflow early in training
        code = self.mean
        if self.training:
            code = code + torch.randn_like(code) * (self.log_variance / 2).exp()
        return self.from_latent(code).unflatten(1, self.narrow)

    def kl(self) -> Tensor:
        """Return KL(N(mu, sigma^2) || N(0, I)) of the last batch, averaged over photographs."""
        return 0.5 * (self.mean**2 + self.log_variance.exp() - 1 - self.log_variance).sum(dim=1).mean()


class Model(Colorizer):
    monitor = "reconstruction"
    any_size = False
    net: Autoencoder

    def __init__(
        self,
        head: Head,
        setup: Setup,
        latent: int = 0,
        batch_norm: bool = False,
        l1: float = 0,
        kl: float = 0,
    ) -> None:
        super().__init__(head, setup)
        self.l1, self.kl = l1, kl
        self.net = Autoencoder(head.channels, setup.size, latent, batch_norm)
        kaiming_(self.net)

    def losses(self, phase: str, light: Tensor, ab: Tensor) -> dict[str, Tensor]:
        losses = with_l1(super().losses(phase, light, ab), self.head.monitor, self.net.encoder, self.l1)
        if self.net.latent:
            losses["kl"] = self.net.kl()
            losses["loss"] = losses["loss"] + self.kl * losses["kl"]
        return losses
