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
from colorize.models import build_model
from colorize.models.base import Colorizer, parameter_count
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
    """Document 000, section 2.4; some kernels are 5x5, and only the VAE has a latent vector, of 64."""
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


def test_rgb_autoencoders_loss_is_the_mean_absolute_error(build: Build, photographs) -> None:
    """Over RGB in -1..1; logged in 0..1, document 002's unit, against the photographs themselves."""
    model, photos = build("autoencoder_rgb"), photographs(3, SIZE)
    light, ab = next(Photos(photos, SIZE).batches(3))
    losses = model.losses("net", light, ab)
    error = model.predict(light).rgb.permute(0, 2, 3, 1).detach().numpy() - photos / 255
    assert losses["mae"].item() == pytest.approx(np.abs(error).mean(), abs=1e-4)
    assert losses["loss"].item() == pytest.approx(2 * losses["mae"].item())


def test_mdn_has_the_published_networks_parameters(build: Build) -> None:
    """The conditional autoencoder with skips of the paper's code has about 46.1 million at 64x64."""
    model = build("deshpande_mdn", 256)
    assert model.field == 64 and round(parameter_count(model.vae) / 1e6, 1) == 46.1


def test_mdn_losses_are_those_of_a_loop_over_the_photographs(
    build: Build, statistics: Statistics, batch
) -> None:
    """Histogram-weighted, gradient and KL terms by NumPy; the weights are the prior's, by nearest bin."""
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


def test_mixture_loss_is_the_likelihood_of_the_latent_vector(build: Build, batch) -> None:
    """By torch.distributions, but for the Gaussians' constant; 8 components, 64 dimensions, sigma 0.1."""
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
