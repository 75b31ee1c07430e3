"""The train stage: states belong to one fingerprint, are locked, shared and bounded."""

import json
import os
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from filelock import FileLock

from colorize import files
from colorize.bins import Statistics
from colorize.files import InputError
from colorize.models import load_description, load_model
from colorize.settings import PriorRule
from pipeline import paths, train

SMALL = {
    "train.max_epochs": 2,
    "crop.size": 16,
    "models.cae.network": {"channels": [4, 8]},
    "models.cae.train.batch": 4,
}


@pytest.fixture
def data(monkeypatch, tmp_path: Path, photographs) -> None:
    monkeypatch.chdir(tmp_path)
    images = photographs(12, 16)
    files.write_array(paths.CROPS / "crops-00000.npy", images)
    splits = pd.DataFrame({"index": range(12), "photo": [f"p{i}" for i in range(12)], "split": ["train"] * 8 + ["val"] * 4})
    files.write_text(paths.SPLITS_CSV, splits.to_csv(index=False))
    Statistics.measure(images, PriorRule()).write(paths.PRIOR)


def test_a_model_folder_holds_everything_and_no_time(data, make_params) -> None:
    """Weights, resolved parameters, history; the seconds lie in runs/, outside every out."""
    train.train(make_params(SMALL), "cae", paths.MODEL)
    assert {file.name for file in paths.MODEL.iterdir()} == {"weights.safetensors", "model.json", "history.csv"}
    about = load_description(paths.MODEL)
    assert about["block"]["network"] == {"channels": [4, 8]} and about["epochs"] == 2
    timing = train.run_folder("cae", about["fingerprint"]) / "timing.csv"
    assert timing.read_text().splitlines()[0] == "epoch,seconds" and len(timing.read_text().splitlines()) == 3
    assert "second" not in json.dumps(about)
    assert load_model(paths.MODEL).colorize(torch.rand(1, 1, 16, 16)).shape == (1, 2, 16, 16)


def test_the_same_training_elsewhere_gives_the_same_bytes(data, make_params, monkeypatch) -> None:
    """A second run without the first one's state, in another folder."""
    params = make_params(SMALL)
    train.train(params, "cae", paths.MODEL)
    monkeypatch.setattr(paths, "RUNS", Path("other runs"))
    train.train(params, "cae", Path("other/model"))
    for file in paths.MODEL.iterdir():
        assert file.read_bytes() == (Path("other/model") / file.name).read_bytes()


def test_a_finished_state_serves_the_zoo_and_the_root(data, make_params, monkeypatch) -> None:
    """Nothing trains twice; the copies are byte-identical."""
    params = make_params(SMALL)
    train.train(params, "cae", paths.MODEL)
    monkeypatch.setattr("colorize.batches.Photos.epoch", lambda *a, **k: pytest.fail("trained again"))
    train.train(params, "cae", paths.ZOO / "cae")
    for file in paths.MODEL.iterdir():
        assert file.read_bytes() == (paths.ZOO / "cae" / file.name).read_bytes()


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 2), ("train.max_epochs", 3), ("models.cae.train.lr", 0.5), ("models.cae.network.l1", 0.1), ("crop.size", 8)],
)
def test_what_changes_the_weights_changes_the_fingerprint(data, make_params, name: str, value) -> None:
    """And what cannot change them does not."""
    device = torch.device("cpu")
    params = {**SMALL, "models.cae.network": {"channels": [4, 8], "l1": 0.0}}
    before = train.fingerprint(make_params(params), "cae", device)
    assert train.fingerprint(make_params({**params, name: value}), "cae", device) != before
    for harmless in ({"train.checkpoint_seconds": 1}, {"models.vae.train.lr": 1.0}, {"evaluate.samples": 3}):
        assert train.fingerprint(make_params({**params, **harmless}), "cae", device) == before


def test_changed_data_changes_the_fingerprint(data, make_params, photographs) -> None:
    """One pixel is enough."""
    params, device = make_params(SMALL), torch.device("cpu")
    before = train.fingerprint(params, "cae", device)
    images = photographs(12, 16)
    images[0, 0, 0, 0] ^= 1
    files.write_array(paths.CROPS / "crops-00000.npy", images)
    assert train.fingerprint(params, "cae", device) != before


def test_two_processes_never_train_the_same_model_at_once(data, make_params) -> None:
    """The second is told where the first is."""
    params = make_params(SMALL)
    folder = train.run_folder("cae", train.fingerprint(params, "cae", torch.device("cpu")))
    folder.mkdir(parents=True)
    with FileLock(folder / "lock"), pytest.raises(InputError, match="another process is training cae"):
        train.train(params, "cae", paths.MODEL)
    assert not paths.MODEL.exists()


def test_old_states_are_deleted_beyond_the_limit(data, make_params) -> None:
    """Oldest first, never the current one, never one that is running."""
    for age, name in enumerate(("old", "older", "oldest")):
        folder = paths.RUNS / name
        files.write_bytes(folder / "state.pt", b"x" * 1000)
        files.write_bytes(folder / "lock", b"")
        then = time.time() - 1000 * (age + 1)
        os.utime(folder, (then, then))
    current = paths.RUNS / "current"
    files.write_bytes(current / "state.pt", b"x" * 1000)
    with FileLock(paths.RUNS / "oldest" / "lock"):
        train.prune(current, 2.5e-6)
    assert sorted(folder.name for folder in paths.RUNS.iterdir()) == ["current", "old", "oldest"]


def test_too_few_photographs_are_refused(data, make_params) -> None:
    """It names what to change."""
    splits = pd.read_csv(paths.SPLITS_CSV)
    splits["split"] = ["train"] + ["test"] * 11
    files.write_text(paths.SPLITS_CSV, splits.to_csv(index=False))
    with pytest.raises(InputError, match=r"training needs 2 photographs.*filter.train and filter.val"):
        train.train(make_params(SMALL), "cae", paths.MODEL)
