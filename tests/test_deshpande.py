"""Document 000's Models 0T, 2 and 2V, the original of the last two, and document 002's baseline."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from colorize import bins
from colorize.bins import PriorConfig, Statistics
from colorize.data.dataset import Photos
from colorize.files import InputError
from colorize.models import build_model
from colorize.models.base import Colorizer, parameter_count
from colorize.models.heads import HeadConfig
from pipeline.check import AllParams
from pipeline.params import load

BLOCKS = load(AllParams, ROOT / "params.yaml").models
SIZE = 32
Build = Callable[..., Colorizer]


@pytest.fixture
def statistics(photographs) -> Statistics:
    """The colors of 4 photographs."""
    return Statistics.measure(photographs(4, SIZE, seed=1), PriorConfig())


@pytest.fixture
def build(statistics: Statistics) -> Build:
    """A block's model with some arguments changed."""

    def make(name: str, size: int = SIZE, **network: object) -> Colorizer:
        torch.manual_seed(0)
        block = BLOCKS[name]
        return build_model(replace(block, network=block.network | network), size, statistics)

    return make


@pytest.fixture
def batch(photographs) -> tuple[torch.Tensor, torch.Tensor]:
    """Lightness and color of 5 photographs."""
    return next(Photos(photographs(5, SIZE), SIZE).batches(5))


def layers(module: nn.Module, kind: type[nn.Module]) -> list:
    return [layer for layer in module.modules() if isinstance(layer, kind)]


@pytest.mark.parametrize("name", ["deshpande", "vae"])
def test_encoder_has_11_convolutions_and_ends_in_4x4_at_256_pixels(name: str, build: Build) -> None:
    """Document 000, section 2.4: 11 layers, 5x5 kernels in some; only the VAE has a latent vector, of 64 dimensions."""
    net = build(name, 256).net
    kernels = [layer.kernel_size[0] for layer in layers(net.encoder, nn.Conv2d)]
    assert len(kernels) == 11 and set(kernels) == {3, 5}
    assert net.encoder(torch.zeros(1, 1, 256, 256)).shape == (1, 512, 4, 4)
    assert [layer.out_features // 2 for layer in layers(net, nn.Linear)[:1]] == (
        [64] if name == "vae" else []
    )


@pytest.mark.parametrize("name", ["deshpande", "vae"])
def test_batch_norm_and_l1_are_switches(name: str, build: Build, batch) -> None:
    """L1 sums |w| over the encoder alone; batch norm is off as in the document."""
    model = build(name, l1=0.002, batch_norm=True).eval()
    assert layers(model, nn.BatchNorm2d) and not layers(build(name), nn.BatchNorm2d)
    losses = model.losses("net", *batch)
    expected = sum(
        weight.abs().sum() for key, weight in model.net.encoder.named_parameters() if key.endswith("weight")
    )
    assert losses["l1"].item() == pytest.approx(expected.item(), rel=1e-6)
    rest = losses["reconstruction"] + model.kl * losses.get("kl", 0)
    assert losses["loss"].item() == pytest.approx((rest + 0.002 * expected).item(), rel=1e-6)


def test_transposed_autoencoder_is_the_plain_one_with_transposed_convolutions(build: Build) -> None:
    """Model 0T: as many weights as Model 0, no upsampling, five transposed convolutions of stride 2."""
    plain, transposed = build("cae", 64), build("cae_transposed", 64)
    assert not layers(plain, nn.ConvTranspose2d) and len(layers(plain, nn.Upsample)) == 5
    assert not layers(transposed, nn.Upsample)
    assert [layer.stride for layer in layers(transposed, nn.ConvTranspose2d)] == [(2, 2)] * 5
    assert parameter_count(plain) == parameter_count(transposed)
    assert transposed.out(torch.zeros(1, 1, 64, 64)).shape == (1, 2, 64, 64)
    assert len(layers(build("cae_transposed", batch_norm=True), nn.BatchNorm2d)) == 10


def test_rgb_autoencoder_has_five_and_five_layers(build: Build) -> None:
    """Document 002's baseline at its own 144 pixels, which 32 does not divide."""
    model = build("autoencoder_rgb", 144)
    encoder, decoder = model.net
    assert len(layers(encoder, nn.Conv2d)) == len(layers(decoder, nn.Conv2d)) == 5
    assert encoder(torch.zeros(1, 1, 144, 144)).shape == (1, 512, 5, 5)
    assert model.predict(torch.full((1, 1, 144, 144), 50.0)).rgb.shape == (1, 3, 144, 144)
    with pytest.raises(InputError, match=r"head\.kind to rgb"):
        build_model(replace(BLOCKS["autoencoder_rgb"], head=HeadConfig("regression")), SIZE)


def test_rgb_autoencoders_loss_is_the_mean_absolute_error(build: Build, photographs) -> None:
    """Over RGB in -1..1; logged in 0..1, document 002's unit, where the photographs themselves are the truth."""
    model, photos = build("autoencoder_rgb"), photographs(3, SIZE)
    light, ab = next(Photos(photos, SIZE).batches(3))
    losses = model.losses("net", light, ab)
    error = model.predict(light).rgb.permute(0, 2, 3, 1).detach().numpy() - photos / 255
    assert losses["mae"].item() == pytest.approx(np.abs(error).mean(), abs=1e-4)
    assert losses["loss"].item() == pytest.approx(2 * losses["mae"].item())


def test_mdn_has_the_published_networks_parameters(build: Build) -> None:
    """The conditional autoencoder with skips of the paper's code has about 46.1 million at 64x64."""
    model = build("deshpande_mdn", 256)
    assert model.field == 64
    assert round(parameter_count(model.vae) / 1e6, 1) == 46.1


def test_mdn_losses_are_those_of_a_loop_over_the_photographs(
    build: Build, statistics: Statistics, batch
) -> None:
    """Histogram-weighted, gradient and KL terms by NumPy; the weights are the prior stage's, by nearest bin."""
    model = build("deshpande_mdn", width=4).eval()
    light, ab = batch
    field = nn.functional.adaptive_avg_pool2d(ab, 16)
    with torch.no_grad():
        losses = {name: value.item() for name, value in model.losses("vae", light, ab).items()}
        mean, log_variance = model.vae.encode(field / 128)
        grey = nn.functional.adaptive_avg_pool2d(light, 16) / 50 - 1
        found = torch.tanh(model.vae.decode(mean, model.vae.skips(grey))).numpy()
    weights = statistics.weights("empirical")[bins.nearest(field.permute(0, 2, 3, 1).numpy())]
    error = found - field.numpy() / 128
    histogram = [np.sqrt((w * e**2).sum()) for w, e in zip(weights, error, strict=True)]
    gradient = [np.linalg.norm(np.diff(e, axis=1)) + np.linalg.norm(np.diff(e, axis=2)) for e in error]
    posterior = Normal(mean, (log_variance / 2).exp())
    kl = torch.distributions.kl_divergence(posterior, Normal(0, 1)).sum(1).mean().item()
    assert losses["histogram"] == pytest.approx(np.mean(histogram), rel=1e-4)
    assert losses["gradient"] == pytest.approx(np.mean(gradient), rel=1e-4)
    assert losses["kl"] == pytest.approx(kl, rel=1e-4)
    assert losses["reconstruction"] == pytest.approx((error**2).mean(), rel=1e-4)


def test_mdns_specificity_is_the_mahalanobis_distance(build: Build) -> None:
    """Fields of rank 20, seen in batches of 8, against NumPy's eigenvectors of all of them."""
    model = build("deshpande_mdn", width=4)
    random = np.random.default_rng(0)
    strengths = np.linspace(0.5, 0.2, 20)
    fields = (random.normal(size=(40, 20)) * strengths @ random.normal(size=(20, 512))).astype(np.float32)
    for part in torch.from_numpy(fields).split(8):
        model.learn_components(part.unflatten(1, (2, 16, 16)))
    centered = fields - np.repeat(model.mean.numpy().ravel(), 256)
    variances, axes = np.linalg.eigh(centered.T @ centered / len(fields))
    variances, axes = variances[::-1][:20], axes[:, ::-1][:, :20]
    error = random.normal(size=(6, 512))
    along = error @ axes
    beside = ((error - along @ axes.T) ** 2).sum(1) / variances[-1]
    expected = ((along**2 / variances).sum(1) + beside).mean()
    assert model.specific(torch.from_numpy(error).float()).item() == pytest.approx(expected, rel=0.02)


def test_mdns_kl_weight_rises_with_the_steps_of_training(build: Build, batch) -> None:
    """From 1 / 4 of 0.01 at the first of 4 steps to all of it; what is only measured does not count."""
    model = build("deshpande_mdn", width=4, kl_ramp=4, gradient=0, specificity=0)
    weights = []
    for _ in range(6):
        model.train().losses("mdn", *batch)
        model.eval().losses("vae", *batch)
        losses = model.train().losses("vae", *batch)
        weights.append(((losses["loss"] - losses["histogram"]) / losses["kl"]).item())
    assert weights == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01], rel=1e-3)
    assert model.state_dict()["steps"] == 6 and model.state_dict()["seen"] == 30


def test_mixture_loss_is_the_likelihood_of_the_latent_vector(build: Build, batch) -> None:
    """Against torch.distributions, but for the Gaussians' constant; 8 components around 64 dimensions, sigma 0.1."""
    model = build("deshpande_mdn", width=4).eval()
    light, ab = batch
    with torch.no_grad():
        code, _ = model.vae.encode(nn.functional.adaptive_avg_pool2d(ab, 16) / 128)
        log_weights, means = model.mdn(light / 50 - 1)
        loss = model.losses("mdn", light, ab)["loss"].item()
    assert means.shape == (5, 8, 64)
    mixture = MixtureSameFamily(Categorical(logits=log_weights), Independent(Normal(means, 0.1), 1))
    constant = 64 * np.log(0.1 * np.sqrt(2 * np.pi))
    assert loss == pytest.approx(-mixture.log_prob(code).mean().item() - constant, rel=1e-4)


def test_mdn_gives_as_many_colorings_as_asked_the_same_each_time(build: Build, batch) -> None:
    """Equal bytes for equal input, and no photograph's colorings depend on the others of its batch."""
    model, light = build("deshpande_mdn", width=4).eval(), batch[0]
    with torch.no_grad():
        several = model.predict(light, 6).samples
        torch.rand(1)
        assert torch.equal(model.predict(light, 6).samples, several)
        torch.testing.assert_close(model.predict(light[3:], 6).samples, several[3:])
    assert several.shape == (5, 6, 2, SIZE, SIZE)
    assert (several.std(1) > 0).all()


def test_mdns_colorings_follow_the_mixture(build: Build, batch) -> None:
    """Without noise a component of weight 1 is the prediction's; two equally likely ones come half the time each."""
    model, light = build("deshpande_mdn", width=4, sigma=0).eval(), batch[0][:1]
    log_weights, means = torch.full((1, 8), -100.0), torch.randn(1, 8, 64)
    model.mdn.forward = lambda grey: (log_weights, means)
    with torch.no_grad():
        log_weights[0, 3] = 0
        found = model.predict(light, 3)
        torch.testing.assert_close(found.samples, found.ab[:, None].expand(-1, 3, -1, -1, -1))
        log_weights[0, 5] = 0
        found = model.predict(light, 50)
        first = (found.samples - found.ab[:, None]).abs().amax((2, 3, 4)) < 1e-6
    assert 15 < first.sum() < 35


def test_mdn_needs_a_regression_head() -> None:
    """It says what to set."""
    with pytest.raises(InputError, match=r"head\.kind to regression"):
        build_model(replace(BLOCKS["deshpande_mdn"], head=HeadConfig("rgb")), SIZE)
