"""Multilayer perceptrons and fully connected autoencoders: document 003, on CIFAR-10.

"Image Colorization with Neural Networks", Xia and Salhi, sections 4.1 and 5.2: 32x32 grey in -1..1, fully
connected layers, RGB in -1..1, mean squared error. Its best, `mlp1`: 1024 -> 3072 -> batch norm -> sigmoid ->
3072 -> batch norm. Its autoencoders narrow to a code: `fcae1` is 1024 -> 512 -> 3072. The document gives no
widths for more layers. Ours stay at 3072 (`mlp2`, `mlp3`) or narrow as in its Figure 4 (`fcae2` 512, 256;
`fcae3` 512, 256, 512; `fcae5` 512, 256, 128, 256, 512). The input is the grey photograph of L*, not the luma
that the document probably uses. It does not give the initialization; ours is PyTorch's default.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from colorize.color import grey_rgb
from colorize.models.base import Colorizer, Setup
from colorize.models.heads import Head

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "tanh": nn.Tanh, "none": nn.Identity}


class Model(Colorizer):
    any_size = False

    def __init__(
        self,
        head: Head,
        setup: Setup,
        hidden: Sequence[int],
        activation: Literal["sigmoid", "relu", "tanh", "none"] = "sigmoid",
        batch_norm: bool = True,
        output_batch_norm: bool = True,
    ) -> None:
        super().__init__(head, setup)
        self.net = nn.Sequential(nn.Flatten())
        inputs = setup.size**2
        for width in hidden:
            self.net.append(nn.Linear(inputs, width))
            if batch_norm:
                self.net.append(nn.BatchNorm1d(width))
            self.net.append(ACTIVATIONS[activation]())
            inputs = width
        outputs = head.channels * setup.size**2
        self.net.append(nn.Linear(inputs, outputs))
        if output_batch_norm:
            self.net.append(nn.BatchNorm1d(outputs))
        self.net.append(nn.Unflatten(1, (head.channels, setup.size, setup.size)))

    def out(self, light: Tensor) -> Tensor:
        return self.net(2 * grey_rgb(light)[:, :1] - 1)
