"""Layers that several models share, and loading of pretrained weights."""

from collections.abc import Mapping

from torch import Tensor, nn

from colorize.files import InputError


class Conv2d(nn.Conv2d):
    """Square convolution that keeps the size, or divides it by the stride.

    On maps of one pixel it uses only the center of the kernel. The result is the same, and the gradient of
    the rest is zero; oneDNN would leave this gradient unwritten in bf16 on the CPU.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, bias=bias)

    def forward(self, maps: Tensor) -> Tensor:
        if maps.shape[-2:] != (1, 1):
            return super().forward(maps)
        middle = self.kernel_size[0] // 2
        center = self.weight[:, :, middle : middle + 1, middle : middle + 1]
        return nn.functional.conv2d(maps, center, self.bias)


def conv(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, batch_norm: bool = False
) -> nn.Sequential:
    """Build a `Conv2d`, an optional batch norm and a ReLU."""
    layers: list[nn.Module] = [Conv2d(inputs, outputs, kernel, stride)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(outputs))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def upsampling_decoder(inputs: int, outputs: int, batch_norm: bool) -> nn.Sequential:
    """Build a decoder from an eighth of the size to the size, which ends with an upsampling.

    Source: Baldassarre et al. 2017; with batch norm, Melas-Kyriazi 2018, which document 004 follows.
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


def load_pretrained_(
    module: nn.Module, tensors: Mapping[str, Tensor], first: str, path_or_url: str, hint: str
) -> None:
    """Load the weights of an RGB network into `module`, in place; ignore entries that it does not have.

    If the module reads one channel, the kernels of the first convolution are summed over R, G and B. This
    equals a grey photograph replicated three times.

    Args:
        tensors: named as in the module; num_batches_tracked may be missing, as in old files.
        first: name of the first convolution's kernels.
        path_or_url: source of the tensors, for error messages.
        hint: what to give instead, for error messages.

    Raises:
        InputError: an entry is missing or has another shape.
    """
    state = module.state_dict()
    for name, current in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        shape = (current.shape[0], 3, *current.shape[2:]) if name == first else tuple(current.shape)
        tensor = tensors.get(name)
        if tensor is None or tuple(tensor.shape) != shape:
            problem = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}, not {shape}"
            raise InputError(f"network.weights: {path_or_url}: {name} {problem}; {hint}")
        to_grey = name == first and current.shape[1] == 1
        state[name] = tensor.detach().sum(1, keepdim=True) if to_grey else tensor
    module.load_state_dict(state)
