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
from pipeline import experiments, study
from pipeline.check import AllParams
from pipeline.params import checked, load
from pipeline.study_page import Figure, Table, agreement, draw, gain, table_lines, value

STUDIES = sorted((ROOT / "studies").glob("*.yaml"))


def record(run: str, seed: int = 1, raw_mse: float = 0.04) -> dict[str, Any]:
    """A run of 30 epochs, ten seconds each, whose loss is the epoch's number."""
    epochs = [float(epoch) for epoch in range(1, 31)]
    metrics = {"raw_mse": [raw_mse, raw_mse - 0.01, raw_mse + 0.01]}
    return {
        "run": run,
        "seed": seed,
        "settings": [],
        "device": "cpu",
        "hardware": "2 CPU cores",
        "torch": "2",
        "commit": "0123456789",
        "images": 7,
        "model": {"name": run, "parameters": 1234, "epochs": 30, "best_epoch": 3, "size": 32},
        "metrics": {
            "model": metrics,
            "grey": {"raw_mse": [0.026, 0.02, 0.03]},
            "mean_color": {"raw_mse": [0.025, 0.0, 0.1]},
        },
        "curves": {"epoch": epochs, "train_loss": epochs, "val_loss": epochs, "seconds": [10 * e for e in epochs]},
    }


def table(**rows: float) -> Table:
    """A table of test losses x 100: run to what the document prints."""
    listed = [{"label": run, "run": run, "printed": [printed]} for run, printed in rows.items()]
    return Table(title="T", columns={"test": "raw_mse"}, unit=0.01, order="test", rows=listed)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("val_loss", 30),
        ("ma20:val_loss", 20.5),  # the mean of 11 to 30
        ("val_loss@95", 9),  # 9 epochs are done after 95 seconds
        ("ma20:val_loss@105", 5.5),  # the mean of 1 to 10
        ("val_loss@1", 1),  # nothing is done yet: the first
        ("raw_mse", 0.04),
        ("parameters", 1234),
        ("minutes", 5),
    ],
)
def test_a_selector_picks_the_value_it_describes(selector: str, expected: float) -> None:
    """Hand-computed on a loss that equals its epoch."""
    assert value(record("a"), selector) == pytest.approx(expected)


def test_a_selector_of_nothing_is_refused() -> None:
    """One sentence that names the run and the selector."""
    with pytest.raises(InputError, match="run a has no 'val_mae'"):
        value(record("a"), "val_mae")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_selector_of_a_study_is_known(path: Path) -> None:
    """A metric, a fact or a loss: a study's hours of training must not end in a typo."""
    losses = {"loss", "generator_loss", "discriminator_loss"}
    known = {*METRICS, "mse_ab", "parameters", "epochs", "minutes"}
    known |= {f"{split}_{loss}" for split in ("train", "train_eval", "val") for loss in losses}
    found = study.read(path)
    selectors = [each for table in found.tables for each in table.columns.values()]
    selectors += [each for figure in found.figures for each in figure.show]
    assert {each.removeprefix("ma20:").partition("@")[0].partition(" over ")[0] for each in selectors} <= known


def test_a_table_sets_the_document_beside_ours_with_the_baselines_below() -> None:
    """Values are divided by the unit; several seeds give a mean and a range."""
    records = [record("a", 1, 0.030), record("a", 2, 0.034), record("b", 1, 0.05)]
    lines = table_lines(table(a=3.2, b=3.8), records)
    assert "| a | 3.2 | 3.20 (3.00 to 3.40) |" in lines
    assert "| b | 3.8 | 5.00 |" in lines
    assert "| *grey* |  | 2.60 |" in lines


def test_a_table_without_a_document_ranks_and_says_how_steady_it_is() -> None:
    """b is best in the mean; its pair with a turns around in one of two seeds, both stand before c in both."""
    records = [record("a", 1, 0.030), record("a", 2, 0.034), record("b", 1, 0.031), record("b", 2, 0.021)]
    records += [record("c", 1, 0.05), record("c", 2, 0.05)]
    for each, low in zip(records, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), strict=True):
        each["metrics"]["grey"]["raw_mse"] += [low + 0.1, low, low + 0.3]
    columns = {"test": "raw_mse", "over": "raw_mse over grey"}
    rows = [{"label": run, "run": run} for run in "abc"]
    lines = table_lines(Table(title="T", columns=columns, decimals=3, order="test", ranked=True, rows=rows), records)
    assert lines[2] == "| | test | over |"
    assert lines[4:7] == [
        "| b | 0.026 (0.021 to 0.031) | +0.450 [+0.300, +0.700] |",
        "| a | 0.032 (0.030 to 0.034) | +0.250 [+0.100, +0.500] |",
        "| c | 0.050 | +0.650 [+0.500, +0.900] |",
    ]
    assert "By test, 2 of 3 pairs stand in one order with every seed." in lines


@pytest.mark.parametrize(("photographs", "expected"), [(12, "+1.0 [+1.0, +1.0]"), (9, "+1.0")])
def test_a_gain_over_a_baseline_has_an_interval_where_there_is_one(photographs: int, expected: str) -> None:
    """From a comparison.csv to a cell of a table, through JSON: nothing slides into the place of what is missing."""
    base = pd.DataFrame({name: np.linspace(20, 30, photographs) for name in METRICS if name != "psnr_pooled"})
    base = base.assign(group=range(photographs), grey_truth=False)
    found = compare({"model": base.assign(psnr=base["psnr"] + 1), "grey": base, "mean_color": base}, 20)
    written = pd.read_csv(io.StringIO(found.to_csv(index=False)))
    metrics = json.loads(json.dumps(experiments.scores(written), allow_nan=False))
    assert len(metrics["grey"]["psnr"]) == 6 and metrics["grey"]["psnr"][3] == pytest.approx(1)
    both = [{"metrics": metrics}] * 2
    assert gain(both, "psnr over grey", 1) == expected and value(both[0], "psnr") == pytest.approx(26)


def test_the_order_of_the_document_is_compared_pair_by_pair() -> None:
    """Document: a < b < c. Ours: a < c < b. Two of three pairs hold; the third is named."""
    records = [record("a", raw_mse=0.01), record("b", raw_mse=0.03), record("c", raw_mse=0.02)]
    assert agreement(table(a=1, b=2, c=3), records) == (
        "By test, 2 of 3 pairs stand in the document's order. Not ours: b better than c."
    )


def test_experiments_of_different_settings_have_different_names() -> None:
    """The order of the settings does not matter, everything else does."""
    assert study.key("a", 1, ["x=1", "y=2"]) == study.key("a", 1, ["y=2", "x=1"])
    assert len({study.key("a", 1, ["x=1"]), study.key("a", 1, ["x=2"]), study.key("a", 2, ["x=1"])}) == 3


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_run_of_a_study_is_a_valid_change_of_params(path: Path, device: study.Device, tmp_path: Path) -> None:
    """Models and parameters exist, values fit, every table row has a cell per column, every path is explained."""
    found = study.read(path)
    text = json.dumps(files.read_yaml(ROOT / "params.yaml"))
    params = tmp_path / "params.json"  # DVC changes it as it does params.yaml, in a tenth of the time
    for run in found.runs:
        settings = study.settings_of(found, run, 1, device)
        assert {each.partition("=@")[2] for each in settings if "=@" in each} <= set(found.paths)
        params.write_text(text)
        apply_overrides(params, [experiments.override(each.replace("=@", "=")) for each in settings])
        changed = checked(json.loads(params.read_text()), params)
        block_of(changed.models, changed.model)
    for figure in found.figures:
        assert figure.photographs in {"train", "test", *found.paths}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A study of two runs, one of which wants a path, in a folder of its own."""
    path = tmp_path / "studies" / "009.yaml"
    path.parent.mkdir()
    path.write_text(
        "title: D\npaths: {photos: a folder}\nused: {cpu: Small., cuda: Small.}\nseeds: {cpu: [1], cuda: [1]}\n"
        "settings: {cpu: ['data.path=@photos'], cuda: ['data.path=@photos']}\nruns: {a: [model=cae], b: [model=vae]}\n"
        "tables: [{title: T, columns: {test: raw_mse}, order: test, rows: [{label: A, run: a, printed: [1]}]}]\n"
        "figures: [{name: loss, title: L, kind: curves, runs: [a, b], show: [train_loss, val_loss]}]\n"
    )
    return path


def test_a_path_that_is_missing_is_asked_for_by_name(small: Path, tmp_path: Path) -> None:
    """Before anything is queued."""
    found = study.read(small)
    for places, words in (({}, "give --path photos=PATH: a folder"), ({"photos": tmp_path / "no"}, "no does not exist")):
        with pytest.raises(InputError, match=words):
            study.run_missing(found, "009", tmp_path / "009.json", "cpu", places, 1)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("run: a,", "run: c,", "the run 'c', which is not under runs"),
        ("kind: curves", "kind: pie", "figures.0.kind"),
        ("title: D", "titel: D", "title"),
        ("{photos: a folder}", "{photos: a folder", "not valid YAML"),
    ],
)
def test_a_broken_study_is_refused_with_one_sentence(small: Path, old: str, new: str, words: str) -> None:
    """The file and the place are named."""
    small.write_text(small.read_text().replace(old, new))
    with pytest.raises(InputError, match=words):
        study.read(small)


def test_what_was_measured_is_not_run_again(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every run in the .json the tables and curves are written without data, DVC or Git; --again runs all."""
    found = study.read(small)
    store = small.with_suffix(".json")
    names = [study.key(run, 1, study.settings_of(found, run, 1, "cpu")) for run in found.runs]
    store.write_text(json.dumps(dict(zip(names, [record("a"), record("b")], strict=True))))
    monkeypatch.setattr(experiments, "_run", lambda *command: pytest.fail(f"ran {command}"))
    monkeypatch.setattr(sys, "argv", ["study", str(small)])
    study.main(load(AllParams, ROOT / "params.yaml"))
    text = small.with_suffix(".md").read_text()
    assert "| A | 1 | 0.04 |" in text and "![L](009-loss.png)" in text
    assert small.with_name("009-loss.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(sys, "argv", ["study", str(small), "--again"])
    with pytest.raises(InputError, match="--path photos"):
        study.main(load(AllParams, ROOT / "params.yaml"))


def test_curves_and_bars_are_drawn_alike_twice() -> None:
    """Same inputs, same bytes."""
    records = [record("a"), record("b")]
    for kind, show in (("curves", ["train_loss", "val_loss"]), ("bars", ["raw_mse"])):
        figure = Figure(name="f", title="F", kind=kind, runs=["a", "b"], show=show, over="minutes", averaged=True)
        assert draw(figure, records) == draw(figure, records)


class Queue:
    """DVC's queue by script: what `dvc queue status` says, poll by poll; what else was asked of it is kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *states: tuple[str, int]) -> None:
        self.states, self.calls = list(states), []
        monkeypatch.setattr(experiments, "_dvc", self.call)
        monkeypatch.setattr(experiments, "POLL_SECONDS", 0.0)
        monkeypatch.setattr(experiments, "revision", lambda name: "c0ffee" if self.states[0][0] == "Success" else None)

    def call(self, *arguments: str) -> str:
        if arguments != ("queue", "status"):
            self.calls.append(arguments)
            return ""
        status, workers = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        row = f"0123abc  009-a-1-0123ab  10:18 AM   {status}\n" if status else "No experiment tasks in the queue.\n"
        return f"Task     Name            Created    Status\n{row}\nWorker status: {workers} active, 0 idle\n"


def test_workers_that_died_are_replaced_and_what_they_ran_counts_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that went down leaves "Running" behind for ever; a worker that has not yet appeared is waited for."""
    monkeypatch.setattr(experiments, "ABANDONED", 3)
    queue = Queue(monkeypatch, ("Running", 0), ("Running", 0), ("Running", 1), *[("Running", 0)] * 4, ("Failed", 1))
    ended = list(experiments.finish(["009-a-1-0123ab"], 2))
    assert [name for name, _ in ended] == ["009-a-1-0123ab"] and ended[0][1]
    start = ("queue", "start", "--jobs", "2")
    assert queue.calls[:3] == [start, ("queue", "kill", "009-a-1-0123ab"), start]
    assert ("queue", "stop") not in queue.calls


def test_an_experiment_that_is_between_two_lists_has_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC shows a task neither as queued nor as running while a worker takes it; one that stays away has failed."""
    seen = ("Queued", 1), ("", 1), ("", 1), ("Running", 1), ("", 1), ("Success", 1)
    Queue(monkeypatch, *seen)
    assert list(experiments.finish(["009-a-1-0123ab"], 1)) == [("009-a-1-0123ab", "")]
    queue = Queue(monkeypatch, *seen)
    monkeypatch.setattr(experiments, "revision", lambda name: "of the run before")
    assert list(experiments.finish(["009-a-1-0123ab"], 1)) == [("009-a-1-0123ab", "")]
    assert queue.states == [("Success", 1)]  # not before
    Queue(monkeypatch, ("Queued", 1), ("", 1))
    assert [bool(reason) for _, reason in experiments.finish(["009-a-1-0123ab"], 1)] == [True]


def test_a_study_that_is_left_stops_the_workers_first_and_then_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way round the workers would take the next experiment."""
    queue = Queue(monkeypatch, ("Running", 1))
    monkeypatch.setattr(experiments.time, "sleep", lambda seconds: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        list(experiments.finish(["009-a-1-0123ab"], 1))
    assert queue.calls[1:] == [("queue", "stop"), ("queue", "kill", "009-a-1-0123ab")]
