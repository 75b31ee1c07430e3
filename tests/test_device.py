"""What the machine has for a training: memory, GPUs."""

from pathlib import Path

import psutil
import pytest
import torch

from colorize import files
from colorize.files import InputError
from colorize.training.device import TrainConfig, held_bytes, memory_bytes, select_device


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/outer/inner", {"outer/memory.max": "3000000", "outer/inner/memory.max": "2000000"}, 2_000_000),
        ("0::/", {"memory.max": "4000000"}, 4_000_000),  # as a container sees itself
        ("4:cpu,memory:/docker/a:b\n0::/", {"memory/docker/a:b/memory.limit_in_bytes": "5000000"}, 5_000_000),
        ("4:memory:/of/the/host", {"memory/memory.limit_in_bytes": "6000000"}, 6_000_000),
        ("4:memory:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("", {}, None),
    ],
)
def test_memory_is_what_the_container_may_take(
    groups: str, limits: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    """The least of all limits around the process, in either version of cgroups, or the machine's memory."""
    for name, limit in limits.items():
        files.write_text(tmp_path / "sys/fs/cgroup" / name, f"{limit}\n")
    if groups:
        files.write_text(tmp_path / "proc/self/cgroup", f"{groups}\n")
    assert memory_bytes(tmp_path) == (expected or psutil.virtual_memory().total)


def test_ranks_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it is for photographs; a number that is given is each process's own."""
    cpu = torch.device("cpu")
    alone = held_bytes(TrainConfig(), cpu)
    assert alone == memory_bytes() / 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert held_bytes(TrainConfig(), cpu) == alone / 4
    assert held_bytes(TrainConfig(dataset_gigabytes=3), cpu) == 3e9


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By each of them, before they meet; as many as there are GPUs take one each."""
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(InputError, match="3 processes need a GPU each but GPUs found: 2; lower --nproc"):
        select_device(TrainConfig(), 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert select_device(TrainConfig(deterministic=True), 1) == torch.device("cuda", 1) == taken[0]
