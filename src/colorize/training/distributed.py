"""Several processes that train one model together: torchrun's ranks, or one process that needs nobody.

Every rank holds the same weights and takes its part of each batch; DistributedDataParallel averages the gradients, batch
normalization takes its moments over all parts. So the loss curve is that of one process, but for the order of sums; only
models that draw noise (dropout, latent samples) draw another one on every rank. Everything here also works alone.
"""

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from colorize.files import InputError

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""Ranks may wait for another training to end; a rank that dies is noticed by torchrun, which ends the others."""
TURN_SECONDS = 5
"""So long the other ranks leave it to the first to say what all of them refuse."""
LOST = 75
"""Exit status of a rank that lost another one; the other's end is the reason to tell."""
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def started_by_torchrun() -> bool:
    """Whether this process is one of torchrun's, who knows how many there are to be."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def join(device: torch.device) -> None:
    """Meet the other ranks, if there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)


@contextmanager
def company() -> Iterator[None]:
    """Within it, a rank that loses the connection to another one ends at once: torchrun ends all then, and one tells why.

    What the ranks refuse is told by the first one, whose end is that of the others, unless it does not refuse it.
    """
    try:
        yield
    except InputError:
        time.sleep(TURN_SECONDS if rank() else 0)
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "by peer" not in str(error):
            raise
        os._exit(LOST)
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Which of them this process is; the first, 0, is the one that reads and writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def first_here() -> bool:
    """Whether this process is the first one on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def ranks() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gathered(value: T) -> list[T]:
    """The values of all ranks, in their order."""
    values: list[Any] = [value] * ranks()
    if ranks() > 1:
        dist.all_gather_object(values, value)
    return values


def agreed(value: T) -> T:
    """The value of the first rank."""
    values = [value]
    if ranks() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def gathered_rows(rows: Tensor) -> Tensor:
    """The rows of all ranks, in their order, of which each has as many as it likes."""
    if ranks() == 1:
        return rows
    counts = gathered(len(rows))
    before = sum(counts[: rank()])
    everything = rows.new_zeros((sum(counts), *rows.shape[1:]))
    everything[before : before + len(rows)] = rows
    dist.all_reduce(everything)
    return everything


class _Sum(torch.autograd.Function):
    """A tensor summed over the ranks, and so its gradient."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        whole = part.clone()
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].contiguous().clone()
        dist.all_reduce(whole)
        return whole


def phase_losses(model: Any, phase: str) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """`model.losses` of one phase as a function of light and ab, whose gradient is averaged over the ranks."""
    losses: Callable[[Tensor, Tensor], dict[str, Tensor]] = partial(model.losses, phase)
    if ranks() == 1:
        return losses
    trained = nn.Module()
    trained.add_module(phase, getattr(model, phase))  # its parameters only: those of other phases get no gradient
    together = DistributedDataParallel(trained, gradient_as_bucket_view=True)
    # After its first backward pass it arranges the gradients anew, which changes the order of sums of three ranks
    # or more. A training that goes on must add as one in one go does, so that pass is made here, the last first.
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    trained.forward = lambda: torch.stack([parameter.sum() for parameter in parameters]).sum()
    together().backward()
    for parameter in parameters:
        parameter.grad = None
    trained.forward = losses
    return together


def synchronize(model: nn.Module) -> None:
    """Let what a model that is trained by several ranks learns of a batch other than by gradients be that of all of them.

    So every batch norm takes its moments over all (PyTorch's own SyncBatchNorm refuses the CPU; this is one for both).
    """
    if ranks() == 1:
        return
    model.of_all_ranks = gathered_rows  # type: ignore[assignment]
    for layer in model.modules():
        if isinstance(layer, BATCH_NORMS):
            layer.forward = partial(_batch_norm, layer)  # type: ignore[method-assign]


def _batch_norm(layer: Any, maps: Tensor) -> Tensor:
    if not layer.training:
        return type(layer).forward(layer, maps)
    over = [0, *range(2, maps.ndim)]
    shape = (1, -1, *[1] * (maps.ndim - 2))
    values = maps.float()
    sums = _Sum.apply(torch.cat((values.sum(over), values.new_tensor([values.numel() / values.shape[1]]))))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centered = values - mean.view(shape)
    variance = _Sum.apply(centered.square().sum(over)) / count
    normalized = centered * (variance + layer.eps).rsqrt().view(shape)
    if layer.affine:
        normalized = normalized * layer.weight.view(shape) + layer.bias.view(shape)
    with torch.no_grad():
        layer.num_batches_tracked += 1
        layer.running_mean.lerp_(mean, layer.momentum)
        layer.running_var.lerp_(variance * count / (count - 1), layer.momentum)
    return normalized.to(maps.dtype)


def launch(
    module: str, arguments: Sequence[str], processes: int, nodes: int, rendezvous: str, environment: Mapping[str, str]
) -> None:
    """Run a module as `processes` ranks on this machine, of `nodes` machines that meet at `rendezvous`: torchrun's engine.

    What the first rank says is seen; of the others only why one of them failed.

    Args:
        rendezvous: host:port of one of the machines; with one machine, empty.
        environment: variables that the ranks get beside this process's.

    Raises:
        InputError: a rank failed and has not said why on the screen.
        SystemExit: the first rank of this machine refused something, and has said why.
        KeyboardInterrupt: stopped by a signal, as are then the ranks.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ |= environment
    logging.disable(logging.ERROR)  # this process only waits from here on; torchrun logs processes and signals, not reasons
    with tempfile.TemporaryDirectory() as logs:
        quiet = {local: Std.ALL for local in range(1, processes)}
        config = LaunchConfig(
            min_nodes=nodes,
            max_nodes=nodes,
            nproc_per_node=processes,
            run_id="colorize",
            rdzv_backend="c10d",
            rdzv_endpoint=rendezvous or "localhost:0",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs, redirects=quiet),
        )
        try:
            elastic_launch(config, sys.executable)("-m", module, *arguments)
        except SignalException as error:
            raise KeyboardInterrupt from error
        except ChildFailedError as error:
            failures = sorted(error.failures.values(), key=lambda failure: failure.local_rank)
            reasons = [failure for failure in failures if failure.exitcode not in (LOST, -signal.SIGTERM)]
            if reasons and reasons[0].local_rank == 0 and reasons[0].exitcode == 1:
                raise SystemExit(1) from error
            told = _told(reasons[0], Path(logs)) if reasons else "the connection to another machine broke"
            raise InputError(f"the processes that train together stopped: {told}; the same command continues") from error


def _told(failure: Any, logs: Path) -> str:
    """Why a rank failed: the signal that killed it, or the last line that it wrote."""
    name = f"process {failure.local_rank}"
    if failure.exitcode < 0:
        return f"{name} was killed by signal {-failure.exitcode} ({signal.Signals(-failure.exitcode).name})"
    said = [line for path in logs.rglob(f"{failure.local_rank}/stderr.log") for line in path.read_text().splitlines()]
    lines = [line for line in said if line.strip()]
    return f"{name} says: {lines[-1].removeprefix('error: ')}" if lines else f"{name} ended with status {failure.exitcode}"
