"""Run the pipeline as DVC experiments: queue them, run several at a time, read their results.

An experiment runs in a copy of the project and stores its results as a commit below refs/exps. Workers
outlive the command that started them, so a restarted study finds its experiments by name.
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
"""Polls without any worker after which we restart workers; a new worker takes seconds to appear."""
TABLES = ("loss.csv", "comparison.csv", "per_image.csv")
AB_UNIT = 128
"""Scale of ab in the losses of document 000, in Lab units."""


def _run(*command: str) -> str:
    """Run a command of DVC or Git and return its output.

    Raises:
        InputError: the command failed; the sentence holds its last line.
    """
    with tempfile.TemporaryFile("w+") as output:  # workers would keep a pipe open
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
        output.seek(0)
        text = output.read()
    if status:
        reason = (text.strip() or "no reason given").splitlines()[-1]
        raise InputError(f"`{' '.join(command[-4:])}` failed: {reason}")
    return text


def _dvc(*arguments: str) -> str:
    return _run(sys.executable, "-m", "dvc", *arguments)


def find(name: str) -> str:
    """Find the commit with an experiment's results; "" if there is none."""
    ref = f"refs/exps/??/*/{name}"
    return _run("git", "for-each-ref", "--count=1", "--format=%(objectname)", ref).strip()


def queue() -> tuple[dict[str, str], int]:
    """Read DVC's queue: name to Queued, Running, Success or Failed; and the number of running workers.

    Raises:
        InputError: this is no DVC project, or its queue is damaged.
    """
    try:
        with Repo(".") as repo:
            tasks = repo.experiments.celery_queue
            return {task["name"]: task["status"] for task in tasks.status()}, len(tasks.worker_status())
    except (OSError, DvcException) as error:
        raise InputError(f"DVC's queue cannot be read ({error}); the same command continues") from error


def run(wanted: Mapping[str, Sequence[str]], jobs: int, again: bool) -> Generator[tuple[str, str, str]]:
    """Run experiments, `jobs` at a time; yield each at its end: name, commit or "", reason of the failure.

    Queued and running experiments are not started twice; experiments with results run only `again`. If the
    generator ends early, by Ctrl-C or `close`, it stops the workers and the running experiments.

    Args:
        wanted: name to changes of params.yaml, each "parameter=value".

    Raises:
        InputError: DVC refuses to queue an experiment, or does not answer.
    """
    if not wanted:
        return
    _of_state(wanted, "Failed", "Success", do="remove")
    pending = _of_state(wanted, "Queued", "Running")
    for name, settings in wanted.items():
        commit = find(name)
        if name in pending or commit and not again:
            continue
        if commit:  # --force would replace it too, but also rerun every stage
            _dvc("exp", "remove", name)
        changes = [f"-S++{setting}" for setting in settings]  # ++ also overrides inherited parameters
        _dvc("exp", "run", "--quiet", "--queue", "--name", name, *changes)
    waiting, silent = set(wanted), 0
    try:
        _dvc("queue", "start", "--jobs", str(jobs))  # running workers are kept
        while waiting:
            states, workers = queue()
            silent = 0 if workers else silent + 1
            for name in sorted(waiting):
                # DVC does not list a task while a worker takes it; one that stays away was removed by hand.
                gone = name not in states and (silent == ABANDONED or find(name))
                if gone or states.get(name) in ("Success", "Failed"):
                    waiting.discard(name)
                    commit = find(name)
                    yield name, commit, "" if commit else _reason(name)
            if silent == ABANDONED:  # the workers were killed, or the machine went down
                _of_state(waiting, "Running", do="kill")  # DVC then lists tasks without a process as failed
                _dvc("queue", "start", "--jobs", str(jobs))
                silent = 0
            if waiting:
                time.sleep(POLL_SECONDS)
    finally:
        if waiting:
            _dvc("queue", "stop")  # first, or workers would start queued experiments
            _of_state(waiting, "Running", do="kill")
    _of_state(wanted, "Failed", "Success", do="remove")


def _of_state(names: Collection[str], *states: str, do: str = "") -> list[str]:
    """List the experiments in one of these states, and call `dvc queue DO` with them; results stay."""
    current, _ = queue()
    matching = sorted(name for name in names if current.get(name) in states)
    if matching and do:
        _dvc("queue", do, *matching)
    return matching


def _reason(name: str) -> str:
    """The last error line in the log of a failed experiment."""
    try:
        lines = [line for line in _dvc("queue", "logs", name).splitlines() if line.strip()]
    except InputError as error:
        return str(error)
    errors = [line for line in lines if line.startswith("error:")] or lines or ["it left no message"]
    return errors[-1].removeprefix("error: ")


def fetch(commit: str, path: Path, folder: Path) -> Path:
    """Copy an experiment's file or folder from Git or DVC's cache into `folder`; return the copy.

    Raises:
        InputError: neither Git nor the cache holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        DVCFileSystem(".", rev=commit).get(path.as_posix(), (folder / path.name).as_posix(), recursive=True)
    except (OSError, DvcException) as error:
        raise InputError(f"{path} of experiment {commit[:10]} is gone; run the study with --again") from error
    return folder / path.name


def scores(comparison: pd.DataFrame) -> dict[str, dict[str, list[float | None]]]:
    """Convert a comparison.csv to the `metrics` of `results`."""
    known = comparison.astype(object).where(comparison.notna(), None)  # JSON has no NaN
    rows = known.set_index(["system", "metric"])
    values: dict[str, dict[str, list[float | None]]] = {system: {} for system in rows.index.unique("system")}
    for system, metric in rows.index:
        over = [f"over_{system}{end}" for end in ("", "_low", "_high")] if system != "model" else []
        means = rows.loc[(system, metric), ["mean", "low", "high"]]
        values[system][metric] = [*means, *rows.loc[("model", metric), over]]
    return values


def results(commit: str) -> dict[str, Any]:
    """Read the results of an experiment as plain values.

    Returns:
        `commit`: its parent; `model`: facts about the model; `images`: number of scored photographs;
        `metrics`: system (model, grey, mean_color) to metric to mean, low, high and, for baselines, the
        model's difference, low, high; low and high are None without an interval; `mse_ab` is the squared
        error over ab in document 000's unit; `curves`: column to one number per epoch; the column `seconds`
        is cumulative.
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
