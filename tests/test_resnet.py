"""ResNet-18's trunk, the two models built on it and their weights, in torchvision's format."""

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import ROOT
from torch import Tensor, nn
from torch.nn import functional as F
from webserver import Server, content

from colorize.bins import PriorConfig, Statistics
from colorize.data.dataset import Photos
from colorize.files import InputError
from colorize.models import build_model, describe_block, load_model, save_model
from colorize.models.base import Colorizer, parameter_count
from colorize.models.blocks import Conv2d
from colorize.models.resnet import MEAN, STD, Trunk
from colorize.training.device import TrainConfig
from colorize.training.loop import fit
from pipeline import check
from pipeline.check import AllParams
from pipeline.params import load

BLOCKS = load(AllParams, ROOT / "params.yaml").models
OURS = ("koalarization", "koalarization_fusion", "resnet18")
SIZE = 32


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{entry}": (width,) for entry in ("weight", "bias", "running_mean", "running_var")} | {
        f"{name}.num_batches_tracked": ()
    }


def torchvision_resnet18() -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's resnet18().state_dict(), in its order."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)} | _norm("bn1", 64)
    for layer, inputs, width in ((1, 64, 64), (2, 64, 128), (3, 128, 256), (4, 256, 512)):
        for block in (0, 1):
            name = f"layer{layer}.{block}"
            shapes[f"{name}.conv1.weight"] = (width, width if block else inputs, 3, 3)
            shapes |= _norm(f"{name}.bn1", width)
            shapes[f"{name}.conv2.weight"] = (width, width, 3, 3)
            shapes |= _norm(f"{name}.bn2", width)
            if block == 0 and layer > 1:
                shapes[f"{name}.downsample.0.weight"] = (width, inputs, 1, 1)
                shapes |= _norm(f"{name}.downsample.1", width)
    return shapes | {"fc.weight": (1000, 512), "fc.bias": (1000,)}


@pytest.fixture(scope="module")
def fake() -> dict[str, Tensor]:
    """Weights of a whole resnet18, small enough to train from, batch norm with statistics of its own."""
    random = torch.Generator().manual_seed(5)
    tensors = {}
    for name, shape in torchvision_resnet18().items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(7)
        elif name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            tensors[name] = 0.5 + torch.rand(shape, generator=random)
        else:
            fan = int(np.prod(shape[1:])) or 1
            tensors[name] = torch.randn(shape, generator=random) * (
                0.1 if len(shape) == 1 else (2 / fan) ** 0.5
            )
    return tensors


@pytest.fixture
def statistics(photographs) -> Statistics:
    return Statistics.measure(photographs(2, 16), PriorConfig())


def pth(tensors: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)  # noqa: TID251
    return buffer.getvalue()


def block_with(name: str, place: object, digits: str):
    return replace(BLOCKS[name], network=BLOCKS[name].network | {"weights": str(place), "sha256": digits})


def trunk_of(model: Colorizer) -> Trunk:
    found = [module for module in model.modules() if isinstance(module, Trunk)]
    assert len(found) == 1
    return found[0]


# ---- what it is ----


@pytest.mark.parametrize(("stages", "count"), [(2, 676_800), (4, 11_170_240)])
def test_the_trunk_writes_torchvision_s_names_and_shapes(stages: int, count: int) -> None:
    """In its order; the first convolution has one channel for three, the stages above and fc are not there.

    To layer2: 64 x 49 + 128 + 147,968 + 525,568; to layer4: 11,689,512 less fc's 513,000 and 2 x 64 x 49.
    """
    above = tuple(f"layer{layer}." for layer in range(stages + 1, 5))
    known = {n: s for n, s in torchvision_resnet18().items() if not n.startswith((*above, "fc."))}
    known["conv1.weight"] = (64, 1, 7, 7)
    trunk = Trunk(stages)
    assert {name: tuple(tensor.shape) for name, tensor in trunk.state_dict().items()} == known
    assert list(trunk.state_dict()) == list(known)
    assert parameter_count(trunk) == count


def reference(tensors: dict[str, Tensor], rgb: Tensor, stages: int) -> Tensor:
    """ResNet-18 in evaluation mode over a state dict (He et al. 2016, figure 3 and table 1)."""

    def norm(name: str, maps: Tensor) -> Tensor:
        entries = (tensors[f"{name}.{entry}"] for entry in ("running_mean", "running_var", "weight", "bias"))
        mean, var, weight, bias = (entry[:, None, None] for entry in entries)
        return (maps - mean) / (var + 1e-5).sqrt() * weight + bias

    maps = F.conv2d(rgb, tensors["conv1.weight"], stride=2, padding=3)
    maps = F.max_pool2d(norm("bn1", maps).relu(), 3, 2, 1)
    for layer in range(1, stages + 1):
        for block in (0, 1):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            inner = norm(
                f"{name}.bn1", F.conv2d(maps, tensors[f"{name}.conv1.weight"], stride=stride, padding=1)
            ).relu()
            inner = norm(f"{name}.bn2", F.conv2d(inner, tensors[f"{name}.conv2.weight"], padding=1))
            if f"{name}.downsample.0.weight" in tensors:
                maps = norm(
                    f"{name}.downsample.1",
                    F.conv2d(maps, tensors[f"{name}.downsample.0.weight"], stride=stride),
                )
            maps = (inner + maps).relu()
    return maps


@pytest.mark.parametrize("name", ["resnet18", "koalarization_fusion"])
def test_pretrained_weights_see_grey_as_the_rgb_network_does(
    name: str, fake, statistics: Statistics, tmp_path: Path
) -> None:
    """Equal to the three-channel network on the grey photograph replicated three times."""
    (tmp_path / "w").write_bytes(pth(fake))
    block = block_with(name, tmp_path / "w", hashlib.sha256(pth(fake)).hexdigest())
    trunk = trunk_of(build_model(block, SIZE, statistics)).eval().double()
    light = torch.rand(2, 1, 64, 64, dtype=torch.float64) * 100
    rgb = ((light / 100 - MEAN) / STD).expand(-1, 3, -1, -1)
    exact = {entry: tensor.double() for entry, tensor in fake.items()}
    with torch.no_grad():
        expected = reference(exact, rgb, 2 if name == "resnet18" else 4)
        # The sums of kernels are rounded to float32 once; all the rest is float64, alike on every processor.
        torch.testing.assert_close(trunk(light / 50 - 1), expected, rtol=1e-5, atol=1e-5)
    channels = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    assert channels.mean(1).tolist() == pytest.approx([MEAN, STD], abs=1e-6)
    for grey in (0, 1):
        assert (
            (grey - channels[0]) / channels[1] - (grey - MEAN) / STD
        ).abs().max() < 0.21  # as the docstring says


def test_parameter_counts() -> None:
    """Model 1 has document 000's 6.32 M: encoder 5,827,200, 1x1 convolution 65,792, decoder 424,802.

    The fused one's 1x1 convolution reads 512 features more and comes with its extractor. Document 004: the
    trunk, and by hand (128 x 128 + 128 x 64 + 64 x 64 + 64 x 32 + 32 x 2) x 9 weights, 290 biases and
    288 pairs of batch norm.
    """
    count = {name: parameter_count(build_model(BLOCKS[name], SIZE)) for name in OURS}
    assert count["koalarization"] == 5_827_200 + 65_792 + 424_802 == 6_317_794
    assert round(count["koalarization"] / 1e6, 2) == 6.32
    assert count["koalarization_fusion"] == 6_317_794 + 512 * 256 + 11_170_240
    assert (
        count["resnet18"] == 676_800 + (128 * 128 + 128 * 64 + 64 * 64 + 64 * 32 + 32 * 2) * 9 + 290 + 2 * 288
    )


def test_l1_is_that_of_the_encoder_alone(statistics: Statistics, photographs) -> None:
    """Document 000, section 2.5.8: |w| over the encoder's 8 convolutions, biases and decoder left out."""
    model = build_model(BLOCKS["koalarization"], SIZE, statistics)
    light, ab = next(Photos(photographs(2, SIZE), SIZE).batches(2))
    losses = model.losses("net", light, ab)
    weights = [layer.weight for layer in model.net.encoder.modules() if isinstance(layer, nn.Conv2d)]
    expected = sum(weight.abs().sum() for weight in weights)
    assert len(weights) == 8 and losses["l1"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx(
        (losses["reconstruction"] + 1e-3 * expected).item(), rel=1e-5
    )


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (1, 1)])
def test_a_convolution_of_a_single_pixel_is_the_same_with_its_center_alone(kernel: int, stride: int) -> None:
    """Output and gradient against the plain convolution, with which it shares its weights."""
    layer = Conv2d(3, 4, kernel, stride)
    plain = nn.Conv2d(3, 4, kernel, stride, kernel // 2)
    plain.load_state_dict(layer.state_dict())
    for side in (1, 4):
        maps = torch.rand(2, 3, side, side)
        assert torch.allclose(layer(maps), plain(maps), atol=1e-6)
        ours, theirs = (
            torch.autograd.grad((each(maps) ** 2).sum(), each.weight)[0] for each in (layer, plain)
        )
        assert torch.allclose(ours, theirs, atol=1e-5)


# ---- pretrained weights ----


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.mark.parametrize("written", [pth, safetensors.torch.save])
def test_weights_come_from_a_path_or_a_url(
    written: Callable[[dict[str, Tensor]], bytes], fake, statistics, server: Server, tmp_path: Path
) -> None:
    """.pth and .safetensors; a download is kept; the first convolution is summed over R, G and B."""
    body = written(fake)
    digits = hashlib.sha256(body).hexdigest()
    (tmp_path / "w").write_bytes(body)
    server.answers["/w"] = content(body)
    for place in (tmp_path / "w", server.url("/w"), server.url("/w")):
        model = build_model(
            block_with("resnet18", place, digits), SIZE, statistics, downloads=tmp_path / "downloads"
        )
        state = trunk_of(model).state_dict()
        assert torch.allclose(state["conv1.weight"][:, 0], fake["conv1.weight"].sum(1))
        for entry in ("bn1.running_mean", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight"):
            assert torch.equal(state[entry], fake[entry])
    assert server.asked["/w"] == 1


def test_files_of_old_versions_without_batch_counts_are_taken(fake, statistics, tmp_path: Path) -> None:
    """torchvision's first resnet18 file is older than num_batches_tracked."""
    body = pth({name: tensor for name, tensor in fake.items() if not name.endswith("num_batches_tracked")})
    (tmp_path / "w").write_bytes(body)
    block = block_with("resnet18", tmp_path / "w", hashlib.sha256(body).hexdigest())
    assert torch.equal(
        trunk_of(build_model(block, SIZE, statistics)).bn1.running_var, fake["bn1.running_var"]
    )


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "resnet18",
            {"layer2.1.conv2.weight": None},
            "layer2.1.conv2.weight is missing; give a state dict of torchvision",
        ),
        ("resnet18", {"bn1.bias": torch.ones(32)}, r"bn1.bias has shape \(32,\), not \(64,\)"),
        (
            "resnet18",
            {"conv1.weight": torch.ones(64, 1, 7, 7)},
            r"conv1.weight has shape \(64, 1, 7, 7\), not \(64, 3, 7, 7\)",
        ),
        ("koalarization_fusion", {"layer4.0.bn2.running_var": None}, "layer4.0.bn2.running_var is missing"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_file_and_entry(
    name: str, change: dict, words: str, fake, statistics, tmp_path: Path
) -> None:
    """One sentence."""
    body = pth({entry: tensor for entry, tensor in (fake | change).items() if tensor is not None})
    (tmp_path / "w.pth").write_bytes(body)
    with pytest.raises(InputError, match=f"network.weights: .*w.pth: {words}"):
        build_model(block_with(name, tmp_path / "w.pth", hashlib.sha256(body).hexdigest()), SIZE, statistics)


def test_weights_are_pinned(statistics, server: Server, tmp_path: Path) -> None:
    """Another file than the sha256's is refused; without a sha256 the sentence gives the file's own."""
    (tmp_path / "w").write_bytes(b"other")
    found = hashlib.sha256(b"other").hexdigest()
    server.answers["/w"] = content(b"other")
    for place in (tmp_path / "w", server.url("/w")):
        with pytest.raises(InputError, match=f"network.weights: .*/w has sha256 {found}, not {'0' * 64}"):
            build_model(
                block_with("resnet18", place, "0" * 64), SIZE, statistics, downloads=tmp_path / "downloads"
            )
    with pytest.raises(
        InputError, match=f"network.weights needs network.sha256 beside it.*; that of .*w is {found}"
    ):
        build_model(block_with("resnet18", tmp_path / "w", ""), SIZE)
    with pytest.raises(
        InputError, match="network.weights needs network.sha256 beside it, the sha256 of that file$"
    ):
        build_model(
            block_with("resnet18", server.url("/w"), ""), SIZE, statistics, downloads=tmp_path / "downloads"
        )


def test_only_the_model_with_an_extractor_takes_weights() -> None:
    """And only the extractor that there is."""
    with pytest.raises(InputError, match="weights belong to resnet18, not to 'none'"):
        build_model(block_with("koalarization", "w", "0"), SIZE)
    block = replace(BLOCKS["koalarization"], network={"extractor": "inception"})
    with pytest.raises(InputError, match="network.extractor is none or resnet18"):
        build_model(block, SIZE)


@pytest.mark.parametrize("name", ["resnet18", "koalarization_fusion"])
def test_a_trained_model_does_without_the_file_it_began_from(
    name: str, fake, statistics, photographs, tmp_path: Path
) -> None:
    """Given weights are frozen in the fused model, batch norm included, and trained along in resnet18."""
    body = pth(fake)
    path = tmp_path / "w.pth"
    path.write_bytes(body)
    block = block_with(name, path, hashlib.sha256(body).hexdigest())
    model = build_model(block, 16, statistics)
    before = {entry: tensor.clone() for entry, tensor in trunk_of(model).state_dict().items()}
    photos = Photos(photographs(2, 16), 16)
    rule = TrainConfig(max_epochs=1, min_lr=1e-3)
    fit(model, photos, photos, replace(block.recipe, scales=(1,)), rule, 1, tmp_path / "state.pt")
    same = all(torch.equal(tensor, before[entry]) for entry, tensor in trunk_of(model).state_dict().items())
    assert same == (name == "koalarization_fusion")
    if same:
        assert parameter_count(model) == 6_317_794 + 512 * 256

    save_model(tmp_path / "model", model, {"block": describe_block(block), "size": 16}, "")
    path.unlink()
    light = torch.rand(1, 1, 16, 16) * 100
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "model").colorize(light), model.colorize(light))


def test_the_first_stage_reads_no_weights_but_asks_for_their_sha256(
    make_params, monkeypatch, tmp_path: Path
) -> None:
    """What is missing in params.yaml is said before anything is deleted."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sample.csv").write_text("photo,side,step\n")
    weights = {"model": "resnet18", "models.resnet18.network.weights": "nowhere.pth"}
    check.main(make_params({**weights, "models.resnet18.network.sha256": "0" * 64}))
    with pytest.raises(InputError, match="models.resnet18: network.weights needs network.sha256"):
        check.main(make_params(weights))
