"""The interface of all models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from colorize.bins import Statistics
from colorize.models.heads import Head, Rgb


@dataclass(frozen=True)
class Setup:
    """Arguments that every model gets beside its own."""

    size: int
    """Working side in pixels."""
    statistics: Statistics | None = None
    """The training split's colors; None if saved weights will be loaded."""
    pretrained: Mapping[str, Tensor] | None = None
    """Content of the network's `weights` file; None if there is none or saved weights will be loaded."""


class Colors(NamedTuple):
    """A model's output for a batch of B photographs."""

    ab: Tensor
    """The prediction, [B, 2, H, W] in Lab units."""
    rgb: Tensor | None = None
    """The prediction of an RGB model, [B, 3, h, w] in 0 to 1."""
    samples: Tensor | None = None
    """Random colorings, [B, count, 2, H, W], if the model has them and they are requested."""


class Colorizer(nn.Module):
    """Maps lightness to color.

    light: [B, 1, H, W], L* in 0..100.  ab: [B, 2, H, W], Lab units.  Both are float32 and never normalized.

    A simple model only defines `net`. Override more for several phases, another loss or an input other than
    light in -1..1.
    """

    phases: tuple[str, ...] = ("net",)
    """Sub-modules that are trained in turn; a GAN has two, a constant none."""
    any_size: bool = True
    """The model accepts any sides that divide by 8, not only its working size."""
    net: nn.Module

    def __init__(self, head: Head, setup: Setup) -> None:
        super().__init__()
        self.pretrained: tuple[str, ...] = ()
        """Names of sub-modules with pretrained weights, which are trained with `pretrained_lr`."""
        self.head = head
        self.size = setup.size

    @property
    def monitor(self) -> str:
        """The loss of the first phase that early stopping and the loss curves watch."""
        return self.head.monitor

    def out(self, light: Tensor) -> Tensor:
        """Return the trunk's output, [B, head.channels, h, w]."""
        return self.net(light / 50 - 1)

    def losses(self, phase: str, light: Tensor, ab: Tensor) -> dict[str, Tensor]:
        """Return scalars for one phase; "loss" is minimized, the others are logged."""
        return self.head.losses(self.out(light), light, ab)

    def predict(self, light: Tensor, samples: int = 1) -> Colors:
        """Predict colors; equal input gives equal colors. Stochastic models add `samples` colorings if >
        1."""
        out = self.out(light)
        rgb = self.head.rgb(out) if isinstance(self.head, Rgb) else None
        return Colors(self.head.decode(out, light), rgb)

    def colorize(self, light: Tensor) -> Tensor:
        """Predict ab."""
        return self.predict(light).ab


def parameter_count(model: nn.Module) -> int:
    """Count the trainable numbers of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def with_l1(losses: dict[str, Tensor], monitor: str, encoder: nn.Module, l1: float) -> dict[str, Tensor]:
    """Add the monitored loss as `reconstruction`, and `l1` times the L1 norm of the encoder's weights."""
    losses["reconstruction"] = losses[monitor].detach()
    if l1:
        losses["l1"] = l1_norm(encoder)
        losses["loss"] = losses["loss"] + l1 * losses["l1"]
    return losses


def l1_norm(module: nn.Module) -> Tensor:
    """Sum |w| over all weights of a module, without biases (document 000, section 2.5.8)."""
    weights = [p for name, p in module.named_parameters() if name.endswith("weight")]
    return torch.stack([weight.abs().sum() for weight in weights]).sum()
