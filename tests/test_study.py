"""Studies: the documents' figures beside ours."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from dvc.utils.hydra import apply_overrides

from colorize import files
from colorize.files import InputError
from colorize.models import block_of
from colorize.scoring.metrics import METRICS, compare
from pipeline.check import AllParams
from pipeline.params import checked, load
from studies import experiments, study, tables
from studies.run import main, run_missing

STUDIES = sorted((ROOT / "studies").glob("*.yaml"))
EPOCHS = [float(epoch) for epoch in range(1, 31)]
LOSSES = ("loss", "generator_loss", "discriminator_loss")


def record(run: str, seed: int = 1, raw_mse: float = 0.04) -> dict[str, Any]:
    """A run of 30 epochs, ten seconds each, whose losses are the epoch's number."""
    losses = [f"{split}_{loss}" for split in ("train", "train_eval", "val") for loss in LOSSES]
    curves = dict.fromkeys(losses, EPOCHS)
    baseline = dict.fromkeys(METRICS, [0.026, 0.02, 0.03, 0.5, 0.4, 0.7])
    own = dict.fromkeys([*METRICS, "mse_ab"], [raw_mse, raw_mse - 0.01, raw_mse + 0.01])
    about = {"run": run, "seed": seed, "hardware": "1 core", "torch": "2", "commit": "0123abc", "images": 7}
    return about | {
        "model": {"name": run, "parameters": 1234, "epochs": 30, "best_epoch": 3},
        "metrics": {"model": own, "grey": baseline, "mean_color": baseline},
        "curves": curves | {"epoch": EPOCHS, "seconds": [10 * epoch for epoch in EPOCHS]},
    }


def table(columns: dict[str, str], rows: dict[str, list[float | None]], **options: Any) -> study.Table:
    """A table: run to what the document prints; its order is that of the first column."""
    listed = [{"label": run, "run": run, "printed": printed} for run, printed in rows.items()]
    return study.Table(title="T", columns=columns, order=next(iter(columns)), rows=listed, **options)


def cells(shown: study.Table, values: pd.DataFrame) -> list[list[str]]:
    """The table as it is shown, heads first."""
    lines = tables.compared(shown, values).splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in (lines[0], *lines[2:])]


def test_values_of_a_run_are_what_their_names_say() -> None:
    """Hand-computed on a loss that equals its epoch; before the first epoch is done, it is the first."""
    expected = {"val_loss": 30, "parameters": 1234, "minutes": 5, "raw_mse": 0.04, "raw_mse of grey": 0.026}
    expected |= {"raw_mse over grey": 0.5, "raw_mse over grey high": 0.7}
    expected |= {"ma20:val_loss": 20.5, "ma20:val_loss@hour": 5.5}  # of 11 to 30; of 1 to 10
    found = tables.measured(record("a"), 105)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert tables.measured(record("a"), 1)["ma20:val_loss@hour"] == 1
    assert tables.measured(record("a") | {"curves": {"epoch": [], "seconds": []}}, 1)["minutes"] == 0


def test_a_table_sets_the_document_beside_ours_with_the_baselines_below() -> None:
    """Values are divided by the unit; several seeds give a mean and a range; a name of nothing is refused."""
    values = tables.frame([record("a", 1, 0.030), record("a", 2, 0.034), record("b", 1, 0.05)], 1)
    shown = table({"test": "raw_mse", "p": "parameters"}, {"a": [3.2, None], "b": []}, unit=0.01)
    assert cells(shown, values) == [
        ["", "test, document", "test, ours", "p"],
        ["a", "3.2", "3.20 (3.00 to 3.40)", "123,400"],
        ["b", "", "5.00", "123,400"],
        ["*grey*", "", "2.60", ""],
        ["*mean_color*", "", "2.60", ""],
    ]
    with pytest.raises(InputError, match="no run has 'val_mae'"):
        tables.compared(table({"test": "val_mae"}, {"a": []}), values)


def test_orders_are_compared_pair_by_pair_and_ranked_tables_stand_in_ours() -> None:
    """Document: a < b < c, ours in the mean: b < a < c. The pair of a and b turns around with the seed."""
    losses = {"a": (0.030, 0.034), "b": (0.031, 0.021), "c": (0.05, 0.05)}
    records = [record(run, seed, both[seed]) for run, both in losses.items() for seed in (0, 1)]
    values = tables.frame(records, 1)
    ranked = table({"test": "raw_mse"}, {"a": [1], "b": [2], "c": [3]}, ranked=True)
    assert [row[0] for row in cells(ranked, values)[1:4]] == ["b", "a", "c"]
    assert tables.order(ranked, values) == (
        "By test, 2 of 3 pairs stand in the document's order. Not ours: a better than b. "
        "By test, 2 of 3 pairs stand in one order with every seed."
    )
    assert tables.order(table({"test": "raw_mse"}, {"a": []}), values.query("seed == 0")) == ""


@pytest.mark.parametrize(("photographs", "expected"), [(12, "+1.0 [+1.0, +1.0]"), (9, "+1.0")])
def test_a_gain_over_a_baseline_has_an_interval_where_there_is_one(photographs: int, expected: str) -> None:
    """From a comparison.csv to a cell of a table, through JSON: nothing replaces what is missing."""
    base = pd.DataFrame({name: np.linspace(20, 30, photographs) for name in METRICS if name != "psnr_pooled"})
    base = base.assign(group=range(photographs), grey_truth=False)
    found = compare({"model": base.assign(psnr=base["psnr"] + 1), "grey": base, "mean_color": base}, 20)
    scores = experiments.scores(pd.read_csv(io.StringIO(found.to_csv(index=False))))
    metrics = json.loads(json.dumps(scores, allow_nan=False))
    both = [record("a", seed) | {"metrics": metrics} for seed in (1, 2)]
    shown = table({"gain": "psnr over grey", "psnr": "psnr"}, {"a": []}, decimals=1)
    assert cells(shown, tables.frame(both, 1))[1][1:] == [expected, "26.0"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_names_what_there_is(path: Path, device: study.Device, tmp_path: Path) -> None:
    """Parameters exist and values fit, paths are explained, no name is misspelt: hours must not end so."""
    found, known = study.read(path), set(tables.measured(record("a"), 1))
    assert {name for table in found.tables for name in table.columns.values()} <= known
    assert {name for figure in found.figures for name in figure.show} <= known
    assert {figure.photographs for figure in found.figures} <= {"train", "test", *found.paths}
    text = json.dumps(files.read_yaml(ROOT / "params.yaml"))
    params = tmp_path / "params.json"  # DVC changes it as it does params.yaml, in a tenth of the time
    for settings in {each["run"]: each["settings"] for each in found.wanted(device).values()}.values():
        assert {setting.partition("=@")[2] for setting in settings if "=@" in setting} <= set(found.paths)
        params.write_text(text)
        apply_overrides(params, [f"++{setting.replace('=@', '=')}" for setting in settings])
        changed = checked(AllParams, json.loads(params.read_text()), params)
        block_of(changed.models, changed.model)


STUDY = """
title: D
paths: {photos: a folder}
used: {cpu: Small., cuda: Small.}
seeds: {cpu: [1], cuda: [1]}
settings: {cpu: &all ['data.path=@photos'], cuda: *all}
runs: {a: [model=cae], b: [model=vae]}
tables: [{title: T, columns: {test: raw_mse}, order: test, rows: [{label: A, run: a, printed: [1]}]}]
figures:
- {name: loss, title: L, kind: curves, runs: [a, b], show: [val_loss], over: minutes, averaged: true}
- {name: bars, title: B, kind: bars, runs: [b, a], show: [psnr, ssim]}
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("run: a,", "run: c,", "the run 'c'; add it under runs"),
        ("kind: curves", "kind: pie", "figures.0.kind"),
        ("title: D", "titel: D", "title"),
        ("printed: [1]", "printed: [1, 2]", "a row prints a value"),
    ],
)
def test_a_broken_study_is_refused_with_one_sentence(tmp_path: Path, old: str, new: str, words: str) -> None:
    """The place is named."""
    files.write_text(tmp_path / "009.yaml", STUDY.replace(old, new))
    with pytest.raises(InputError, match=words):
        study.read(tmp_path / "009.yaml")


def test_what_was_measured_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every run in the .json the page is written without data, DVC or Git, alike twice; not --again."""
    path, store = tmp_path / "009.yaml", tmp_path / "009.json"
    files.write_text(path, STUDY)
    found = study.read(path)
    monkeypatch.setattr(experiments, "_run", lambda *command: pytest.fail(f"ran {command}"))
    with pytest.raises(InputError, match="give --path photos=PATH: a folder; .*no does not exist"):
        run_missing(found, store, "cpu", {"photos": tmp_path / "no"}, 1, False)
    done = dict(zip(found.wanted("cpu"), [record("a"), record("b")], strict=True))
    files.write_text(store, json.dumps(done))
    monkeypatch.setattr(sys, "argv", ["study", str(path)])
    written = []
    for _ in range(2):
        main(load(AllParams, ROOT / "params.yaml"))
        written.append({each.name: each.read_bytes() for each in tmp_path.iterdir()})
    assert written[0] == written[1]
    assert all(written[0][f"009-{name}.png"].startswith(b"\x89PNG") for name in ("loss", "bars"))
    page = written[0]["009.md"].decode()
    assert "| A " in page and "![L](009-loss.png)" in page and "- `b`: `model=vae`\n" in page
    monkeypatch.setattr(sys, "argv", ["study", str(path), "--again"])
    with pytest.raises(InputError, match="--path photos"):
        main(load(AllParams, ROOT / "params.yaml"))
