"""What runs on a machine that has PyTorch, scikit-image, Pillow, pandas and SciPy and nothing else of ours."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from ruamel.yaml import YAML

from benchmarks.bare import read_params
from benchmarks.bench import GPU_SLICES

LACKING = (
    "annotated_types", "distributed", "dvc", "joblib", "matplotlib", "pydantic", "ray", "requests",
    "ruamel", "safetensors", "starlette", "tqdm", "typer", "urllib3",
)  # fmt: skip
BARE = """
import runpy, sys
sys.modules |= dict.fromkeys({lacking!r})
sys.argv = ["gpu", *{arguments!r}]
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""
SMALL = ("--device", "cpu", "--models", "resnet18", "--count", "24", "--largest", "32", "--workers", "0", "--budget", "0.01")


def test_params_are_read_without_a_yaml_package() -> None:
    """As the YAML package reads them, to the last block."""
    assert read_params(ROOT / "params.yaml") == YAML(typ="safe").load((ROOT / "params.yaml").read_text())


def gpu(*arguments: str, status: int = 0) -> str:
    """What the slices say, tiny and on the CPU."""
    program = BARE.format(lacking=LACKING, arguments=[*SMALL, *arguments])
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.returncode == status, result.stdout
    return result.stdout


def test_every_slice_runs_with_no_more_than_that(tmp_path: Path) -> None:
    """Each writes its JSON, with the machine, and finds what it should; one that is there is not run again."""
    said = gpu("--minutes", "0.001", "--out", str(tmp_path))
    assert "are left for the next time" in said and len(list(tmp_path.glob("*.json"))) == 1
    gpu("--minutes", "60", "--out", str(tmp_path))
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    names = {"zhang", "epochs", "kernels", "deterministic", "resume", "streamed"}
    assert found.keys() == set(GPU_SLICES), "the table of the benchmarks has a row for each"
    assert found.keys() == names | {f"document_{number}" for number in ("000", "001", "002", "004")}
    assert all(each["machine"]["device"] == "cpu" and each["machine"]["versions"]["torch"] for each in found.values())
    assert found["resume"]["found"]["resnet18"]["the same bytes"] is True
    assert found["deterministic"]["found"]["resnet18, fp32"]["two trainings, the same bytes"] is True
    scored = found["document_000"]["found"]["resnet18"]
    assert scored["epochs"] > 0 and scored["model"]["psnr"] > 0 and scored["grey"]["colorfulness"] < 0.5
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert gpu("--out", str(tmp_path)) == ""
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")} == before


def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    """The figures of a CPU are never taken for those of a GPU."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    said = gpu("--device", "cuda", "--out", str(tmp_path), status=1)
    assert "error: train.device is cuda but no usable GPU was found" in said and not list(tmp_path.iterdir())


def test_what_is_missing_even_so_is_named() -> None:
    """Without pandas nothing can be measured: one sentence, not a traceback."""
    program = BARE.format(lacking=("pandas",), arguments=SMALL)
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True)
    assert result.returncode == 1 and result.stderr.startswith("error: ") and "lacks pandas; install that" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_mistyped_slice_is_named(tmp_path: Path) -> None:
    """With those that there are."""
    assert "there is no slice 'zang'; choose among zhang, epochs" in gpu("zang", status=2)
