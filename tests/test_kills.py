"""The whole pipeline survives what ends it: see kills.py, which `make faults` runs with 50 kills."""

from pathlib import Path

import pytest
from faults import fault
from kills import torture


@fault(33, "SIGKILL, a power cut, at any moment of `dvc repro`")
@pytest.mark.xdist_group("kills")
def test_a_pipeline_that_is_killed_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """The same command goes on; lock, weights and metrics end as those of a run in one go, byte for byte."""
    found = torture(tmp_path, kills=3, seed=5)
    assert found["runs that got through and were compared"] >= 1
    assert found["identical lock, weights and metrics, nothing left over"]
