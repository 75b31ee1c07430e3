"""Diverse colorization, Deshpande et al., CVPR 2017: the source of document 000's Models 2 and 2V.

arXiv:1612.01958. A conditional variational autoencoder of the color field, 64x64 for photographs of 256 (a
quarter of the side, within 16 to 64 pixels), and a mixture density network that predicts matching latent
vectors from the grey photograph. The layers, losses and loss weights are those of the paper's code, with its
skips from grey.

Differences: histogram weights are capped and mixed (uncapped they reach 1.6e8). Every loss, also the KL term,
is a mean over the batch. The specificity term is used together with the skips (in the paper's code only
without them). There is no batch norm around the last layer, with which it learned half as fast. The paper's
mixture network reads features of a pretrained colorization network; ours has its own convolutions on the
photograph, one hidden layer of 1024 instead of 4096, and the full likelihood instead of the closest
component's. The public code confuses a and b; we follow the paper.

The 20 principal components of the training fields, about the mean color, are not known in advance. An
incremental singular value decomposition of all fields seen in training estimates them; it is kept in buffers,
so that resuming is exact. The prediction decodes the mean of the likeliest component; samples are drawn from
the mixture.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from colorize import bins
from colorize.distributed import all_gather_rows
from colorize.files import InputError
from colorize.models.base import Colorizer, Colors, Setup
from colorize.models.blocks import kaiming_
from colorize.models.heads import Head, Regression

PRINCIPAL = 20
LEAST_DEVIATION = 0.5
"""Smallest standard deviation along a component, in Lab units: the rounding of 8 bits. It matters for few
fields."""
LAST_SCALE = 0.03
"""Scale of the last convolution's output. Without it, one step of Adam on its 3,200 inputs would saturate
tanh."""


def sampled(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Draw a sample of each Gaussian, all [B, latent]."""
    return mean + torch.randn_like(mean) * (log_variance / 2).exp()


def layer(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Build a padded convolution, ReLU and batch norm, in the original's order."""
    padding = nn.ZeroPad2d(((kernel - 1) // 2, kernel // 2) * 2)
    convolution = nn.Conv2d(inputs, outputs, kernel, stride)
    return nn.Sequential(padding, convolution, nn.ReLU(), nn.BatchNorm2d(outputs))


class FieldVae(nn.Module):
    """Color field [B, 2, f, f] in -1..1 to a latent vector and, with the grey field [B, 1, f, f] in -1..1,
    back."""

    def __init__(self, field: int, width: int, latent: int, dropout: float) -> None:
        super().__init__()
        w = width  # 128 in the paper's code
        down = [
            layer(2, w, 5, 2),
            layer(w, 2 * w, 5, 2),
            layer(2 * w, 4 * w, 5, 2),
            layer(4 * w, 8 * w, 4, 2),
        ]
        flat = 8 * w * (-(-field // 16)) ** 2
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Dropout(dropout), nn.Linear(flat, 2 * latent))
        grey = [
            layer(1, w, 5, 2),
            layer(w, 2 * w, 5, 2),
            layer(2 * w, 4 * w, 5, 2),
            layer(4 * w, latent, 4, 2),
        ]
        self.grey = nn.ModuleList(grey)
        up = [
            layer(latent, 8 * w, 4),
            layer(12 * w, 4 * w, 5),
            layer(6 * w, 2 * w, 5),
            layer(3 * w, w, 5)[:-1],
        ]
        self.decoder = nn.ModuleList(up)
        self.last = nn.Conv2d(w, 2, 5, padding=2)

    def encode(self, field: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latent vector, [B, latent] each."""
        mean, log_variance = self.encoder(field).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-10, 10)  # exp would overflow early in training

    def skips(self, grey: Tensor) -> list[Tensor]:
        """Return the grey field and its maps for `decode`, the largest first."""
        maps = [grey]
        for down in self.grey:
            maps.append(down(maps[-1]))
        return maps

    def decode(self, code: Tensor, skips: list[Tensor]) -> Tensor:
        """Decode a latent vector [B, latent] to the field [B, 2, f, f] before tanh."""
        grey, *between, smallest = skips
        maps = self.decoder[0](code[:, :, None, None] * smallest)
        for up, skip in zip(self.decoder[1:], reversed(between), strict=True):
            maps = up(torch.cat((F.interpolate(maps, skip.shape[-2:]), skip), dim=1))
        return LAST_SCALE * self.last(F.interpolate(maps, grey.shape[-2:]))


class Mixture(nn.Module):
    """Grey photograph [B, 1, s, s] in -1..1 to log weights [B, K] and means [B, K, latent] of Gaussians."""

    def __init__(self, size: int, components: int, latent: int, dropout: float) -> None:
        super().__init__()
        self.shape = (components, latent + 1)
        layers, inputs, side = nn.Sequential(), 1, size
        while side > 4:
            outputs = min(512, max(64, 2 * inputs))
            layers.append(layer(inputs, outputs, 5, 2))
            inputs, side = outputs, -(-side // 2)
        hidden = [nn.Flatten(), nn.Dropout(dropout), nn.Linear(inputs * side**2, 1024), nn.Tanh()]
        self.net = nn.Sequential(layers, *hidden, nn.Linear(1024, components * (latent + 1)))

    def forward(self, grey: Tensor) -> tuple[Tensor, Tensor]:
        out = self.net(grey).float().unflatten(1, self.shape)
        return out[:, :, 0].log_softmax(1), out[:, :, 1:]


class Model(Colorizer):
    phases = ("vae", "mdn")
    monitor = "reconstruction"
    any_size = False
    head: Regression
    weights: Tensor
    mean: Tensor
    factors: Tensor
    seen: Tensor
    steps: Tensor

    def __init__(
        self,
        head: Head,
        setup: Setup,
        width: int = 128,
        latent: int = 64,
        dropout: float = 0.3,
        gradient: float = 1e-3,
        specificity: float = 0.1,
        kl: float = 1e-2,
        kl_ramp: int = 1000,
        components: int = 8,
        sigma: float = 0.1,
    ) -> None:
        if not isinstance(head, Regression):
            remedy = "set its head.kind to regression"
            raise InputError(f"a deshpande_mdn predicts ab through its own losses; {remedy}")
        super().__init__(head, setup)
        self.gradient, self.specificity, self.sigma = gradient, specificity, sigma
        self.kl, self.kl_ramp = kl, kl_ramp
        self.field = min(64, max(16, setup.size // 4), setup.size)
        weights, mean = torch.ones(bins.Q), torch.zeros(2)
        if setup.statistics:
            weights = torch.tensor(setup.statistics.weights("empirical"), dtype=torch.float32)
            mean = torch.tensor(setup.statistics.arrays["mean_ab"], dtype=torch.float32)
        lattice = torch.ones(27, 27)
        lattice[tuple(torch.tensor(bins.centers().T) // bins.STEP + 13)] = weights
        self.register_buffer("weights", lattice)  # of the bins, by a / 10 + 13 and b / 10 + 13
        self.register_buffer("mean", mean[:, None, None] / head.scale)
        self.register_buffer("factors", torch.zeros(PRINCIPAL, 2 * self.field**2))  # components, scaled
        self.register_buffer("seen", torch.tensor(0))  # number of fields in them
        self.register_buffer("steps", torch.tensor(0))  # of training, for the KL ramp
        self.vae = FieldVae(self.field, width, latent, dropout)
        self.mdn = Mixture(setup.size, components, latent, dropout)
        kaiming_(self)

    def skips(self, light: Tensor) -> list[Tensor]:
        """Return the decoder's skips for light [B, 1, H, W]."""
        return self.vae.skips(F.adaptive_avg_pool2d(light, self.field) / 50 - 1)

    def predict(self, light: Tensor, samples: int = 1) -> Colors:
        log_weights, means = self.mdn(light / 50 - 1)
        rows, skips = torch.arange(len(means)), self.skips(light)
        codes = [means[rows, log_weights.argmax(1)]]
        if samples > 1:
            codes += self.draw_codes(log_weights, means, samples).unbind(1)
        likeliest, *others = (self.head.decode(self.vae.decode(code, skips), light) for code in codes)
        return Colors(likeliest, samples=torch.stack(others, dim=1) if others else None)

    def draw_codes(self, log_weights: Tensor, means: Tensor, count: int) -> Tensor:
        """Draw latent vectors [B, count, latent] from the mixtures."""
        random = torch.Generator().manual_seed(0)  # every photograph gets the same noise, in any batch
        gumbel = -torch.empty(count, self.mdn.shape[0]).exponential_(generator=random).log()
        noise = torch.randn(count, self.mdn.shape[1] - 1, generator=random)
        chosen = (log_weights[:, None] + gumbel.to(means.device)).argmax(2)
        return means[torch.arange(len(means))[:, None], chosen] + self.sigma * noise.to(means.device)

    def losses(self, phase: str, light: Tensor, ab: Tensor) -> dict[str, Tensor]:
        ab = F.adaptive_avg_pool2d(ab, self.field)
        return self.vae_losses(light, ab) if phase == "vae" else self.mdn_losses(light, ab / self.head.scale)

    def vae_losses(self, light: Tensor, ab: Tensor) -> dict[str, Tensor]:
        field = ab / self.head.scale
        mean, log_variance = self.vae.encode(field)
        if self.training:
            self.steps += 1
            self.learn_components(field)
        code = sampled(mean, log_variance) if self.training else mean
        error = torch.tanh(self.vae.decode(code, self.skips(light)).float()) - field
        a, b = ((ab / bins.STEP).round().long() + 13).clamp(0, 26).unbind(1)
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean()
        terms = {
            "histogram": (self.weights[a, b].sqrt()[:, None] * error).flatten(1).norm(dim=1).mean(),
            "gradient": sum(error.diff(dim=dim).flatten(1).norm(dim=1).mean() for dim in (2, 3)),
            "specificity": self.specific(error.flatten(1)),
            "kl": kl,
        }
        ramp = (self.steps / self.kl_ramp).clamp(max=1)
        loss = terms["histogram"] + self.gradient * terms["gradient"]
        loss = loss + self.specificity * terms["specificity"] + ramp * self.kl * kl
        return {"loss": loss, "reconstruction": (error**2).mean()} | terms

    def mdn_losses(self, light: Tensor, field: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            self.vae.eval()  # no dropout, as for the vectors of the decoder
            mean, log_variance = self.vae.encode(field)
            self.vae.train(self.training)
            code = sampled(mean, log_variance) if self.training else mean
        log_weights, means = self.mdn(light / 50 - 1)
        distance = ((code[:, None] - means) ** 2).sum(2)
        loss = -(log_weights - distance / (2 * self.sigma**2)).logsumexp(1).mean()  # up to a constant
        return {"loss": loss, "mixture": loss.detach()}

    @torch.no_grad()
    def learn_components(self, field: Tensor) -> None:
        """Add fields [B, 2, f, f] to the incremental singular value decomposition."""
        field = all_gather_rows(field)
        rows = torch.cat((self.factors, (field - self.mean).flatten(1)))
        _, strengths, axes = torch.linalg.svd(rows, full_matrices=False)
        self.factors.copy_(strengths[:PRINCIPAL, None] * axes[:PRINCIPAL])
        self.seen += len(field)

    def specific(self, error: Tensor) -> Tensor:
        """Return the squared errors [B, 2 f f] along and beside the components, relative to their
        variances."""
        least = error.shape[1] * (LEAST_DEVIATION / self.head.scale) ** 2
        variances = (self.factors.square().sum(1) / self.seen.clamp(min=1)).clamp(min=least)
        with torch.autocast(error.device.type, enabled=False):
            along = (error @ F.normalize(self.factors).T).square()
        beside = error.square().sum(1) - along.sum(1)
        return ((along / variances).sum(1) + beside / variances[-1]).mean()
