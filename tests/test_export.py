"""Models for other programs: what ONNX Runtime makes of them is what PyTorch makes of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli import call, make_model

from colorize.models import load_model

onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX is an extra: pip install -e '.[onnx]'")
pytest.importorskip("onnxscript", reason="ONNX is an extra: pip install -e '.[onnx]'")


@pytest.mark.parametrize(
    ("name", "network"),
    [("cae", {"channels": [4, 8]}), ("fcae1", {}), ("zhang_simplified", {}), ("deshpande_mdn", {"width": 4})],
)
def test_an_exported_model_is_the_same_elsewhere(name: str, network: dict, tmp_path: Path) -> None:
    """Regression, RGB, classes and a mixture; at a size it was not traced at where the model takes any."""
    folder = make_model(tmp_path / "model", name, **network)
    said = call("export", "-m", folder, "-o", tmp_path / "out").split()
    assert [Path(each).name for each in said] == ["weights.safetensors", "model.json", "model.onnx"]
    assert json.loads((tmp_path / "out/model.json").read_text())["name"] == name
    model = load_model(folder)
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
    light = torch.rand(1, 1, *((48, 64) if model.any_size else (32, 32))) * 100
    (found,) = session.run(None, {"light": light.numpy()})
    with torch.no_grad():
        assert np.abs(found - model.colorize(light).numpy()).max() < 0.05
