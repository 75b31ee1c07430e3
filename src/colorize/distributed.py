"""Train one model in several processes, the ranks of torchrun. Everything here also works in a single
process.

All ranks hold the same weights, and each takes its part of every batch. DistributedDataParallel averages the
gradients; on GPUs, batch normalization takes its moments over all parts. So the loss curve is that of one
process, except for the order of sums. Only models that draw noise (dropout, latent samples) draw different
noise on every rank.
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
"""Ranks may wait for another training to end. If a rank dies, torchrun stops the others."""


@contextmanager
def init(device: torch.device) -> Iterator[None]:
    """Join the process group if there are several ranks, and leave it at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    yield
    dist.destroy_process_group()  # not after an error, because it would wait for the other ranks


def rank() -> int:
    """Return the number of this process; only rank 0 reads and writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """Return the number of this process on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_gather_object(value: T) -> list[T]:
    """Return the values of all ranks, in their order."""
    values: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def broadcast_object(value: T) -> T:
    """Return the value of rank 0."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def all_gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows of all ranks, in their order; the numbers of rows may differ."""
    if world_size() == 1:
        return rows
    counts = all_gather_object(len(rows))
    before = sum(counts[: rank()])
    everything = rows.new_zeros((sum(counts), *rows.shape[1:]))
    everything[before : before + len(rows)] = rows
    dist.all_reduce(everything)
    return everything


def synchronize(model: nn.Module, name: str, device: torch.device) -> None:
    """Let the trained batch norms take their moments over all ranks, in place.

    Raises:
        InputError: there are trained batch norms and several ranks on the CPU; PyTorch needs GPUs for this.
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
    """Return `model.losses` of one phase; its gradient is averaged over the ranks."""
    losses: Callable[[Tensor, Tensor], dict[str, Tensor]] = partial(model.losses, phase)
    if world_size() == 1:
        return losses
    trained = nn.Module()  # holds only this phase: the parameters of other phases get no gradient
    trained.add_module(phase, getattr(model, phase))
    together = DistributedDataParallel(trained, gradient_as_bucket_view=True)
    # After its first backward pass it rearranges the gradients, which changes the order of sums over three or
    # more ranks. A resumed training must sum like an uninterrupted one: make this pass now, last layer first.
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    trained.forward = lambda: torch.stack([parameter.sum() for parameter in parameters]).sum()
    together().backward()
    for parameter in parameters:
        parameter.grad = None
    trained.forward = losses
    return together
