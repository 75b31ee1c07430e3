"""Which device computes, with how many threads, whether bit for bit, and how many photographs it holds."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from joblib import cpu_count

from colorize.files import InputError
from colorize.settings import Count, Threads


@dataclass(frozen=True)
class TrainConfig:
    """What holds for the training of every model."""

    max_epochs: Count = 4
    """Caps every model's own number of epochs; 0 leaves them alone."""
    max_minutes: Annotated[float, Ge(0)] = 0
    """Caps the training time, interruptions not counted; 0 is no cap."""
    min_lr: Annotated[float, Ge(0)] = 0.0003
    """A floor under every model's learning rate, for short runs; 0 keeps each model's own."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    deterministic: Literal["auto", True, False] = "auto"
    threads: Threads = 2
    keep: Literal["best", "last"] = "best"
    dataset_gigabytes: Annotated[float, Ge(0)] = 0
    """Photographs up to this size are held in the device's memory, more are streamed from disk; 0 is half of that memory."""
    launcher: str = "python"
    """What stands before `-m pipeline.train`: python, or torchrun and its options for several processes."""
    checkpoint_seconds: Annotated[float, Ge(0)] = 30
    runs_gigabytes: Annotated[float, Ge(0)] = 8


def select_device(rule: TrainConfig, gpu: int = 0) -> torch.device:
    """Choose the device that `rule` asks for, GPU number `gpu` if it is one, and set the whole process up for it.

    On the CPU the same number of threads gives the same bits, in float32 on every x86-64 processor with AVX2: call this
    before anything is computed. On a GPU deterministic algorithms cost speed and are therefore a parameter.

    Raises:
        InputError: a GPU is demanded and there is none, or there are fewer than processes of torchrun.
    """
    there = torch.cuda.is_available()
    if rule.device == "cuda" and not there:
        raise InputError("train.device is cuda but no usable GPU was found; set train.device to auto or cpu")
    device = torch.device("cuda", gpu) if there and rule.device != "cpu" else torch.device("cpu")
    if device.type == "cuda":
        found, ranks = torch.cuda.device_count(), ranks_here()
        if found < ranks:
            raise InputError(
                f"{ranks} processes need a GPU each but GPUs found: {found}; lower --nproc-per-node in "
                "train.launcher, or set train.device to cpu"
            )
        torch.cuda.set_device(device)
    # The gradients' buffers are freed and taken anew in every step; with 4 KB pages that is a third of a step of mlp1.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    torch.set_num_threads(rule.threads)
    deterministic = device.type == "cpu" if rule.deterministic == "auto" else rule.deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if device.type == "cpu" and not use_bf16(rule, device):
            _round_alike()
    # What use_deterministic_algorithms does, without the two seconds in which that imports PyTorch's compiler.
    torch.set_deterministic_debug_mode("error" if deterministic else "default")
    torch.backends.cudnn.benchmark = not deterministic
    return device


def _round_alike() -> None:
    """Have PyTorch, oneDNN and MKL compute as on any other processor with AVX2; they read this when they first compute."""
    os.environ.setdefault("MKL_CBWR", "COMPATIBLE")  # else it computes otherwise on each maker's processors
    if torch.cpu._is_avx512_supported():  # PyTorch would believe "avx2" where that is not there
        os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")


def ranks_here() -> int:
    """How many processes on this machine train one model together; torchrun tells."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def usable_threads() -> int:
    """How many threads to compute with unless told: OMP_NUM_THREADS, and no more than the container allows cores."""
    return min(torch.get_num_threads(), cpu_count())


def memory_bytes(root: Path = Path("/")) -> int:
    """How much memory this process may take: the machine's, or what its container is allowed if that is less.

    Args:
        root: where /proc and /sys are.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:  # cgroups of version 2
                top, name = root / "sys/fs/cgroup", "memory.max"
            elif "memory" in controllers.split(","):
                top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            else:
                continue
            below = top / group.lstrip("/")
            for folder in (below, *below.parents):  # a group may take what all those around it may
                with suppress(OSError, ValueError):  # "max", or what a container does not see
                    if folder.is_relative_to(top):
                        limits.append(int((folder / name).read_text()))
    return min(limits)


def held_bytes(rule: TrainConfig, device: torch.device) -> float:
    """How many bytes of photographs this process may hold in the device's memory; ranks of a machine share the CPU's."""
    if rule.dataset_gigabytes:
        return rule.dataset_gigabytes * 1e9
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2
    return memory_bytes() / 2 / ranks_here()


def use_bf16(rule: TrainConfig, device: torch.device) -> bool:
    """Whether training computes in bfloat16: on a GPU unless told otherwise."""
    return device.type == "cuda" if rule.precision == "auto" else rule.precision == "bf16"
