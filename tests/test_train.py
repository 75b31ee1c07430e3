"""The train stage: states belong to one fingerprint, are locked, shared and bounded."""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from faults import fault
from filelock import FileLock

from colorize import files
from colorize.bins import PriorConfig, Statistics
from colorize.data.shards import Crops
from colorize.files import InputError
from colorize.models import ModelConfig, build_model, load_description, load_model, start_from
from colorize.models.heads import HeadConfig
from pipeline import imports, paths, train
from pipeline.check import AllParams
from pipeline.params import load

SMALL = {
    "train.max_epochs": 2,
    "crop.size": 16,
    "models.cae.network": {"channels": [4, 8]},
    "models.cae.recipe.batch": 4,
}


@pytest.fixture
def data(monkeypatch, tmp_path: Path, photographs) -> None:
    monkeypatch.chdir(tmp_path)
    images = photographs(12, 16)
    files.write_array(paths.CROPS / "crops-00000.npy", images)
    splits = pd.DataFrame(
        {"index": range(12), "photo": [f"p{i}" for i in range(12)], "split": ["train"] * 8 + ["val"] * 4}
    )
    files.write_text(paths.SPLITS_CSV, splits.to_csv(index=False))
    Statistics.measure(images, PriorConfig()).write(paths.PRIOR)


def test_a_model_folder_holds_everything_and_no_time(data, make_params) -> None:
    """Weights, resolved parameters, history; the seconds lie in runs/, outside every out."""
    train.train(make_params(SMALL), "cae", paths.MODEL)
    assert {file.name for file in paths.MODEL.iterdir()} == {
        "weights.safetensors",
        "model.json",
        "history.csv",
    }
    about = load_description(paths.MODEL)
    assert about["block"]["network"] == {"channels": [4, 8]} and about["epochs"] == 2
    timing = paths.run_folder("cae", about["fingerprint"]) / "timing.csv"
    assert timing.read_text().splitlines()[0] == "epoch,seconds" and len(timing.read_text().splitlines()) == 3
    assert "second" not in json.dumps(about)
    assert load_model(paths.MODEL).colorize(torch.rand(1, 1, 16, 16)).shape == (1, 2, 16, 16)


def test_a_finished_state_serves_the_zoo_and_the_root(data, make_params, monkeypatch) -> None:
    """Nothing trains twice; the copies are byte-identical."""
    params = make_params(SMALL)
    train.train(params, "cae", paths.MODEL)
    monkeypatch.setattr("colorize.data.dataset.Photos.epoch", lambda *a, **k: pytest.fail("trained again"))
    train.train(params, "cae", paths.ZOO / "cae")
    for file in paths.MODEL.iterdir():
        assert file.read_bytes() == (paths.ZOO / "cae" / file.name).read_bytes()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 2),
        ("train.max_epochs", 3),
        ("models.cae.recipe.lr", 0.5),
        ("models.cae.network.l1", 0.1),
        ("crop.size", 8),
    ],
)
def test_what_changes_the_weights_changes_the_fingerprint(data, make_params, name: str, value) -> None:
    """And what cannot change them does not."""
    device = torch.device("cpu")
    params = {**SMALL, "models.cae.network": {"channels": [4, 8], "l1": 0.0}}
    before = train.fingerprint(make_params(params), "cae", device)
    assert train.fingerprint(make_params({**params, name: value}), "cae", device) != before
    for harmless in (
        {"train.checkpoint_seconds": 1},
        {"models.vae.recipe.lr": 1.0},
        {"evaluate.sheet_size": 3},
    ):
        assert train.fingerprint(make_params({**params, **harmless}), "cae", device) == before


PROGRAM = """
import sys
from pipeline import params, train
train.train(load(AllParams), "cae", train.paths.MODEL)
print(*(getattr(module, "__file__", None) for module in list(sys.modules.values())), sep="\\n")
"""


def test_every_source_file_that_a_training_runs_is_in_its_fingerprint_and_no_other(
    data, make_params, monkeypatch, tmp_path: Path
) -> None:
    """A training in a copy of the project tells which it imported: to edit any of them changes the fingerprint. To edit
    another architecture's file, the command line or another stage does not."""
    copy, device = tmp_path / "copy", torch.device("cpu")
    for folder in ("pipeline", "src"):
        shutil.copytree(ROOT / folder, copy / folder)
    files.write_json(paths.PARAMS, make_params(SMALL).model_dump(mode="json"))
    params = load(AllParams)
    environment = os.environ | {"PYTHONPATH": f"{copy}:{copy / 'src'}"}
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    ran = {Path(line) for line in told.stdout.splitlines() if line.startswith(str(copy))}
    assert len(ran) > 15
    monkeypatch.setitem(imports.PACKAGES, "pipeline", copy / "pipeline")
    monkeypatch.setitem(imports.PACKAGES, "colorize", copy / "src/colorize")
    before = train.fingerprint(params, "cae", device)
    assert before == load_description(paths.MODEL)["fingerprint"]
    library = copy / "src/colorize"
    others = {
        library / "models/architectures/zhang.py",
        library / "apply/cli.py",
        copy / "pipeline/evaluate.py",
    }
    for file in sorted(ran | others):
        source = file.read_bytes()
        file.write_bytes(source + b"\nEDITED = 1\n")
        assert (train.fingerprint(params, "cae", device) != before) == (file in ran), file
        file.write_bytes(source)


def test_changed_data_changes_the_fingerprint(data, make_params, photographs) -> None:
    """One pixel is enough."""
    params, device = make_params(SMALL), torch.device("cpu")
    before = train.fingerprint(params, "cae", device)
    images = photographs(12, 16)
    images[0, 0, 0, 0] ^= 1
    files.write_array(paths.CROPS / "crops-00000.npy", images)
    assert train.fingerprint(params, "cae", device) != before


TUNED = {
    **SMALL,
    "models.cae_tuned": {
        "arch": "cae",
        "init_from": "cae",
        "network": {"channels": [4, 8]},
        "recipe": {"epochs": 0, "batch": 4},
    },
}


def test_a_fine_tuned_model_starts_from_those_very_weights(data, make_params) -> None:
    """Without an epoch of its own it is the other model, which was trained on the way; with one it is not any more."""
    train.train(make_params(TUNED), "cae_tuned", Path("tuned"))
    assert len(list(paths.RUNS.glob("cae-*"))) == 1
    train.train(make_params(TUNED), "cae", Path("start"))
    start, tuned = (load_model(Path(name)).state_dict() for name in ("start", "tuned"))
    assert all(torch.equal(start[name], tuned[name]) for name in start)
    about = load_description(Path("tuned"))
    assert about["epochs"] == 0 and about["notes"][0] == "starts from the weights of cae"
    train.train(make_params({**TUNED, "models.cae_tuned.recipe.epochs": 1}), "cae_tuned", Path("tuned"))
    assert not torch.equal(start["net.2.weight"], load_model(Path("tuned")).state_dict()["net.2.weight"])


def test_a_model_that_is_trained_already_is_not_trained_for_the_one_that_starts_from_it(
    data, make_params, monkeypatch
) -> None:
    """Its finished state serves; and once the fine-tuned one is finished, that state may be deleted."""
    params = make_params(TUNED)
    train.train(params, "cae", paths.MODEL)
    monkeypatch.setattr("colorize.data.dataset.Photos.epoch", lambda *a, **k: pytest.fail("trained again"))
    train.train(params, "cae_tuned", paths.MODEL)
    tuned = files.sha256_of([paths.MODEL])
    next(paths.RUNS.glob("cae_tuned-*/state.pt")).write_bytes(b"rotten")
    train.train(params, "cae_tuned", paths.MODEL)  # a damaged state begins at those weights again
    assert files.sha256_of([paths.MODEL]) == tuned
    shutil.rmtree(next(paths.RUNS.glob("cae-*")))
    train.train(params, "cae_tuned", paths.MODEL)


def test_what_changes_the_start_changes_the_fine_tuned_model(data, make_params) -> None:
    """Its fingerprint covers the other's."""
    device = torch.device("cpu")
    before = train.fingerprint(make_params(TUNED), "cae_tuned", device)
    assert (
        train.fingerprint(make_params({**TUNED, "models.cae.recipe.lr": 0.5}), "cae_tuned", device) != before
    )
    assert (
        train.fingerprint(make_params({**TUNED, "models.vae.recipe.lr": 0.5}), "cae_tuned", device) == before
    )


def test_fine_tuning_keeps_the_blocks_own_weights_of_colors(data) -> None:
    """The network's weights come from the other model, the loss's from the block."""
    statistics = Statistics.read(paths.PRIOR)
    block = ModelConfig(
        "cae", network={"channels": [4]}, head=HeadConfig("classification", weights="empirical")
    )
    trained = build_model(block, 16, statistics)
    model = build_model(replace(block, head=replace(block.head, weights="smoothed")), 16, statistics)
    start_from(model, trained)
    assert torch.equal(model.net[2].weight, trained.net[2].weight)
    assert model.head.class_weights.tolist() == pytest.approx(statistics.weights("smoothed").tolist())
    with pytest.raises(InputError, match="differ in shape; give both blocks the same arch, network and head"):
        start_from(build_model(replace(block, network={"channels": [8]}), 16, statistics), trained)


def test_a_share_is_so_many_photographs_and_the_same_ones_for_every_seed(
    data, make_params, monkeypatch
) -> None:
    """Half of eight are four of the training ones; validation keeps all its four; a quarter lies within the half."""
    seen: list[list[int]] = []

    def opened(folder: Path, indices: np.ndarray) -> Crops:
        seen.append(indices.tolist())
        return Crops(folder, indices)

    monkeypatch.setattr(train, "Crops", opened)
    for share, seed in ((0.5, 1), (0.5, 2), (0.25, 1), (1, 1)):
        changes = {"models.cae.recipe.share": share, "train.max_epochs": 1, "seed": seed}
        train.train(make_params({**SMALL, **changes}), "cae", paths.MODEL)
    half, again, quarter, whole = seen[::2]
    assert len(half) == 4 and half == again and set(quarter) < set(half) < set(whole) == set(range(8))
    assert whole == sorted(whole) and half == sorted(half) and seen[1::2] == [[8, 9, 10, 11]] * 4


def test_photographs_that_do_not_fit_are_streamed_and_give_the_same_bytes(
    data, make_params, monkeypatch
) -> None:
    """With room for a photograph and a half no more than a batch is ever read at once, and the fingerprint is the same."""
    params = {**SMALL, "models.cae.recipe.flip": True, "models.cae.recipe.crop": 0.5}
    train.train(make_params(params), "cae", paths.MODEL)
    held = files.sha256_of([paths.MODEL])
    rows: list[int] = []
    read = Crops.__getitem__
    monkeypatch.setattr(
        Crops, "__getitem__", lambda self, chosen: rows.append(len(chosen)) or read(self, chosen)
    )
    monkeypatch.setattr(paths, "RUNS", Path("other runs"))
    train.train(
        make_params({**params, "train.dataset_gigabytes": 1.5 * 16 * 16 * 3 / 1e9}), "cae", paths.MODEL
    )
    assert files.sha256_of([paths.MODEL]) == held
    # Two epochs of two batches, and after each the eight that are watched: four for training, four for validation.
    assert sorted(rows) == [4] * 8


@pytest.mark.parametrize(("asked", "own"), [("released", "empirical"), ("released_smoothed", "smoothed")])
def test_without_the_released_prior_the_own_one_is_used_and_named(
    data, make_params, capsys, asked: str, own: str
) -> None:
    """On the screen and in the model's description, whose block is the one that was trained; with it, nothing is said."""
    params = make_params({**SMALL, "models.cae.head": {"kind": "classification", "weights": asked}})
    train.train(params, "cae", paths.MODEL)
    about = load_description(paths.MODEL)
    note = f"prior.released is not set: weights from this data set's {own} prior instead of the {asked} one"
    assert about["notes"][0] == note and f"cae: {note}" in capsys.readouterr().out
    assert about["block"]["head"]["weights"] == own
    weights = load_model(paths.MODEL).head.class_weights
    assert weights.tolist() == pytest.approx(Statistics.read(paths.PRIOR).weights(own).tolist())
    images = Crops(paths.CROPS, np.arange(12))[:]
    Statistics.measure(images, PriorConfig(), released=np.full(313, 1 / 313)).write(paths.PRIOR)
    train.train(params, "cae", paths.MODEL)
    about = load_description(paths.MODEL)
    assert note not in about["notes"] and about["block"]["head"]["weights"] == asked
    assert load_model(paths.MODEL).head.class_weights.tolist() == pytest.approx(
        Statistics.read(paths.PRIOR).weights(asked).tolist()
    )


def test_what_differs_from_the_block_is_recorded_and_said_once(data, make_params, capsys) -> None:
    """Size, epochs, learning rate and batch in force beside those asked for; a sentence for each that differs."""
    block = {"models.cae.size": 256, "models.cae.recipe.epochs": 1000, "models.cae.recipe.lr": 1e-5}
    block |= {"models.cae.recipe.batch": 32, "train.min_lr": 3e-4}
    train.train(make_params(SMALL | block), "cae", paths.MODEL)
    about, said = load_description(paths.MODEL), capsys.readouterr().out.splitlines()
    sentences = [
        "works at 16 pixels, not 256, because crop.size is 16",
        "trains for 2 epochs at most, not 1,000, because train.max_epochs is 2",
        "trains with a learning rate of 0.0003, not 1e-05, because train.min_lr is 0.0003",
        "trains on 8 photographs at once, not 32, because there are no more",
    ]
    assert about["notes"] == sentences and said[0] == f"cae: {'; '.join(sentences)}"
    assert about["recipe"] == {
        "size": {"asked": 256, "in_force": 16},
        "epochs": {"asked": 1000, "in_force": 2},
        "lr": {"asked": 1e-5, "in_force": 3e-4},
        "batch": {"asked": 32, "in_force": 8},
        "patience": 10,
        "max_minutes": 0,
        "device": "cpu",
        "precision": "fp32",
        "deterministic": True,
        "threads": 2,
        "ranks": 1,
        "ended_by": "epochs",
    }
    as_asked = {
        "models.cae.size": 16,
        "train.max_epochs": 0,
        "train.min_lr": 0,
        "models.cae.recipe.epochs": 3,
    }
    train.train(make_params(SMALL | as_asked), "cae", paths.MODEL)
    assert load_description(paths.MODEL)["notes"] == []
    train.train(make_params(SMALL | as_asked | {"train.max_minutes": 1e-9}), "cae", paths.MODEL)
    assert load_description(paths.MODEL)["notes"] == [
        "stopped before its last epoch, because train.max_minutes is 1e-09"
    ]
    train.train(make_params(SMALL), "grey", paths.MODEL)
    assert load_description(paths.MODEL)["notes"] == [] and load_description(paths.MODEL)["recipe"] == {}


@fault(35, "the same training twice at once")
def test_two_processes_never_train_the_same_model_at_once(data, make_params, monkeypatch) -> None:
    """The second says where the first is, waits, and takes its finished state: equal bytes."""
    params = make_params(SMALL)
    train.train(params, "cae", paths.MODEL)
    state, aside, said = next(paths.RUNS.glob("cae-*/state.pt")), Path("aside.pt"), SimpleQueue()
    monkeypatch.setattr(train.tqdm, "write", lambda text, **_: said.put(text))
    monkeypatch.setattr("colorize.data.dataset.Photos.epoch", lambda *a, **k: pytest.fail("trained again"))
    with ThreadPoolExecutor(1) as pool:
        with FileLock(state.parent / "lock"):
            state.rename(aside)  # as if the first were still at it
            second = pool.submit(train.train, params, "cae", Path("second"))
            assert said.get(timeout=60).startswith(
                f"cae: another process is training it in {state.parent}; waiting"
            )
            aside.rename(state)
        second.result(timeout=60)
    assert files.sha256(Path("second/weights.safetensors")) == files.sha256(
        paths.MODEL / "weights.safetensors"
    )


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


def test_a_file_that_another_process_renames_meanwhile_does_not_disturb_the_deleting(data) -> None:
    """As when a second queue worker saves its state: the name is listed and then gone."""
    for name in ("current", "other"):
        files.write_bytes(paths.RUNS / name / "state.pt", b"x" * 1000)
    (paths.RUNS / "other/.state.pt.1.partial").symlink_to("gone")
    train.prune(paths.RUNS / "current", 1)
    assert (paths.RUNS / "other/state.pt").exists()


def test_too_few_photographs_are_refused(data, make_params) -> None:
    """It names what to change."""
    splits = pd.read_csv(paths.SPLITS_CSV)
    splits["split"] = ["train"] + ["test"] * 11
    files.write_text(paths.SPLITS_CSV, splits.to_csv(index=False))
    with pytest.raises(InputError, match=r"training needs 2 photographs.*filter.train and filter.val"):
        train.train(make_params(SMALL), "cae", paths.MODEL)
