"""The loop: exact resume after SIGKILL, early stopping, time and epoch caps, refusals."""

import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from faults import fault

from colorize import files
from colorize.batches import Photos
from colorize.bins import Statistics
from colorize.files import InputError
from colorize.models import build_model, model_class
from colorize.settings import HeadRule, ModelBlock, PriorRule, Recipe, TrainRule
from colorize.training import AVERAGED_EPOCHS, fit, history_csv, scale_of
from pipeline.params import load

BLOCKS = load(ROOT / "params.yaml").blocks
SMALL = {
    "cae": {"channels": (4, 8)},
    "vae": {"latent": 2},
    "cgan": {"width": 4},
    "mlp1": {"hidden": (16,)},
}
RULE = TrainRule(max_epochs=4, lr_at_least=1e-3, checkpoint_seconds=0)


def small_model(name: str, images) -> torch.nn.Module:
    block = BLOCKS[name]
    torch.manual_seed(7)
    statistics = Statistics.measure(images, PriorRule())
    return build_model(replace(block, network=block.network | SMALL[name]), 16, statistics)


def train(name: str, images, state: Path, rule: TrainRule = RULE, **recipe):
    model = small_model(name, images)
    photos = Photos(images, 16)
    settings = replace(BLOCKS[name].train, batch=4, **recipe)
    return model, fit(model, photos, photos.spread(5), settings, rule, 3, state)


@pytest.mark.parametrize("name", SMALL)
def test_interrupted_training_ends_with_identical_weights(name: str, photographs, tmp_path: Path) -> None:
    """Stopped after every epoch and continued in a fresh model: weights, losses and best epoch are those of one go."""
    images = photographs(11, 16)
    whole, expected = train(name, images, tmp_path / "whole.pt")
    for stop in range(1, 4):
        state = tmp_path / f"{stop}.pt"

        class Stop(Exception):
            pass

        def stop_after(row, stop=stop) -> None:
            if row["epoch"] == stop + 1:
                raise Stop

        model = small_model(name, images)
        photos = Photos(images, 16)
        settings = replace(BLOCKS[name].train, batch=4)
        with pytest.raises(Stop):
            fit(model, photos, photos.spread(5), settings, RULE, 3, state, stop_after)
        assert files.read_state(state)["progress"]["epoch"] == stop
        resumed, progress = train(name, images, state)
        assert progress.history == expected.history
        assert progress.best_epoch == expected.best_epoch
        for key, tensor in whole.state_dict().items():
            assert torch.equal(tensor, resumed.state_dict()[key]), key


PROGRAM = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
import torch
from pathlib import Path
from conftest import _photographs
from test_training import RULE, train
from colorize import files
from dataclasses import replace
model, progress = train("cgan", _photographs(40, 16), Path(sys.argv[1]), replace(RULE, max_epochs=25))
files.write_state(Path(sys.argv[2]), model.state_dict())
"""


@fault(33, "SIGKILL, a power cut, at any moment of a training")
def test_killed_run_ends_with_identical_weights(photographs, tmp_path: Path) -> None:
    """Started again after each, start-up and writing included, it ends with the weights, bit for bit, of a run in one go."""
    program = PROGRAM.format(tests=str(ROOT / "tests"), root=str(ROOT))

    def run(state: str, out: str) -> subprocess.Popen:
        command = [sys.executable, "-c", program, str(tmp_path / state), str(tmp_path / out)]
        return subprocess.Popen(command, env=os.environ | {"PYTHONHASHSEED": "0"})

    assert run("whole.pt", "whole").wait() == 0
    moments = random.Random(4)
    kills = 0
    while kills < 4:
        process = run("killed.pt", "killed")
        # An unfinished state on disk means that the loop runs: strike somewhere in the following second.
        deadline = time.monotonic() + 60
        before = (tmp_path / "killed.pt").stat().st_mtime_ns if (tmp_path / "killed.pt").exists() else 0
        while process.poll() is None and time.monotonic() < deadline:
            if (tmp_path / "killed.pt").exists() and (tmp_path / "killed.pt").stat().st_mtime_ns != before:
                break
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.15))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills > 0
    assert run("killed.pt", "killed").wait() == 0
    whole, killed = (files.read_state(tmp_path / name) for name in ("whole", "killed"))
    assert all(torch.equal(tensor, killed[key]) for key, tensor in whole.items())


def test_a_finished_state_is_handed_out_without_training(photographs, tmp_path: Path) -> None:
    """Same weights, no epoch run."""
    images = photographs(8, 16)
    model, progress = train("cae", images, tmp_path / "s.pt")
    trained: list = []
    again = small_model("cae", images)
    photos = Photos(images, 16)
    fit(again, photos, photos, BLOCKS["cae"].train, RULE, 3, tmp_path / "s.pt", trained.append)
    assert not trained
    assert all(torch.equal(t, again.state_dict()[k]) for k, t in model.state_dict().items())


def test_best_weights_are_those_of_the_lowest_validation_loss(photographs, tmp_path: Path) -> None:
    """keep: best hands out the epoch with the lowest val_loss; keep: last the last."""
    images = photographs(8, 16)
    for keep in ("best", "last"):
        _, progress = train("cae", images, tmp_path / f"{keep}.pt", replace(RULE, keep=keep, lr_at_least=0.1))
        losses = [row["val_loss"] for row in progress.history]
        assert progress.best_epoch == (1 + losses.index(min(losses)) if keep == "best" else len(losses))


def test_training_stops_after_patience_rises_in_a_row(photographs, tmp_path: Path) -> None:
    """Document 000, section 2.5.9: with a loss that only rises, 1 + patience epochs are run."""
    images = photographs(8, 16)

    class Rising(torch.nn.Module):
        phases = ("net",)
        monitor = "loss"

        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(1, 1)
            self.calls = 0

        def losses(self, phase, light, ab):
            self.calls += not self.training
            return {"loss": self.net.weight.sum() * 0 + self.calls}

    photos = Photos(images, 16)
    recipe = Recipe(epochs=50, patience=3)
    progress = fit(Rising(), photos, photos, recipe, replace(RULE, max_epochs=0), 1, tmp_path / "s.pt")
    assert progress.epoch == 4


def test_weights_that_are_not_finite_stop_the_training(photographs, tmp_path: Path) -> None:
    """Though every loss is: they are named, and no state is written."""
    model = small_model("cae", pixels := photographs(8, 16))
    model.register_parameter("unused", torch.nn.Parameter(torch.tensor(float("inf"))))
    photos = Photos(pixels, 16)
    with pytest.raises(InputError, match="weights unused are not finite after epoch 1"):
        fit(model, photos, photos, BLOCKS["cae"].train, RULE, 1, tmp_path / "s.pt")
    assert not (tmp_path / "s.pt").exists()


def test_minutes_cap_the_training_time(photographs, tmp_path: Path) -> None:
    """The epoch under way is finished, no other begun; time before an interruption counts."""
    images = photographs(8, 16)
    rule = replace(RULE, max_epochs=0, max_minutes=1e-9)
    assert train("cae", images, tmp_path / "s.pt", rule)[1].epoch == 1


def test_exploding_loss_stops_with_a_sentence(photographs, tmp_path: Path) -> None:
    """No NaN weights are ever kept."""
    images = photographs(8, 16)
    with pytest.raises(InputError, match=r"is (nan|inf) in step .*lower"):
        train("mlp1", images, tmp_path / "s.pt", replace(RULE, lr_at_least=1e30), optimizer="sgd")
    state = tmp_path / "s.pt"
    assert not state.exists() or all(t.isfinite().all() for t in files.read_state(state)["model"].values())


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "sgd"])
def test_every_optimizer_trains(optimizer: str, photographs, tmp_path: Path) -> None:
    """The loss falls."""
    rule = replace(RULE, max_epochs=8)
    _, progress = train("cae", photographs(8, 16), tmp_path / "s.pt", rule, optimizer=optimizer, momentum=0.9)
    losses = [row["train_eval_loss"] for row in progress.history]
    assert min(losses[1:]) < losses[0]


def test_losses_are_measured_in_both_modes(photographs, tmp_path: Path) -> None:
    """With dropout at work, the running training loss differs from the same photographs' in evaluation mode."""
    images = photographs(5, 16)
    _, progress = train("cgan", images, tmp_path / "s.pt")
    row = progress.history[0]
    assert {"train_loss", "train_eval_loss", "val_loss", "val_discriminator_loss", "val_generator_loss"} <= set(row)
    assert row["train_loss"] != row["train_eval_loss"]
    assert row["train_eval_loss"] == row["val_loss"]  # here the same five photographs
    assert len(progress.seconds) == len(progress.history)


def test_history_averages_over_twenty_epochs() -> None:
    """By hand: with loss = epoch, the mean at 30 is that of 11 to 30, at 3 that of 1 to 3."""
    rows = [{"epoch": e, "train_loss": e, "train_eval_loss": 2 * e, "val_loss": 3 * e, "val_kl": 0.5} for e in range(1, 31)]
    lines = history_csv(rows).splitlines()
    header = lines[0].split(",")
    assert header[:4] == ["epoch", "train_loss", "train_eval_loss", "val_loss"] and header[-1] == "val_kl"
    assert AVERAGED_EPOCHS == 20
    at = dict(zip(header, map(float, lines[30].split(",")), strict=True))
    assert at["train_loss_ma20"] == 20.5 and at["val_loss_ma20"] == pytest.approx(61.5)
    assert float(lines[3].split(",")[header.index("train_loss_ma20")]) == 2
    assert history_csv([]).splitlines()[0].startswith("epoch,train_loss")


def test_constant_models_train_in_no_time(photographs, tmp_path: Path) -> None:
    """No phases, no epochs; nothing to go wrong."""
    images = photographs(4, 16)
    model = build_model(ModelBlock("constant", network={"color": "zero"}, head=HeadRule()), 16)
    progress = fit(model, Photos(images, 16), Photos(images, 16), Recipe(), RULE, 1, tmp_path / "s.pt")
    assert progress.epoch == 0 and math.isinf(progress.best_loss)


def watch_sides(model: torch.nn.Module) -> list[tuple[bool, int]]:
    """Fills with (training, side) of everything the model's losses are given."""
    seen: list[tuple[bool, int]] = []
    losses = model.losses
    model.losses = lambda phase, light, ab: seen.append((model.training, light.shape[-1])) or losses(phase, light, ab)
    return seen


@pytest.mark.parametrize(
    ("epochs", "scales", "expected"),
    [
        (16, (0.3684, 1), [0.3684] * 8 + [1] * 8),  # document 004
        (5, (0.5, 1), [0.5, 0.5, 1, 1, 1]),
        (6, (0.2, 0.4, 1), [0.2, 0.2, 0.4, 0.4, 1, 1]),
        (1, (0.5, 1), [1]),
        (3, (1,), [1, 1, 1]),
    ],
)
def test_scales_share_the_epochs(epochs: int, scales: tuple[float, ...], expected: list[float]) -> None:
    """Each an equal part, a remainder to the later ones; the last epoch is always at the last."""
    assert [scale_of(scales, epoch, epochs) for epoch in range(epochs)] == expected


def test_training_grows_and_validation_does_not(photographs, tmp_path: Path) -> None:
    """Half the side for two epochs, the whole for two; losses in evaluation mode are always of the whole photographs."""
    images = photographs(8, 16)
    model = small_model("cae", images)
    seen = watch_sides(model)
    photos = Photos(images, 16)
    settings = replace(BLOCKS["cae"].train, batch=4, scales=(0.5, 1))
    progress = fit(model, photos, photos, settings, RULE, 3, tmp_path / "s.pt")
    assert [side for training, side in seen if training] == [8] * 4 + [16] * 4
    assert {side for training, side in seen if not training} == {16}
    assert all(row["train_eval_loss"] == row["val_loss"] for row in progress.history)


def test_interrupted_growing_training_ends_with_identical_weights(photographs, tmp_path: Path) -> None:
    """Stopped after every epoch of a schedule of sizes, before, at and after the change, and continued afresh."""
    images = photographs(6, 16)
    recipe = {"scales": (0.5, 1), "flip": True}
    whole, expected = train("cae", images, tmp_path / "whole.pt", **recipe)
    for stop in range(1, 4):

        class Stop(Exception):
            pass

        def stop_after(row, stop=stop) -> None:
            if row["epoch"] == stop + 1:
                raise Stop

        state = tmp_path / f"{stop}.pt"
        model, photos = small_model("cae", images), Photos(images, 16)
        settings = replace(BLOCKS["cae"].train, batch=4, **recipe)
        with pytest.raises(Stop):
            fit(model, photos, photos.spread(5), settings, RULE, 3, state, stop_after)
        assert files.read_state(state)["progress"]["epoch"] == stop
        resumed, progress = train("cae", images, state, **recipe)
        assert progress.history == expected.history and progress.best_epoch == expected.best_epoch
        for key, tensor in whole.state_dict().items():
            assert torch.equal(tensor, resumed.state_dict()[key]), key


@pytest.mark.parametrize("name", [name for name, block in BLOCKS.items() if block.arch != "constant"])
def test_models_that_say_so_work_at_other_sizes(name: str, photographs) -> None:
    """Built for 32 pixels, trained on 24 and on 8, as scales or random crops may ask; the others are refused."""
    if not model_class(BLOCKS[name]).any_size:
        for change in ({"scales": (0.5, 1)}, {"crop": 0.5}):
            block = replace(BLOCKS[name], train=replace(BLOCKS[name].train, **change))
            with pytest.raises(InputError, match=r"works at one size only; leave train\.crop and train\.scales at 1"):
                model_class(block)
        return
    model = build_model(BLOCKS[name], 32, Statistics.measure(photographs(4, 32), PriorRule(), np.full(313, 1 / 313)))
    for side in (24, 8):
        light, ab = next(Photos(photographs(4, 32), side).batches(4))
        losses = [model.losses(phase, light, ab)["loss"] for phase in model.phases]
        assert all(torch.isfinite(loss) for loss in losses)
