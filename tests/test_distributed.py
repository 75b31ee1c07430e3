"""Several processes that train one model: the same loss curve, the same files; if one dies, all end."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from conftest import ROOT, _photographs
from dvc.repo import Repo
from faults import fault
from filelock import FileLock
from ruamel.yaml import YAML
from torch import nn

from colorize import distributed, files
from colorize.bins import PriorConfig, Statistics
from colorize.data.dataset import Photos
from colorize.files import InputError
from colorize.models import build_model
from colorize.training.device import TrainConfig
from colorize.training.loop import fit
from colorize.training.runs import claim_gpu
from pipeline import paths
from pipeline.check import AllParams
from pipeline.params import load

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("ranks"),
]  # trainings that several tests share run once

PROGRAM = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
from test_distributed import trained_by_every_rank
trained_by_every_rank({folder!r})
"""
NOISY = {"cgan": {"width": 4}, "deshpande_mdn": {"width": 4, "latent": 4}}
"""Models of two phases that draw noise, and changes of their networks."""
RANKS = 3
"""Of two, DistributedDataParallel's sums do not depend on an order."""


def trained_by_every_rank(folder: str) -> None:
    """Train models without their batch norms, which ranks on the CPU cannot share, and write the weights."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    images = _photographs(27, 16)
    with distributed.init(torch.device("cpu")):
        for name, network in NOISY.items():
            block = load(AllParams, ROOT / "params.yaml").models[name]
            torch.manual_seed(7)
            block = replace(block, network=block.network | network)
            model = build_model(block, 16, Statistics.measure(images, PriorConfig()))
            for layer in list(model.modules()):
                for key, inner in layer.named_children():
                    if isinstance(inner, nn.BatchNorm2d):
                        setattr(layer, key, nn.Identity())
            recipe, photos = replace(block.recipe, batch=8), Photos(images, 16)
            fit(
                model,
                photos,
                photos.spread(7),
                recipe,
                TrainConfig(max_epochs=2),
                3,
                Path(folder) / f"{name}.pt",
            )
            files.write_state(Path(folder) / f"{name} {distributed.rank()}", model.state_dict())


def test_all_ranks_end_with_the_same_weights(tmp_path: Path) -> None:
    """Bit for bit, those of models that draw noise too, and what they learn of a batch without gradients."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(tests=str(ROOT / "tests"), root=str(ROOT), folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS), str(program)]
    subprocess.run(command, check=True)
    for name in NOISY:
        first, *others = (files.read_state(tmp_path / f"{name} {rank}") for rank in range(RANKS))
        for other in others:
            assert all(torch.equal(tensor, other[key]) for key, tensor in first.items())
    assert first["seen"] == 2 * 27


@pytest.mark.parametrize(
    ("name", "trains"), [("resnet18", True), ("efficientnet_unet", True), ("mlp1", True), ("cae", False)]
)
def test_batch_norms_are_synchronized_on_gpus_and_refused_on_the_cpu(
    name: str, trains: bool, monkeypatch, narrow
) -> None:
    """PyTorch's own replace them and color as before; a model without them trains anywhere."""
    block = narrow(load(AllParams, ROOT / "params.yaml").models[name])
    model = build_model(block, 32, Statistics.measure(_photographs(8, 16), PriorConfig()))
    light = torch.rand(2, 1, 32, 32) * 100

    def norms() -> set[type]:
        return {
            type(layer) for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        }

    before, kinds = model.eval().colorize(light), norms()
    distributed.synchronize(model, name, torch.device("cpu"))
    assert norms() == kinds
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    if trains:
        with pytest.raises(InputError, match=f"{name} has batch normalization, .* the CPU; use one process"):
            distributed.synchronize(model, name, torch.device("cpu"))
    distributed.synchronize(model, name, torch.device("cuda"))
    assert norms() == ({nn.SyncBatchNorm} if trains else set())
    torch.testing.assert_close(model.eval().colorize(light), before)


EPOCHS = 60
"""Of the stage's trainings here: one that is killed has to be at work still."""
TOGETHER = f"torchrun --nproc-per-node {RANKS}"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function of (name, model, batch) that makes a folder for `python -m pipeline.train`."""
    images = _photographs(27, 16)

    def make(name: str, model: str = "cae", batch: int = 8) -> Path:
        folder = tmp_path_factory.mktemp(name)
        files.write_array(folder / paths.CROPS / "crops-00000.npy", images)
        splits = pd.DataFrame({"index": range(27), "photo": range(27), "split": ["train"] * 20 + ["val"] * 7})
        files.write_text(folder / paths.SPLITS_CSV, splits.to_csv(index=False))
        Statistics.measure(images, PriorConfig()).write(folder / paths.PRIOR)
        yaml = YAML()
        params = yaml.load(ROOT / "params.yaml")
        params["model"] = model
        params["crop"]["size"] = 16
        params["models"]["cae"]["network"].update(channels=[4, 8], l1=0)
        params["models"]["cae"]["recipe"]["patience"] = 0
        params["models"]["cae"]["recipe"]["batch"] = batch
        params["train"].update(max_epochs=EPOCHS, threads=1, device="cpu", checkpoint_seconds=0)
        with (folder / "params.yaml").open("w") as file:
            yaml.dump(params, file)
        return folder

    return make


def start(folder: Path, launcher: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*shlex.split(launcher), "-m", "pipeline.train"],
        cwd=folder,
        env=os.environ
        | {
            "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train(folder: Path, launcher: str = "python", status: int = 0) -> str:
    process = start(folder, launcher)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == status, said
    return said


def curve(folder: Path) -> np.ndarray:
    """Of the first three epochs: rounding grows."""
    return pd.read_csv(folder / paths.MODEL / "history.csv").to_numpy()[:3]


@pytest.fixture(scope="module")
def alone(project) -> Path:
    """Trained by one process."""
    folder = project("alone")
    train(folder)
    return folder


@pytest.fixture(scope="module")
def together(project) -> tuple[Path, str]:
    """Trained by several processes, and what they said."""
    folder = project("together")
    return folder, train(folder, TOGETHER)


def test_torchrun_trains_with_as_many_processes_as_it_is_told(
    alone: Path, together: tuple[Path, str]
) -> None:
    """One line an epoch after one of notes; a second run trains nothing."""
    folder, said = together
    epochs = [["cae", "epoch", str(epoch)] for epoch in range(1, EPOCHS + 1)]
    assert [line.split("train")[0].split() for line in said.splitlines()[1:-1]] == epochs
    assert curve(folder) == pytest.approx(curve(alone), rel=1e-5)
    assert train(folder, TOGETHER).splitlines()[1:] == said.splitlines()[-1:]


def test_two_machines_meet_and_train(project, alone: Path) -> None:
    """Here both are this one. Each ends with the model, the same bytes; one of them has its state."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    machines = [project(name) for name in ("one machine", "another")]
    launcher = f"torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint {place} --nproc-per-node 1"
    started = [start(folder, launcher) for folder in machines]
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    first, second = (files.sha256_of([folder / paths.MODEL]) for folder in machines)
    assert list(first.values()) == list(second.values())
    assert sum(len(list((folder / "runs").glob("*/state.pt"))) for folder in machines) == 1
    assert curve(machines[0]) == pytest.approx(curve(alone), rel=1e-5)


@fault(47, "one of the processes that train a model together dies")
def test_a_process_that_dies_ends_all(project, together: tuple[Path, str]) -> None:
    """torchrun ends the others and names the signal; the same command continues, to the bytes of one go."""
    folder = project("killed")
    process = start(folder, TOGETHER)
    deadline = time.monotonic() + 60
    while not list((folder / "runs").glob("*/state.pt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    ranks = {child.environ()["LOCAL_RANK"]: child for child in psutil.Process(process.pid).children()}
    ranks["1"].send_signal(signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "SIGKILL" in said
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks.values())
    assert not (folder / paths.MODEL).exists()
    train(folder, TOGETHER)
    weights = paths.MODEL / "weights.safetensors"
    assert files.sha256(folder / weights) == files.sha256(together[0] / weights)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": 2}, "3 processes cannot share batches of 2 photographs; start fewer with train.launcher"),
        ({"model": "fcae2"}, "fcae2 has batch normalization"),
        ({"model": "none"}, "there is no model 'none'"),
    ],
)
def test_what_ranks_refuse_is_said_once(project, changes: dict, words: str) -> None:
    """Though each of them refuses it, and torchrun stops the others."""
    said = train(project("refused", **changes), TOGETHER, status=1)
    assert said.count("error: ") == 1 and f"error: {words}" in said and "stopped; " not in said


def test_the_launcher_stands_before_the_command_of_every_training(tmp_path: Path) -> None:
    """By default the commands are those that dvc.lock has: no result becomes stale."""
    for name in ("dvc.yaml", "params.yaml", "pipeline/zoo/dvc.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)

    def commands() -> list:
        with chdir(tmp_path), Repo.init(".", no_scm=True, force=True) as repo:
            zoo = repo.stage.load_one("pipeline/zoo/dvc.yaml", "score@cae")
            return [repo.stage.load_one(name="train").cmd, zoo.cmd[0]]

    assert commands() == ["python -m pipeline.train", "python -m pipeline.train --model cae"]
    params = (ROOT / "params.yaml").read_text().replace("launcher: python ", f"launcher: {TOGETHER} ")
    files.write_text(tmp_path / "params.yaml", params)
    assert commands() == [f"{TOGETHER} -m pipeline.train", f"{TOGETHER} -m pipeline.train --model cae"]


def test_trainings_at_once_take_different_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each takes the first free one; when all are taken, they are shared."""
    with (
        claim_gpu(tmp_path, range(2)) as first,
        claim_gpu(tmp_path, range(2)) as second,
        claim_gpu(tmp_path, range(2)) as third,
    ):
        assert (first, second, third) == (0, 1, 0)
    with (
        FileLock(tmp_path / "gpu-1.lock"),
        claim_gpu(tmp_path, range(1, 2)) as shared,
        claim_gpu(tmp_path, range(0)) as none,
    ):
        assert (shared, none) == (1, 0)
