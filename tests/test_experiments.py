"""Experiments go through DVC's own queue, of a project that needs no photographs."""

import threading
from pathlib import Path

import psutil
import pytest
from test_pipeline import at_work, environment, run, until

from colorize import files
from colorize.files import InputError
from studies import experiments

WORK = """
import sys, time
seconds = float(open("params.yaml").read().split(":")[1])
if seconds < 0:
    sys.exit("error: seconds run forwards")
time.sleep(seconds)
open("out.txt", "w").write(str(seconds))
"""
STAGE = "stages: {work: {cmd: python work.py, params: [seconds], outs: [out.txt: {cache: false}]}}\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one stage that takes the seconds of params.yaml; its queue is asked each second."""
    folder = tmp_path / "project"
    for name, text in {"work.py": WORK, "dvc.yaml": STAGE, "params.yaml": "seconds: 0\n"}.items():
        files.write_text(folder / name, text)
    for command in ("git init -q", "dvc init -q", "git add -A", "git commit -qm start"):
        run(folder, *command.split())
    for name, value in environment(folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(experiments, "POLL_SECONDS", 1.0)
    return folder


@pytest.mark.slow
def test_experiments_go_through_the_queue_and_failures_are_told(project: Path) -> None:
    """Two at a time; one fails with its last sentence. What has results is run again only if it shall be."""
    out = Path("out.txt")
    wanted = {"a": ["seconds=1"], "b": ["seconds=-1"], "c": ["seconds=2"]}
    ended = {name: (commit, reason) for name, commit, reason in experiments.run(wanted, 2, again=False)}
    assert ended["b"] == ("", "seconds run forwards") and experiments.queue()[0] == {}
    assert experiments.fetch(ended["c"][0], out, project / "copies").read_text() == "2.0"
    assert list(experiments.run({"a": ["seconds=1"]}, 2, again=False)) == [("a", *ended["a"])]
    [(_, commit, _)] = experiments.run({"a": ["seconds=0.5"]}, 2, again=True)
    assert experiments.fetch(commit, out, project / "copies").read_text() == "0.5"
    with pytest.raises(InputError, match="none.txt of experiment"):
        experiments.fetch(commit, Path("none.txt"), project)


@pytest.mark.slow
def test_workers_that_were_killed_are_started_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they ran counts as failed, what waits in the queue is run."""
    monkeypatch.setattr(experiments, "ABANDONED", 8)

    def kill() -> None:
        until(lambda: any("work.py" in each for each in at_work(project)), "no experiment has begun")
        for process in psutil.process_iter(["cmdline", "cwd"]):
            command = " ".join(process.info["cmdline"] or [])
            own = Path(process.info["cwd"] or "/").is_relative_to(project)
            if own and any(word in command for word in ("queue-worker", "exec-run", "work.py")):
                process.kill()

    threading.Thread(target=kill, daemon=True).start()
    wanted = {"a": ["seconds=600"], "b": ["seconds=1"]}
    ended = {name: bool(commit) for name, commit, _ in experiments.run(wanted, 1, again=False)}
    assert ended == {"a": False, "b": True}
