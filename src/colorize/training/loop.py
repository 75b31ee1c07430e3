"""Train any model with one loop.

`for batch: for phase: loss, backward, step`. All randomness is a function of (seed, epoch, batch, rank), so a
state saved after any batch continues exactly: a run that was killed and restarted ends with the same weights
as one that was not. States are written atomically every `checkpoint_seconds`; the last one holds only what is
needed to return the model. Several ranks run the loop side by side (distributed.py), each on its part of
every batch; only rank 0 reads and writes the state.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from colorize import distributed, files
from colorize.data.dataset import Photos
from colorize.data.degrade import degrade
from colorize.files import InputError
from colorize.models import Recipe
from colorize.models.base import Colorizer
from colorize.training.device import TrainConfig, use_bf16

Row = dict[str, float]

EVALUATION_BATCH = 64
LOWER = "lower the model's recipe.lr (or train.min_lr)"
AVERAGED_EPOCHS = 20
SAVING_COST = 10
"""Saving may take at most about one part in this many of the training time."""
FLOOR = 0.01
"""Last learning rate of a cosine schedule, as a share of the first."""


@dataclass
class Progress:
    """Progress of a training; saved with every state."""

    epoch: int = 0
    """Finished epochs."""
    history: list[Row] = field(default_factory=list)
    """One row per epoch: `epoch`, then `train_*` (running mean in training mode, at the epoch's scale),
    `train_eval_*` and `val_*` (both at the full size)."""
    seconds: list[float] = field(default_factory=list)
    """Wall time of each epoch, without saving."""
    under_way: float = 0
    """Wall time of the current epoch so far."""
    rises: int = 0
    """Consecutive epochs in which the validation loss rose."""
    best_loss: float = math.inf
    best_epoch: int = 0


@dataclass
class Pass:
    """One pass over photographs: finished batches, and this rank's losses, summed on the device."""

    batches: int = 0
    totals: dict[str, Tensor] = field(default_factory=dict)
    """Sums of the losses over photographs."""
    counts: dict[str, int] = field(default_factory=dict)
    """Number of photographs in each sum."""

    def add(self, losses: Mapping[str, Tensor], count: int, watched: str) -> None:
        """Add a phase's losses of a batch; add the loss named `watched`, if any, as `loss`."""
        for name, value in losses.items():
            if name == watched:
                name = "loss"
            elif name == "loss":
                continue
            self.totals[name] = self.totals.get(name, 0) + value.detach() * count
            self.counts[name] = self.counts.get(name, 0) + count

    def means(self) -> Row:
        """Mean losses over the photographs of all ranks."""
        parts = distributed.all_gather_object(
            {name: (float(total), self.counts[name]) for name, total in self.totals.items()}
        )
        sums = {name: [part[name] for part in parts if name in part] for name in parts[0]}
        return {name: sum(total for total, _ in s) / sum(count for _, count in s) for name, s in sums.items()}


@dataclass(frozen=True)
class Phase:
    """A sub-module that is trained with its own optimizer."""

    name: str
    losses: Callable[[Tensor, Tensor], dict[str, Tensor]]
    """Map light and ab to losses; "loss" is minimized."""
    optimizer: torch.optim.Optimizer


def in_force(recipe: Recipe, config: TrainConfig) -> Recipe:
    """Apply `max_epochs` and `min_lr` to a recipe."""
    epochs = min(recipe.epochs, config.max_epochs or recipe.epochs)
    return replace(recipe, epochs=epochs, lr=max(recipe.lr, config.min_lr))


def end_of(progress: Progress, recipe: Recipe, config: TrainConfig) -> str:
    """Name what ends training now: epochs, patience, minutes, or "" for nothing. `recipe` is `in_force`."""
    if progress.epoch >= recipe.epochs:
        return "epochs"
    if recipe.patience and progress.rises >= recipe.patience:
        return "patience"
    return "minutes" if config.max_minutes and sum(progress.seconds) >= 60 * config.max_minutes else ""


def seed_of(seed: int, epoch: int) -> int:
    """Seed for the order, crops and flips of an epoch."""
    return (seed * 1_000_003 + epoch) % 2**63


def seed_noise(device: torch.device, *numbers: int) -> None:
    """Seed the device's generator with `numbers`."""
    # torch.manual_seed seeds every device and takes as long as a step of a small model. The CPU's generator
    # only uses the last 32 bits, so each bit has to depend on every number.
    digits = hashlib.sha256(repr(numbers).encode()).digest()
    (torch.cuda if device.type == "cuda" else torch.default_generator).manual_seed(int.from_bytes(digits[:7]))


def make_optimizer(parameters: Any, recipe: Recipe, rate: float) -> torch.optim.Optimizer:
    """Build the optimizer of one phase from tensors or parameter groups."""
    if recipe.optimizer in ("adam", "adamw"):
        adam = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
        return adam(parameters, rate, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True)
    if recipe.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(parameters, rate, recipe.momentum, weight_decay=recipe.weight_decay)


def groups_of(model: Colorizer, phase: str, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameter groups of a phase, pretrained ones apart; `share` multiplies the learning rate."""
    fresh: list[Tensor] = []
    pretrained: list[Tensor] = []
    for name, parameter in getattr(model, phase).named_parameters():
        if parameter.requires_grad:
            is_pretrained = any(f"{phase}.{name}".startswith(f"{module}.") for module in model.pretrained)
            (pretrained if is_pretrained else fresh).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": fresh, "share": 1.0},
        {"params": pretrained, "share": recipe.pretrained_lr},
    ]
    return [group for group in groups if group["params"]]


def rate_of(recipe: Recipe, step: int, steps: int) -> float:
    """Learning rate of `step`, counted from 0, in a training of `steps`."""
    warm = round(recipe.warmup * steps)
    if step < warm:
        return recipe.lr * (step + 1) / warm
    if recipe.schedule == "constant":
        return recipe.lr
    return recipe.lr * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2)


def scale_of(scales: Sequence[float], epoch: int, epochs: int) -> float:
    """Scale of `epoch`, counted from 0: each scale holds for an equal part, the last until the end."""
    return scales[-(-(epoch + 1) * len(scales) // epochs) - 1]


@dataclass
class Checkpoint:
    """The state of a training, in memory and on disk, and the time of the next save."""

    path: Path
    model: Colorizer
    averaged: AveragedModel | None
    phases: Sequence[Phase]
    seconds: float
    """Shortest time between two saves."""
    progress: Progress = field(default_factory=Progress)
    best: dict[str, Tensor] = field(default_factory=dict)
    passes: dict[str, Pass] = field(default_factory=dict)
    """Passes of the current epoch: `train`, then `train_eval` and `val`."""

    def __post_init__(self) -> None:
        self.wait = self.seconds
        self.saved_at = self.counted_to = time.monotonic()

    def load(self, device: torch.device, begin: Callable[[], object]) -> bool:
        """Continue from the state on disk, or call `begin`; return whether the training is finished."""
        rank = distributed.rank()
        place = device if distributed.world_size() == 1 else torch.device("cpu")
        saved = distributed.broadcast_object(None if rank else _read(self.path, place))
        if saved is None:
            begin()
            self.best = _copy(self.model)
            return False
        self.progress = Progress(**saved["progress"])
        self.model.load_state_dict(saved["model"])
        if saved["finished"]:
            self.model.eval()
            return True
        self.best = saved["best"]
        if self.averaged is not None:
            self.averaged.load_state_dict(saved["averaged"])
        for phase in self.phases:
            phase.optimizer.load_state_dict(saved["optimizers"][phase.name])
        for name, (batches, totals, counts) in saved["passes"][rank].items():
            sums = {loss: total.to(device) for loss, total in totals.items()}
            self.passes[name] = Pass(batches, sums, counts)
        return False

    @property
    def judged(self) -> Colorizer:
        """The model to validate and keep: the model itself, or the moving average of its weights."""
        return self.model if self.averaged is None else cast(Colorizer, self.averaged.module)

    def begin(self, name: str) -> Pass:
        """Start or continue the epoch's pass of that name."""
        self.began, self.batches, self.ask_at = time.monotonic(), 0, 1
        return self.passes.setdefault(name, Pass())

    def due(self) -> bool:
        """Tell whether to save after this batch.

        Rank 0's clock decides and the other ranks wait for its answer, so they ask rarely: at the batch at
        which a save is expected at this pass's speed, but before the number of batches has doubled.
        """
        self.batches += 1
        if self.batches < self.ask_at:
            return False
        now = time.monotonic()
        left, pace = self.saved_at + self.wait - now, (now - self.began) / self.batches
        ahead = max(1, min(self.batches, int(left / max(pace, 1e-9)))) if distributed.world_size() > 1 else 1
        due, self.ask_at = distributed.broadcast_object((left <= 0, self.batches + ahead))
        return due

    def save(self) -> None:
        """Write the state; all ranks call this after the same batch.

        Raises:
            InputError: weights are not finite.
        """
        self.count()
        _require_finite_weights(self.model, self.progress.epoch + 1)
        passes = {
            name: (done.batches, {loss: total.cpu() for loss, total in done.totals.items()}, done.counts)
            for name, done in self.passes.items()
        }
        content = {
            "finished": False,
            "progress": asdict(self.progress),
            "passes": distributed.all_gather_object(passes),
            "model": self.model.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "best": self.best,
            "optimizers": {phase.name: phase.optimizer.state_dict() for phase in self.phases},
        }
        if not distributed.rank():
            files.write_state(self.path, content)
        began, self.saved_at = self.counted_to, time.monotonic()
        self.wait, self.counted_to = max(self.seconds, SAVING_COST * (self.saved_at - began)), self.saved_at

    def count(self) -> None:
        """Add the time since the last call or save to the epoch's time."""
        now = time.monotonic()
        self.progress.under_way, self.counted_to = self.progress.under_way + now - self.counted_to, now

    def end_epoch(self, keep: Literal["best", "last"]) -> Row:
        """Record the losses of a finished epoch, and keep its weights if they are the best.

        Raises:
            InputError: a loss or weights are not finite.
        """
        progress = self.progress
        row: Row = {"epoch": progress.epoch + 1}
        for name, done in self.passes.items():
            row |= {f"{name}_{loss}": mean for loss, mean in done.means().items()}
        for name, value in row.items():
            if not math.isfinite(value):
                raise InputError(f"training stopped: {name} is {value} after epoch {row['epoch']:g}; {LOWER}")
        _require_finite_weights(self.model, progress.epoch + 1)
        if row["val_loss"] < progress.best_loss or keep == "last":
            progress.best_loss, progress.best_epoch = row["val_loss"], progress.epoch + 1
            self.best = _copy(self.judged)
        rose = bool(progress.history) and row["val_loss"] > progress.history[-1]["val_loss"]
        progress.rises = progress.rises + 1 if rose else 0
        progress.epoch += 1
        progress.history.append(row)
        self.count()
        progress.seconds.append(distributed.broadcast_object(progress.under_way))
        progress.under_way = 0
        self.passes.clear()
        return row

    def finish(self) -> None:
        """Load the kept weights into the model and write them as the state of a finished training."""
        self.model.load_state_dict(self.best)
        self.model.eval()
        if not distributed.rank():
            content = {"finished": True, "progress": asdict(self.progress), "model": self.best}
            files.write_state(self.path, content)


def train_epoch(
    phases: Sequence[Phase],
    photos: Photos,
    recipe: Recipe,
    seed: int,
    checkpoint: Checkpoint,
    bf16: bool,
    on_batch: Callable[[], object],
) -> None:
    """Train on the rest of the checkpoint's epoch over `photos`.

    Raises:
        InputError: a loss or weights are not finite.
    """
    rank, ranks = distributed.rank(), distributed.world_size()
    model, epoch = checkpoint.model, checkpoint.progress.epoch
    done, order, steps = checkpoint.begin("train"), seed_of(seed, epoch), -(-len(photos) // recipe.batch)
    unchecked: list[Tensor] = []  # checked later, so that no step waits for the GPU
    order_of = partial(photos.order, order, recipe.batch)
    model.train()
    for light, ab in photos.epoch(
        order, recipe.batch, recipe.flip, recipe.crop, rank, ranks, done.batches, recipe.zoom
    ):
        seed_noise(photos.device, seed, epoch, done.batches, rank)
        if recipe.degrade:
            light = degrade(light)
        rate = rate_of(recipe, epoch * steps + done.batches, recipe.epochs * steps)
        whole = len(photos) // steps + (done.batches < len(photos) % steps)
        for phase in phases:
            with torch.autocast(photos.device.type, torch.bfloat16, enabled=bf16):
                losses = phase.losses(light, ab)
            phase.optimizer.zero_grad(set_to_none=True)
            # Weighted by the length of its part, the mean of the ranks' gradients is the batch's gradient.
            loss = losses["loss"] * (len(light) * ranks / whole)
            groups = phase.optimizer.param_groups
            # Only this phase's parameters get gradients.
            loss.backward(inputs=[p for group in groups for p in group["params"]])
            for group in groups:
                group["lr"] = rate * group["share"]
            phase.optimizer.step()
            done.add(losses, len(light), model.monitor if phase is phases[0] else "")
            unchecked.append(losses["loss"].detach())
        if checkpoint.averaged is not None:
            checkpoint.averaged.update_parameters(model)
        done.batches += 1
        on_batch()
        if checkpoint.due():
            _require_finite_steps(unchecked, phases, done.batches, epoch + 1, order_of)
            unchecked.clear()
            checkpoint.save()
    _require_finite_steps(unchecked, phases, done.batches, epoch + 1, order_of)


def evaluate(name: str, photos: Photos, checkpoint: Checkpoint, bf16: bool) -> None:
    """Sum the losses of the rest of the checkpoint's pass over `photos`, in evaluation mode."""
    model, done, ranks = checkpoint.judged, checkpoint.begin(name), distributed.world_size()
    common = -(-(len(photos) // ranks) // EVALUATION_BATCH)  # batches of every rank; some have one more
    model.eval()
    for light, ab in photos.batches(EVALUATION_BATCH, distributed.rank(), ranks, done.batches):
        for phase in model.phases:
            with torch.no_grad(), torch.autocast(photos.device.type, torch.bfloat16, enabled=bf16):
                losses = model.losses(phase, light, ab)
            done.add(losses, len(light), model.monitor if phase == model.phases[0] else "")
        done.batches += 1
        if done.batches <= common and checkpoint.due():
            checkpoint.save()


def fit(
    model: Colorizer,
    train: Photos,
    val: Photos,
    recipe: Recipe,
    config: TrainConfig,
    seed: int,
    state: Path,
    on_epoch: Callable[[Row], object] = lambda row: None,
    begin: Callable[[], object] = lambda: None,
) -> Progress:
    """Train `model` in place, continuing from `state` if it exists.

    Args:
        state: file of the training state; a finished one is loaded without training, a damaged one is
            ignored.
        on_epoch: called with the row of every epoch that ends here.
        begin: called before the first step of a training that starts from nothing.

    Returns:
        The progress; the model then holds the kept weights, in evaluation mode.

    Raises:
        InputError: a loss is not finite (the sentence names step, phase and photographs), weights are not
            finite, or a batch has fewer photographs than there are ranks.
    """
    bf16, ranks = use_bf16(config, train.device), distributed.world_size()
    steps = -(-len(train) // recipe.batch)
    recipe = in_force(recipe, config) if model.phases else replace(recipe, epochs=0)
    if (least := len(train) // steps) < ranks:
        remedy = "start fewer with train.launcher, or raise the model's recipe.batch"
        raise InputError(f"{ranks} processes cannot share batches of {least} photographs; {remedy}")
    averaged = None
    if recipe.average:
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.average), use_buffers=True)
    phases = []
    for name in model.phases:
        optimizer = make_optimizer(groups_of(model, name, recipe), recipe, recipe.lr)
        phases.append(Phase(name, distributed.phase_losses(model, name), optimizer))
    checkpoint = Checkpoint(state, model, averaged, phases, config.checkpoint_seconds)
    if checkpoint.load(train.device, begin):
        return checkpoint.progress
    progress = checkpoint.progress
    train_eval, scaled, scale = train.spread(len(val)), train, 1.0
    silent = True if distributed.rank() else None
    step = progress.epoch * steps + checkpoint.passes.get("train", Pass()).batches
    bar = tqdm(total=recipe.epochs * steps, initial=step, unit="batch", disable=silent, leave=False)
    checkpoint.counted_to = time.monotonic()
    while not end_of(progress, recipe, config):
        if (new_scale := scale_of(recipe.scales, progress.epoch, recipe.epochs)) != scale:
            scaled, scale = train.scaled(new_scale), new_scale
        train_epoch(phases, scaled, recipe, seed, checkpoint, bf16, bar.update)
        evaluate("train_eval", train_eval, checkpoint, bf16)
        evaluate("val", val, checkpoint, bf16)
        row = checkpoint.end_epoch(config.keep)
        bar.set_postfix(epoch=f"{progress.epoch}/{recipe.epochs}", val=f"{row['val_loss']:.4g}")
        if not distributed.rank():
            on_epoch(row)
    bar.close()
    checkpoint.finish()
    return progress


def _read(state: Path, device: torch.device) -> dict[str, Any] | None:
    """Read the saved state; return None if it is missing or damaged."""
    if not state.exists():
        return None
    try:
        return dict(files.read_state(state, str(device)))
    except InputError as error:
        tqdm.write(f"{error}; training starts again")
        return None


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _require_finite_steps(
    losses: list[Tensor],
    phases: Sequence[Phase],
    steps: int,
    epoch: int,
    order: Callable[[], list[list[int]]],
) -> None:
    """Check the losses of the last steps.

    Args:
        losses: one per step and phase, in order.
        steps: number of steps of the epoch so far.
        order: returns the positions of the photographs of every step of the epoch.

    Raises:
        InputError: a loss is not finite; the sentence names the first such step.
    """
    by_rank = distributed.all_gather_object(torch.stack(losses).tolist() if losses else [])
    for number, values in enumerate(zip(*by_rank, strict=True), start=steps * len(phases) - len(losses)):
        if not math.isfinite(value := sum(values)):
            step, phase = divmod(number, len(phases))
            raise InputError(
                f"training stopped: the loss of phase {phases[phase].name} is {value} in step {step + 1} of "
                f"epoch {epoch}, on the photographs {order()[step]} of the training split; {LOWER}"
            )


def _require_finite_weights(model: nn.Module, epoch: int) -> None:
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"training stopped: weights {name} are not finite in epoch {epoch}; {LOWER}")


def history_csv(history: list[Row]) -> str:
    """Format loss curves as CSV: main losses, their means over 20 epochs (document 000), other losses."""
    main = ["train_loss", "train_eval_loss", "val_loss"]
    others = [name for name in (history[0] if history else {}) if name not in ("epoch", *main)]
    lines = [",".join(["epoch", *main, *(f"{name}_ma20" for name in main), *others])]
    for end, row in enumerate(history, start=1):
        recent = history[max(0, end - AVERAGED_EPOCHS) : end]
        averages = [sum(r[name] for r in recent) / len(recent) for name in main]
        numbers = [*(row[name] for name in main), *averages, *(row[name] for name in others)]
        lines.append(",".join([f"{row['epoch']:g}", *(f"{number:.6g}" for number in numbers)]))
    return "\n".join(lines) + "\n"
