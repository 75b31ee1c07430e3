"""What every model promises, and what it is told when it is built."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from colorize.bins import Statistics
from colorize.models.heads import Head, Rgb


@dataclass(frozen=True)
class Setup:
    """What a model is told beyond its own arguments."""

    size: int
    """Side in pixels at which it will work."""
    statistics: Statistics | None = None
    """The training split's colors; None where saved weights will be loaded over them."""
    pretrained: Mapping[str, Tensor] | None = None
    """What the file of the network's `weights` holds; None where there is none, or saved weights will be loaded."""


class Colors(NamedTuple):
    """What a model makes of a batch of B photographs."""

    ab: Tensor
    """Its prediction, [B, 2, H, W] in Lab units."""
    rgb: Tensor | None = None
    """The same as RGB [B, 3, h, w] in 0 to 1, where RGB is what the model predicts."""
    samples: Tensor | None = None
    """Several colorings of each photograph, [B, count, 2, H, W], if the model has them and they are asked for."""


class Colorizer(nn.Module):
    """Maps lightness to color.

    light: [B, 1, H, W], L* in 0..100.  ab: [B, 2, H, W], Lab units.  Both float32; nothing normalized leaks out.

    A model defines `net` and is done, unless it trains in several phases, has a loss of its own or wants another
    normalization than light in -1..1.
    """

    phases: tuple[str, ...] = ("net",)
    """Sub-modules trained in turn; a GAN has two, a constant none."""
    any_size: bool = True
    """Whether it takes photographs of any side that divides by 8, whatever size it was built for."""
    net: nn.Module

    def __init__(self, head: Head, setup: Setup) -> None:
        super().__init__()
        self.pretrained: tuple[str, ...] = ()
        """Sub-modules that came with pretrained weights, by their names; `pretrained_lr` holds for them."""
        self.head = head
        self.size = setup.size

    @property
    def monitor(self) -> str:
        """Which of the first phase's losses early stopping and the loss curves watch."""
        return self.head.monitor

    def out(self, light: Tensor) -> Tensor:
        """The trunk's output, [B, head.channels, h, w]."""
        return self.net(light / 50 - 1)

    def losses(self, phase: str, light: Tensor, ab: Tensor) -> dict[str, Tensor]:
        """Scalars for one phase; "loss" is minimized, the rest is logged."""
        return self.head.losses(self.out(light), light, ab)

    def predict(self, light: Tensor, samples: int = 1) -> Colors:
        """Everything that the model makes of light, from one pass through the trunk. Equal input, equal colors.

        Args:
            samples: colorings of each photograph that a model which has several adds, if more than 1.
        """
        out = self.out(light)
        return Colors(
            self.head.decode(out, light), self.head.rgb(out) if isinstance(self.head, Rgb) else None
        )

    def colorize(self, light: Tensor) -> Tensor:
        """Predict ab."""
        return self.predict(light).ab


def parameter_count(model: nn.Module) -> int:
    """Trainable numbers of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def with_l1(losses: dict[str, Tensor], monitor: str, encoder: nn.Module, l1: float) -> dict[str, Tensor]:
    """Losses of a head with what it monitors as `reconstruction`, and `l1` times the L1 norm of the encoder's weights."""
    losses["reconstruction"] = losses[monitor].detach()
    if l1:
        losses["l1"] = l1_norm(encoder)
        losses["loss"] = losses["loss"] + l1 * losses["l1"]
    return losses


def l1_norm(module: nn.Module) -> Tensor:
    """Sum of |w| over all weights of a module, biases left out (document 000, section 2.5.8)."""
    return torch.stack(
        [p.abs().sum() for name, p in module.named_parameters() if name.endswith("weight")]
    ).sum()
