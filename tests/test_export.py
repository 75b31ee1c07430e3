"""Models for other programs: what ONNX Runtime makes of them is what PyTorch makes of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli import call, make_model

from colorize import files
from colorize.apply import export
from colorize.files import InputError
from colorize.models import load_model


@pytest.mark.parametrize(
    ("name", "network"),
    [("cae", {"channels": [4, 8]}), ("fcae1", {}), ("zhang_simplified", {}), ("deshpande_mdn", {"width": 4})],
)
def test_an_exported_model_is_the_same_elsewhere(name: str, network: dict, tmp_path: Path) -> None:
    """Regression, RGB, classes and a mixture; at a size it was not traced at where the model takes any."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX is an extra: pip install -e '.[onnx]'")
    pytest.importorskip("onnxscript", reason="ONNX is an extra: pip install -e '.[onnx]'")
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


def test_an_export_overwrites_nothing_but_the_same_models_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If one of the three files is somebody else's, none is written; the same model again is fine."""
    monkeypatch.setattr(export, "to_onnx", lambda *_: b"onnx")
    folder = make_model(tmp_path / "model", "cae", channels=[2, 4])
    out = tmp_path / "out"
    for name in ("weights.safetensors", "model.json", "model.onnx"):
        files.write_text(out / name, "another's")
        for _ in range(2):
            with pytest.raises(InputError, match=f"{name} would be overwritten"):
                export.export(folder, out)
        assert [path.read_text() for path in out.iterdir()] == ["another's"]
        (out / name).unlink()
    for left in (0, 1, 2, 3):
        paths = export.export(folder, out)
        assert [path.read_bytes() for path in paths[:2]] == [
            (folder / path.name).read_bytes() for path in paths[:2]
        ]
        for path in paths[left:]:
            path.unlink()
