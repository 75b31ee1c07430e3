"""The trunk of ResNet-18: document 004's encoder, and the feature extractor of `koalarization_fusion`.

He et al. 2016, arXiv:1512.03385. Its state dict has torchvision's names and shapes, but the first convolution
reads one channel, and there is no fully connected layer.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from colorize.models.blocks import Conv2d, load_pretrained_

WIDTHS = (64, 128, 256, 512)
MEAN, STD = 0.449, 0.226
"""Means over R, G and B of ImageNet's means (0.485, 0.456, 0.406) and standard deviations (0.229, 0.224,
0.225)."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut, which is projected if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(inputs, outputs, 3, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = Conv2d(outputs, outputs, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if stride != 1:
            projection = Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(maps)))))
        return self.relu(inner + self.downsample(maps))


class Trunk(nn.Module):
    """Light [B, 1, H, W] in -1..1 to maps [B, 64, H/4, W/4] (one stage) up to [B, 512, H/32, W/32] (four).

    ImageNet networks read RGB in 0..1, normalized by channel. Here L*/100 replaces the grey level (a
    difference of at most 0.034), and all channels share the mean normalization (a difference of at most 0.2
    standard deviations).
    """

    def __init__(self, stages: int, frozen: bool = False) -> None:
        super().__init__()
        self.frozen = frozen
        self.conv1 = Conv2d(1, WIDTHS[0], 7, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layers = [f"layer{stage}" for stage in range(1, stages + 1)]
        inputs = WIDTHS[0]
        for name, width in zip(self.layers, WIDTHS, strict=False):
            first = BasicBlock(inputs, width, 1 if name == "layer1" else 2)
            self.add_module(name, nn.Sequential(first, BasicBlock(width, width, 1)))
            inputs = width
        self.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> "Trunk":
        """Set the mode; a frozen trunk stays in evaluation mode, so its batch norms keep their statistics."""
        return super().train(mode and not self.frozen)

    def forward(self, light: Tensor) -> Tensor:
        grey = (light + 1) / 2
        maps = self.maxpool(self.relu(self.bn1(self.conv1((grey - MEAN) / STD))))
        for name in self.layers:
            maps = getattr(self, name)(maps)
        return maps


def load_torchvision_(trunk: Trunk, tensors: Mapping[str, Tensor], path_or_url: str) -> None:
    """Load the weights of torchvision's `resnet18`, in place: see `load_pretrained_`."""
    hint = "give a state dict of torchvision's resnet18"
    load_pretrained_(trunk, tensors, "conv1.weight", path_or_url, hint)
