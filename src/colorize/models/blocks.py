"""The few layers that several models share, and how pretrained weights come into them."""

from collections.abc import Mapping

from torch import Tensor, nn

from colorize.files import InputError


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


def conv(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, batch_norm: bool = False
) -> nn.Sequential:
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


def load_pretrained_(
    module: nn.Module, tensors: Mapping[str, Tensor], first: str, path_or_url: str, hint: str
) -> None:
    """Load the weights of a network for RGB into one for grey, in place; entries that it has no use for are ignored.

    The kernels of the first convolution are summed over R, G and B where the module reads one channel: that equals a grey
    photograph replicated three times.

    Args:
        tensors: named as in the module; counts of batches, which old files lack, may be missing.
        first: the entry of the first convolution's kernels.
        path_or_url: where the tensors come from, to be named in what is refused.
        hint: what to give instead.

    Raises:
        InputError: an entry is missing or has another shape.
    """
    state = module.state_dict()
    for name, own in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        shape = (own.shape[0], 3, *own.shape[2:]) if name == first else tuple(own.shape)
        given = tensors.get(name)
        if given is None or tuple(given.shape) != shape:
            what = "is missing" if given is None else f"has shape {tuple(given.shape)}, not {shape}"
            raise InputError(f"network.weights: {path_or_url}: {name} {what}; {hint}")
        state[name] = given.detach().sum(1, keepdim=True) if name == first and own.shape[1] == 1 else given
    module.load_state_dict(state)
