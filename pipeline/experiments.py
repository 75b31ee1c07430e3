"""Runs of the pipeline as DVC experiments: queue them, let several go on at a time, read what they left.

An experiment runs in a copy of the project of its own and keeps its results as a commit under refs/exps; workers outlive
the command that started them, so a study that was stopped finds them again by name.
"""

import io
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Generator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from colorize.files import InputError
from pipeline import paths

POLL_SECONDS = 10.0
PATIENCE = 3
"""So many polls in a row may not show an experiment (between two lists)."""
ABANDONED = 18
"""So many polls in a row may show no worker: one takes seconds to appear, and on a busy machine they answer late."""
AB_UNIT = 128
"""Lab units in which the losses of document 000's models are squared."""
_TASK = re.compile(r"^[0-9a-f]+\s+(?P<name>\S+)\s.*\s(?P<status>Queued|Running|Success|Failed)\s*$")
_WORKERS = re.compile(r"^Worker status: (\d+) active, (\d+) idle", re.MULTILINE)


def _run(*command: str) -> str:
    """The output of a command of DVC or Git.

    Raises:
        InputError: it failed; the sentence is its last line.
    """
    # Files, not pipes: queue workers outlive the command that starts them and would keep a pipe open.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        status = subprocess.run(command, stdout=out, stderr=err).returncode
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    if status:
        said = [line for line in (texts[1] + texts[0]).splitlines() if line.strip()]
        raise InputError(f"`{' '.join(command[-4:])}` failed: {said[-1] if said else 'no reason given'}")
    return texts[0]


def _dvc(*arguments: str) -> str:
    return _run(sys.executable, "-m", "dvc", *arguments)


def revision(name: str) -> str | None:
    """The commit that holds an experiment's results, None if there is none of that name."""
    for line in _run("git", "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps").splitlines():
        commit, reference = line.split(" ", 1)
        if reference.rsplit("/", 1)[-1] == name and reference.count("/") == 4:  # refs/exps/xx/baseline/name
            return commit
    return None


def baseline(commit: str) -> str:
    """The commit that an experiment started from."""
    return _run("git", "rev-parse", "--short=10", f"{commit}^").strip()


def _queue() -> tuple[dict[str, str], int]:
    """What stands in DVC's queue, name to Queued, Running, Success or Failed; and how many workers there are."""
    said = _dvc("queue", "status")
    matches = map(_TASK.match, said.splitlines())
    return {match["name"]: match["status"] for match in matches if match}, sum(map(int, _WORKERS.findall(said)[0]))


def tasks() -> dict[str, str]:
    """What stands in DVC's queue: name to Queued, Running, Success or Failed."""
    return _queue()[0]


def override(setting: str) -> str:
    """A setting as DVC takes it: a model's may be one that its block inherits, and so does not hold yet."""
    return f"++{setting}" if setting.startswith("models.") else setting


def submit(name: str, settings: Sequence[str]) -> None:
    """Queue an experiment: params.yaml with `settings`, each "parameter=value", changed. It replaces one of the same name.

    Raises:
        InputError: DVC refuses it, because params.yaml has no such parameter, say.
    """
    if revision(name) is not None:  # with --force, DVC would replace it too, and run every stage anew
        _dvc("exp", "remove", name)
    changes = [part for setting in settings for part in ("-S", override(setting))]
    _dvc("exp", "run", "--quiet", "--queue", "--name", name, *changes)


def finish(names: Sequence[str], jobs: int) -> Generator[tuple[str, str]]:
    """Let `jobs` workers go through the queue; yields each of `names` once as it ends: name, "" or why it failed.

    Left before the end, by Ctrl-C or `close`, it stops the workers and those of `names` that run.
    """
    waiting = set(names)
    unseen = dict.fromkeys(names, 0)
    unattended = 0
    try:
        if waiting:
            _dvc("queue", "start", "--jobs", str(jobs))  # workers that run already are left alone
        while waiting:
            status, workers = _queue()
            for name in sorted(waiting):
                unseen[name] = 0 if name in status else unseen[name] + 1
                if status.get(name) in ("Success", "Failed") or unseen[name] == PATIENCE:
                    waiting.discard(name)
                    done = status.get(name) != "Failed" and revision(name) is not None
                    yield name, "" if done else _reason(name)
            unattended = 0 if workers else unattended + 1
            if waiting and unattended == ABANDONED:  # the workers were killed, the machine went down
                _kill(waiting)
                _dvc("queue", "start", "--jobs", str(jobs))
                unattended = 0
            if waiting:
                time.sleep(POLL_SECONDS)
    finally:
        if waiting:
            _dvc("queue", "stop")  # first, or its workers would go on with what is queued
            _kill(waiting)


def _kill(names: Collection[str]) -> None:
    """Interrupt those experiments that run; DVC lists as failed what has no process any more."""
    status = tasks()
    if running := sorted(name for name in names if status.get(name) == "Running"):
        _dvc("queue", "kill", *running)


def _reason(name: str) -> str:
    """The last line in which a failed experiment says what was wrong."""
    try:
        lines = _dvc("queue", "logs", name).splitlines()
    except InputError as error:
        return str(error)
    told = [line for line in lines if line.startswith("error:")] or [line for line in lines if line.strip()]
    return told[-1].removeprefix("error: ") if told else "it left no message"


def forget(names: Sequence[str]) -> None:
    """Take ended experiments out of the queue's list; their results stay."""
    known = tasks() if names else {}
    ended = [name for name in names if known.get(name) in ("Success", "Failed")]
    if ended:
        _dvc("queue", "remove", *ended)


def read_text(commit: str, path: str) -> str:
    """A small file of an experiment, from Git or from DVC's cache.

    Raises:
        InputError: it is in neither.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    try:
        return DVCFileSystem(".", rev=commit).read_text(path)
    except (OSError, DvcException) as error:
        raise InputError(f"{path} of experiment {commit[:10]} is gone; run the study with --again") from error


def fetch(commit: str, path: Path, target: Path) -> None:
    """Copy an out of an experiment, a folder or a file, to `target`.

    Raises:
        InputError: it is gone from DVC's cache.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        DVCFileSystem(".", rev=commit).get(path.as_posix(), target.as_posix(), recursive=True)
    except (OSError, DvcException) as error:
        raise InputError(f"{path} of experiment {commit[:10]} is gone; run the study with --again") from error


def scores(comparison: pd.DataFrame) -> dict[str, dict[str, list[float | None]]]:
    """The `metrics` of `results` from a comparison.csv."""
    # None, not NaN: it becomes JSON.
    rows = comparison.astype(object).where(comparison.notna(), None).to_dict("records")
    model = {row["metric"]: row for row in rows if row["system"] == "model"}
    found: dict[str, dict[str, list[float | None]]] = {}
    for row in rows:
        metric, system = row["metric"], row["system"]
        found.setdefault(system, {})[metric] = [row["mean"], row["low"], row["high"]]
        if system != "model":
            found[system][metric] += [model[metric][f"over_{system}{end}"] for end in ("", "_low", "_high")]
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
    description = json.loads(read_text(commit, str(paths.MODEL / "model.json")))
    history = pd.read_csv(io.StringIO(read_text(commit, "metrics/loss.csv")))
    timing = paths.run_folder(description["name"], description["fingerprint"]) / paths.TIMING
    if timing.exists():
        history["seconds"] = pd.read_csv(timing)["seconds"].cumsum().round(1)
    comparison = pd.read_csv(io.StringIO(read_text(commit, "metrics/comparison.csv")))
    per_image = pd.read_csv(io.StringIO(read_text(commit, "metrics/per_image.csv")))
    if "over_grey" not in comparison:
        raise InputError(f"experiment {commit[:10]} was scored by an earlier version; run the study with --again")
    metrics = scores(comparison)
    for system, table in per_image.groupby("system"):
        metrics[str(system)]["mse_ab"] = [float(f"{(table['rmse_ab'] ** 2).mean() / AB_UNIT**2:.6g}")]
    curves = {column: [float(f"{x:.5g}") for x in history[column]] for column in history if "_ma20" not in str(column)}
    kept = ("name", "parameters", "epochs", "best_epoch", "size")
    return {
        "commit": baseline(commit),
        "model": {key: description[key] for key in kept},
        "images": int((per_image["system"] == "model").sum()),
        "metrics": metrics,
        "curves": curves,
    }
