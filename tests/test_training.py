"""The loop: exact resume after SIGKILL, early stopping, time and epoch caps, refusals."""

import math
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from faults import fault
from torch import Tensor

from colorize import distributed, files
from colorize.bins import PriorConfig, Statistics
from colorize.data.dataset import Photos
from colorize.files import InputError
from colorize.models import Recipe, build_model, model_class
from colorize.training import loop
from colorize.training.device import TrainConfig
from colorize.training.loop import Checkpoint, Progress, fit, history_csv, rate_of, scale_of
from pipeline.check import AllParams
from pipeline.params import load

BLOCKS = load(AllParams, ROOT / "params.yaml").models
SMALL = {"cae": {"channels": (4, 8)}, "vae": {"latent": 2}, "cgan": {"width": 4}, "mlp1": {"hidden": (16,)}}
RULE = TrainConfig(max_epochs=4, min_lr=1e-3, checkpoint_seconds=0)


def small_model(name: str, images) -> torch.nn.Module:
    block = BLOCKS[name]
    torch.manual_seed(7)
    statistics = Statistics.measure(images, PriorConfig())
    return build_model(replace(block, network=block.network | SMALL[name]), 16, statistics)


def train(name: str, images, state: Path, rule: TrainConfig = RULE, **recipe):
    model = small_model(name, images)
    photos = Photos(images, 16)
    settings = replace(BLOCKS[name].recipe, batch=4, **recipe)
    return model, fit(model, photos, photos.spread(5), settings, rule, 3, state)


class Stop(Exception):
    """Stands in for whatever ends a training."""


def stop() -> None:
    raise Stop


def watch(model: torch.nn.Module, last: float = math.inf, end: Callable[[], None] = stop) -> list[str]:
    """Fills with the phase of every batch that the model gets; after so many of them, `end` is called."""
    seen: list[str] = []

    class Watched(
        type(model)
    ):  # not an attribute: a copy, as the weights' average is, would call this model's
        def losses(self, phase: str, light: torch.Tensor, ab: torch.Tensor) -> dict[str, torch.Tensor]:
            if len(seen) == last:
                end()
            seen.append(phase)
            return super().losses(phase, light, ab)

    model.__class__ = Watched
    return seen


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("cae", {}),
        ("cae", {"scales": (0.5, 1), "flip": True, "crop": 0.5}),
        ("cae", {"schedule": "cosine", "warmup": 0.2, "average": 0.9, "zoom": 0.6, "degrade": True}),
        ("mlp1", {"optimizer": "sgd", "momentum": 0.9}),
        ("cgan", {"optimizer": "rmsprop"}),  # two phases, and dropout draws noise
    ],
)
def test_a_training_that_is_interrupted_within_an_epoch_ends_as_one_in_one_go(
    name: str, recipe: dict, photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any batch, of training or of validation: same weights, same rows, and no batch is done twice."""
    monkeypatch.setattr(loop, "SAVING_COST", 0)
    monkeypatch.setattr(loop, "EVALUATION_BATCH", 2)
    photos = Photos(photographs(11, 16), 16)
    block = replace(BLOCKS[name].recipe, batch=4, patience=0, **recipe)
    rule = replace(RULE, max_epochs=2)

    def run(state: str, last: float = math.inf) -> tuple[torch.nn.Module, list[str], Progress]:
        model = small_model(name, photos.images.numpy())
        seen = watch(model, last)
        torch.manual_seed(len(list(tmp_path.iterdir())))  # what was drawn before does not matter
        return model, seen, fit(model, photos, photos.spread(5), block, rule, 3, tmp_path / state)

    whole, every, expected = run("whole")
    phases = len(whole.phases)
    for done in (2, 7, 12):  # of two epochs with three batches each for train, train_eval and val
        with pytest.raises(Stop):
            run(f"{done}", done * phases + phases - 1)
        resumed, rest, progress = run(f"{done}")
        assert len(rest) == len(every) - done * phases
        assert progress.history == expected.history and progress.best_epoch == expected.best_epoch
        for key, tensor in whole.state_dict().items():
            assert torch.equal(tensor, resumed.state_dict()[key]), (done, key)


PROGRAM = """
import os, signal, sys
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
import test_training
from conftest import _photographs
from colorize.training import loop

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def mortal(*arguments, built=test_training.small_model):
    model = built(*arguments)
    test_training.watch(model, 11, die)
    return model

loop.SAVING_COST = 0
if sys.argv[2] == "in a step":
    test_training.small_model = mortal
else:
    os.replace = die
test_training.train("cgan", _photographs(40, 16), Path(sys.argv[1]))
"""


@pytest.mark.slow
@fault(33, "SIGKILL, a power cut, at any moment of a training")
def test_killed_run_ends_with_identical_weights(photographs, tmp_path: Path) -> None:
    """Started again, it goes on within the epoch and ends with the same weights, bit for bit."""
    program, state = PROGRAM.format(tests=str(ROOT / "tests"), root=str(ROOT)), tmp_path / "killed.pt"
    for moment in ("in a step", "while a state is written"):
        killed = subprocess.run([sys.executable, "-c", program, str(state), moment], check=False)
        assert killed.returncode == -signal.SIGKILL
        saved = files.read_state(state)
        assert saved["progress"]["epoch"] == 0 and saved["passes"][0]["train"][0] == 5  # of ten batches
    whole, expected = train("cgan", photographs(40, 16), tmp_path / "whole.pt")
    model, progress = train("cgan", photographs(40, 16), state)
    assert progress.history == expected.history
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in whole.state_dict().items())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the training's clock shows, to be moved by hand."""
    now = [1000.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.mark.parametrize(("cost", "saved"), [(0.5, [3, 6, 9, 12, 15, 18, 21, 24]), (6, [3, 9, 15, 21])])
def test_states_are_saved_as_often_as_is_promised_unless_that_is_dear(
    cost: float, saved: list[int], photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock
) -> None:
    """Every 30 seconds, also within an epoch of ten batches and two for its losses, 10 seconds each.

    When saving takes 6 seconds, every 60; it does not count as training, nor does what a kill cost.
    """
    images, state, found, seen = photographs(40, 16), tmp_path / "state.pt", [], []
    write = files.write_state

    def slow(path: Path, content: dict) -> None:
        clock[0] += cost
        found.append(len(seen))
        write(path, content)

    monkeypatch.setattr(files, "write_state", slow)
    recipe, rule = replace(BLOCKS["cae"].recipe, batch=4), replace(RULE, max_epochs=2, checkpoint_seconds=30)

    def run(last: float = math.inf) -> Progress:
        seen.clear()
        model, photos = small_model("cae", images), Photos(images, 16)
        losses = model.losses

        def timed(*arguments):
            if len(seen) == last:
                raise Stop
            seen.append(1)
            clock[0] += 10
            return losses(*arguments)

        model.losses = timed
        return fit(model, photos, photos.spread(5), recipe, rule, 3, state)

    assert run().seconds == [120, 120]
    assert found == [*saved, 24]  # and the end
    state.unlink()
    with pytest.raises(Stop):
        run(last=5)
    clock[0] += 86_400
    assert run().seconds == [120, 120] and len(seen) == 21


def test_ranks_ask_each_other_rarely_whether_a_state_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    """A state every 30 seconds at 100 batches a second: 15 looks at the clock first, then 4 for each."""
    asked: list[int] = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "broadcast_object", lambda value: asked.append(batch) or value)
    checkpoint = Checkpoint(tmp_path / "s.pt", torch.nn.Linear(1, 1), None, [], 30)
    checkpoint.begin("train")
    saved = []
    for batch in range(1, 10_000):
        clock[0] += 0.01
        if checkpoint.due():
            saved.append(batch)
            checkpoint.saved_at = clock[0]
    assert saved == pytest.approx([3000, 6000, 9000], abs=3)
    assert len(asked) < 15 + 2 * 4


def test_best_weights_are_those_of_the_lowest_validation_loss(photographs, tmp_path: Path) -> None:
    """keep: best hands out the epoch with the lowest val_loss; keep: last the last."""
    images = photographs(8, 16)
    for keep in ("best", "last"):
        _, progress = train("cae", images, tmp_path / f"{keep}.pt", replace(RULE, keep=keep, min_lr=0.1))
        losses = [row["val_loss"] for row in progress.history]
        assert progress.best_epoch == (1 + losses.index(min(losses)) if keep == "best" else len(losses))


def test_training_stops_after_patience_rises_in_a_row(photographs, tmp_path: Path) -> None:
    """Document 000, section 2.5.9: with a loss that only rises, 1 + patience epochs are run."""
    model, photos = small_model("cae", images := photographs(8, 16)), Photos(images, 16)
    losses, rising = model.losses, count()
    model.losses = lambda *batch: (
        losses(*batch) | ({} if model.training else {model.monitor: torch.tensor(float(next(rising)))})
    )
    rule = replace(RULE, max_epochs=0)
    assert fit(model, photos, photos, Recipe(epochs=50, patience=3), rule, 1, tmp_path / "s.pt").epoch == 4


def test_weights_that_are_not_finite_stop_the_training(photographs, tmp_path: Path) -> None:
    """Though every loss is: they are named, and no state is written."""
    model = small_model("cae", pixels := photographs(8, 16))
    model.register_parameter("unused", torch.nn.Parameter(torch.tensor(float("inf"))))
    photos = Photos(pixels, 16)
    with pytest.raises(InputError, match="weights unused are not finite in epoch 1"):
        fit(model, photos, photos, BLOCKS["cae"].recipe, RULE, 1, tmp_path / "s.pt")
    assert not (tmp_path / "s.pt").exists()


def test_minutes_cap_the_training_time(photographs, tmp_path: Path) -> None:
    """The epoch under way is finished, no other begun; time before an interruption counts."""
    images = photographs(8, 16)
    rule = replace(RULE, max_epochs=0, max_minutes=1e-9)
    assert train("cae", images, tmp_path / "s.pt", rule)[1].epoch == 1


def test_losses_are_measured_in_both_modes(photographs, tmp_path: Path) -> None:
    """With dropout, the running training loss differs from the one in evaluation mode."""
    row = train("cgan", photographs(5, 16), tmp_path / "s.pt", replace(RULE, max_epochs=1))[1].history[0]
    assert {"val_discriminator_loss", "val_generator_loss"} <= set(row)
    assert row["train_loss"] != row["train_eval_loss"]
    assert row["train_eval_loss"] == row["val_loss"]  # here the same five photographs


def test_history_averages_over_twenty_epochs() -> None:
    """By hand: with loss = epoch, the mean at 30 is that of 11 to 30, at 3 that of 1 to 3."""
    names = ("epoch", "train_loss", "train_eval_loss", "val_loss")
    rows = [dict.fromkeys(names, epoch) | {"val_kl": 0.5} for epoch in range(1, 31)]
    header, *lines = (line.split(",") for line in history_csv(rows).splitlines())
    assert tuple(header[:4]) == names and header[-1] == "val_kl"
    for epoch, mean in ((30, 20.5), (3, 2)):
        assert float(lines[epoch - 1][header.index("val_loss_ma20")]) == pytest.approx(mean)
    assert history_csv([]).startswith("epoch,train_loss")


@pytest.mark.parametrize(
    ("epochs", "scales", "expected"),
    [
        (16, (0.3684, 1), [0.3684] * 8 + [1] * 8),  # document 004
        (5, (0.5, 1), [0.5, 0.5, 1, 1, 1]),
        (6, (0.2, 0.4, 1), [0.2, 0.2, 0.4, 0.4, 1, 1]),
        (1, (0.5, 1), [1]),
    ],
)
def test_scales_share_the_epochs(epochs: int, scales: tuple[float, ...], expected: list[float]) -> None:
    """Each an equal part, a remainder to the later ones; the last epoch is always at the last."""
    assert [scale_of(scales, epoch, epochs) for epoch in range(epochs)] == expected


def test_training_grows_and_validation_does_not(photographs, tmp_path: Path) -> None:
    """Half the side for two epochs, the whole for two; evaluation is always at the whole size."""
    images = photographs(8, 16)
    model = small_model("cae", images)
    seen, losses = [], model.losses
    model.losses = lambda phase, light, ab: (
        seen.append((model.training, light.shape[-1])) or losses(phase, light, ab)
    )
    photos = Photos(images, 16)
    settings = replace(BLOCKS["cae"].recipe, batch=4, scales=(0.5, 1))
    progress = fit(model, photos, photos, settings, RULE, 3, tmp_path / "s.pt")
    assert [side for training, side in seen if training] == [8] * 4 + [16] * 4
    assert {side for training, side in seen if not training} == {16}
    assert all(row["train_eval_loss"] == row["val_loss"] for row in progress.history)


KINDS = {(block.arch, block.head.kind): name for name, block in BLOCKS.items() if block.arch != "constant"}


@pytest.mark.parametrize("name", KINDS.values())
def test_models_that_say_so_work_at_other_sizes(name: str, photographs, narrow) -> None:
    """Built for 32 pixels, trained on 24 and on 8; models of one size are refused."""
    block = narrow(BLOCKS[name])
    if not model_class(block).any_size:
        for change in ({"scales": (0.5, 1)}, {"crop": 0.5}):
            with pytest.raises(
                InputError, match=r"works at one size only; leave recipe\.crop and recipe\.scales"
            ):
                model_class(replace(block, recipe=replace(block.recipe, **change)))
        return
    statistics = Statistics.measure(photographs(4, 32), PriorConfig(), np.full(313, 1 / 313))
    model = build_model(block, 32, statistics)
    for side in (24, 8):
        light, ab = next(Photos(photographs(4, 32), side).batches(4))
        losses = [model.losses(phase, light, ab)["loss"] for phase in model.phases]
        assert all(torch.isfinite(loss) for loss in losses)


def test_learning_rate_rises_and_falls_as_the_recipe_says() -> None:
    """Linear over the first tenth, then half a cosine down to a hundredth; constant is one number."""
    recipe = Recipe(lr=2, schedule="cosine", warmup=0.1)
    rates = [rate_of(recipe, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert rates[10] == pytest.approx(2) and rates[55] == pytest.approx(2 * (0.01 + 0.99 / 2))
    assert rates[-1] == pytest.approx(0.02, rel=0.1) and all(
        a >= b for a, b in zip(rates[10:], rates[11:], strict=False)
    )
    assert {rate_of(Recipe(lr=2), step, 100) for step in range(100)} == {2}


def test_what_came_pretrained_takes_smaller_steps(photographs, tmp_path: Path) -> None:
    """With plain SGD a tenth of the rate is a tenth of the step; the rest of the network takes the whole."""
    photos = Photos(photographs(4, 16), 16)

    def step(share: float) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = build_model(BLOCKS["cae"], 16)
        model.pretrained = ("net.0",)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        recipe = Recipe(epochs=1, batch=4, optimizer="sgd", lr=1e-2, pretrained_lr=share)
        fit(model, photos, photos, recipe, TrainConfig(min_lr=0, keep="last"), 1, tmp_path / f"{share}.pt")
        return {name: tensor - before[name] for name, tensor in model.state_dict().items()}

    whole, tenth = step(1), step(0.1)
    for name, moved in whole.items():
        wanted = moved * 0.1 if name.startswith("net.0.") else moved
        assert torch.allclose(tenth[name], wanted, rtol=2e-2, atol=1e-7), name


def test_averaged_weights_are_kept(photographs, tmp_path: Path) -> None:
    """Against the average computed from the weights after each of four steps."""
    photos, weights = Photos(photographs(4, 16), 16), []
    torch.manual_seed(0)
    model = build_model(BLOCKS["cae"], 16)
    seen = model.net[0][0][0].weight
    model.net.register_forward_pre_hook(
        lambda net, _: weights.append(seen.detach().clone()) if net.training else None
    )
    recipe = Recipe(epochs=4, batch=4, lr=1e-2, average=0.5)
    fit(model, photos, photos, recipe, TrainConfig(keep="last"), 1, tmp_path / "plain.pt")
    steps = weights[1:]  # the last one's result is not seen before the averaged weights replace it
    torch.manual_seed(0)
    last = build_model(BLOCKS["cae"], 16)
    fit(last, photos, photos, replace(recipe, average=0), TrainConfig(keep="last"), 1, tmp_path / "last.pt")
    steps.append(last.net[0][0][0].weight.detach())
    expected = steps[0]
    for weight in steps[1:]:
        expected = 0.5 * expected + 0.5 * weight
    assert torch.allclose(model.net[0][0][0].weight, expected, atol=1e-6)
