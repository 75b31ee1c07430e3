"""Every kind of block in params.yaml builds, learns, saves, loads, resumes, and trains in bf16."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_training import Stop, watch

from colorize.bins import PriorConfig, Statistics
from colorize.data.dataset import Photos
from colorize.files import InputError
from colorize.models import ModelConfig, build_model, describe_block, load_model, save_model
from colorize.models.architectures.cgan import DISCRIMINATOR_STRIDES, discriminator
from colorize.models.base import Colorizer
from colorize.models.heads import HeadConfig
from colorize.scoring import evaluation
from colorize.training.device import TrainConfig
from colorize.training.loop import Checkpoint, fit, make_optimizer
from pipeline.check import AllParams
from pipeline.params import load

BLOCKS = load(AllParams, ROOT / "params.yaml").models
TRAINED = [name for name, block in BLOCKS.items() if block.arch != "constant"]
KINDS = {
    (b.arch, str(b.network | {"weights": "", "sha256": ""}), b.head.kind, b.head.bins): name
    for name, b in BLOCKS.items()
    if name in TRAINED
}.values()
"""One block of each network and head; the others differ from it in numbers only."""
SIZE = 32


@pytest.fixture(scope="module")
def statistics() -> Statistics:
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    return Statistics.measure(images, PriorConfig(), released=np.full(313, 1 / 313))


def built(
    name: str, statistics: Statistics, size: int = SIZE, like=lambda block: block, **network: object
) -> Colorizer:
    torch.manual_seed(0)
    block = like(BLOCKS[name])
    return build_model(replace(block, network=block.network | network), size, statistics)


def test_discriminator_sees_patches_of_34_pixels() -> None:
    """Document 002: measured by which input pixels one logit's gradient reaches, and by the strides."""
    network = discriminator(8).eval()
    picture = torch.randn(1, 4, 96, 96, requires_grad=True)
    logits = network(picture)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    reached = picture.grad.abs().sum((0, 1)).nonzero()
    extent = reached.amax(0) - reached.amin(0) + 1
    assert extent.tolist() == [34, 34]
    assert DISCRIMINATOR_STRIDES == (2, 2, 1, 1)
    assert network(torch.randn(1, 4, 144, 144)).shape[-2:] == (34, 34)


@pytest.mark.parametrize("name", ["grey", "mean_color", *KINDS])
def test_model_colors_any_lightness_finitely(name: str, statistics: Statistics, narrow) -> None:
    """ab has the lightness's size, is finite and in Lab units; black and white photographs included."""
    model = built(name, statistics, SIZE, narrow).eval()
    light = torch.rand(3, 1, SIZE, SIZE) * 100
    light[0], light[1] = 0, 100
    with torch.no_grad():
        ab = model.colorize(light)
    assert ab.shape == (3, 2, SIZE, SIZE) and ab.dtype == torch.float32
    assert torch.isfinite(ab).all() and ab.abs().max() <= 128


@pytest.mark.parametrize("name", KINDS)
def test_model_learns_one_batch(name: str, statistics: Statistics, photographs, narrow) -> None:
    """The loss it watches falls far within 200 steps, each phase with its own optimizer."""
    plain = {"l1": 0} if "l1" in BLOCKS[name].network else {}
    plain |= {"dropout": 0} if "dropout" in BLOCKS[name].network else {}
    model = built(name, statistics, 16, narrow, **plain)
    light, ab = next(Photos(photographs(3, 16), 16).batches(3))
    parameters = {phase: list(getattr(model, phase).parameters()) for phase in model.phases}
    rate = 1e-2 if BLOCKS[name].arch == "mlp" else 1e-3  # the gain of its last batch norm has to shrink
    optimizers = {p: make_optimizer(parameters[p], BLOCKS[name].recipe, rate) for p in model.phases}
    # A soft target's cross-entropy cannot fall below the target's own entropy.
    share = 0.5 if model.monitor == "cross_entropy" else 0.25
    watched: list[float] = []
    while len(watched) < 200 and not (watched and watched[-1] < share * watched[0]):
        for phase, optimizer in optimizers.items():
            losses = model.losses(phase, light, ab)
            optimizer.zero_grad()
            losses["loss"].backward(inputs=parameters[phase])
            optimizer.step()
            if phase == model.phases[0]:
                watched.append(float(losses[model.monitor].detach()))
    assert watched[-1] < share * watched[0]


@pytest.mark.parametrize("name", ["grey", "mean_color", *KINDS])
def test_saved_model_colors_the_same(name: str, statistics: Statistics, narrow, tmp_path: Path) -> None:
    """A model folder is all that is needed, and holds equal bytes when written twice."""
    model = built(name, statistics, SIZE, narrow).eval()
    description = {"name": name, "block": describe_block(narrow(BLOCKS[name])), "size": SIZE}
    for folder in ("a", "b"):
        save_model(tmp_path / folder, model, description, "epoch\n")
    light = torch.rand(2, 1, SIZE, SIZE) * 100
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "a").colorize(light), model.colorize(light))
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@pytest.mark.parametrize("name", KINDS)
def test_model_trains_in_bf16(name: str, statistics: Statistics, photographs, narrow) -> None:
    """Finite losses and gradients for every parameter of every phase."""
    model = built(name, statistics, SIZE, narrow)
    light, ab = next(Photos(photographs(4, SIZE), SIZE).batches(4))
    for phase in model.phases:
        with torch.autocast("cpu", torch.bfloat16):
            losses = model.losses(phase, light, ab)
        gradients = torch.autograd.grad(losses["loss"], list(getattr(model, phase).parameters()))
        assert all(torch.isfinite(value).all() for value in [*losses.values(), *gradients])
        assert any(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("name", KINDS)
def test_model_resumes_exactly(
    name: str, statistics: Statistics, photographs, narrow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within its second epoch and continued, it ends with the weights and losses of one go."""
    photos = Photos(photographs(4, 16), 16)
    recipe, rule = replace(BLOCKS[name].recipe, batch=2, patience=0), TrainConfig(max_epochs=2, keep="last")
    whole, stopped, resumed = (built(name, statistics, 16, narrow) for _ in range(3))
    expected = fit(whole, photos, photos.spread(2), recipe, rule, 3, tmp_path / "whole.pt")
    last = 5 * len(stopped.phases)  # the first epoch's two batches and two of evaluation, and one
    seen = watch(stopped, last)
    monkeypatch.setattr(Checkpoint, "due", lambda _: len(seen) == last)
    with pytest.raises(Stop):
        fit(stopped, photos, photos.spread(2), recipe, rule, 3, tmp_path / "state.pt")
    seen = watch(resumed)
    found = fit(resumed, photos, photos.spread(2), recipe, rule, 3, tmp_path / "state.pt")
    assert len(seen) == 3 * len(stopped.phases)
    assert found.history == expected.history and len(found.history) == 2
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key


@pytest.mark.parametrize(("name", "size", "scale"), [("cae", 16, 16), ("cae", 32, 8), ("vae", 32, 32)])
def test_maps_of_a_single_pixel_have_finite_gradients_in_bf16(
    name: str, size: int, scale: int, statistics: Statistics, photographs
) -> None:
    """oneDNN leaves such gradients of a 3x3 kernel unwritten; deterministic mode fills them with NaN."""
    light, ab = next(Photos(photographs(4, size), scale).batches(4))
    model = built(name, statistics, size)
    for trial in range(8):
        torch.manual_seed(trial)
        clutter = [torch.randn(1000, 100) for _ in range(trial)]
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.losses("net", light, ab)["loss"]
        gradients = torch.autograd.grad(loss, list(model.net.parameters()))
        assert all(torch.isfinite(gradient).all() for gradient in gradients), (trial, len(clutter))


def test_vae_penalty_is_the_kl_divergence(statistics: Statistics) -> None:
    """Against torch.distributions, over the 64 latent dimensions; a vae samples only while it trains."""
    model = built("vae", statistics)
    light, ab = torch.rand(2, 1, SIZE, SIZE) * 100, torch.zeros(2, 2, SIZE, SIZE)
    losses = model.losses("net", light, ab)
    posterior = torch.distributions.Normal(model.net.mean, (model.net.log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0, 1))
    assert expected.shape == (2, 64)
    assert losses["kl"].item() == pytest.approx(expected.sum(1).mean().item(), rel=1e-4)
    with torch.no_grad():
        assert not torch.equal(model.colorize(light), model.colorize(light))
        assert torch.equal(model.eval().colorize(light), model.colorize(light))


@pytest.mark.parametrize("name", KINDS)
def test_a_network_runs_once_to_be_scored(name: str, statistics: Statistics, photographs, narrow) -> None:
    """No layer runs twice, but for a decoder that colors several times; RGB is in 0 to 1."""
    model, count, runs = built(name, statistics, like=narrow).eval(), 3, Counter[str]()
    for place, module in model.named_modules():
        if not list(module.children()) and list(module.parameters()):
            module.register_forward_hook(lambda *_, place=place: runs.update([place]))
    evaluation.predict(model, SIZE, photographs(2, SIZE), count)
    several = {place for place in runs if place.startswith(("vae.decoder", "vae.last"))}
    assert runs and runs == {place: 1 + count if place in several else 1 for place in runs}
    colors = model.predict(torch.rand(2, 1, SIZE, SIZE) * 100)
    assert (colors.rgb is None) == (BLOCKS[name].head.kind != "rgb") and colors.samples is None
    assert colors.rgb is None or (colors.rgb.shape[1] == 3 and 0 <= colors.rgb.min() <= colors.rgb.max() <= 1)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (ModelConfig("ceva"), "no architecture 'ceva'"),
        (ModelConfig("cae", network={"chanels": [8]}), "does not take chanels; its network takes channels"),
        (ModelConfig("cae"), "needs channels"),
        (ModelConfig("cgan", head=HeadConfig("regression")), "head.kind rgb"),
    ],
)
def test_a_block_that_cannot_be_built_is_refused_with_what_to_do(block: ModelConfig, words: str) -> None:
    """One sentence, not a traceback."""
    with pytest.raises(InputError, match=words):
        build_model(block, SIZE)


def test_damaged_weights_are_refused(statistics: Statistics, tmp_path: Path) -> None:
    """A cut file and a folder without a model are named."""
    with pytest.raises(InputError, match="no trained model"):
        load_model(tmp_path)
    description = {"name": "cae", "block": describe_block(BLOCKS["cae"]), "size": SIZE}
    save_model(tmp_path, built("cae", statistics), description, "")
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="weights.safetensors"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"size": 0}, "(size)"),
        ({"block": 3}, "(block)"),
        ({"block": {"arch": "cae", "recipe": {"lr": "fast"}}}, "(block.recipe.lr)"),
        ({"mean_ab": [1]}, "(mean_ab"),
    ],
)
def test_a_description_from_others_is_checked(
    statistics: Statistics, tmp_path: Path, change: dict[str, object], where: str
) -> None:
    """Found by fuzzing: what cannot be is refused by its name before anything is built from it."""
    description = {"name": "cae", "block": describe_block(BLOCKS["cae"]), "size": SIZE}
    save_model(tmp_path, built("cae", statistics), description | change, "")
    with pytest.raises(InputError, match="does not describe a trained model") as refused:
        load_model(tmp_path)
    assert where in str(refused.value)
