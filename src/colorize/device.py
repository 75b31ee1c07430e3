"""Which device computes, with how many threads, and whether bit for bit."""

import os

import torch

from colorize.files import InputError
from colorize.settings import TrainRule


def select_device(rule: TrainRule) -> torch.device:
    """Choose the device that `rule` asks for and set the whole process up for it.

    On the CPU the same number of threads gives the same bits. On a GPU that takes deterministic algorithms, which cost
    speed and are therefore a parameter there.

    Raises:
        InputError: a GPU is demanded and there is none.
    """
    there = torch.cuda.is_available()
    if rule.device == "cuda" and not there:
        raise InputError("train.device is cuda but no usable GPU was found; set train.device to auto or cpu")
    device = torch.device("cuda" if there and rule.device != "cpu" else "cpu")
    # The gradients' buffers are freed and taken anew in every step; with 4 KB pages that is a third of a step of mlp1.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    torch.set_num_threads(rule.threads)
    deterministic = device.type == "cpu" if rule.deterministic == "auto" else rule.deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    return device


def use_bf16(rule: TrainRule, device: torch.device) -> bool:
    """Whether training computes in bfloat16: on a GPU unless told otherwise."""
    return device.type == "cuda" if rule.precision == "auto" else rule.precision == "bf16"
