"""Runs of the pipeline as DVC experiments: queue them, let several go on at a time, read what they left.

An experiment runs in a copy of the project of its own and keeps its results as a commit under refs/exps; workers outlive
the command that started them, so a study that was stopped finds them again by name.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo import Repo

from colorize.files import InputError
from pipeline import paths

POLL_SECONDS = 5.0
ABANDONED = 30
"""So many polls in a row may show no worker: one takes seconds to appear, and on a busy machine they answer late."""
TABLES = ("loss.csv", "comparison.csv", "per_image.csv")
AB_UNIT = 128
"""Lab units in which the losses of document 000's models are squared."""


def _run(*command: str) -> str:
    """The output of a command of DVC or Git.

    Raises:
        InputError: it failed; the sentence is its last line.
    """
    with tempfile.TemporaryFile("w+") as said:  # no pipe: queue workers outlive their command and would keep it open
        status = subprocess.run(command, stdout=said, stderr=subprocess.STDOUT).returncode
        said.seek(0)
        text = said.read()
    if status:
        reason = (text.strip() or "no reason given").splitlines()[-1]
        raise InputError(f"`{' '.join(command[-4:])}` failed: {reason}")
    return text


def _dvc(*arguments: str) -> str:
    return _run(sys.executable, "-m", "dvc", *arguments)


def find(name: str) -> str:
    """The commit that holds an experiment's results, "" if there is none of that name."""
    return _run("git", "for-each-ref", "--count=1", "--format=%(objectname)", f"refs/exps/??/*/{name}").strip()


def queue() -> tuple[dict[str, str], int]:
    """What stands in DVC's queue, name to Queued, Running, Success or Failed; and how many workers answer."""
    with Repo(".") as repo:
        held = repo.experiments.celery_queue
        return {task["name"]: task["status"] for task in held.status()}, len(held.worker_status())


def run(wanted: Mapping[str, Sequence[str]], jobs: int, again: bool = False) -> Generator[tuple[str, str, str]]:
    """Run experiments, `jobs` at a time; yields each once as it ends: its name, its commit, or "" and why it failed.

    What waits in the queue or runs already is not started twice, and what has results only if it shall run `again`. Left
    before the end, by Ctrl-C or `close`, it stops the workers and those of the experiments that run.

    Args:
        wanted: name to what changes in params.yaml, each "parameter=value".

    Raises:
        InputError: DVC refuses to queue an experiment, or does not answer.
    """
    if not wanted:
        return
    _of_state(wanted, "Failed", "Success", do="remove")
    held = _of_state(wanted, "Queued", "Running")
    for name, settings in wanted.items():
        there = find(name)
        if name in held or there and not again:
            continue
        if there:  # with --force, DVC would replace it too, and run every stage anew
            _dvc("exp", "remove", name)
        # ++ also sets what a model's block inherits and so does not hold yet; the check stage refuses what is misspelt.
        _dvc("exp", "run", "--quiet", "--queue", "--name", name, *(f"-S++{setting}" for setting in settings))
    waiting, silent = set(wanted), 0
    try:
        _dvc("queue", "start", "--jobs", str(jobs))  # workers that run already are left alone
        while waiting:
            states, workers = queue()
            silent = 0 if workers else silent + 1
            for name in sorted(waiting):
                # DVC lists a task nowhere while a worker takes it; one that stays away was removed or left no result.
                away = name not in states and (silent == ABANDONED or find(name))
                if away or states.get(name) in ("Success", "Failed"):
                    waiting.discard(name)
                    commit = find(name)
                    yield name, commit, "" if commit else _reason(name)
            if silent == ABANDONED:  # the workers were killed, the machine went down
                _of_state(waiting, "Running", do="kill")  # DVC lists as failed what has no process any more
                _dvc("queue", "start", "--jobs", str(jobs))
                silent = 0
            if waiting:
                time.sleep(POLL_SECONDS)
    finally:
        if waiting:
            _dvc("queue", "stop")  # first, or its workers would go on with what is queued
            _of_state(waiting, "Running", do="kill")
    _of_state(wanted, "Failed", "Success", do="remove")


def _of_state(names: Collection[str], *states: str, do: str = "") -> list[str]:
    """Those experiments that the queue lists as such, after `dvc queue DO` with them; results are never removed."""
    known, _ = queue()
    found = sorted(name for name in names if known.get(name) in states)
    if found and do:
        _dvc("queue", do, *found)
    return found


def _reason(name: str) -> str:
    """The last line in which a failed experiment says what was wrong."""
    try:
        lines = [line for line in _dvc("queue", "logs", name).splitlines() if line.strip()]
    except InputError as error:
        return str(error)
    told = [line for line in lines if line.startswith("error:")] or lines or ["it left no message"]
    return told[-1].removeprefix("error: ")


def fetch(commit: str, path: Path, folder: Path) -> Path:
    """Copy what an experiment made, a folder or a file, from Git or DVC's cache into `folder`; returns the copy.

    Raises:
        InputError: it is in neither.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        DVCFileSystem(".", rev=commit).get(path.as_posix(), (folder / path.name).as_posix(), recursive=True)
    except (OSError, DvcException) as error:
        raise InputError(f"{path} of experiment {commit[:10]} is gone; run the study with --again") from error
    return folder / path.name


def scores(comparison: pd.DataFrame) -> dict[str, dict[str, list[float | None]]]:
    """The `metrics` of `results` from a comparison.csv."""
    rows = comparison.astype(object).where(comparison.notna(), None).set_index(["system", "metric"])  # JSON has no NaN
    found: dict[str, dict[str, list[float | None]]] = {system: {} for system in rows.index.unique("system")}
    for system, metric in rows.index:
        over = [f"over_{system}{end}" for end in ("", "_low", "_high")] if system != "model" else []
        found[system][metric] = [*rows.loc[(system, metric), ["mean", "low", "high"]], *rows.loc[("model", metric), over]]
    return found


def results(commit: str) -> dict[str, Any]:
    """What an experiment measured, as plain values.

    Returns:
        `commit`: what it started from; `model`: name, parameters, epochs, best_epoch and size of the trained model;
        `images`: how many were scored; `metrics`: system (model, grey, mean_color) to metric to mean, low, high and, of a
        baseline, what the model has more, low, high; low and high are None without an interval; and `mse_ab`, the
        squared error over ab in document 000's unit;
        `curves`: column to one number per epoch, among them the measured training `seconds` so far.
    """
    with tempfile.TemporaryDirectory() as folder:
        description = json.loads(fetch(commit, paths.MODEL / "model.json", Path(folder)).read_text())
        tables = [fetch(commit, paths.METRICS / name, Path(folder)) for name in TABLES]
        history, comparison, per_image = map(pd.read_csv, tables)
    timing = paths.run_folder(description["name"], description["fingerprint"]) / paths.TIMING
    if timing.exists():
        history["seconds"] = pd.read_csv(timing)["seconds"].cumsum().round(1)
    metrics = scores(comparison)
    for system, table in per_image.groupby("system"):
        metrics[str(system)]["mse_ab"] = [float(f"{(table['rmse_ab'] ** 2).mean() / AB_UNIT**2:.6g}")]
    curves = {column: [float(f"{x:.5g}") for x in history[column]] for column in history if "_ma20" not in str(column)}
    return {
        "commit": _run("git", "rev-parse", "--short=10", f"{commit}^").strip(),
        "model": {key: description[key] for key in ("name", "parameters", "epochs", "best_epoch", "size")},
        "images": int((per_image["system"] == "model").sum()),
        "metrics": metrics,
        "curves": curves,
    }
