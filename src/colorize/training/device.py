"""Choose and set up the device: threads, precision, determinism, memory for photographs."""

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
    """Settings for the training of every model."""

    max_epochs: Count = 4
    """Upper limit on the epochs of every model; 0 is no limit."""
    max_minutes: Annotated[float, Ge(0)] = 0
    """Upper limit on the training time, without interruptions; 0 is no limit."""
    min_lr: Annotated[float, Ge(0)] = 0.0003
    """Lower limit on the learning rate of every model, for short runs; 0 is no limit."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    deterministic: Literal["auto", True, False] = "auto"
    threads: Threads = 2
    keep: Literal["best", "last"] = "best"
    dataset_gigabytes: Annotated[float, Ge(0)] = 0
    """Data up to this size stays in the device's memory, more is streamed from disk; 0 is half the memory."""
    launcher: str = "python"
    """Command before `-m pipeline.train`: python, or torchrun with its options."""
    checkpoint_seconds: Annotated[float, Ge(0)] = 30
    runs_gigabytes: Annotated[float, Ge(0)] = 8


def select_device(config: TrainConfig, gpu: int = 0) -> torch.device:
    """Choose the device (GPU number `gpu`, if it is a GPU) and set up the whole process for it.

    Call this before anything is computed. On the CPU the same number of threads then gives the same bits, in
    float32 even on every x86-64 processor with AVX2. On a GPU determinism costs speed, so it is a parameter.

    Raises:
        InputError: `config` needs a GPU and there is none, or there are fewer GPUs than processes of
            torchrun.
    """
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise InputError("train.device is cuda but no usable GPU was found; set train.device to auto or cpu")
    device = torch.device("cuda", gpu) if has_gpu and config.device != "cpu" else torch.device("cpu")
    if device.type == "cuda":
        gpus, ranks = torch.cuda.device_count(), ranks_here()
        if gpus < ranks:
            raise InputError(
                f"{ranks} processes need a GPU each but GPUs found: {gpus}; lower --nproc-per-node in "
                "train.launcher, or set train.device to cpu"
            )
        torch.cuda.set_device(device)
    # Each step allocates the gradients again; with 4 KB pages this takes a third of a step of mlp1.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    torch.set_num_threads(config.threads)
    deterministic = device.type == "cpu" if config.deterministic == "auto" else config.deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if device.type == "cpu" and not use_bf16(config, device):
            _round_alike()
    # Like use_deterministic_algorithms, but that function imports PyTorch's compiler for two seconds.
    torch.set_deterministic_debug_mode("error" if deterministic else "default")
    torch.backends.cudnn.benchmark = not deterministic
    return device


def _round_alike() -> None:
    """Make PyTorch, oneDNN and MKL compute alike on all processors with AVX2; call it before they compute."""
    os.environ.setdefault("MKL_CBWR", "COMPATIBLE")  # else MKL's results depend on the processor's maker
    if torch.cpu._is_avx512_supported():  # without the check PyTorch believes "avx2" where it is missing
        os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")


def ranks_here() -> int:
    """Number of processes on this machine that train together, from torchrun's environment."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def usable_threads() -> int:
    """Default number of threads: OMP_NUM_THREADS, but at most the cores that the container allows."""
    return min(torch.get_num_threads(), cpu_count())


def memory_bytes(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may use: the machine's, or its container's limit if that is less.

    Args:
        root: folder that holds /proc and /sys.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:  # version 2 of cgroups
                top, name = root / "sys/fs/cgroup", "memory.max"
            elif "memory" in controllers.split(","):
                top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            else:
                continue
            below = top / group.lstrip("/")
            for folder in (below, *below.parents):  # the limits of the groups above hold too
                with suppress(OSError, ValueError):  # no limit ("max"), or a file that the container hides
                    if folder.is_relative_to(top):
                        limits.append(int((folder / name).read_text()))
    return min(limits)


def held_bytes(config: TrainConfig, device: torch.device) -> float:
    """Bytes of photographs to keep in the device's memory; the ranks of a machine share the CPU's."""
    if config.dataset_gigabytes:
        return config.dataset_gigabytes * 1e9
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2
    return memory_bytes() / 2 / ranks_here()


def use_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Tell whether training computes in bfloat16; "auto" is bfloat16 on a GPU."""
    return device.type == "cuda" if config.precision == "auto" else config.precision == "bf16"
