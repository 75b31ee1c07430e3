"""One training loop for every model.

`for batch: for phase: loss, backward, step`. Everything random is a function of (seed, epoch), so a state saved between
two epochs continues exactly: a run that was killed and started again ends with the weights of one that was not. States
are written atomically, at most every `checkpoint_seconds`; the last one holds only what is needed to hand the model out.

The loop receives a model and knows none. It does not choose the device (device.py) nor the data (batches.py). Several ranks
run it side by side (distributed.py), each on its part of every batch; the first one alone reads and writes the state.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from colorize import distributed, files
from colorize.batches import Photos
from colorize.device import use_bf16
from colorize.files import InputError
from colorize.models._base import Colorizer
from colorize.settings import Recipe, TrainRule

Row = dict[str, float]

EVALUATION_BATCH = 64
LOWER = "lower the model's train.lr (or train.lr_at_least)"
AVERAGED_EPOCHS = 20


@dataclass
class Progress:
    """How far a training has come; saved with every state."""

    epoch: int = 0
    """Epochs done."""
    history: list[Row] = field(default_factory=list)
    """One row per epoch: `epoch`, then `train_*` (running, in training mode, at the epoch's scale), `train_eval_*` and
    `val_*` (both at the whole size)."""
    seconds: list[float] = field(default_factory=list)
    """Measured wall time of each epoch."""
    rises: int = 0
    """Epochs in a row in which the validation loss rose."""
    best_loss: float = math.inf
    best_epoch: int = 0


def seed_of(seed: int, epoch: int) -> int:
    """The seed of everything random in one epoch."""
    return seed * 1_000_003 + epoch


def noise_seed_of(seed: int, epoch: int) -> int:
    """The same on the first rank; the noise that models draw is another one on each."""
    return seed_of(seed, epoch) + distributed.rank() * 2**32


def make_optimizer(parameters: Iterable[Tensor], recipe: Recipe, rate: float) -> torch.optim.Optimizer:
    """The optimizer of one phase."""
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, rate, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True)
    if recipe.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(parameters, rate, recipe.momentum, weight_decay=recipe.weight_decay)


def scale_of(scales: Sequence[float], epoch: int, epochs: int) -> float:
    """The one of `scales` that holds in an epoch, counted from 0: each for an equal part, the last epoch at the last."""
    return scales[-(-(epoch + 1) * len(scales) // epochs) - 1]


class _Means:
    """Means of losses over the photographs of an epoch, all ranks' together; nothing leaves the device before `result`."""

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, first: bool, losses: dict[str, Tensor], count: int) -> None:
        for name, value in losses.items():
            if name == self.monitor and first:
                name = "loss"
            elif name == "loss":
                continue
            self.totals[name] = self.totals.get(name, 0) + value.detach() * count
            self.counts[name] = self.counts.get(name, 0) + count

    def result(self) -> Row:
        parts = distributed.gathered({name: (float(total), self.counts[name]) for name, total in self.totals.items()})
        sums = {name: [part[name] for part in parts if name in part] for name in parts[0]}
        return {name: sum(total for total, _ in s) / sum(count for _, count in s) for name, s in sums.items()}


def evaluate_losses(model: Colorizer, photos: Photos, bf16: bool = False) -> Row:
    """Mean losses over a set in evaluation mode; `loss` is the one the model monitors."""
    means = _Means(model.monitor)
    model.eval()
    with torch.no_grad():
        for light, ab in photos.batches(EVALUATION_BATCH, distributed.rank(), distributed.ranks()):
            for phase in model.phases:
                with torch.autocast(light.device.type, torch.bfloat16, enabled=bf16):
                    losses = model.losses(phase, light, ab)
                means.add(phase == model.phases[0], losses, len(light))
    return means.result()


def fit(
    model: Colorizer,
    train: Photos,
    val: Photos,
    recipe: Recipe,
    rule: TrainRule,
    seed: int,
    state: Path,
    on_epoch: Callable[[Row], None] = lambda row: None,
) -> Progress:
    """Train `model` in place, continuing from `state` if there is one.

    Args:
        state: file of the training state; a finished one is loaded and nothing is trained, a damaged one is left out.
        on_epoch: called with the row of every epoch trained here.

    Returns:
        What was done; the model holds the kept weights, in evaluation mode.

    Raises:
        InputError: a loss is not finite, and the sentence names step, phase and photographs; or weights are not; or a
            batch has fewer photographs than there are ranks.
    """
    device, rank, ranks = train.device, distributed.rank(), distributed.ranks()
    bf16 = use_bf16(rule, device)
    epochs = min(recipe.epochs, rule.max_epochs or recipe.epochs) if model.phases else 0
    rate = max(recipe.lr, rule.lr_at_least)
    parameters = {
        phase: [parameter for parameter in getattr(model, phase).parameters() if parameter.requires_grad]
        for phase in model.phases
    }
    optimizers = {phase: make_optimizer(p, recipe, rate) for phase, p in parameters.items()}
    progress, best = Progress(), _copy(model)
    if (
        saved := distributed.agreed(None if rank else _read(state, device if ranks == 1 else torch.device("cpu")))
    ) is not None:
        progress = Progress(**saved["progress"])
        model.load_state_dict(saved["model"])
        if saved["finished"]:
            model.eval()
            return progress
        best = saved["best"]
        for phase, optimizer in optimizers.items():
            optimizer.load_state_dict(saved["optimizers"][phase])

    watched, shown, scale = train.spread(len(val)), train, 1.0
    steps = -(-len(train) // recipe.batch)
    if len(train) // steps < ranks:
        raise InputError(
            f"{ranks} processes cannot share batches of {len(train) // steps} photographs; lower train.nproc or "
            "train.nnodes, or raise the model's train.batch"
        )
    distributed.synchronize(model)
    losses_of = {phase: distributed.phase_losses(model, phase) for phase in model.phases}
    silent = True if rank else None
    bar = tqdm(total=epochs * steps, initial=progress.epoch * steps, unit="batch", disable=silent, leave=False)
    saved_at = time.monotonic()
    while (
        progress.epoch < epochs
        and not (recipe.patience and progress.rises >= recipe.patience)
        and not (rule.max_minutes and sum(progress.seconds) >= 60 * rule.max_minutes)
    ):
        started = time.monotonic()
        epoch_seed = seed_of(seed, progress.epoch)
        torch.manual_seed(noise_seed_of(seed, progress.epoch))
        if (wanted := scale_of(recipe.scales, progress.epoch, epochs)) != scale:
            shown, scale = train.scaled(wanted), wanted
        means, stepped = _Means(model.monitor), []
        model.train()
        for step, (light, ab) in enumerate(shown.epoch(epoch_seed, recipe.batch, recipe.flip, recipe.crop, rank, ranks)):
            whole = len(train) // steps + (step < len(train) % steps)
            for phase, optimizer in optimizers.items():
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    losses = losses_of[phase](light, ab)
                optimizer.zero_grad(set_to_none=True)
                # The mean of the ranks' gradients is that of the whole batch if each counts as much as its part is long.
                part = losses["loss"] * (len(light) * ranks / whole)
                part.backward(inputs=parameters[phase])  # the other phases get no gradient
                optimizer.step()
                means.add(phase == model.phases[0], losses, len(light))
                stepped.append(losses["loss"].detach())
            bar.update()
        _require_finite_steps(stepped, list(optimizers), progress.epoch + 1, partial(shown.order, epoch_seed, recipe.batch))
        row: Row = {"epoch": progress.epoch + 1}
        for prefix, values in (
            ("train", means.result()),
            ("train_eval", evaluate_losses(model, watched, bf16)),
            ("val", evaluate_losses(model, val, bf16)),
        ):
            row |= {f"{prefix}_{name}": value for name, value in values.items()}
        _require_finite(row, model)
        if row["val_loss"] < progress.best_loss or rule.keep == "last":
            progress.best_loss, progress.best_epoch, best = row["val_loss"], progress.epoch + 1, _copy(model)
        rose = bool(progress.history) and row["val_loss"] > progress.history[-1]["val_loss"]
        progress.rises = progress.rises + 1 if rose else 0
        progress.epoch += 1
        progress.history.append(row)
        progress.seconds.append(distributed.agreed(time.monotonic() - started))
        bar.set_postfix(epoch=f"{progress.epoch}/{epochs}", val=f"{row['val_loss']:.4g}")
        if rank:
            continue
        on_epoch(row)
        if time.monotonic() - saved_at >= rule.checkpoint_seconds:
            content = {
                "finished": False,
                "progress": asdict(progress),
                "model": model.state_dict(),
                "best": best,
                "optimizers": {phase: optimizer.state_dict() for phase, optimizer in optimizers.items()},
            }
            files.write_state(state, content)
            saved_at = time.monotonic()
    bar.close()
    model.load_state_dict(best)
    model.eval()
    if not rank:
        files.write_state(state, {"finished": True, "progress": asdict(progress), "model": best})
    return progress


def _read(state: Path, device: torch.device) -> dict[str, Any] | None:
    """The saved state, None if there is none to go on from; a damaged one costs what was trained, not the run."""
    if not state.exists():
        return None
    try:
        return dict(files.read_state(state, str(device)))
    except InputError as error:
        tqdm.write(f"{error}; training starts again")
        return None


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _require_finite_steps(losses: list[Tensor], phases: list[str], epoch: int, order: Callable[[], list[list[int]]]) -> None:
    """Name the first step of an epoch whose loss is not finite. Looked at once per epoch: no step waits for a GPU.

    Args:
        losses: one per step and phase, the phases in turn.
        order: gives the positions of the photographs of every step.
    """
    everyones = distributed.gathered(torch.stack(losses).tolist() if losses else [])
    for number, values in enumerate(zip(*everyones, strict=True)):
        if not math.isfinite(value := sum(values)):
            step, phase = divmod(number, len(phases))
            raise InputError(
                f"training stopped: the loss of phase {phases[phase]} is {value} in step {step + 1} of "
                f"epoch {epoch}, on the photographs {order()[step]} of the training split; {LOWER}"
            )


def _require_finite(row: Row, model: nn.Module) -> None:
    for name, value in row.items():
        if not math.isfinite(value):
            raise InputError(f"training stopped: {name} is {value} after epoch {row['epoch']:g}; {LOWER}")
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"training stopped: weights {name} are not finite after epoch {row['epoch']:g}; {LOWER}")


def history_csv(history: list[Row]) -> str:
    """The loss curves as CSV: the watched losses, their means over the last 20 epochs, then what else was logged.

    Document 000 plots moving averages over 20 epochs; the first epochs average what there is.
    """
    watched = ["train_loss", "train_eval_loss", "val_loss"]
    others = [name for name in (history[0] if history else {}) if name not in ("epoch", *watched)]
    lines = [",".join(["epoch", *watched, *(f"{name}_ma20" for name in watched), *others])]
    for end, row in enumerate(history, start=1):
        recent = history[max(0, end - AVERAGED_EPOCHS) : end]
        averages = [sum(r[name] for r in recent) / len(recent) for name in watched]
        numbers = [*(row[name] for name in watched), *averages, *(row[name] for name in others)]
        lines.append(",".join([f"{row['epoch']:g}", *(f"{number:.6g}" for number in numbers)]))
    return "\n".join(lines) + "\n"
