"""Export a trained model: weights as safetensors with their description, and the whole model as ONNX.

The ONNX model maps `light` [1, 1, H, W], L* in 0 to 100 of sRGB under D65, to `ab` [1, 2, H, W] in Lab units.
It includes a classifier's bins and temperature. H and W are free for models that take any size. The file is
written only if ONNX Runtime and PyTorch agree.
"""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from colorize import files
from colorize.files import InputError
from colorize.models import DESCRIPTION, WEIGHTS, load_description, load_model
from colorize.models.base import Colorizer

ONNX = "model.onnx"
TOLERANCE = 0.05
"""Largest difference between the two in Lab units, far below one level of an 8-bit pixel."""


class _Ab(nn.Module):
    """Map light to ab, without what only training needs."""

    def __init__(self, model: Colorizer) -> None:
        super().__init__()
        self.model = model

    def forward(self, light: Tensor) -> Tensor:
        return self.model.colorize(light)


def to_onnx(model: Colorizer, size: int) -> bytes:
    """Convert a model that works at `size` pixels and compare the result with PyTorch.

    Raises:
        InputError: the packages are missing, or ONNX Runtime and PyTorch differ.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise InputError(
            "ONNX needs three more packages; run pip install onnx onnxruntime onnxscript"
        ) from error
    sides = {"light": {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}} if model.any_size else None
    shapes = [(1, 1, size, size)] + [(1, 1, size + 8, size + 24)] * model.any_size
    lights = [torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 100 for shape in shapes]
    with torch.no_grad():
        # Computed before the export, which would put placeholders into the cache of the color matrices.
        expected = [model.colorize(light).numpy() for light in lights]
        program = torch.onnx.export(
            _Ab(model),
            (lights[-1],),
            dynamo=True,
            input_names=["light"],
            output_names=["ab"],
            dynamic_shapes=sides,
            verbose=False,
        )
    assert program is not None  # without a file name the exporter returns it
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for light, wanted in zip(lights, expected, strict=True):
        (ab,) = session.run(None, {"light": light.numpy()})
        difference = float(np.abs(ab - wanted).max())
        if difference > TOLERANCE:
            raise InputError(f"ONNX Runtime differs from PyTorch by {difference:.3g} Lab units")
    return content


def export(folder: Path, output: Path) -> list[Path]:
    """Write a trained model's three files to another folder.

    Raises:
        InputError: there is no trained model, `to_onnx` fails, or another file would be overwritten.
    """
    model = load_model(folder)
    copies = {output / name: (folder / name).read_bytes() for name in (WEIGHTS, DESCRIPTION)}
    existing = [path for path in copies if os.path.lexists(path)]
    foreign = [path for path in existing if not path.is_file() or path.read_bytes() != copies[path]]
    # Beside both other files, an ONNX file is from an earlier export of this model.
    if os.path.lexists(output / ONNX) and len(existing) < len(copies):
        foreign.append(output / ONNX)
    if foreign:
        raise InputError(f"{foreign[0]} would be overwritten; choose another --output")
    contents = {**copies, output / ONNX: to_onnx(model, load_description(folder)["size"])}
    for path, content in contents.items():
        files.write_bytes(path, content)
    return list(contents)
