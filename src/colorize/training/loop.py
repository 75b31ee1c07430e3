"""One training loop for every model.

`for batch: for phase: loss, backward, step`. Everything random is a function of (seed, epoch, batch, rank), so a
state saved after any batch continues exactly: a run that was killed and started again ends with the weights of
one that was not. States are written atomically, every `checkpoint_seconds`; the last one holds only what is needed
to hand the model out.

The loop receives a model and knows none. It does not choose the device (device.py) nor the data (batches.py). Several ranks
run it side by side (distributed.py), each on its part of every batch; the first one alone reads and writes the state.
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
LOWER = "lower the model's train.lr (or train.min_lr)"
AVERAGED_EPOCHS = 20
SAVING_COST = 10
"""The next state is saved at the earliest after so many times the seconds that the last one took."""
FLOOR = 0.01
"""Share of the learning rate at which a cosine schedule ends."""


@dataclass
class Progress:
    """How far a training has come; saved with every state."""

    epoch: int = 0
    """Epochs done."""
    history: list[Row] = field(default_factory=list)
    """One row per epoch: `epoch`, then `train_*` (running, in training mode, at the epoch's scale), `train_eval_*` and
    `val_*` (both at the whole size)."""
    seconds: list[float] = field(default_factory=list)
    """Measured wall time of each epoch, without the saving of states."""
    under_way: float = 0
    """The same of the epoch that has not ended yet."""
    rises: int = 0
    """Epochs in a row in which the validation loss rose."""
    best_loss: float = math.inf
    best_epoch: int = 0


@dataclass
class Pass:
    """One pass over photographs: batches done, and this rank's losses, summed on the device."""

    batches: int = 0
    totals: dict[str, Tensor] = field(default_factory=dict)
    """Sums of the losses over photographs."""
    counts: dict[str, int] = field(default_factory=dict)
    """How many photographs those are."""

    def add(self, losses: Mapping[str, Tensor], count: int, watched: str) -> None:
        """Add a phase's losses of a batch; the one called `watched`, if there is one, as `loss`."""
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
    """A sub-module of a model that is trained in its turn."""

    name: str
    losses: Callable[[Tensor, Tensor], dict[str, Tensor]]
    """Of light and ab; "loss" is minimized."""
    optimizer: torch.optim.Optimizer


def in_force(recipe: Recipe, rule: TrainConfig) -> Recipe:
    """The recipe with the number of epochs and the learning rate that `rule` leaves it."""
    epochs = min(recipe.epochs, rule.max_epochs or recipe.epochs)
    return replace(recipe, epochs=epochs, lr=max(recipe.lr, rule.min_lr))


def end_of(
    progress: Progress, recipe: Recipe, rule: TrainConfig
) -> Literal["epochs", "patience", "minutes", ""]:
    """What ends a training that has come so far, empty if nothing does; `recipe` is the one in force."""
    if progress.epoch >= recipe.epochs:
        return "epochs"
    if recipe.patience and progress.rises >= recipe.patience:
        return "patience"
    return "minutes" if rule.max_minutes and sum(progress.seconds) >= 60 * rule.max_minutes else ""


def seed_of(seed: int, epoch: int) -> int:
    """The seed of an epoch's order, crops and mirroring."""
    return (seed * 1_000_003 + epoch) % 2**63


def seed_noise(device: torch.device, *numbers: int) -> None:
    """Make what models draw from now on a function of `numbers` alone."""
    # Not torch.manual_seed: it seeds every device, which takes as long as a step of a small model. A CPU's
    # generator looks at the last 32 bits alone, so each bit has to depend on every number.
    digits = hashlib.sha256(repr(numbers).encode()).digest()
    (torch.cuda if device.type == "cuda" else torch.default_generator).manual_seed(int.from_bytes(digits[:7]))


def make_optimizer(parameters: Any, recipe: Recipe, rate: float) -> torch.optim.Optimizer:
    """The optimizer of one phase, of tensors or of groups of them as torch.optim takes them."""
    if recipe.optimizer in ("adam", "adamw"):
        adam = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
        return adam(parameters, rate, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True)
    if recipe.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(parameters, rate, recipe.momentum, weight_decay=recipe.weight_decay)


def groups_of(model: Colorizer, phase: str, recipe: Recipe) -> list[dict[str, Any]]:
    """What is trained in a phase, what came pretrained in a group of its own; `share` is of the learning rate."""
    fresh: list[Tensor] = []
    pretrained: list[Tensor] = []
    for name, parameter in getattr(model, phase).named_parameters():
        if parameter.requires_grad:
            came = any(f"{phase}.{name}".startswith(f"{module}.") for module in model.pretrained)
            (pretrained if came else fresh).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": fresh, "share": 1.0},
        {"params": pretrained, "share": recipe.pretrained_lr},
    ]
    return [group for group in groups if group["params"]]


def rate_of(recipe: Recipe, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0, of so many that the whole training has."""
    warm = round(recipe.warmup * steps)
    if step < warm:
        return recipe.lr * (step + 1) / warm
    if recipe.schedule == "constant":
        return recipe.lr
    return recipe.lr * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2)


def scale_of(scales: Sequence[float], epoch: int, epochs: int) -> float:
    """The one of `scales` that holds in an epoch, counted from 0: each for an equal part, the last epoch at the last."""
    return scales[-(-(epoch + 1) * len(scales) // epochs) - 1]


class Checkpoint:
    """What a training has come to, beside the weights; the state on disk; and when that is due again."""

    def __init__(
        self,
        path: Path,
        model: Colorizer,
        averaged: AveragedModel | None,
        phases: Sequence[Phase],
        seconds: float,
    ) -> None:
        self.path, self.model, self.averaged, self.phases, self.seconds = (
            path,
            model,
            averaged,
            phases,
            seconds,
        )
        self.progress, self.best = Progress(), dict[str, Tensor]()
        self.passes: dict[str, Pass] = {}
        """Of the epoch under way: `train`, then `train_eval` and `val`."""
        self.wait = seconds
        self.saved_at = self.counted_to = time.monotonic()

    def load(self, device: torch.device, begin: Callable[[], object]) -> bool:
        """Go on from the state on disk, else `begin`; tells whether the state is a finished training's."""
        rank, ranks = distributed.rank(), distributed.world_size()
        saved = distributed.broadcast_object(
            None if rank else _read(self.path, device if ranks == 1 else torch.device("cpu"))
        )
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
            self.passes[name] = Pass(
                batches, {loss: total.to(device) for loss, total in totals.items()}, counts
            )
        return False

    @property
    def judged(self) -> Colorizer:
        """What is validated and kept: the model, or the moving average of its weights."""
        return self.model if self.averaged is None else cast(Colorizer, self.averaged.module)

    def begin(self, name: str) -> Pass:
        """The epoch's pass of that name, new or from where the state has left it."""
        self.began, self.batches, self.ask_at = time.monotonic(), 0, 1
        return self.passes.setdefault(name, Pass())

    def due(self) -> bool:
        """Whether a state is due after this batch.

        The first rank's clock decides. The others wait for its answer, so they ask rarely: when a state will be
        due at the pace of this pass, but after no more than twice as many of its batches.
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
        """Write the state; all ranks do this, after the same batch.

        Raises:
            InputError: weights are not finite.
        """
        self.count()
        _require_finite_weights(self.model, self.progress.epoch + 1)
        own = {
            name: (done.batches, {loss: total.cpu() for loss, total in done.totals.items()}, done.counts)
            for name, done in self.passes.items()
        }
        content = {
            "finished": False,
            "progress": asdict(self.progress),
            "passes": distributed.all_gather_object(own),
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
        """Let the time since the last call, or the last saving, count as the epoch's."""
        now = time.monotonic()
        self.progress.under_way, self.counted_to = self.progress.under_way + now - self.counted_to, now

    def end_epoch(self, keep: Literal["best", "last"]) -> Row:
        """Note the losses of an epoch whose passes are done, and its weights if they are to be kept.

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
            progress.best_loss, progress.best_epoch, self.best = (
                row["val_loss"],
                progress.epoch + 1,
                _copy(self.judged),
            )
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
        """Give the model the weights that are kept, and write them down as a finished training's."""
        self.model.load_state_dict(self.best)
        self.model.eval()
        if not distributed.rank():
            files.write_state(
                self.path, {"finished": True, "progress": asdict(self.progress), "model": self.best}
            )


def train_epoch(
    phases: Sequence[Phase],
    photos: Photos,
    recipe: Recipe,
    seed: int,
    checkpoint: Checkpoint,
    bf16: bool,
    on_batch: Callable[[], object],
) -> None:
    """Train on what the checkpoint's epoch has not seen of `photos` yet.

    Raises:
        InputError: a loss or weights are not finite.
    """
    rank, ranks = distributed.rank(), distributed.world_size()
    model, epoch = checkpoint.model, checkpoint.progress.epoch
    done, order, steps = checkpoint.begin("train"), seed_of(seed, epoch), -(-len(photos) // recipe.batch)
    unseen: list[Tensor] = []  # losses that nobody has looked at: no step waits for a GPU

    def look() -> None:
        _require_finite_steps(
            unseen, phases, done.batches, epoch + 1, partial(photos.order, order, recipe.batch)
        )
        unseen.clear()

    model.train()
    batches = photos.epoch(
        order, recipe.batch, recipe.flip, recipe.crop, rank, ranks, done.batches, recipe.zoom
    )
    for light, ab in batches:
        seed_noise(photos.device, seed, epoch, done.batches, rank)
        if recipe.degrade:
            light = degrade(light)
        rate = rate_of(recipe, epoch * steps + done.batches, recipe.epochs * steps)
        whole = len(photos) // steps + (done.batches < len(photos) % steps)
        for phase in phases:
            with torch.autocast(photos.device.type, torch.bfloat16, enabled=bf16):
                losses = phase.losses(light, ab)
            phase.optimizer.zero_grad(set_to_none=True)
            # The mean of the ranks' gradients is the whole batch's if each counts as much as its part is long.
            part = losses["loss"] * (len(light) * ranks / whole)
            groups = phase.optimizer.param_groups
            part.backward(
                inputs=[p for group in groups for p in group["params"]]
            )  # the other phases get no gradient
            for group in groups:
                group["lr"] = rate * group["share"]
            phase.optimizer.step()
            done.add(losses, len(light), model.monitor if phase is phases[0] else "")
            unseen.append(losses["loss"].detach())
        if checkpoint.averaged is not None:
            checkpoint.averaged.update_parameters(model)
        done.batches += 1
        on_batch()
        if checkpoint.due():
            look()
            checkpoint.save()
    look()


def evaluate(name: str, photos: Photos, checkpoint: Checkpoint, bf16: bool) -> None:
    """Add up, in evaluation mode, the losses of what the checkpoint's pass has not seen of `photos` yet."""
    model, done, ranks = checkpoint.judged, checkpoint.begin(name), distributed.world_size()
    of_all = -(
        -(len(photos) // ranks) // EVALUATION_BATCH
    )  # so many batches has every rank; some have one more
    model.eval()
    for light, ab in photos.batches(EVALUATION_BATCH, distributed.rank(), ranks, done.batches):
        for phase in model.phases:
            with torch.no_grad(), torch.autocast(photos.device.type, torch.bfloat16, enabled=bf16):
                losses = model.losses(phase, light, ab)
            done.add(losses, len(light), model.monitor if phase == model.phases[0] else "")
        done.batches += 1
        if done.batches <= of_all and checkpoint.due():
            checkpoint.save()


def fit(
    model: Colorizer,
    train: Photos,
    val: Photos,
    recipe: Recipe,
    rule: TrainConfig,
    seed: int,
    state: Path,
    on_epoch: Callable[[Row], object] = lambda row: None,
    begin: Callable[[], object] = lambda: None,
) -> Progress:
    """Train `model` in place, continuing from `state` if there is one.

    Args:
        state: file of the training state; a finished one is loaded and nothing is trained, a damaged one is left out.
        on_epoch: called with the row of every epoch that ends here.
        begin: called if there is no state to go on from, before the first step.

    Returns:
        What was done; the model holds the kept weights, in evaluation mode.

    Raises:
        InputError: a loss is not finite, and the sentence names step, phase and photographs; or weights are not; or a
            batch has fewer photographs than there are ranks.
    """
    bf16, steps, ranks = (
        use_bf16(rule, train.device),
        -(-len(train) // recipe.batch),
        distributed.world_size(),
    )
    recipe = in_force(recipe, rule) if model.phases else replace(recipe, epochs=0)
    if (least := len(train) // steps) < ranks:
        raise InputError(
            f"{ranks} processes cannot share batches of {least} photographs; start fewer with train.launcher, "
            "or raise the model's train.batch"
        )
    averaged = None
    if recipe.average:
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.average), use_buffers=True)
    phases = []
    for name in model.phases:
        optimizer = make_optimizer(groups_of(model, name, recipe), recipe, recipe.lr)
        phases.append(Phase(name, distributed.phase_losses(model, name), optimizer))
    checkpoint = Checkpoint(state, model, averaged, phases, rule.checkpoint_seconds)
    if checkpoint.load(train.device, begin):
        return checkpoint.progress
    progress, begun = checkpoint.progress, checkpoint.passes.get("train", Pass())
    watched, shown, scale = train.spread(len(val)), train, 1.0
    silent = True if distributed.rank() else None
    at = progress.epoch * steps + begun.batches
    bar = tqdm(total=recipe.epochs * steps, initial=at, unit="batch", disable=silent, leave=False)
    checkpoint.counted_to = time.monotonic()
    while not end_of(progress, recipe, rule):
        if (wanted := scale_of(recipe.scales, progress.epoch, recipe.epochs)) != scale:
            shown, scale = train.scaled(wanted), wanted
        train_epoch(phases, shown, recipe, seed, checkpoint, bf16, bar.update)
        evaluate("train_eval", watched, checkpoint, bf16)
        evaluate("val", val, checkpoint, bf16)
        row = checkpoint.end_epoch(rule.keep)
        bar.set_postfix(epoch=f"{progress.epoch}/{recipe.epochs}", val=f"{row['val_loss']:.4g}")
        if not distributed.rank():
            on_epoch(row)
    bar.close()
    checkpoint.finish()
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


def _require_finite_steps(
    losses: list[Tensor],
    phases: Sequence[Phase],
    steps: int,
    epoch: int,
    order: Callable[[], list[list[int]]],
) -> None:
    """Name the first step whose loss is not finite.

    Args:
        losses: those of the last steps, one per step and phase, the phases in turn.
        steps: how many the epoch has had.
        order: gives the positions of the photographs of every step of the epoch.
    """
    everyones = distributed.all_gather_object(torch.stack(losses).tolist() if losses else [])
    for number, values in enumerate(zip(*everyones, strict=True), start=steps * len(phases) - len(losses)):
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
