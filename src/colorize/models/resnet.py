"""The trunk of ResNet-18: document 004's encoder, and the feature extractor of `koalarization_fusion`.

He et al. 2016, arXiv:1512.03385. Entries of its state dict are named and shaped as torchvision writes them, except that its
first convolution reads one channel; it has no fully connected layer.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from colorize.models.blocks import Conv2d, load_pretrained_

WIDTHS = (64, 128, 256, 512)
MEAN, STD = 0.449, 0.226
"""Means over R, G and B of ImageNet's means (0.485, 0.456, 0.406) and standard deviations (0.229, 0.224, 0.225)."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, around them a shortcut, which is projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(inputs, outputs, 3, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = Conv2d(outputs, outputs, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if stride != 1:
            self.downsample = nn.Sequential(
                Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(maps)))))
        return self.relu(inner + self.downsample(maps))


class Trunk(nn.Module):
    """Light [B, 1, H, W] in -1..1 to maps [B, 64, H/4, W/4] (one stage) up to [B, 512, H/32, W/32] (four).

    ImageNet networks read RGB in 0..1, normalized by channel. Here L*/100 stands for the grey level (they differ by at most
    0.034) and is normalized by the mean of the channels' figures (which differs from each channel's by at most 0.2 standard
    deviations). The first convolution's pretrained kernels are summed over R, G and B: that equals a grey photograph
    replicated thrice, up to this normalization.
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
        """A frozen trunk stays in evaluation mode: its batch norm keeps the statistics that it came with."""
        return super().train(mode and not self.frozen)

    def forward(self, light: Tensor) -> Tensor:
        grey = (light + 1) / 2
        maps = self.maxpool(self.relu(self.bn1(self.conv1((grey - MEAN) / STD))))
        for name in self.layers:
            maps = getattr(self, name)(maps)
        return maps


def load_torchvision_(trunk: Trunk, tensors: Mapping[str, Tensor], path_or_url: str) -> None:
    """Load the pretrained weights of torchvision's `resnet18`, in place: see `load_pretrained_`."""
    load_pretrained_(
        trunk, tensors, "conv1.weight", path_or_url, "give a state dict of torchvision's resnet18"
    )
