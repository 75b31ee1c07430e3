"""The few layers that several models share."""

from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """Square convolution that keeps the size (divides it by the stride); on maps of a single pixel it uses its center only.

    The result is the same, and the gradient of the unused rest is zero, which oneDNN leaves unwritten in bf16 on the CPU.
    Its weights have one shape for maps of every size, as pretrained ones need.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, bias=bias)

    def forward(self, maps: Tensor) -> Tensor:
        if maps.shape[-2:] != (1, 1):
            return super().forward(maps)
        middle = self.kernel_size[0] // 2
        center = self.weight[:, :, middle : middle + 1, middle : middle + 1]
        return nn.functional.conv2d(maps, center, self.bias)


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, batch_norm: bool = False) -> nn.Sequential:
    """Convolution that keeps the size (divides it by the stride), optional batch norm, ReLU."""
    layers: list[nn.Module] = [Conv2d(inputs, outputs, kernel, stride)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(outputs))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def upsampling_decoder(inputs: int, outputs: int, batch_norm: bool) -> nn.Sequential:
    """Maps at an eighth of the size to maps at the size; the last upsampling comes after the last convolution.

    Baldassarre et al. 2017; the same with batch norm is the decoder of Melas-Kyriazi 2018, whom document 004 follows.
    """
    return nn.Sequential(
        conv(inputs, 128, batch_norm=batch_norm),
        nn.Upsample(scale_factor=2),
        conv(128, 64, batch_norm=batch_norm),
        conv(64, 64, batch_norm=batch_norm),
        nn.Upsample(scale_factor=2),
        conv(64, 32, batch_norm=batch_norm),
        Conv2d(32, outputs, 3),
        nn.Upsample(scale_factor=2),
    )


def kaiming_(module: nn.Module) -> None:
    """Initialize every convolution and linear layer for ReLU, in place; biases are zero (He et al. 2015)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
