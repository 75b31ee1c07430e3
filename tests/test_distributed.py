"""Several processes that train one model: the same loss curve, the same files, one sentence if one of them dies."""

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, _photographs
from faults import fault
from filelock import FileLock
from ruamel.yaml import YAML
from torch import nn

from colorize import files
from colorize.bins import PriorConfig, Statistics
from colorize.files import InputError
from colorize.training import loop
from colorize.training.device import TrainConfig, held_bytes, memory_bytes, processes
from pipeline import paths
from pipeline.check import AllParams
from pipeline.train import own_gpus

pytestmark = pytest.mark.xdist_group("ranks")  # what two ranks do is measured once for all

PROGRAM = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
from test_distributed import trained_by_every_rank
trained_by_every_rank(sys.argv[1])
"""
CASES: dict[str, tuple[dict, dict]] = {
    "cae": ({"channels": (4, 8)}, {}),
    "resnet18": ({}, {"optimizer": "sgd", "lr": 1e-3, "scales": (1,)}),
    "fcae2": ({"hidden": (16, 8)}, {"optimizer": "sgd", "lr": 1e-3}),
    "cgan": ({"width": 4}, {}),
    "deshpande_mdn": ({"width": 4, "latent": 4}, {}),
}
"""Blocks with their changes of network and training. Adam makes a whole step of a gradient that is only rounding, and every
bias before a batch norm has such a one; so plain SGD where there is batch norm and a curve to compare."""
CURVES = ("cae", "resnet18", "fcae2")
"""Those that draw no noise."""
RANKS = 3
"""Of two, DistributedDataParallel's sums do not depend on an order."""
INTERRUPTED = "cgan"
"""One that draws some, in two phases."""


def trained_by_every_rank(folder: str) -> None:
    """What each rank of the test's training runs; one process runs it alone as well."""
    from dataclasses import replace

    from test_training import Stop, watch

    from colorize.data.dataset import Photos
    from colorize.models import build_model
    from colorize.training import distributed
    from pipeline.check import AllParams
    from pipeline.params import load

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    distributed.join(torch.device("cpu"))
    rank, ranks = distributed.rank(), distributed.ranks()
    out = Path(folder) / f"{rank} of {ranks}"
    images = _photographs(27, 16)
    statistics = Statistics.measure(images, PriorConfig())

    def run(name: str, state: str, last: float = math.inf, every: float = 30) -> int:
        network, changes = CASES[name]
        block = load(AllParams, ROOT / "params.yaml").block(name)
        torch.manual_seed(7)
        model = build_model(replace(block, network=block.network | network), 16, statistics)
        recipe = replace(block.train, batch=8, **changes)
        rule = TrainConfig(max_epochs=3, lr_at_least=3e-4, keep="last", checkpoint_seconds=every)
        photos, rows, seen = Photos(images, 16), [], watch(model, last)
        path = Path(folder) / f"{state} of {ranks}.pt"
        progress = loop.fit(model, photos, photos.spread(7), recipe, rule, 3, path, rows.append)
        told = {"history": progress.history, "weights": model.state_dict(), "shown": len(rows), "batches": len(seen)}
        files.write_state(out / state, told)
        return len(seen)

    loop.EVALUATION_BATCH = 2  # of seven photographs the first of three ranks has two batches, the others one
    with distributed.company():
        batches = {name: run(name, name) for name in CASES}
        loop.SAVING_COST = 0
        with suppress(Stop):
            run(INTERRUPTED, "interrupted", last=batches[INTERRUPTED] // 3 + 7, every=0)
        run(INTERRUPTED, "interrupted")
        layer, maps, slopes = batch_norm_case()
        distributed.synchronize(nn.ModuleDict({"layer": layer}))
        own = maps.tensor_split(ranks)[rank].clone().requires_grad_()
        normal = layer(own)
        (normal * slopes.tensor_split(ranks)[rank]).sum().backward()
        told = {"out": normal.detach(), "slope": own.grad, "weight": layer.weight.grad, "state": layer.state_dict()}
        files.write_state(out / "norm", told)


def batch_norm_case() -> tuple[nn.BatchNorm2d, torch.Tensor, torch.Tensor]:
    """A layer, seven photographs' maps and the gradient that comes back for them."""
    random = torch.Generator().manual_seed(1)
    layer = nn.BatchNorm2d(3)
    nn.init.uniform_(layer.weight, 0.5, 2, generator=random)
    return layer, torch.randn(7, 3, 4, 4, generator=random) * 3 + 5, torch.randn(7, 3, 4, 4, generator=random)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int, str], dict]:
    """A function of (rank, ranks, name) that reads what each of one and of `RANKS` processes wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    program = PROGRAM.format(tests=str(ROOT / "tests"), root=str(ROOT))
    # Where they meet, as torchrun has it.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(RANKS)}
    command = [sys.executable, "-c", program, str(folder)]
    started = [subprocess.Popen(command, env=environment | {"RANK": str(rank)}) for rank in range(RANKS)]
    try:
        with pytest.MonkeyPatch.context() as patch:  # this process goes on with what these were
            for name in ("EVALUATION_BATCH", "SAVING_COST"):
                patch.setattr(loop, name, getattr(loop, name))
            trained_by_every_rank(str(folder))
        assert [process.wait(120) for process in started] == [0] * RANKS
    finally:
        for process in started:
            process.kill()
    return lambda rank, ranks, name: files.read_state(folder / f"{rank} of {ranks}" / name)


@pytest.mark.parametrize("name", CURVES)
def test_ranks_give_the_loss_curve_of_one_process(runs, name: str) -> None:
    """To a hundred-thousandth, in fp32, all that is logged; though batches of 7 do not divide by 3."""
    one, three = runs(0, 1, name)["history"], runs(0, RANKS, name)["history"]
    assert len(one) == len(three) == 3
    for alone, together in zip(one, three, strict=True):
        assert alone == pytest.approx(together, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_all_ranks_end_with_the_same_weights_and_one_reports(runs, name: str) -> None:
    """Bit for bit, buffers and models that draw noise included; a model that depends on its rank would be whose?"""
    first, *others = (runs(rank, RANKS, name) for rank in range(RANKS))
    assert first["shown"] == len(first["history"])
    for other in others:
        assert all(torch.equal(tensor, other["weights"][key]) for key, tensor in first["weights"].items())
        assert other["history"] == first["history"] and other["shown"] == 0


def test_ranks_that_are_interrupted_within_an_epoch_end_as_in_one_go(runs) -> None:
    """In the second epoch's last of four batches, two phases each: that one is done again, none before it."""
    whole, resumed = runs(0, RANKS, INTERRUPTED), runs(0, RANKS, "interrupted")
    assert (whole["batches"], resumed["batches"]) == (3 * 16, 3 * 16 - 16 - 6)
    assert resumed["history"] == whole["history"]
    assert all(torch.equal(tensor, resumed["weights"][key]) for key, tensor in whole["weights"].items())


def test_batch_norm_over_ranks_is_that_of_the_whole_batch(runs) -> None:
    """PyTorch's own, on all seven photographs: output, gradients and running statistics."""
    layer, maps, slopes = batch_norm_case()
    maps.requires_grad_()
    whole = layer(maps)
    (whole * slopes).sum().backward()
    parts = [runs(rank, RANKS, "norm") for rank in range(RANKS)]
    torch.testing.assert_close(torch.cat([part["out"] for part in parts]), whole.detach())
    torch.testing.assert_close(torch.cat([part["slope"] for part in parts]), maps.grad)
    torch.testing.assert_close(sum(part["weight"] for part in parts), layer.weight.grad)
    torch.testing.assert_close(parts[1]["state"], dict(layer.state_dict()))


Told = tuple[Path, str]
"""A project, and what was said in it."""
EPOCHS = 60
"""Of the stage's trainings here: one that is killed has to be at work still."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function of (name, batch, train's parameters) that makes a folder for `python -m pipeline.train`."""
    images = _photographs(27, 16)

    def make(name: str, batch: int = 8, **rule: object) -> Path:
        folder = tmp_path_factory.mktemp(name)
        files.write_array(folder / paths.CROPS / "crops-00000.npy", images)
        splits = pd.DataFrame({"index": range(27), "photo": range(27), "split": ["train"] * 20 + ["val"] * 7})
        files.write_text(folder / paths.SPLITS_CSV, splits.to_csv(index=False))
        Statistics.measure(images, PriorConfig()).write(folder / paths.PRIOR)
        yaml = YAML()
        params = yaml.load(AllParams, ROOT / "params.yaml")
        params["model"] = "cae"
        params["crop"]["size"] = 16
        params["models"]["cae"]["network"].update(channels=[4, 8], l1=0)
        params["models"]["cae"]["train"]["batch"] = batch
        params["train"].update({"max_epochs": EPOCHS, "threads": 1, "device": "cpu"} | rule)
        with (folder / "params.yaml").open("w") as file:
            yaml.dump(params, file)
        return folder

    return make


@pytest.fixture(scope="module")
def alone(project) -> Path:
    """Trained by one process."""
    folder = project("alone")
    train(folder)
    return folder


@pytest.fixture(scope="module")
def together(project) -> Told:
    """Trained by two processes, and what they said."""
    folder = project("together", nproc=2)
    return folder, train(folder)


def start(folder: Path, *command: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", *(command or ("pipeline.train",))],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train(folder: Path, *command: str, status: int = 0) -> str:
    process = start(folder, *command)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == status, said
    return said


def history(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / paths.MODEL / "history.csv")


def curve(folder: Path) -> np.ndarray:
    """Of the first three epochs: rounding grows."""
    return history(folder).to_numpy()[:3]


def test_the_stage_trains_with_as_many_processes_as_it_is_told(project, alone: Path, together: Told) -> None:
    """`train.nproc` as well as `torchrun` by hand: one line an epoch after one of notes; a second run trains nothing."""
    (told, said), by_hand = together, project("by hand")
    losses = history(told)["val_loss"]
    assert [line.split("train")[0].split() for line in said.splitlines()[1:-1]] == [
        ["cae", "epoch", str(epoch)] for epoch in range(1, len(losses) + 1)
    ]
    train(by_hand, "torch.distributed.run", "--nproc-per-node", "2", "-m", "pipeline.train")
    for folder in (told, by_hand):
        assert curve(folder) == pytest.approx(curve(alone), rel=1e-5)
    same = files.sha256_of([told / paths.MODEL]), files.sha256_of([by_hand / paths.MODEL])
    assert list(same[0].values()) == list(same[1].values())
    ended = f"cae: {len(losses)} epochs, weights of epoch {losses.idxmin() + 1}"
    assert said.splitlines()[-1] == ended and train(told).splitlines()[1:] == [ended]


def test_two_machines_meet_and_train(project, alone: Path) -> None:
    """Here both are this one. Each ends with the model, the same bytes; one of them has its state."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    machines = [project(name, nnodes=2, rendezvous=place) for name in ("one machine", "another")]
    started = [start(folder) for folder in machines]
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    first, second = (files.sha256_of([folder / paths.MODEL]) for folder in machines)
    assert list(first.values()) == list(second.values())
    assert sum(len(list((folder / "runs").glob("*/state.pt"))) for folder in machines) == 1
    assert curve(machines[0]) == pytest.approx(curve(alone), rel=1e-5)


@fault(47, "one of the processes that train a model together dies")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_all_with_a_sentence(project, together: Told, victim: int) -> None:
    """Nobody waits for it for ever, none is left; the same command continues and ends with the bytes of one go."""
    folder = project(f"killed {victim}", nproc=2, checkpoint_seconds=0)
    process = start(folder)
    deadline = time.monotonic() + 60
    while not list((folder / "runs").glob("*/state.pt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    ranks = {child.environ()["LOCAL_RANK"]: child for child in psutil.Process(process.pid).children()}
    ranks[str(victim)].send_signal(signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    sentence = f"process {victim} was killed by signal 9 (SIGKILL); the same command continues"
    assert process.returncode == 1 and said.splitlines()[-1].endswith(sentence) and "Traceback" not in said
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks.values())
    assert not (folder / paths.MODEL).exists()
    train(folder)
    weights = paths.MODEL / "weights.safetensors"
    assert files.sha256(folder / weights) == files.sha256(together[0] / weights)


def test_what_ranks_refuse_is_one_sentence(project) -> None:
    """Once, though each of them refuses it."""
    said = train(project("many", batch=2, nproc=3), status=1)
    assert said.count("error: ") == 1
    assert "3 processes cannot share batches of 2 photographs; lower train.nproc" in said


def test_several_machines_need_a_place_to_meet() -> None:
    """The first stage says so, before anything is deleted."""
    with pytest.raises(InputError, match="train.nnodes is 2 but train.rendezvous is empty; set it to host:port"):
        processes(TrainConfig(nnodes=2))
    assert processes(TrainConfig(device="cpu")) == 1 and processes(TrainConfig(device="cpu", nproc=3)) == 3


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/outer/inner", {"outer/memory.max": "3000000", "outer/inner/memory.max": "max"}, 3_000_000),
        ("0::/outer/inner", {"outer/memory.max": "3000000", "outer/inner/memory.max": "2000000"}, 2_000_000),
        ("0::/", {"memory.max": "4000000"}, 4_000_000),  # as a container sees itself
        ("4:cpu,memory:/docker/a:b\n0::/", {"memory/docker/a:b/memory.limit_in_bytes": "5000000"}, 5_000_000),
        ("4:memory:/of/the/host", {"memory/memory.limit_in_bytes": "6000000"}, 6_000_000),
        ("4:memory:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("0::/\n1:cpu:/", {"memory.max": "max", "memory/memory.limit_in_bytes": "1"}, None),
        ("", {}, None),
    ],
)
def test_memory_is_what_the_container_may_take(
    groups: str, limits: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    """The least of all limits around the process, in either version of cgroups; without one, the machine's memory."""
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
    assert held_bytes(TrainConfig(), cpu) == alone / 4 and held_bytes(TrainConfig(hold_gigabytes=3), cpu) == 3e9


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """And zero are as many as there are."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert processes(TrainConfig()) == 2
    with pytest.raises(InputError, match="train.nproc is 3 but GPUs found: 2; lower it"):
        processes(TrainConfig(nproc=3))


def test_trainings_at_once_take_different_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each the first that nobody has taken; when all are taken, they are shared; a machine without any has none to take."""
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    with own_gpus(1, 3) as first, own_gpus(1, 3) as second:
        assert (first, second) == ([0], [1])
        with own_gpus(2, 3) as third:
            assert third == [2, 0]
    with FileLock(tmp_path / "gpu-0.lock"), own_gpus(1, 1) as shared:
        assert shared == [0]
    with own_gpus(1, 0) as none:
        assert none == []
