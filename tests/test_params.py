"""The door: what params.yaml may hold, and what it says when it does not."""

import errno
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from dvc.utils.hydra import apply_overrides
from faults import fault

from colorize.files import InputError
from colorize.settings import count_of
from pipeline.check import AllParams
from pipeline.params import load, stage

TEXT = (ROOT / "params.yaml").read_text()


def changed(tmp_path: Path, old: str, new: str) -> Path:
    assert TEXT.count(old) >= 1
    path = tmp_path / "params.yaml"
    path.write_text(TEXT.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("  size: 128 ", "  sizee: 128 ", "no parameter crop.sizee; did you mean 'size'"),
        ("lr: 2.5e-04", "lrr: 2.5e-04", "no parameter models.cgan.recipe.lrr; did you mean 'lr'"),
        ("seed: 1", "seed: -1", "seed: input should be greater than or equal to 0, but it is -1"),
        ("seed: 1 ", "# ", "seed is missing"),
        ("  size: 128 ", "  size: big ", "crop.size: .*integer.*'big'"),
        ("source: sample", "source: smple", "data.source: input should be 'sample'.*'smple'"),
        ("dark: 1000/24996", "dark: many", "filter.dark: give a whole number.*'many'"),
        ("dark: 1000/24996", "dark: '1e999999999'", "filter.dark: give a whole number"),
        ("bright: 500/24996", "bright: 1.5", "filter.bright: give a whole number.*1.5"),
        ("- dark\n", "- darc\n", "filter.rules.0: .*'darc'"),
        ("    arch: cae\n", "    arch: cae\n    init_from: cae\n", "models.cae.init_from leads back to cae"),
        ("    base: deshpande\n", "    base: deshpand\n", "vae.base: there is no model 'deshpand'; did you"),
        ("    base: deshpande\n", "    base: vae\n", "models.vae.base leads back to vae; name another"),
        ("    arch: deshpande\n    base", "    base", "models.vae.arch is missing"),
        ("\n  vae:\n", "\n  shipped:\n", "models.shipped: the model that comes with the library has that"),
        ("\n  vae:\n", "\n  ../vae:\n", "models: '../vae' cannot be a folder's name everywhere"),
        ("\n  vae:\n", "\n  aux:\n", "models: 'aux' cannot be a folder's name"),
        ("seed: 1", "seed: [1", "not valid YAML"),
        ("seed: 1", "seed: 2024-13-45", "not valid YAML: month"),
        ("seed: 1", f"seed: {'9' * 5000}", "not valid YAML: .*digits"),
        ("seed: 1", "seed: 1e400", "seed: input should be a finite number, but it is inf"),
        ("bootstrap: 1000", "bootstrap: 1e30", "evaluate.bootstrap: .*1e.30"),
        ("max_minutes: 0", "max_minutes: .nan", "train.max_minutes: .*finite number, but it is nan"),
        ("l1: 0.001", "l1: -.inf", "models.cae.network.l1: input should be a finite number, but it is -inf"),
        ("l1: 0.001", "l1: {a: 1}", "models.cae.network.l1: input should be one of bool, int,"),
        (
            "launcher: python ",
            "launcher: mpirun -n 2 ",
            "train.launcher: write python, or torchrun .*'mpirun",
        ),
        # What an older params.yaml has, and what everybody types first.
        (
            "launcher: python ",
            "nproc: 2 ",
            "train.nproc any more; write train.launcher: torchrun --nproc",
        ),
        (
            "launcher: python ",
            "nnodes: 2\n  rendezvous: h:1 ",
            "train.nnodes any more; .*torchrun --nnodes",
        ),
        ("min_lr: 0.0003", "lr_at_least: 0.0003", "train.lr_at_least any more; write train.min_lr$"),
        ("    recipe:\n", "    train:\n", r"models\.\w+\.train any more; write models\.<model>\.recipe$"),
        ("min_lr: 0.0003", "min_lr: 0.0003\n  lr: 1", r"train.lr; did you mean models\.<model>\.recipe\.lr"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_name(tmp_path: Path, old: str, new: str, words: str) -> None:
    """One sentence: the parameter, what it should be, what it is; for a renamed one, the new name."""
    with pytest.raises(InputError, match=words) as caught:
        load(AllParams, changed(tmp_path, old, new))
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run this from the project's folder"):
        load(AllParams, tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("")
    with pytest.raises(InputError, match="holds no parameters"):
        load(AllParams, tmp_path / "params.yaml")


@pytest.mark.parametrize(
    "override",
    [
        "model=vae",
        "models.zhang_simplified_final.recipe.epochs=200",
        "models.cae.recipe.lr=0.5",
        "data.path=../my photos",
        "train.launcher=torchrun --nproc-per-node 2",
    ],
)
def test_dvc_changes_exactly_one_line_of_params_yaml(tmp_path: Path, override: str) -> None:
    """`-S` rewrites the whole file: comments and the rest of it must come through unchanged."""
    path = changed(tmp_path, TEXT, TEXT)
    apply_overrides(path, [override])
    before, after = TEXT.splitlines(), path.read_text().splitlines()
    changes = [new for old, new in zip(before, after, strict=True) if old != new]
    assert len(changes) == 1 and override.split("=")[1] in changes[0]


def test_a_block_is_its_base_with_what_it_states(tmp_path: Path) -> None:
    """vae is deshpande with a few numbers changed; zhang_simplified_grid has three blocks above it."""
    models = load(AllParams, ROOT / "params.yaml").models
    network = models["deshpande"].network | {"latent": 64, "l1": 0, "kl": 1e-5}
    assert models["vae"] == replace(models["deshpande"], network=network)
    grid = models["zhang_simplified_grid"]
    found = (grid.size, grid.recipe.lr, grid.head.kind, grid.head.weights)
    assert found == (256, 3.16e-5, "classification", "empirical")


@pytest.mark.parametrize("place", ["/My Photos, 1931 (\u00e4)", "/a=b/[c]/{d}#e", "/it\\'s", "/\u0639\u200c"])
def test_any_path_can_be_given_to_dvc_in_quotation_marks(tmp_path: Path, place: str) -> None:
    """As README says; without them Hydra's grammar refuses commas, brackets and the like."""
    path = changed(tmp_path, TEXT, TEXT)
    apply_overrides(path, [f"data.path='{place}'"])
    assert load(AllParams, path).data.path == place.replace("\\", "")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("rules", "[]", ()), ("classes", "[coasts,open country]", ("coasts", "open country"))],
)
def test_lists_can_be_changed_through_dvc(tmp_path: Path, name: str, value: str, expected: tuple) -> None:
    """Emptied and filled: ruamel once dropped a line break behind an empty list, and with that the file."""
    path, before = changed(tmp_path, TEXT, TEXT), load(AllParams, ROOT / "params.yaml")
    apply_overrides(path, [f"filter.{name}={value}"])
    found = load(AllParams, path)
    assert getattr(found.filter, name) == expected
    assert found.model_copy(update={"filter": before.filter}) == before


@pytest.mark.parametrize(
    ("amount", "total", "count"),
    [
        ("1000/24996", 24996, 1000), ("500/24996", 24996, 500), (1000, 24996, 1000), (0.25, 8, 2), (0, 5, 0),
        (1000, 10, 10), (1, 10, 1), ("0.5", 4, 2),
    ],
)  # fmt: skip
def test_amounts_are_counts_or_shares(amount: str | float, total: int, count: int) -> None:
    """Below 1 a share, from 1 on a whole number; never more than there are."""
    assert count_of(amount, total) == count


def test_a_stage_ends_with_one_sentence_and_status_one(monkeypatch, tmp_path: Path, capsys) -> None:
    """No traceback for what a user can mend."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        stage(AllParams, lambda params: None)
    assert str(caught.value).startswith("error: params.yaml is missing")

    def fail(params: AllParams) -> None:
        raise InputError("the folder x is empty; add photographs")

    (tmp_path / "params.yaml").write_text(TEXT)
    with pytest.raises(SystemExit) as caught:
        stage(AllParams, fail)
    assert caught.value.code == "error: the folder x is empty; add photographs"


def test_what_was_printed_is_not_lost_when_a_stage_is_stopped(tmp_path: Path) -> None:
    """Nor with a pipe at the other end, as DVC's may be."""
    (tmp_path / "params.yaml").write_text(TEXT)
    main = "def main(params):\n print('half'); raise KeyboardInterrupt\n"
    program = f"from pipeline.params import Params, stage\n{main}stage(Params, main)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (130, "half\n") and "continues" in done.stderr


def memory() -> None:
    raise MemoryError("unable to allocate 7 TiB")


def refuse(number: int, path: str) -> None:
    raise OSError(number, os.strerror(number), path)


@fault(36, "a folder that cannot be written, a full disk, a file that is missing")
@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda: refuse(errno.EACCES, "runs/a"), "runs/a: Permission denied; make it writable .*"),
        (lambda: refuse(errno.ENOSPC, "data/b"), "data/b: No space left on device; make it writable or .*"),
        (lambda: Path("data/a.csv").read_text(), "data/a.csv is missing; `dvc repro` makes it"),
        (lambda: subprocess.run(["absent"]), "absent is missing; put it there or install it"),
        (lambda: memory(), "there is not enough memory .*"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named(monkeypatch, tmp_path: Path, use, words: str) -> None:
    """One sentence that names it and says what to do, and exit status 1, also where no code expected it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(TEXT)
    with pytest.raises(SystemExit) as caught:
        stage(AllParams, lambda params: use())
    assert re.fullmatch(f"error: {words}", str(caught.value.code))
