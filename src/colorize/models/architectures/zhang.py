"""Colorful Image Colorization: the network of Zhang et al. 2016, and its simplification.

Zhang, Isola, Efros, ECCV 2016, arXiv:1603.08511, and document 001, section 4.1. Eight blocks of 3x3
convolutions + ReLU, batch norm after the last ReLU of blocks 1 to 7, output at a quarter of the input's size.
Document 001's Table 1 prints 256 and 128 channels for blocks 7 and 8. Its count of 32,235,385 parameters
needs 512 and 256, which we use. Its simplified network has at most 2 convolutions per block and 416 channels:
15,387,513 parameters. Weights start from Kaiming initialization, not from the paper's k-means. In the code of
Zhang et al., batch norm learns no scale and offset: `affine: false`. The other differences of that code are
settings of the head.
"""

from typing import Literal

from torch import Tensor, nn

from colorize.models.base import Colorizer, Setup
from colorize.models.blocks import kaiming_
from colorize.models.heads import Head

Block = tuple[int, int, int, int]  # channels, convolutions, stride of the last, dilation

BLOCKS: dict[str, tuple[Block, ...]] = {
    "full": (
        (64, 2, 2, 1), (128, 2, 2, 1), (256, 3, 2, 1), (512, 3, 1, 1),
        (512, 3, 1, 2), (512, 3, 1, 2), (512, 3, 1, 1),
    ),
    "simplified": (
        (64, 2, 2, 1), (128, 2, 2, 1), (256, 2, 2, 1), (416, 2, 1, 1),
        (416, 2, 1, 2), (416, 2, 1, 2), (416, 2, 1, 1),
    ),
}  # fmt: skip
LAST = {"full": 2, "simplified": 1}  # convolutions of block 8 after its transposed one


class Model(Colorizer):
    def __init__(
        self, head: Head, setup: Setup, variant: Literal["full", "simplified"] = "full", affine: bool = True
    ) -> None:
        super().__init__(head, setup)
        self.net = nn.Sequential()
        inputs = 1
        for channels, count, stride, dilation in BLOCKS[variant]:
            for step in (1,) * (count - 1) + (stride,):
                self.net.append(nn.Conv2d(inputs, channels, 3, step, dilation, dilation))
                self.net.append(nn.ReLU(inplace=True))
                inputs = channels
            self.net.append(nn.BatchNorm2d(channels, affine=affine))
        self.net.append(nn.ConvTranspose2d(inputs, 256, 4, 2, 1)).append(nn.ReLU(inplace=True))
        for _ in range(LAST[variant]):
            self.net.append(nn.Conv2d(256, 256, 3, padding=1)).append(nn.ReLU(inplace=True))
        self.net.append(nn.Conv2d(256, head.channels, 1))
        kaiming_(self.net)

    def out(self, light: Tensor) -> Tensor:
        return self.net(light - 50)
