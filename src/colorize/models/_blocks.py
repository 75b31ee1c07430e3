"""The few layers that several models share."""

from torch import nn


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, batch_norm: bool = False) -> nn.Sequential:
    """Convolution that keeps the size (divides it by the stride), optional batch norm, ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(outputs))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def fitting(kernel: int, side: int) -> int:
    """The kernel for maps of `side` pixels: of a single pixel only its center is ever used, so 1.

    In bf16 on the CPU, oneDNN leaves the gradient of the unused rest unwritten: whatever was in that memory.
    """
    return kernel if side > 1 else 1


def kaiming_(module: nn.Module) -> None:
    """Initialize every convolution and linear layer for ReLU, in place; biases are zero (He et al. 2015)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
