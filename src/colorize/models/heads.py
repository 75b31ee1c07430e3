"""Heads: what a model predicts (ab, a distribution over bins of ab, or RGB), with its loss and decoding.

Any trunk can be trained with any head: the trunk ends in `head.channels` maps at any resolution. Targets are
averaged over areas to that resolution; predictions are scaled back bilinearly.

Source: Zhang et al. 2016, sections 2.1 to 2.3; document 000, section 2 (regression); documents 002 and 003
(RGB).

The code of Zhang et al. differs from their paper: 10 neighbors instead of 5, logits times 2.606 (a
temperature of 0.384), and no loss for grey photographs (`grey_below` 5). These are settings here. Their code
multiplies the gradient at the logits by the weight of the target's largest bin. That is the gradient of the
weighted loss, as here; only the loss that they print lacks the weight and the target's entropy. Their target
is every fourth pixel; ours is an average.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn import functional as F

from colorize import bins
from colorize.bins import Statistics
from colorize.color import lab_to_rgb, rgb_to_lab
from colorize.settings import Bins, Prior


@dataclass(frozen=True)
class HeadConfig:
    """Settings of a head."""

    kind: Literal["regression", "euclidean", "classification", "rgb"] = "regression"
    scale: Annotated[float, Gt(0)] = 128
    """regression: ab of an output of 1, in Lab units."""
    loss: Literal["squared", "charbonnier", "psnr"] = "squared"
    """regression: squared error, Charbonnier (less sensitive to outliers), or PSNR; see `Regression`."""
    saturation: Annotated[float, Ge(0), Le(4)] = 1
    """regression: factor on the prediction; 1 is closest to the truth, larger values give stronger colors."""
    bins: Bins = "gamut"
    """classification: the 313 bins of the gamut, or the cells of 10 x 10 that the training photographs
    occupy."""
    neighbors: Annotated[int, Ge(1), Le(313)] = 5
    """classification: bins of the soft encoding; 1 is one-hot."""
    sigma: Annotated[float, Gt(0)] = 5
    """classification: width of the soft encoding's Gaussian, in ab units."""
    weights: Prior = "none"
    """classification: the prior whose rebalancing weights enter the loss."""
    grey_below: Annotated[float, Ge(0)] = 0
    """classification: photographs whose |a*| and |b*| all stay below this, in Lab units, give no loss."""
    temperature: Annotated[float, Ge(0), Le(1)] = 0.38
    """classification: temperature of the annealed mean; 1 gives the mean, 0 the mode."""


def average_to(maps: Tensor, like: Tensor) -> Tensor:
    """Average maps [B, C, H, W] over areas to the smaller height and width of `like`."""
    return F.adaptive_avg_pool2d(maps, (like.shape[-2], like.shape[-1]))


def scale_to(maps: Tensor, like: Tensor) -> Tensor:
    """Scale maps [B, C, h, w] bilinearly to the height and width of `like`."""
    if maps.shape[-2:] == like.shape[-2:]:
        return maps
    return F.interpolate(maps, size=like.shape[-2:], mode="bilinear", align_corners=False)


class Head(nn.Module, ABC):
    """The interface of all heads."""

    channels: int
    """Number of maps that the trunk must return."""
    monitor: str = "loss"
    """The loss that early stopping and the loss curves watch."""

    @abstractmethod
    def losses(self, out: Tensor, light: Tensor, ab: Tensor) -> dict[str, Tensor]:
        """Return scalars for the trunk's output [B, channels, h, w] and the truth; "loss" is minimized."""

    @abstractmethod
    def decode(self, out: Tensor, light: Tensor) -> Tensor:
        """Return ab [B, 2, H, W] in Lab units at light's size."""


class Regression(Head):
    """Predicts ab through tanh. The error is in units of `scale`, so squared errors match document 000's
    losses.

    `charbonnier` is the mean of sqrt(|difference|^2 + 0.01^2) (Charbonnier et al. 1994). `psnr` is the mean
    over photographs of the logarithm of the mean squared error (Chen et al. 2021, HINet, section 3.3).
    """

    channels = 2

    def __init__(self, scale: float, loss: str = "squared", saturation: float = 1) -> None:
        super().__init__()
        self.scale, self.loss, self.saturation = scale, loss, saturation

    def losses(self, out: Tensor, light: Tensor, ab: Tensor) -> dict[str, Tensor]:
        difference = torch.tanh(out.float()) - average_to(ab, out) / self.scale
        if self.loss == "squared":
            return {"loss": difference.square().mean()}
        if self.loss == "psnr":
            return {"loss": (difference.square().mean((1, 2, 3)) + 1e-4).log().mean()}
        return {"loss": (difference.square().sum(1) + 1e-4).sqrt().mean()}

    def decode(self, out: Tensor, light: Tensor) -> Tensor:
        ab = torch.tanh(out.float()) * (self.scale * self.saturation)
        return scale_to(ab.clamp(-128, 128), light)


class Euclidean(Head):
    """Predicts ab in Lab units, clipped to -128..128; half the squared distance, summed over pixels.

    The loss is equation 1 of Zhang et al., averaged over photographs. The sum over pixels sets how much the
    weight decay of 1e-3 counts. `squared_error` is per pixel and channel, to compare crops of any size.
    """

    channels = 2
    monitor = "squared_error"

    def losses(self, out: Tensor, light: Tensor, ab: Tensor) -> dict[str, Tensor]:
        total = F.mse_loss(out.float(), average_to(ab, out), reduction="sum")
        return {"loss": total / (2 * len(out)), "squared_error": total.detach() / out.numel()}

    def decode(self, out: Tensor, light: Tensor) -> Tensor:
        return scale_to(out.float().clamp(-128, 128), light)


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split into single photographs on a CPU, which fit into its cache; not at all on a GPU."""
    size = 1 if tensors[0].device.type == "cpu" else len(tensors[0])
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


class _SoftCrossEntropy(torch.autograd.Function):
    """-sum(target * log_softmax(logits)) for a sparse target of K weights per pixel.

    Saves memory: the softmax is computed again for the gradient.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(logits, index, target)
        losses = [
            -(weight * F.log_softmax(part, dim=1, dtype=torch.float32).gather(1, near)).sum()
            for part, near, weight in _parts(logits, index, target)
        ]
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, index, target = ctx.saved_tensors
        grad = torch.empty_like(logits)
        for out, part, near, weight in _parts(grad, logits, index, target * gradients[0]):
            probs = F.softmax(part, dim=1, dtype=torch.float32)
            out.copy_(probs.mul_(weight.sum(1, keepdim=True)).scatter_add_(1, near, -weight))
        return grad, None, None


class Classification(Head):
    """Predicts a distribution over Q bins; soft-encoded, rebalanced cross-entropy; annealed mean.

    `loss` is summed over pixels and averaged over photographs, as in the paper; averaged over pixels, it
    would be too small against the weight decay. `cross_entropy` is the same per pixel, in nats, to compare
    crops of any size.
    """

    monitor = "cross_entropy"
    centers: Tensor
    candidates: Tensor | None
    class_weights: Tensor

    def __init__(
        self,
        neighbors: int,
        sigma: float,
        temperature: float,
        class_weights: Tensor,
        centers: Tensor | None = None,
        grey_below: float = 0,
    ) -> None:
        """Take settings of `HeadConfig`, class_weights [Q] and centers [Q, 2], by default of the 313 bins."""
        super().__init__()
        self.neighbors, self.sigma, self.temperature = min(neighbors, len(class_weights)), sigma, temperature
        self.grey_below = grey_below
        self.channels = len(class_weights)
        centers = torch.as_tensor(bins.centers() if centers is None else centers).float()
        # Contiguous like loaded weights, since the layout changes how sums are rounded.
        self.register_buffer("centers", centers.contiguous())
        self.register_buffer("class_weights", class_weights)
        self.register_buffer("candidates", None, persistent=False)

    def encode(self, ab: Tensor) -> tuple[Tensor, Tensor]:
        """Encode ab [B, 2, h, w], -130 to 130, by its nearest bins and their weights, both [B, K, h, w].

        Bins are ordered by distance, then by index. Weights are Gaussian in the distance and sum to 1 (Zhang
        et al. 2016, section 2.1).
        """
        if self.candidates is None:  # not in __init__: decoding does not need them, and centers may be loaded
            candidates = bins.candidates(self.centers.double().cpu().numpy(), self.neighbors)
            self.candidates = torch.from_numpy(candidates).to(ab.device)
        tile = ((ab + bins.EDGE) / bins.TILE).floor().long().clamp(0, len(self.candidates) - 1)
        near = self.candidates[tile[:, 0], tile[:, 1]]  # [B, h, w, M]
        (a, b), (middle_a, middle_b) = ab[..., None].unbind(1), self.centers.unbind(1)
        square = (a - middle_a[near]) ** 2 + (b - middle_b[near]) ** 2
        square, order = (ranked[..., : self.neighbors] for ranked in square.sort(stable=True))
        index, weight = near.gather(-1, order), F.softmax(-square / (2 * self.sigma**2), dim=-1)
        return index.movedim(-1, 1), weight.movedim(-1, 1)

    def losses(self, out: Tensor, light: Tensor, ab: Tensor) -> dict[str, Tensor]:
        with torch.autocast(ab.device.type, enabled=False):
            index, target = self.encode(average_to(ab, out))
            target = target * self.class_weights[index[:, :1]]
            if self.grey_below:
                target = target * (ab.abs().amax((1, 2, 3), keepdim=True) >= self.grey_below)
            total = _SoftCrossEntropy.apply(out, index, target)
        photos, pixels = len(out), out.shape[-2] * out.shape[-1]
        return {"loss": total / photos, "cross_entropy": total.detach() / (photos * pixels)}

    def decode(self, out: Tensor, light: Tensor) -> Tensor:
        if not self.temperature:
            return scale_to(self.centers[out.argmax(1)].permute(0, 3, 1, 2), light)
        probs = F.softmax(out.float() / self.temperature, dim=1)
        return scale_to(torch.einsum("bqhw,qc->bchw", probs, self.centers), light)


class Rgb(Head):
    """Predicts RGB in -1 to 1; mean squared error; decoded to the ab of the RGB."""

    channels = 3

    def target(self, light: Tensor, ab: Tensor) -> Tensor:
        """Return the true photograph as RGB [B, 3, H, W] in -1 to 1."""
        return 2 * lab_to_rgb(torch.cat((light, ab), dim=1)) - 1

    def losses(self, out: Tensor, light: Tensor, ab: Tensor) -> dict[str, Tensor]:
        return {"loss": F.mse_loss(out.float(), self.target(light, ab))}

    def decode(self, out: Tensor, light: Tensor) -> Tensor:
        return scale_to(rgb_to_lab(self.rgb(out))[:, 1:], light)

    def rgb(self, out: Tensor) -> Tensor:
        """Return the prediction as RGB [B, 3, h, w] in 0 to 1."""
        return (out.float().clamp(-1, 1) + 1) / 2


def build_head(config: HeadConfig, statistics: Statistics | None, centers: Tensor | None = None) -> Head:
    """Build the head of a block.

    Args:
        statistics: source of the bins and the rebalancing weights; None if weights will be loaded.
        centers: bins [Q, 2] of those weights, by default the 313.

    Raises:
        InputError: the prior stage did not get the prior of the block.
    """
    if config.kind == "regression":
        return Regression(config.scale, config.loss, config.saturation)
    if config.kind == "euclidean":
        return Euclidean()
    if config.kind == "rgb":
        return Rgb()
    if statistics is not None:
        centers = torch.tensor(statistics.centers(config.bins))
    class_weights = torch.ones(bins.Q if centers is None else len(centers))
    if statistics is not None and config.weights != "none":
        class_weights = torch.tensor(statistics.weights(config.weights, config.bins), dtype=torch.float32)
    return Classification(
        config.neighbors, config.sigma, config.temperature, class_weights, centers, config.grey_below
    )
