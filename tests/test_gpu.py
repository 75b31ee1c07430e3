"""`make gpu`, tiny and on the CPU: its slices run, stop at their limit and go on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from benchmarks.bench import GPU_SLICES

SMALL = ["--device", "cpu", "--models", "resnet18", "--count", "24", "--largest", "32"]
SMALL += ["--workers", "0", "--budget", "0.01"]

pytestmark = pytest.mark.slow


def gpu(*arguments: str, status: int = 0) -> str:
    command = [sys.executable, "-m", "benchmarks.gpu", *SMALL, *arguments]
    result = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.returncode == status, result.stdout
    return result.stdout


def test_slices_write_what_they_find(tmp_path: Path) -> None:
    """Each writes its JSON, with the machine; models train and are scored beside the baselines."""
    slices = ("resume", "document_000")
    gpu("--minutes", "60", "--out", str(tmp_path), *slices)
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert found.keys() == set(slices) and set(slices) < set(GPU_SLICES)
    assert all(
        each["machine"]["device"] == "cpu" and each["machine"]["versions"]["torch"] for each in found.values()
    )
    assert found["resume"]["found"]["resnet18"]["the same bytes"] is True
    scored = found["document_000"]["found"]["resnet18"]
    assert scored["epochs"] > 0 and scored["model"]["psnr"] > 0 and scored["grey"]["colorfulness"] < 0.5


def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    """The figures of a CPU are never taken for those of a GPU."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    said = gpu("--device", "cuda", "--out", str(tmp_path), status=1)
    assert "error: train.device is cuda but no usable GPU was found" in said and not list(tmp_path.iterdir())
