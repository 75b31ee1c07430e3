"""The first stage refuses before anything is deleted."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from faults import fault
from safetensors.torch import load_file, save_file

from colorize import files
from colorize.files import InputError
from colorize.models import SHIPPED_FOLDER, WEIGHTS, describe_block
from pipeline import check, paths


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sample.csv").write_text("photo,side,step\n")


def test_what_it_writes_never_changes(make_params) -> None:
    """Other parameters, same bytes: no later stage runs because of it."""
    check.main(make_params({"model": "cae"}))
    first = paths.CHECKED.read_bytes()
    check.main(make_params({"seed": 2, "model": "vae", "crop.size": 32}))
    assert paths.CHECKED.read_bytes() == first


def test_training_depends_on_the_chosen_block_and_on_the_one_it_starts_from(make_params) -> None:
    """Another model's parameters change nothing; those of either do, and so does another file of weights."""

    cae = {"arch": "cae", "network": {"channels": [4, 8]}, "recipe": {"lr": 0.1}}
    other = {"arch": "constant", "network": {"color": "zero"}, "recipe": {"lr": 0.1}}
    models = {"cae": cae, "later": cae | {"init_from": "cae"}, "grey": other, "mean_color": other}

    def block(changes: dict, name: str = "later") -> dict:
        check.main(make_params({"model": "cae", "models": models} | changes))
        return json.loads((paths.BLOCKS / f"{name}.json").read_text())

    before = block({})
    assert list(before) == ["later", "cae"]
    assert block({"models.grey.recipe.lr": 0.5}) == before
    for name in ("cae", "later"):
        assert block({f"models.{name}.recipe.lr": 0.5}) != before
    assert list(block({}, "grey")) == ["grey"]
    shutil.copytree(SHIPPED_FOLDER, "mine")
    tuned = make_params().models["tuned"]
    start = {"models.tuned": describe_block(tuned) | {"init_from": "mine"}}
    mine = block(start, "tuned")
    assert mine["weights"] == files.sha256(SHIPPED_FOLDER / WEIGHTS)
    tensors = load_file(f"mine/{WEIGHTS}")
    save_file(tensors | {"net.last.bias": tensors["net.last.bias"] + 1}, f"mine/{WEIGHTS}")
    assert block(start, "tuned") == mine | {"weights": files.sha256(Path("mine") / WEIGHTS)} != mine


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "vea"}, "no model 'vea'.*did you mean 'vae'"),
        ({"data.path": "no/where", "data.source": "folder"}, "data.path: no/where does not exist"),
        ({"models.cae.arch": "cea"}, "models.cae: there is no architecture 'cea'"),
        (
            {"model": "tuned", "models.tuned.network.channels": [8, 8, 8, 8]},
            "models.tuned: .*differ in shape",
        ),
        (
            {"models.tuned.init_from": "shiped"},
            "models.tuned: init_from: shiped is no .*did you mean 'shipped'",
        ),
        (
            {"data.path": "photos", "data.source": "folder"},
            "photos does not exist in /.*; give the whole path .*queued experiment",
        ),
        (
            {"model": "cae", "models.cae.network": {"channels": "abc"}},
            "models.cae: architecture 'cae' cannot be built with channels abc",
        ),
        ({"crop.cluster": "host"}, "crop.cluster: give the address of a Dask scheduler, say tcp://host:8786"),
        ({"model": "cgan", "crop.size": 40}, "models.cgan: .*divides by 16"),
    ],
)
def test_what_cannot_work_is_refused(make_params, changes: dict, words: str) -> None:
    """Names the parameter and leaves nothing behind."""
    with pytest.raises(InputError, match=words):
        check.main(make_params(changes))
    assert not paths.CHECKED.exists()


@pytest.mark.parametrize("what", ["name", "broken link", "pipe"])
def test_a_file_that_dvc_cannot_hash_is_named_before_dvc_meets_it(
    make_params, tmp_path: Path, what: str
) -> None:
    """DVC says of a name that a codec cannot encode it, and waits for ever for a pipe."""
    folder = tmp_path / "photos/1950"
    folder.mkdir(parents=True)
    path = folder / (os.fsdecode(b"caf\xe9.jpg") if what == "name" else "x.jpg")
    if what == "name":
        path.write_bytes(b"")
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nothing")
    words = r"caf\\xe9.jpg has a name that is not UTF-8" if what == "name" else "1950/x.jpg is a broken link"
    params = make_params({"data.source": "folder", "data.path": str(tmp_path / "photos")})
    with pytest.raises(InputError, match=words):
        check.main(params)
    path.unlink()
    (folder / "Scan\u00a01\n.jpg").write_bytes(b"")
    check.main(params)


@fault(43, "a GPU is asked for and there is none")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that is demanded")
def test_a_gpu_that_is_demanded_and_missing_is_refused(make_params) -> None:
    """Refused before anything is deleted, with what to set instead."""
    with pytest.raises(InputError, match=r"train.device is cuda but no usable GPU.*auto or cpu"):
        check.main(make_params({"train.device": "cuda"}))
