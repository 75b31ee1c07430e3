"""Studies: the documents' figures beside ours."""

import io
import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import ROOT
from dvc.utils.hydra import apply_overrides
from test_pipeline import at_work, environment, run, until

from colorize import files
from colorize.files import InputError
from colorize.metrics import METRICS, compare
from pipeline.params import checked, load
from studies import experiments, figures, study, tables
from studies.run import main, run_missing

STUDIES = sorted((ROOT / "studies").glob("*.yaml"))


def record(run: str, seed: int = 1, raw_mse: float = 0.04) -> dict[str, Any]:
    """A run of 30 epochs, ten seconds each, whose losses are the epoch's number."""
    epochs = [float(epoch) for epoch in range(1, 31)]
    losses = ("loss", "eval_loss", "generator_loss", "discriminator_loss")
    over = {metric: [0.026, 0.02, 0.03, 0.5, 0.4, 0.7] for metric in METRICS}
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
            "model": {metric: [raw_mse, raw_mse - 0.01, raw_mse + 0.01] for metric in (*METRICS, "mse_ab")},
            "grey": over,
            "mean_color": over,
        },
        "curves": {f"{split}_{loss}": epochs for split in ("train", "val") for loss in losses}
        | {"epoch": epochs, "seconds": [10 * epoch for epoch in epochs]},
    }


def table(columns: dict[str, str], rows: dict[str, list[float | None]], **options: Any) -> study.Table:
    """A table: run to what the document prints."""
    listed = [{"label": run, "run": run, "printed": printed} for run, printed in rows.items()]
    return study.Table(title="T", columns=columns, order=next(iter(columns)), rows=listed, **options)


def test_values_of_a_run_are_what_their_names_say() -> None:
    """Hand-computed on a loss that equals its epoch; before the first epoch is done, it is the first."""
    expected = {
        "val_loss": 30,
        "ma20:val_loss": 20.5,  # the mean of 11 to 30
        "ma20:val_loss@hour": 5.5,  # of 1 to 10, which are done after 105 seconds
        "raw_mse": 0.04,
        "raw_mse of grey": 0.026,
        "raw_mse over grey": 0.5,
        "raw_mse over grey high": 0.7,
        "parameters": 1234,
        "minutes": 5,
    }
    found = tables.measured(record("a"), 105)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert tables.measured(record("a"), 1)["ma20:val_loss@hour"] == 1
    untrained = record("a") | {"curves": {"epoch": [], "val_loss": [], "seconds": []}}
    assert tables.measured(untrained, 1)["minutes"] == 0


def test_a_table_sets_the_document_beside_ours_with_the_baselines_below() -> None:
    """Values are divided by the unit; several seeds give a mean and a range; what is in no row has no row."""
    values = tables.frame([record("a", 1, 0.030), record("a", 2, 0.034), record("b", 1, 0.05)], 1)
    shown = tables.compared(table({"test": "raw_mse", "p": "parameters"}, {"a": [3.2, None], "b": []}, unit=0.01), values)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines()]
    assert rows[0] == ["", "test, document", "test, ours", "p"]
    assert rows[2:] == [
        ["a", "3.2", "3.20 (3.00 to 3.40)", "123,400"],
        ["b", "", "5.00", "123,400"],
        ["*grey*", "", "2.60", ""],
        ["*mean_color*", "", "2.60", ""],
    ]
    with pytest.raises(InputError, match="no run has 'val_mae'"):
        tables.compared(table({"test": "val_mae"}, {"a": []}), values)


def test_orders_are_compared_pair_by_pair_and_ranked_tables_stand_in_ours() -> None:
    """Document: a < b < c, ours in the mean: b < a < c. The pair of a and b turns around in one of two seeds."""
    losses = {"a": (0.030, 0.034), "b": (0.031, 0.021), "c": (0.05, 0.05)}
    values = tables.frame([record(run, seed, both[seed]) for run, both in losses.items() for seed in (0, 1)], 1)
    ranked = table({"test": "raw_mse"}, {"a": [1], "b": [2], "c": [3]}, ranked=True)
    assert [line.split()[1] for line in tables.compared(ranked, values).splitlines()[2:5]] == ["b", "a", "c"]
    assert tables.order(ranked, values) == (
        "By test, 2 of 3 pairs stand in the document's order. Not ours: a better than b. "
        "By test, 2 of 3 pairs stand in one order with every seed."
    )
    assert tables.order(table({"test": "raw_mse"}, {"a": []}), values.query("seed == 0")) == ""


@pytest.mark.parametrize(("photographs", "expected"), [(12, "+1.0 [+1.0, +1.0]"), (9, "+1.0")])
def test_a_gain_over_a_baseline_has_an_interval_where_there_is_one(photographs: int, expected: str) -> None:
    """From a comparison.csv to a cell of a table, through JSON: nothing slides into the place of what is missing."""
    base = pd.DataFrame({name: np.linspace(20, 30, photographs) for name in METRICS if name != "psnr_pooled"})
    base = base.assign(group=range(photographs), grey_truth=False)
    found = compare({"model": base.assign(psnr=base["psnr"] + 1), "grey": base, "mean_color": base}, 20)
    scores = experiments.scores(pd.read_csv(io.StringIO(found.to_csv(index=False))))
    both = [record("a", seed) | {"metrics": json.loads(json.dumps(scores, allow_nan=False))} for seed in (1, 2)]
    columns = {"gain": "psnr over grey", "psnr": "psnr"}
    cells = tables.compared(table(columns, {"a": []}, decimals=1), tables.frame(both, 1)).splitlines()[2].split("|")
    assert [cell.strip() for cell in cells[2:4]] == [expected, "26.0"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_changes_what_there_is_and_shows_what_is_measured(path: Path, device: study.Device, tmp_path: Path) -> None:
    """Parameters exist and values fit, every path is explained, no name is misspelt: hours must not end in a typo."""
    found = study.read(path)
    known = set(tables.measured(record("a"), 1))
    assert {name for table in found.tables for name in table.columns.values()} <= known
    assert {name.replace("train_eval", "train") for figure in found.figures for name in figure.show} <= known
    assert {figure.photographs for figure in found.figures} <= {"train", "test", *found.paths}
    text = json.dumps(files.read_yaml(ROOT / "params.yaml"))
    params = tmp_path / "params.json"  # DVC changes it as it does params.yaml, in a tenth of the time
    wanted = found.wanted(device)
    assert len(wanted) == len(found.runs) * len(found.seeds[device])
    for each in {each["run"]: each for each in wanted.values()}.values():
        assert {setting.partition("=@")[2] for setting in each["settings"] if "=@" in setting} <= set(found.paths)
        params.write_text(text)
        apply_overrides(params, [f"++{setting.replace('=@', '=')}" for setting in each["settings"]])
        changed = checked(json.loads(params.read_text()), params)
        changed.block(changed.model)


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
    for places, words in (({}, "give --path photos=PATH: a folder"), ({"photos": tmp_path / "no"}, "no does not exist")):
        with pytest.raises(InputError, match=words):
            run_missing(study.read(small), tmp_path / "009.json", "cpu", places, 1)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("run: a,", "run: c,", "the run 'c'; add it under runs"),
        ("kind: curves", "kind: pie", "figures.0.kind"),
        ("title: D", "titel: D", "title"),
        ("printed: [1]", "printed: [1, 2]", "a row prints a value"),
    ],
)
def test_a_broken_study_is_refused_with_one_sentence(small: Path, old: str, new: str, words: str) -> None:
    """The file and the place are named."""
    small.write_text(small.read_text().replace(old, new))
    with pytest.raises(InputError, match=words):
        study.read(small)


def test_what_was_measured_is_not_run_again(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every run in the .json the tables and curves are written without data, DVC or Git; --again runs all."""
    names = study.read(small).wanted("cpu")
    small.with_suffix(".json").write_text(json.dumps(dict(zip(names, [record("a"), record("b")], strict=True))))
    monkeypatch.setattr(experiments, "_run", lambda *command: pytest.fail(f"ran {command}"))
    monkeypatch.setattr(sys, "argv", ["study", str(small)])
    main(load(ROOT / "params.yaml"))
    text = small.with_suffix(".md").read_text()
    assert "| A " in text and "![L](009-loss.png)" in text and "- `b`: `model=vae`\n" in text
    assert small.with_name("009-loss.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(sys, "argv", ["study", str(small), "--again"])
    with pytest.raises(InputError, match="--path photos"):
        main(load(ROOT / "params.yaml"))


@pytest.mark.parametrize(("kind", "show"), [("curves", ["train_loss", "val_loss"]), ("bars", ["raw_mse"])])
def test_figures_are_drawn_alike_twice(kind: str, show: list[str]) -> None:
    """Same inputs, same bytes."""
    records = [record("a"), record("b")]
    figure = study.Figure(name="f", title="F", kind=kind, runs=["b", "a"], show=show, over="minutes", averaged=True)
    drawn = [figures.draw(figure, records, tables.frame(records, 1)) for _ in range(2)]
    assert drawn[0] == drawn[1]


WORK = """
import sys, time
seconds = float(open("params.yaml").read().split(":")[1])
if seconds < 0:
    print("error: seconds run forwards", file=sys.stderr)
    sys.exit(1)
time.sleep(seconds)
open("out.txt", "w").write(str(seconds))
"""
STAGE = "stages: {work: {cmd: python work.py, deps: [work.py], params: [seconds], outs: [out.txt: {cache: false}]}}\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one stage, which takes as many seconds as params.yaml says, and its queue, asked every second."""
    folder = tmp_path / "project"
    written = {"work.py": WORK, "dvc.yaml": STAGE, "params.yaml": "seconds: 0\n"}
    for name, text in written.items():
        files.write_text(folder / name, text)
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["git", "add", "-A"], ["git", "commit", "-qm", "start"]):
        run(folder, *command)
    for name, value in environment(folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(experiments, "POLL_SECONDS", 1.0)
    return folder


@pytest.mark.slow
def test_experiments_go_through_the_queue_and_failures_are_told(project: Path) -> None:
    """Two at a time; one fails with its last sentence. What has results is run again only if it shall be."""
    wanted = {"a": ["seconds=1"], "b": ["seconds=-1"], "c": ["seconds=2"]}
    ended = {name: (commit, reason) for name, commit, reason in experiments.run(wanted, 2)}
    assert ended["b"] == ("", "seconds run forwards")
    assert experiments.fetch(ended["c"][0], Path("out.txt"), project / "copies").read_text() == "2.0"
    assert experiments.queue()[0] == {}
    assert list(experiments.run({"a": wanted["a"]}, 2)) == [("a", ended["a"][0], "")]
    [(_, commit, _)] = experiments.run({"a": ["seconds=0.5"]}, 2, again=True)
    assert experiments.fetch(commit, Path("out.txt"), project / "copies").read_text() == "0.5"
    with pytest.raises(InputError, match="none.txt of experiment"):
        experiments.fetch(commit, Path("none.txt"), project)


@pytest.mark.slow
def test_workers_that_were_killed_are_started_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they ran counts as failed, what waits in the queue is run."""
    monkeypatch.setattr(experiments, "ABANDONED", 8)

    def kill() -> None:
        until(lambda: any("work.py" in each for each in at_work(project)), "the first experiment has not begun")
        for process in psutil.process_iter(["cmdline", "cwd"]):
            command = " ".join(process.info["cmdline"] or [])
            own = Path(process.info["cwd"] or "/").is_relative_to(project)
            if own and any(word in command for word in ("queue-worker", "exec-run", "work.py")):
                process.kill()

    threading.Thread(target=kill, daemon=True).start()
    ended = {name: bool(commit) for name, commit, _ in experiments.run({"a": ["seconds=600"], "b": ["seconds=1"]}, 1)}
    assert ended == {"a": False, "b": True}
