"""What a model predicts: ab directly, a distribution over bins of ab, or RGB; with its loss and its decoding.

A head is separate from the trunk, so that any trunk can be trained with any head: the trunk ends in
`head.channels` maps at whatever resolution it has, the head does the rest. Targets are brought to that resolution by
averaging areas; predictions are brought back bilinearly.

Source: Zhang et al. 2016, sections 2.1 to 2.3; document 000, section 2 (regression); documents 002 and 003 (RGB). The
code that Zhang et al. released differs from their paper: 10 neighbors instead of 5, logits times 2.606 (a temperature of
0.384), no loss from grey photographs (`grey_below` 5): settings here. It multiplies the gradient at the logits by the weight
of the target's largest bin, which is the gradient of the loss times that weight, as here; only the loss it prints lacks the
weight, and the target's entropy. It takes every fourth pixel as target, where ours are averages.
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
    """What a model predicts, and so its loss and its decoding."""

    kind: Literal["regression", "euclidean", "classification", "rgb"] = "regression"
    scale: Annotated[float, Gt(0)] = 128
    """regression: the ab value that an output of 1 stands for, in Lab units."""
    loss: Literal["squared", "charbonnier", "psnr"] = "squared"
    """regression: squared error, or the distance in ab with a rounded tip (Charbonnier), which far-off colors pull less."""
    saturation: Annotated[float, Ge(0), Le(4)] = 1
    """regression: what is predicted times this is painted; 1 comes closest to the truth, above it colors are bolder."""
    bins: Bins = "gamut"
    """classification: the 313 bins around the gamut, or the cells of 10 x 10 that the training photographs occupy."""
    neighbors: Annotated[int, Ge(1), Le(313)] = 5
    """classification: bins of the soft encoding; 1 is one-hot."""
    sigma: Annotated[float, Gt(0)] = 5
    """classification: width of the soft encoding's Gaussian, in ab units."""
    weights: Prior = "none"
    """classification: the prior whose rebalancing weights enter the loss."""
    grey_below: Annotated[float, Ge(0)] = 0
    """classification: photographs in which no |a*| and no |b*| reaches this, in Lab units, give no loss."""
    temperature: Annotated[float, Ge(0), Le(1)] = 0.38
    """classification: of the annealed mean; 1 is the mean, 0 the mode."""


def average_to(maps: Tensor, like: Tensor) -> Tensor:
    """Average maps [B, C, H, W] over areas to the smaller height and width of `like`."""
    return F.adaptive_avg_pool2d(maps, (like.shape[-2], like.shape[-1]))


def scale_to(maps: Tensor, like: Tensor) -> Tensor:
    """Scale maps [B, C, h, w] bilinearly to the height and width of `like`."""
    if maps.shape[-2:] == like.shape[-2:]:
        return maps
    return F.interpolate(maps, size=like.shape[-2:], mode="bilinear", align_corners=False)


class Head(nn.Module, ABC):
    """What every head promises."""

    channels: int
    """Maps that the trunk must end in."""
    monitor: str = "loss"
    """Which of the losses early stopping and the loss curves watch."""

    @abstractmethod
    def losses(self, out: Tensor, light: Tensor, ab: Tensor) -> dict[str, Tensor]:
        """Scalars from the trunk's output [B, channels, h, w] and the truth; "loss" is minimized."""

    @abstractmethod
    def decode(self, out: Tensor, light: Tensor) -> Tensor:
        """ab [B, 2, H, W] in Lab units at light's size."""


class Regression(Head):
    """ab through tanh; the error is in units of `scale`, so that squared errors compare with document 000's losses.

    `charbonnier` is the mean of sqrt(|difference|^2 + 0.01^2) (Charbonnier et al. 1994). `psnr` is the mean over
    photographs of the logarithm of the mean squared error (Chen et al. 2021, HINet, section 3.3): what PSNR counts.
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
    """ab in Lab units as it comes, clipped to -128..128; half its squared distance, summed over a photograph's pixels.

    So Zhang et al., equation 1, averaged over the photographs: the fewer pixels a loss is summed over, the more a weight
    decay of 1e-3 counts against it. `squared_error` is per pixel and channel, so that crops of any size compare.
    """

    channels = 2
    monitor = "squared_error"

    def losses(self, out: Tensor, light: Tensor, ab: Tensor) -> dict[str, Tensor]:
        total = F.mse_loss(out.float(), average_to(ab, out), reduction="sum")
        return {"loss": total / (2 * len(out)), "squared_error": total.detach() / out.numel()}

    def decode(self, out: Tensor, light: Tensor) -> Tensor:
        return scale_to(out.float().clamp(-128, 128), light)


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Photograph by photograph on a CPU, whose cache holds one; all at once on a GPU."""
    size = 1 if tensors[0].device.type == "cpu" else len(tensors[0])
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


class _SoftCrossEntropy(torch.autograd.Function):
    """-sum(target * log_softmax(logits)) with a target of K weights per pixel; never a dense one of Q.

    Nothing of the logits' size is kept but the gradient: the shares are computed anew for it.
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
        slope = torch.empty_like(logits)
        for out, part, near, weight in _parts(slope, logits, index, target * gradients[0]):
            share = F.softmax(part, dim=1, dtype=torch.float32)
            out.copy_(share.mul_(weight.sum(1, keepdim=True)).scatter_add_(1, near, -weight))
        return slope, None, None


class Classification(Head):
    """A distribution over Q bins; soft-encoded, rebalanced cross-entropy; annealed mean.

    `loss` sums over the pixels and averages over the photographs, as the paper does (a mean over pixels would let the
    weight decay win); `cross_entropy` is the same per pixel, in nats, so that crops of any size compare.
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
        """Settings as in `HeadConfig`; class_weights [Q] and centers [Q, 2] belong to the bins, without centers the 313."""
        super().__init__()
        self.neighbors, self.sigma, self.temperature = min(neighbors, len(class_weights)), sigma, temperature
        self.grey_below = grey_below
        self.channels = len(class_weights)
        centers = torch.as_tensor(bins.centers() if centers is None else centers).float()
        self.register_buffer(
            "centers", centers.contiguous()
        )  # sums are rounded by layout: as loaded weights lie
        self.register_buffer("class_weights", class_weights)
        self.register_buffer("candidates", None, persistent=False)

    def encode(self, ab: Tensor) -> tuple[Tensor, Tensor]:
        """Soft encoding of ab [B, 2, h, w], -130 to 130: indices of the nearest bins and their weights, both [B, K, h, w].

        The nearest comes first, of equally near bins the first; weights are Gaussian in the distance and sum to 1 (Zhang et
        al. 2016, section 2.1).
        """
        if (
            self.candidates is None
        ):  # not before: who only decodes needs none, and other centers may have been loaded
            found = bins.candidates(self.centers.double().cpu().numpy(), self.neighbors)
            self.candidates = torch.from_numpy(found).to(ab.device)
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
        share = F.softmax(out.float() / self.temperature, dim=1)
        return scale_to(torch.einsum("bqhw,qc->bchw", share, self.centers), light)


class Rgb(Head):
    """RGB in -1 to 1; mean squared error; its ab is what counts beside the other systems."""

    channels = 3

    def target(self, light: Tensor, ab: Tensor) -> Tensor:
        """The true photograph as RGB [B, 3, H, W] in -1 to 1."""
        return 2 * lab_to_rgb(torch.cat((light, ab), dim=1)) - 1

    def losses(self, out: Tensor, light: Tensor, ab: Tensor) -> dict[str, Tensor]:
        return {"loss": F.mse_loss(out.float(), self.target(light, ab))}

    def decode(self, out: Tensor, light: Tensor) -> Tensor:
        return scale_to(rgb_to_lab(self.rgb(out))[:, 1:], light)

    def rgb(self, out: Tensor) -> Tensor:
        """The prediction as RGB [B, 3, h, w] in 0 to 1."""
        return (out.float().clamp(-1, 1) + 1) / 2


def build_head(rule: HeadConfig, statistics: Statistics | None, centers: Tensor | None = None) -> Head:
    """The head that a params block describes.

    Args:
        statistics: where the bins and the rebalancing weights come from; None where weights will be loaded over them.
        centers: the bins [Q, 2] of those weights; without either, the 313 stand in for the grid's cells.

    Raises:
        InputError: the prior that the block asks for was not given to the prior stage.
    """
    if rule.kind == "regression":
        return Regression(rule.scale, rule.loss, rule.saturation)
    if rule.kind == "euclidean":
        return Euclidean()
    if rule.kind == "rgb":
        return Rgb()
    if statistics is not None:
        centers = torch.tensor(statistics.centers(rule.bins))
    class_weights = torch.ones(bins.Q if centers is None else len(centers))
    if statistics is not None and rule.weights != "none":
        class_weights = torch.tensor(statistics.weights(rule.weights, rule.bins), dtype=torch.float32)
    return Classification(
        rule.neighbors, rule.sigma, rule.temperature, class_weights, centers, rule.grey_below
    )
