"""CONTRIBUTING.md's worked example: one file and one block, and the model trains, saves and loads."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import ROOT


def example(language: str) -> str:
    """The page's first code block in a language."""
    found = re.search(rf"( *)```{language}\n(.*?)\1```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert found is not None
    return textwrap.dedent(found[2]) if language == "python" else re.sub(r"(?m)^ {3}", "", found[2])


TRIAL = """
import dataclasses, numpy as np, torch
from pathlib import Path
from colorize.data.dataset import Photos
from colorize.bins import Statistics
from colorize.models import build_model, describe_block, load_model, save_model
from colorize.bins import PriorConfig
from colorize.training.loop import fit
from pipeline.check import AllParams
from pipeline.params import load

params = load(AllParams)
block = params.models["tinynet"]
images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
model = build_model(block, 32, Statistics.measure(images, PriorConfig()))
photos = Photos(images, 32)
rule = dataclasses.replace(params.train, max_epochs=2)
progress = fit(model, photos, photos, block.recipe, rule, 1, Path("state.pt"))
save_model(Path("model"), model, {"block": describe_block(block), "size": 32}, "")
light = torch.rand(2, 1, 32, 32) * 100
assert torch.equal(load_model(Path("model")).colorize(light), model.colorize(light))
print("epochs", progress.epoch)
"""


@pytest.mark.slow
def test_a_model_is_one_file_and_one_block(tmp_path: Path) -> None:
    """In a copy of the sources: the first stage accepts it, and it trains."""
    for folder in ("src", "pipeline"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "data").mkdir()
    shutil.copy(ROOT / "data/sample.csv", tmp_path / "data")
    (tmp_path / "src/colorize/models/architectures/tinynet.py").write_text(example("python"))
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text() + example("yaml"))
    for command in (["-m", "pipeline.check"], ["-c", TRIAL]):
        result = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": f"{tmp_path / 'src'}:{tmp_path}"},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
    assert "epochs 2" in result.stdout
