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
from colorize.training import runs
from pipeline import paths, train
from pipeline.fingerprint import fingerprint

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


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_folder_holds_everything_and_no_time(data, make_params) -> None:
    """Weights, resolved parameters, history; the seconds lie in runs/, outside every out."""
    train.train(make_params(SMALL), "cae", paths.MODEL)
    assert set(contents(paths.MODEL)) == {"weights.safetensors", "model.json", "history.csv"}
    about = load_description(paths.MODEL)
    assert about["block"]["network"] == {"channels": [4, 8]} and about["epochs"] == 2
    timing = (paths.run_folder("cae", about["fingerprint"]) / "timing.csv").read_text().splitlines()
    assert timing[0] == "epoch,seconds" and len(timing) == 3
    assert "second" not in json.dumps(about)
    assert load_model(paths.MODEL).colorize(torch.rand(1, 1, 16, 16)).shape == (1, 2, 16, 16)


TUNED = {
    **SMALL,
    "models.cae_tuned": {
        "arch": "cae",
        "init_from": "cae",
        "network": {"channels": [4, 8]},
        "recipe": {"epochs": 0, "batch": 4},
    },
}


def test_what_changes_the_weights_changes_the_fingerprint_and_nothing_else_does(data, make_params) -> None:
    """Of a fine-tuned model too, which depends on the one that it starts from; a single pixel is enough."""

    def found(**changes: object) -> str:
        return fingerprint(make_params(TUNED | changes), "cae_tuned", torch.device("cpu"))

    before = found()
    for name, value in (
        ("seed", 2),
        ("train.max_epochs", 3),
        ("models.cae.recipe.lr", 0.5),
        ("models.cae_tuned.recipe.lr", 0.5),
        ("models.cae_tuned.network.l1", 0.1),
    ):
        assert found(**{name: value}) != before, name
    for name in ("train.checkpoint_seconds", "models.vae.recipe.lr", "evaluate.sheet_size"):
        assert found(**{name: 1}) == before, name
    images = np.load(paths.CROPS / "crops-00000.npy")
    images[0, 0, 0, 0] ^= 1
    files.write_array(paths.CROPS / "crops-00000.npy", images)
    assert found() != before


PROGRAM = """
import sys
from pathlib import Path
import torch
from pipeline import fingerprint, params, train

copy = Path(sys.argv[1])
asked = params.load(train.TrainParams)
train.train(asked, "cae", train.paths.MODEL)
files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
ran = {Path(file) for file in files if file and file.startswith(sys.argv[1])}
assert len(ran) > 15
library = copy / "src/colorize"
others = {library / "models/architectures/zhang.py", library / "apply/cli.py", copy / "pipeline/evaluate.py"}
before = fingerprint.fingerprint(asked, "cae", torch.device("cpu"))
for file in sorted(ran | others):
    source = file.read_bytes()
    file.write_bytes(source + b"\\nEDITED = 1\\n")
    assert (fingerprint.fingerprint(asked, "cae", torch.device("cpu")) != before) == (file in ran), file
    file.write_bytes(source)
"""


@pytest.mark.slow
def test_every_source_file_that_a_training_runs_is_in_its_fingerprint_and_no_other(
    data, make_params, tmp_path: Path
) -> None:
    """A training in a copy of the project tells which it imported."""
    copy = tmp_path / "copy"
    for folder in ("pipeline", "src"):
        shutil.copytree(ROOT / folder, copy / folder)
    files.write_json(paths.PARAMS, make_params(SMALL).model_dump(mode="json"))
    environment = os.environ | {"PYTHONPATH": f"{copy}:{copy / 'src'}"}
    subprocess.run([sys.executable, "-c", PROGRAM, str(copy)], env=environment, check=True)


def test_a_fine_tuned_model_starts_from_those_very_weights(data, make_params) -> None:
    """Without an epoch of its own it is the other model, which was trained on the way."""
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
    """Its finished state serves, as it serves the zoo; once the other is finished, it may be deleted."""
    params = make_params(TUNED)
    train.train(params, "cae", paths.MODEL)
    monkeypatch.setattr("colorize.data.dataset.Photos.epoch", lambda *a, **k: pytest.fail("trained again"))
    train.train(params, "cae", paths.ZOO / "cae")
    assert contents(paths.ZOO / "cae") == contents(paths.MODEL)
    train.train(params, "cae_tuned", paths.MODEL)
    tuned = contents(paths.MODEL)
    next(paths.RUNS.glob("cae_tuned-*/state.pt")).write_bytes(b"rotten")
    train.train(params, "cae_tuned", paths.MODEL)  # a damaged state begins at those weights again
    assert contents(paths.MODEL) == tuned
    shutil.rmtree(next(paths.RUNS.glob("cae-*")))
    train.train(params, "cae_tuned", paths.MODEL)


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


def test_a_share_is_so_many_photographs_and_the_same_ones_for_every_seed(
    data, make_params, monkeypatch
) -> None:
    """Half of eight are four; validation keeps all its four; a quarter lies within the half."""
    seen: list[list[int]] = []

    def opened(folder: Path, indices: np.ndarray | None = None) -> Crops:
        if indices is not None:
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
    """With room for a photograph and a half no more than a batch is ever read at once."""
    params = {**SMALL, "models.cae.recipe.flip": True, "models.cae.recipe.crop": 0.5}
    train.train(make_params(params), "cae", paths.MODEL)
    held = contents(paths.MODEL)
    rows: list[int] = []
    read = Crops.__getitem__
    monkeypatch.setattr(Crops, "__getitem__", lambda self, some: rows.append(len(some)) or read(self, some))
    monkeypatch.setattr(paths, "RUNS", Path("other runs"))
    little = make_params({**params, "train.dataset_gigabytes": 1.5 * 16 * 16 * 3 / 1e9})
    train.train(little, "cae", paths.MODEL)
    assert contents(paths.MODEL) == held
    # Two epochs of two batches, and after each four of training and four of validation are watched.
    assert sorted(rows) == [4] * 8


@pytest.mark.parametrize(("asked", "own"), [("released", "empirical"), ("released_smoothed", "smoothed")])
def test_without_the_released_prior_the_own_one_is_used_and_named(
    data, make_params, capsys, asked: str, own: str
) -> None:
    """On the screen and in the model's description, whose block is the one that was trained."""
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
    """What is in force beside what was asked for; a sentence for each that differs."""
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
    expected = {"size": (256, 16), "epochs": (1000, 2), "lr": (1e-5, 3e-4), "batch": (32, 8)}
    recipe = about["recipe"]
    assert {name: (recipe[name]["asked"], recipe[name]["in_force"]) for name in expected} == expected
    assert (recipe["device"], recipe["precision"], recipe["ended_by"]) == ("cpu", "fp32", "epochs")
    as_asked = {"models.cae.size": 16, "models.cae.recipe.epochs": 3}
    as_asked |= {"train.max_epochs": 0, "train.min_lr": 0}
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
            assert f"cae: another process is training it in {state.parent}; waiting" in said.get()
            aside.rename(state)
        second.result()
    assert contents(Path("second")) == contents(paths.MODEL)


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
        runs.prune(current, 2.5e-6)
    assert sorted(folder.name for folder in paths.RUNS.iterdir()) == ["current", "old", "oldest"]


def test_too_few_photographs_are_refused(data, make_params) -> None:
    """It names what to change."""
    splits = pd.read_csv(paths.SPLITS_CSV)
    splits["split"] = ["train"] + ["test"] * 11
    files.write_text(paths.SPLITS_CSV, splits.to_csv(index=False))
    with pytest.raises(InputError, match=r"training needs 2 photographs.*filter.train and filter.val"):
        train.train(make_params(SMALL), "cae", paths.MODEL)
