"""What goes wrong with runs, models and machines: tests for the rows of docs/faults.md from 32 on."""

import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, _photographs
from faults import fault
from PIL import Image
from ruamel.yaml import YAML
from test_images import rows_of, tiles
from test_training import BLOCKS, RULE, small_model, train

from colorize import files
from colorize.apply.project import other_versions, verify_outs
from colorize.data import crops, images, sources
from colorize.data.dataset import Photos
from colorize.data.images import CropConfig
from colorize.data.manifest import DataConfig
from colorize.files import InputError
from colorize.training import loop
from colorize.training.loop import fit

STAGES = ("download", "crop", "filter", "prior")
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}


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
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(stage: str, folder: Path, **environment: str) -> None:
    process = start(stage, folder, **environment)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output


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
    for stage in STAGES:
        run(stage, folder)
    return folder


@fault(32, "a disk that is full while a file is written")
def test_a_full_disk_is_one_sentence(tmp_path: Path, photos: Path) -> None:
    """One sentence that names the file, exit status 1, nothing half-written; with space again, a rerun completes it."""
    folder, whole = project(tmp_path / "full", photos), project(tmp_path / "whole", photos)
    for each in (folder, whole):
        run("download", each)
    limited = subprocess.run(
        [sys.executable, "-m", "pipeline.crop"],
        cwd=folder,
        env=ENVIRONMENT,
        text=True,
        capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert limited.returncode == 1 and "Traceback" not in limited.stderr
    assert "error: cannot write " in limited.stderr and ".npy" in limited.stderr, (
        "also if it is only the last bytes that fail"
    )
    assert not list(folder.rglob("*.partial")) and not list(folder.rglob("crops-*.npy"))
    for each in (folder, whole):
        run("crop", each)
    assert snapshot(folder / "data") == snapshot(whole / "data")


@fault(34, "Ctrl-C, SIGTERM, the death of the DVC that waits")
@pytest.mark.xdist_group("prepared")
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "orphan"])
def test_a_training_that_is_stopped_stops(tmp_path: Path, prepared: Path, how: str) -> None:
    """Ends within seconds with status 130 and a sentence, leaves no process, and goes on from its last state."""
    folder = Path(shutil.copytree(prepared, tmp_path / "project"))
    shell = (
        [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])"]
        if how == "orphan"
        else []
    )
    process = start("train", folder, *shell, **({"DVC_ROOT": str(folder)} if shell else {}))
    deadline = time.monotonic() + 60

    def done() -> int:
        found = list((folder / "runs").glob("*/state.pt"))
        return files.read_state(found[0])["progress"]["epoch"] if found else 0

    while not done() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL if how == "orphan" else getattr(signal, how))
    output, _ = process.communicate(timeout=10)  # the pipe is open as long as the training lives
    assert output.endswith("stopped; the same command continues\n")
    assert how == "orphan" or process.returncode == 130
    last = done()
    again = start("train", folder)
    assert again.stdout is not None
    line = next(line for line in again.stdout if "epoch" in line)
    again.kill()
    again.communicate()
    assert int(line.split("epoch")[1].split()[0]) == last + 1 > 1


@fault(37, "an archive with ../, absolute names, links, devices, a name twice, a giant within")
def test_archives_are_read_and_never_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only regular files of the expected names are read, from within; twice the same or above 2 GB is one sentence."""
    record = bytes(3073)

    def archive(*members: tuple[str, bytes, bytes]) -> Path:
        path = tmp_path / "cifar.tar"
        with tarfile.open(path, "w") as tar:
            for name, kind, body in members:
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, "/etc/passwd"
                info.size = len(body) if kind == tarfile.REGTYPE else 0
                tar.addfile(info, io.BytesIO(body))
        return path

    def listed(path: Path) -> int:
        return len(sources.list_items(DataConfig(source="cifar10", path=str(path)), 1)[0])

    regular = tarfile.REGTYPE
    odd = [("../escaped", regular, b"1"), ("/tmp/absolute", regular, b"2")]
    odd += [
        ("data_batch_2.bin", kind, b"")
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
    ]
    before = snapshot(tmp_path)
    assert listed(archive(("data_batch_1.bin", regular, record), *odd)) == 1
    assert (
        set(snapshot(tmp_path)) - set(before) == {"cifar.tar"} and not (tmp_path.parent / "escaped").exists()
    )
    with pytest.raises(InputError, match="holds data_batch_1.bin twice"):
        listed(archive(("data_batch_1.bin", regular, record), ("x/data_batch_1.bin", regular, record)))
    monkeypatch.setattr(sources, "MEMBER_BYTES", 10_000)
    with pytest.raises(InputError, match="larger than 10000 bytes"):
        listed(archive(("data_batch_1.bin", regular, record * 4)))


@fault(39, "a training state that is cut short, of which one bit is flipped, or that is empty")
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_state_is_not_continued(tmp_path: Path, photographs, damage: str, capsys) -> None:
    """Noticed by its sha256 and said; training starts again and ends with the same weights."""
    pixels = photographs(8, 16)
    whole, _ = train("cae", pixels, tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    (tmp_path / "state.pt").write_bytes({"cut": content[:-100], "flipped": flipped, "empty": b""}[damage])
    model, progress = train("cae", pixels, tmp_path / "state.pt")
    assert progress.epoch == RULE.max_epochs and "state.pt is damaged" in capsys.readouterr().out
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in whole.state_dict().items())
    assert (tmp_path / "state.pt").stat().st_size > 1000


@fault(40, "a loss that is NaN or infinite")
def test_a_loss_that_is_none_stops_the_training(
    tmp_path: Path, photographs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops with phase, step, epoch and photographs, or names the weights; no state and no weights with NaN are written."""
    monkeypatch.setattr(loop, "SAVING_COST", 0)  # a state after every step
    said = r"loss of phase net is (nan|inf) in step 2 of epoch 1, on the photographs \[\d.*lower the model's recipe.lr"
    for _ in range(2):
        with pytest.raises(InputError, match=said):
            train("mlp1", photographs(8, 16), tmp_path / "s.pt", replace(RULE, min_lr=1e30), optimizer="sgd")
        state = files.read_state(tmp_path / "s.pt")
        assert state["passes"][0]["train"][0] == 1 and all(
            t.isfinite().all() for t in state["model"].values()
        )


@fault(41, "two photographs, and batches of 256")
def test_a_batch_may_be_larger_than_the_data(tmp_path: Path, photographs) -> None:
    """Trains on what there is."""
    model = small_model("cae", pixels := photographs(2, 16))
    pair = Photos(pixels, 16)
    progress = fit(model, pair, pair, replace(BLOCKS["cae"].recipe, batch=256), RULE, 3, tmp_path / "s.pt")
    assert progress.epoch == RULE.max_epochs
    assert all(np.isfinite(list(row.values())).all() for row in progress.history)


class Slow:
    """Photographs of which one is never read in a worker."""

    def __init__(self, contents: dict[str, bytes], endless: str) -> None:
        self.contents, self.endless, self.parent = contents, endless, os.getpid()

    def read(self, shard: str, member: str) -> bytes:
        if member == self.endless and os.getpid() != self.parent:
            time.sleep(600)
        return self.contents[member]


@fault(42, "a worker that hangs in a photograph")
def test_a_worker_that_hangs_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After half an hour in one shard of 1,000 the run ends and names the shard's first and last photograph."""
    monkeypatch.setattr(images, "HANG_SECONDS", 3)
    contents = tiles()
    endless = list(contents)[9]
    read = Slow(contents, endless).read
    with pytest.raises(
        InputError, match=r"one of the photographs \d+ to \d+ keeps a worker busy for over 3 seconds"
    ):
        list(crops.crop_shards(rows_of(contents), read, tmp_path, CropConfig(size=16, workers=2)))
    monkeypatch.setattr(images, "HANG_SECONDS", 300)
    read = Slow(contents, "none").read
    assert sum(
        map(len, crops.crop_shards(rows_of(contents), read, tmp_path, CropConfig(size=16, workers=2)))
    ) == len(contents)


SHUFFLED = """
import os, random, sys, runpy
random.seed(int(sys.argv[1]))
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
stage = sys.argv[2]
sys.argv = sys.argv[:1]
runpy.run_module(f"pipeline.{stage}", run_name="__main__")
"""


@fault(44, "1, 2 or 4 workers, another locale, time zone and hash seed, folders listed in another order")
@pytest.mark.xdist_group("prepared")
def test_the_same_photographs_give_the_same_bytes(tmp_path: Path, prepared: Path, photos: Path) -> None:
    """Everything from the download to the prior is the same, byte for byte, also in a folder with spaces and umlauts."""
    other = {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "99"}
    for workers in (2, 4):
        folder = project(tmp_path / f"ein anderer Weg für {workers}", photos, crop__workers=workers)
        for stage in STAGES:
            command = [sys.executable, "-c", SHUFFLED, str(workers), stage]
            subprocess.run(command, cwd=folder, env=ENVIRONMENT | other, check=True, capture_output=True)
        assert snapshot(folder / "data") == snapshot(prepared / "data")


@fault(45, "packages of other versions than those pinned")
def test_other_versions_are_named(tmp_path: Path) -> None:
    """A training never goes on from a state of another torch; `colorize verify` names the package."""
    files.write_text(tmp_path / "requirements.txt", "numpy==0.0.1\ntyper==0.0.1\n# torch==1\n")
    assert other_versions(tmp_path) == [f"numpy 0.0.1 is pinned, {np.__version__} is installed"]
    pinned = (ROOT / "requirements.txt").read_text()
    assert f"torch=={torch.__version__.partition('+')[0]}\n" in pinned and other_versions(ROOT) == []


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
