"""Several processes that train one model together: torchrun's ranks, or one process that needs nobody.

Every rank holds the same weights and takes its part of each batch; DistributedDataParallel averages the
gradients, and on GPUs batch normalization takes its moments over all parts. So the loss curve is that of one
process, but for the order of sums; only models that draw noise (dropout, latent samples) draw another one on
every rank. Everything here also works alone.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from colorize.files import InputError

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""Ranks may wait for another training to end; a rank that dies is noticed by torchrun, which ends the others."""


@contextmanager
def init(device: torch.device) -> Iterator[None]:
    """Meet the other ranks, if there are any, and part from them at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    yield
    dist.destroy_process_group()  # not after an error: this would wait for the others


def rank() -> int:
    """Which of them this process is; the first, 0, is the one that reads and writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """Which of those on its machine this process is, and so which GPU it takes."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_gather_object(value: T) -> list[T]:
    """The values of all ranks, in their order."""
    values: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def broadcast_object(value: T) -> T:
    """The value of the first rank."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def all_gather_rows(rows: Tensor) -> Tensor:
    """The rows of all ranks, in their order, of which each has as many as it likes."""
    if world_size() == 1:
        return rows
    counts = all_gather_object(len(rows))
    before = sum(counts[: rank()])
    everything = rows.new_zeros((sum(counts), *rows.shape[1:]))
    everything[before : before + len(rows)] = rows
    dist.all_reduce(everything)
    return everything


def synchronize(model: nn.Module, name: str, device: torch.device) -> None:
    """Let the batch norms that are trained take their moments over all ranks, in place.

    Raises:
        InputError: there are such, and several ranks on the CPU; PyTorch has this for GPUs only.
    """
    norms = [layer for layer in model.train().modules() if isinstance(layer, _BatchNorm) and layer.training]
    if world_size() == 1 or not norms:
        return
    if device.type != "cuda":
        raise InputError(
            f"{name} has batch normalization, which several processes cannot share on the CPU; use one "
            "process (train.launcher: python), or a GPU for each"
        )
    nn.SyncBatchNorm.convert_sync_batchnorm(model)


def phase_losses(model: Any, phase: str) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """`model.losses` of one phase as a function of light and ab, whose gradient is averaged over the ranks."""
    losses: Callable[[Tensor, Tensor], dict[str, Tensor]] = partial(model.losses, phase)
    if world_size() == 1:
        return losses
    trained = nn.Module()
    trained.add_module(
        phase, getattr(model, phase)
    )  # its parameters only: those of other phases get no gradient
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
