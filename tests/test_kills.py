"""What a kill of the pipeline leaves of its locks; test_pipeline.py and kills.py show that it goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from dvc.dvcfile import Lockfile
from dvc.exceptions import DvcException
from dvc.repo import Repo
from faults import fault

from colorize import files
from colorize.files import InputError
from pipeline import paths, unlock


def listed(pid: int) -> str:
    return json.dumps({"write": {"data/crops": {"pid": pid, "cmd": "dvc repro"}}, "read": {}})


@fault(
    33,
    "a kill while DVC writes its list of locks; another program that has DVC's process number now",
    "DVC alone would refuse to start; `make repro` and `make zoo` remove the list unless a DVC of it runs.",
)
def test_what_a_killed_dvc_left_of_its_locks_is_removed(_folder: None) -> None:
    wait = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(wait) as other, subprocess.Popen([*wait, "/bin/dvc"]) as dvc:
        broken = ["", listed(7)[:30], "[1]", '{"write": {"a": 1}}']
        gone = [listed(pid) for pid in (-1, 2**70, 2**22, other.pid)]
        for text in (*broken, *gone, listed(dvc.pid)):
            files.write_text(paths.RWLOCK, text)
            unlock.main()
            assert paths.RWLOCK.exists() == (text == listed(dvc.pid)), text
        dvc.kill()
        other.kill()
        os.waitid(os.P_PID, dvc.pid, os.WEXITED | os.WNOWAIT)  # dead, but nobody has asked how it ended
        unlock.main()
        assert not paths.RWLOCK.exists()
    unlock.main()


@pytest.fixture
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def git(*arguments: str, status: int | None = 0) -> None:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert status is None or done.returncode == status, done.stderr


def commit(path: Path, content: str) -> None:
    files.write_text(path, content)
    git("add", str(path))
    git("commit", "-qm", "x")


@pytest.mark.slow
@fault(
    33,
    "a kill while DVC writes dvc.lock",
    "`make repro` and `make zoo` go back to the last commit's, or to none, say so and keep the half.",
)
@pytest.mark.parametrize("committed", [True, False])
def test_half_a_lock_file_is_taken_back(_folder: None, committed: bool, capsys) -> None:
    """What DVC itself can read stays."""
    lock, kept = paths.LOCKS[0], 0
    whole = (ROOT / lock).read_text(encoding="utf-8")
    files.write_text(lock, whole)
    if committed:
        git("init", "-q")
        commit(lock, whole)
    ends = [whole.index(word, len(whole) // 2) for word in ("cmd:", "md5:", "size:", "path:")]
    lengths = (len(whole), 0, *ends, *(end + 2 for end in ends), *(whole.index(":", end) + 1 for end in ends))
    with Repo.init(".", no_scm=True) as repo:
        for length in lengths:
            files.write_text(lock, whole[:length])
            refused = False
            try:
                Lockfile(repo, str(lock.absolute())).load()
            except DvcException:
                refused = True
            unlock.main()
            assert bool(capsys.readouterr().out) == refused
            kept += refused
            if refused:
                assert Path(f"dvc.lock.damaged-{kept}").read_text() == whole[:length]
                assert lock.read_text() == whole if committed else not lock.exists()
            else:
                assert lock.read_text() == whole[:length]
    assert refused, "a path without its value, as a kill left it once"


@pytest.mark.parametrize("lock", paths.LOCKS)
def test_a_lock_in_the_middle_of_a_merge_is_the_users_to_resolve(_folder, monkeypatch, lock) -> None:
    """Also if it was added with its marks, or one side is there already: the user has not chosen yet."""
    text = "schema: '2.0'\nstages:\n  a:\n    cmd: x\n    params:\n      params.yaml:\n        seed: {}\n"
    git("init", "-q", "-b", "ours")
    commit(lock, text.format(1))
    git("checkout", "-qb", "theirs")
    commit(lock, text.format(2))
    git("checkout", "-q", "ours")
    commit(lock, text.format(3))
    git("merge", "theirs", status=1)
    both = lock.read_text()
    assert "<<<<<<<" in both

    def refused() -> None:
        before = lock.read_text()
        with pytest.raises(InputError, match=f"{lock} is in the middle of a merge; choose one side"):
            unlock.main()
        assert lock.read_text() == before and not list(lock.parent.glob("*damaged*"))

    refused()
    git("checkout", "--ours", str(lock))
    refused()
    files.write_text(lock, both)
    git("add", str(lock))
    refused()
    with monkeypatch.context() as without_git:
        without_git.setenv("PATH", "")
        refused()
    files.write_text(lock, text.format(2))
    git("add", str(lock))
    unlock.main()
    assert lock.read_text() == text.format(2)


@pytest.mark.parametrize("how", ["no git", "untracked", "a worktree"])
def test_a_damaged_lock_is_kept_where_git_cannot_bring_it_back(_folder, monkeypatch, how) -> None:
    """Nothing is deleted; DVC begins a new one, or the commit's comes back where there is one."""
    lock = paths.LOCKS[0]
    if how == "no git":
        monkeypatch.setenv("PATH", "")
    else:
        git("init", "-q")
        commit(lock if how == "a worktree" else Path("other"), "schema: '2.0'\n")
    if how == "a worktree":
        git("worktree", "add", "-q", "elsewhere")
        monkeypatch.chdir("elsewhere")
    files.write_text(lock, "schema: [")
    unlock.main()
    assert Path("dvc.lock.damaged-1").read_text() == "schema: ["
    assert lock.exists() == (how == "a worktree")
    lock.unlink(missing_ok=True)
    lock.mkdir()
    with pytest.raises(SystemExit, match="error: dvc.lock: Is a directory"), files.one_sentence():
        unlock.main()
