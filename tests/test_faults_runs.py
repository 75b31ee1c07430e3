"""What goes wrong with runs, models and machines: rows of docs/faults.md from 32 on."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import chdir
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clusters import Store
from conftest import ROOT, _photographs
from faults import fault
from imagefiles import rows_of, tiles
from PIL import Image
from ruamel.yaml import YAML
from test_training import BLOCKS, RULE, small_model, train

from colorize import files
from colorize.apply.project import other_versions, verify_outs
from colorize.data import crops
from colorize.data.dataset import Photos
from colorize.data.images import CropConfig
from colorize.files import InputError
from colorize.training import loop
from colorize.training.loop import fit
from pipeline.check import AllParams
from pipeline.params import load

STAGES = ("download", "crop", "filter", "prior")
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}


STAGES_RUN = """
import runpy, sys
stages = sys.argv[1:]
sys.argv = sys.argv[:1]
for stage in stages:
    runpy.run_module(f"pipeline.{stage}", run_name="__main__")
"""
SHUFFLED = """
import os, random
scandir, listdir = os.scandir, os.listdir
class Shuffled:
    def __init__(self, path):
        entries = list(scandir(path))
        random.shuffle(entries)
        self.entries = iter(entries)
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def __iter__(self): return self.entries
    def __next__(self): return next(self.entries)
    def close(self): pass
os.scandir = lambda path=".": Shuffled(path)
os.listdir = lambda path=".": random.sample(names := listdir(path), len(names))
"""


def project(folder: Path, photos: Path, **changes: Any) -> Path:
    """A folder with params.yaml, in which stages run on a folder of photographs."""
    folder.mkdir(parents=True)
    yaml = YAML()
    params = yaml.load((ROOT / "params.yaml").read_text())
    params["model"] = "cae"
    params["data"].update(source="folder", path=str(photos))
    params["crop"].update(size=16, workers=1)
    params["train"].update(max_epochs=2, threads=1, checkpoint_seconds=0)
    params["models"]["cae"]["network"].update(channels=[4, 8])
    for name, value in changes.items():
        block, key = name.split("__")
        params[block][key] = value
    with (folder / "params.yaml").open("w") as file:
        yaml.dump(params, file)
    return folder


def start(stage: str, folder: Path, *before: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, sys.executable, "-m", f"pipeline.{stage}"],
        cwd=folder,
        env=ENVIRONMENT | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def run(stage: str, folder: Path) -> None:
    with chdir(folder):
        import_module(f"pipeline.{stage}").main(load(AllParams))


def snapshot(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): files.sha256(p) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, pixels in enumerate(_photographs(30, 40)):
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A project in which all stages before an endless training have run."""
    folder = project(tmp_path_factory.mktemp("prepared") / "project", photos, train__max_epochs=100_000)
    subprocess.run([sys.executable, "-c", STAGES_RUN, *STAGES], cwd=folder, env=ENVIRONMENT, check=True)
    return folder


@fault(
    32,
    "a disk that is full while a file is written",
    "One sentence that names the file, exit status 1, nothing half-written; a rerun completes it.",
)
def test_a_full_disk_is_one_sentence(tmp_path: Path, photos: Path) -> None:
    """Also if it is only the last bytes that fail."""
    folder = project(tmp_path / "full", photos)
    for stage in ("download", "crop"):
        run(stage, folder)
    whole = snapshot(folder / "data")
    shutil.rmtree(folder / "data/crops")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(InputError, match=r"^cannot write .*\.npy"):
            run("crop", folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(folder.rglob("*.partial")) and not list(folder.rglob("crops-*.npy"))
    run("crop", folder)
    assert snapshot(folder / "data") == whole


ORPHAN = [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])"]


@pytest.mark.slow
@fault(34, "Ctrl-C, SIGTERM, the death of the DVC that waits")
@pytest.mark.xdist_group("prepared")
@pytest.mark.parametrize("how", ["SIGTERM", "orphan"])
def test_a_training_that_is_stopped_stops(tmp_path: Path, prepared: Path, how: str) -> None:
    """Ends soon with status 130 and a sentence, leaves no process, and goes on from its last state."""
    folder, orphan = Path(shutil.copytree(prepared, tmp_path / "project")), how == "orphan"
    process = start(
        "train", folder, *(ORPHAN if orphan else []), **({"DVC_ROOT": str(folder)} if orphan else {})
    )

    def done() -> int:
        found = list((folder / "runs").glob("*/state.pt"))
        return files.read_state(found[0])["progress"]["epoch"] if found else 0

    while not done():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL if orphan else signal.SIGTERM)
    output, _ = process.communicate(timeout=120)  # the pipe is open as long as the training lives
    assert output.endswith("stopped; the same command continues\n")
    assert orphan or process.returncode == 130
    last, again = done(), start("train", folder)
    assert again.stdout is not None
    line = next(line for line in again.stdout if "epoch" in line)
    again.kill()
    again.communicate()
    assert int(line.split("epoch")[1].split()[0]) == last + 1 > 1


@fault(39, "a training state that is cut short, of which one bit is flipped, or that is empty")
def test_a_damaged_state_is_not_continued(tmp_path: Path, photographs, capsys) -> None:
    """Noticed by its sha256 and said; training starts again and ends with the same weights."""
    pixels = photographs(8, 16)
    whole, _ = train("cae", pixels, tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for damaged in (content[:-100], flipped, b""):
        (tmp_path / "state.pt").write_bytes(damaged)
        model, progress = train("cae", pixels, tmp_path / "state.pt")
        assert progress.epoch == RULE.max_epochs and "state.pt is damaged" in capsys.readouterr().out
        assert all(
            torch.equal(tensor, model.state_dict()[name]) for name, tensor in whole.state_dict().items()
        )
        assert (tmp_path / "state.pt").stat().st_size > 1000


@fault(40, "a loss that is NaN or infinite")
def test_a_loss_that_is_none_stops_the_training(tmp_path, photographs, monkeypatch) -> None:
    """Stops with phase, step, epoch and photographs, or names the weights; no NaN is ever written."""
    monkeypatch.setattr(loop, "SAVING_COST", 0)  # a state after every step
    said = r"loss of phase net is (nan|inf) in step 2 of epoch 1, on the photographs \[\d.*lower the model's"
    for _ in range(2):
        with pytest.raises(InputError, match=said):
            train("mlp1", photographs(8, 16), tmp_path / "s.pt", replace(RULE, min_lr=1e30), optimizer="sgd")
        state = files.read_state(tmp_path / "s.pt")
        assert state["passes"][0]["train"][0] == 1
        assert all(tensor.isfinite().all() for tensor in state["model"].values())


@fault(41, "two photographs, and batches of 256")
def test_a_batch_may_be_larger_than_the_data(tmp_path: Path, photographs) -> None:
    """Trains on what there is."""
    model = small_model("cae", pixels := photographs(2, 16))
    pair = Photos(pixels, 16)
    progress = fit(model, pair, pair, replace(BLOCKS["cae"].recipe, batch=256), RULE, 3, tmp_path / "s.pt")
    assert progress.epoch == RULE.max_epochs
    assert all(np.isfinite(list(row.values())).all() for row in progress.history)


@pytest.mark.slow
@fault(42, "a worker that hangs in a photograph")
def test_a_worker_that_hangs_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After half an hour in one shard the run ends and names the shard's first and last photograph."""

    def cropped(endless: str) -> int:
        store = Store(tiles(), tmp_path / f"notes {endless}", endless=endless)
        rule = CropConfig(size=16, workers=2)
        return sum(map(len, crops.crop_shards(rows_of(tiles()), store.read, tmp_path, rule)))

    monkeypatch.setattr(crops, "HANG_SECONDS", 3)
    words = r"one of the photographs \d+ to \d+ keeps a worker busy for over 3 seconds"
    with pytest.raises(InputError, match=words):
        cropped(endless="72")
    monkeypatch.setattr(crops, "HANG_SECONDS", 300)
    assert cropped(endless="") == len(tiles())


@pytest.mark.slow
@fault(44, "1 or 2 workers, another locale, time zone and hash seed, folders listed in another order")
@pytest.mark.xdist_group("prepared")
def test_the_same_photographs_give_the_same_bytes(tmp_path: Path, prepared: Path, photos: Path) -> None:
    """Everything from the download to the prior is the same, also in a folder with spaces and umlauts."""
    other = {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "99"}
    folder = project(tmp_path / "ein anderer Weg", photos, crop__workers=2)
    subprocess.run(
        [sys.executable, "-c", SHUFFLED + STAGES_RUN, *STAGES],
        cwd=folder,
        env=ENVIRONMENT | other,
        check=True,
    )
    assert snapshot(folder / "data") == snapshot(prepared / "data")


@fault(45, "packages of other versions than those pinned")
def test_other_versions_are_named(tmp_path: Path) -> None:
    """A training never goes on from a state of another torch; `colorize verify` names the package."""
    files.write_text(
        tmp_path / "requirements/pipeline.txt", "numpy==0.0.1 \\\n    --hash=sha256:0\ntyper==0.0.1\n"
    )
    files.write_text(tmp_path / "requirements/torch.txt", "# torch==1\n")
    assert other_versions(tmp_path) == [f"numpy 0.0.1 is pinned, {np.__version__} is installed"]
    assert other_versions(ROOT) == []


@pytest.mark.slow
@fault(46, "bytes that rot in a result or in the data")
def test_rotten_results_are_named(tmp_path: Path) -> None:
    """`colorize verify` hashes everything again, names what differs or is missing, exit status 1."""
    files.write_bytes(tmp_path / "data/a.npy", b"as it was")
    files.write_bytes(tmp_path / "data/b/c.txt", b"as it was")
    from dvc.repo import Repo  # the reference: DVC's own hashes

    (tmp_path / "dvc.yaml").write_text("stages:\n  make:\n    cmd: 'true'\n    outs: [data/a.npy, data/b]\n")
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        repo.commit(force=True)
    assert {row["status"] for row in verify_outs(tmp_path)} == {"ok"}
    (tmp_path / "data/b/c.txt").chmod(0o644)
    (tmp_path / "data/b/c.txt").write_bytes(b"as it waz")
    (tmp_path / "data/a.npy").unlink()
    assert {row["path"]: row["status"] for row in verify_outs(tmp_path)} == {
        "data/a.npy": "missing",
        "data/b": "differs",
    }
