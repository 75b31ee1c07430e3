"""The whole pipeline survives what ends it: see kills.py, which `make faults` runs with 50 kills."""

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from faults import fault
from kills import REPRO, torture


@fault(33, "SIGKILL, a power cut, at any moment of `make repro`")
@pytest.mark.xdist_group("kills")
def test_a_pipeline_that_is_killed_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """The same command goes on; lock, weights and metrics end as those of a run in one go, byte for byte."""
    found = torture(tmp_path, kills=3, seed=5)
    assert found["runs that got through and were compared"] >= 1
    assert found["identical lock, weights and metrics, nothing left over"]


@fault(33, "SIGKILL while DVC writes its list of locks, which it does in place")
@pytest.mark.parametrize("content", ['{"write": {"a": ', ""])
def test_half_a_list_of_locks_is_removed(tmp_path: Path, content: str) -> None:
    """DVC alone would refuse to start; `make repro` and `make zoo` remove half a list first, a whole one never."""
    shutil.copy2(ROOT / "Makefile", tmp_path)
    locks = tmp_path / ".dvc/tmp/rwlock"
    locks.parent.mkdir(parents=True)
    for text, stays in ((content, False), ('{"write": {}, "read": {}}', True)):
        locks.write_text(text)
        subprocess.run([*REPRO[:-1], "unlock"], cwd=tmp_path, check=True)
        assert locks.exists() == stays
    for target in ("repro", "zoo"):
        planned = subprocess.run([*REPRO[:-1], "-n", target], cwd=tmp_path, check=True, capture_output=True, text=True)
        assert ".dvc/tmp/rwlock" in planned.stdout
