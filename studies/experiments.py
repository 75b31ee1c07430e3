"""Runs of the pipeline as DVC experiments: queue them, let several go on at a time, read what they left.

An experiment runs in a copy of the project and keeps its results as a commit under refs/exps. Workers outlive
the command that started them, so a study that was stopped finds its experiments again by name.
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
"""So many polls in a row may show no worker: one takes seconds to appear, and a busy machine answers late."""
TABLES = ("loss.csv", "comparison.csv", "per_image.csv")
AB_UNIT = 128
"""Lab units in which the losses of document 000's models are squared."""


def _run(*command: str) -> str:
    """The output of a command of DVC or Git.

    Raises:
        InputError: it failed; the sentence is its last line.
    """
    with tempfile.TemporaryFile("w+") as said:  # no pipe: workers would keep it open
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
    where = f"refs/exps/??/*/{name}"
    return _run("git", "for-each-ref", "--count=1", "--format=%(objectname)", where).strip()


def queue() -> tuple[dict[str, str], int]:
    """What stands in DVC's queue, name to Queued, Running, Success or Failed; and how many workers answer.

    Raises:
        InputError: this is no project of DVC, or its queue is damaged.
    """
    try:
        with Repo(".") as repo:
            held = repo.experiments.celery_queue
            return {task["name"]: task["status"] for task in held.status()}, len(held.worker_status())
    except (OSError, DvcException) as error:
        raise InputError(f"DVC's queue cannot be read ({error}); the same command continues") from error


def run(wanted: Mapping[str, Sequence[str]], jobs: int, again: bool) -> Generator[tuple[str, str, str]]:
    """Run experiments, `jobs` at a time; yields each as it ends: name, commit or "", and why it failed.

    What waits in the queue or runs already is not started twice, and what has results only if it shall run
    `again`. Left before the end, by Ctrl-C or `close`, it stops the workers and those experiments that run.

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
        changes = [f"-S++{each}" for each in settings]  # ++: a model's may be one that its block inherits
        _dvc("exp", "run", "--quiet", "--queue", "--name", name, *changes)
    waiting, silent = set(wanted), 0
    try:
        _dvc("queue", "start", "--jobs", str(jobs))  # workers that run already are left alone
        while waiting:
            states, workers = queue()
            silent = 0 if workers else silent + 1
            for name in sorted(waiting):
                # DVC lists a task nowhere while a worker takes it; one that stays away was removed by hand.
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
    """Those experiments that the queue lists as such, after `dvc queue DO` with them; results stay."""
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
    """Copy what an experiment made, a folder or a file, out of Git or DVC's cache into `folder`.

    Returns:
        the copy.

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
    known = comparison.astype(object).where(comparison.notna(), None)  # JSON has no NaN
    rows = known.set_index(["system", "metric"])
    found: dict[str, dict[str, list[float | None]]] = {system: {} for system in rows.index.unique("system")}
    for system, metric in rows.index:
        over = [f"over_{system}{end}" for end in ("", "_low", "_high")] if system != "model" else []
        own = rows.loc[(system, metric), ["mean", "low", "high"]]
        found[system][metric] = [*own, *rows.loc[("model", metric), over]]
    return found


def results(commit: str) -> dict[str, Any]:
    """What an experiment measured, as plain values.

    Returns:
        `commit`: what it started from; `model`: what the trained one is; `images`: how many were scored;
        `metrics`: system (model, grey, mean_color) to metric to mean, low, high and, of a baseline, what the
        model has more, low, high; low and high are None without an interval; among them `mse_ab`, the squared
        error over ab in document 000's unit; `curves`: column to a number per epoch, among them `seconds` of
        training so far.
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
    history = history.loc[:, ~history.columns.str.contains("_ma20")]
    curves = {column: [float(f"{x:.5g}") for x in history[column]] for column in history}
    return {
        "commit": _run("git", "rev-parse", "--short=10", f"{commit}^").strip(),
        "model": {key: description[key] for key in ("name", "parameters", "epochs", "best_epoch", "size")},
        "images": int((per_image["system"] == "model").sum()),
        "metrics": metrics,
        "curves": curves,
    }
