"""The whole pipeline survives what ends it: see kills.py, which `make faults` runs with 50 kills."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from faults import fault
from kills import REPRO, torture

from colorize import files
from pipeline import paths, unlock


@fault(33, "SIGKILL, a power cut, at any moment of `make repro`")
@pytest.mark.xdist_group("kills")
def test_a_pipeline_that_is_killed_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """The same command goes on; lock, weights and metrics end as those of a run in one go, byte for byte."""
    found = torture(tmp_path, kills=3, seed=5)
    assert found["kills"] == 3 and found["runs that got through and were compared"] >= 1
    assert found["identical lock, weights and metrics, nothing left over"]


def listed(pid: int) -> str:
    return json.dumps({"write": {"data/crops": {"pid": pid, "cmd": "dvc repro"}}, "read": {}})


@fault(33, "a kill while DVC writes its list of locks; a power cut after which another program has DVC's process number")
def test_what_a_killed_dvc_left_of_its_locks_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC alone would refuse to start; `make repro` and `make zoo` remove the list first, unless a DVC of it still runs."""
    monkeypatch.chdir(tmp_path)
    files.write_text(paths.RWLOCK, "")
    wait = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(wait) as other, subprocess.Popen([*wait, "/bin/dvc"]) as dvc:
        for text in ("", listed(7)[:30], "[1]", '{"write": {"a": 1}}', listed(2**22), listed(other.pid), listed(dvc.pid)):
            files.write_text(paths.RWLOCK, text)
            unlock.main()
            assert paths.RWLOCK.exists() == (text == listed(dvc.pid)), text
        dvc.kill()
        other.kill()
        os.waitid(os.P_PID, dvc.pid, os.WEXITED | os.WNOWAIT)  # dead, but nobody has asked how it ended
        unlock.main()
        assert not paths.RWLOCK.exists()
    unlock.main()


def read_by_dvc(lock: Path) -> bool:
    """What DVC itself says of a lock file."""
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo.init(str(lock.parent.absolute()), no_scm=True, force=True) as repo:
            Lockfile(repo, str(lock.absolute())).load()
    except DvcException:
        return False
    return True


@fault(33, "a kill while DVC writes dvc.lock")
@pytest.mark.parametrize("committed", [True, False])
def test_half_a_lock_file_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, committed: bool, capsys) -> None:
    """`make repro` and `make zoo` go back to the last commit's, or to none, and say so; a whole one stays."""
    monkeypatch.chdir(tmp_path)
    lock = paths.LOCKS[0]
    whole = (ROOT / lock).read_text(encoding="utf-8")
    files.write_text(lock, whole)
    if committed:
        for command in ("init -q", "add dvc.lock", "-c user.name=a -c user.email=a@b commit -qm x"):
            subprocess.run(["git", *command.split()], check=True)
    unlock.main()
    assert lock.read_text() == whole and not capsys.readouterr().out
    ends = [whole.index(word, len(whole) // 2) for word in ("cmd:", "md5:", "size:", "path:")]
    for length in (0, *ends, *(end + 2 for end in ends), *(whole.index(":", end) + 1 for end in ends)):
        files.write_text(lock, whole[:length])
        refused = not read_by_dvc(lock)
        unlock.main()
        assert bool(capsys.readouterr().out) == refused
        assert lock.read_text() == (whole if refused else whole[:length]) if committed or not refused else not lock.exists()
    assert refused, "a path without its value, as a kill left it once"


@pytest.mark.parametrize("target", ["repro", "zoo"])
def test_both_ways_to_run_the_pipeline_unlock_it_first(target: str) -> None:
    """As make itself plans it."""
    planned = subprocess.run([*REPRO[:-1], "-n", target], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert planned.index("pipeline.unlock") < planned.index("dvc repro")
