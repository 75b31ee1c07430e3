"""A trained model for other programs: weights as safetensors with their description, and the whole model as ONNX.

The ONNX model takes `light` [1, 1, H, W], L* in 0 to 100 of sRGB under D65, and gives `ab` [1, 2, H, W] in Lab units: the
bins and the temperature of a classifier are inside. Models that take any size keep that freedom in H and W. It is written
only if ONNX Runtime gives what PyTorch gives.
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
"""Lab units by which the two may differ, far below what an 8-bit pixel shows."""


class _Ab(nn.Module):
    """Light to ab, as a module without anything that only training needs."""

    def __init__(self, model: Colorizer) -> None:
        super().__init__()
        self.model = model

    def forward(self, light: Tensor) -> Tensor:
        return self.model.colorize(light)


def to_onnx(model: Colorizer, size: int) -> bytes:
    """A model that works at `size` pixels as ONNX, checked against PyTorch at that size and, if it takes any, at another.

    Raises:
        InputError: the packages are missing, or ONNX Runtime gives something else.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise InputError("ONNX needs three more packages; run pip install 'colorize[onnx]'") from error
    sides = {"light": {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}} if model.any_size else None
    shapes = [(1, 1, size, size)] + [(1, 1, size + 8, size + 24)] * model.any_size
    lights = [torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 100 for shape in shapes]
    with torch.no_grad():
        # Before the export, which would leave its stand-ins in the cache of the color matrices.
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
        (found,) = session.run(None, {"light": light.numpy()})
        off = float(np.abs(found - wanted).max())
        if off > TOLERANCE:
            raise InputError(f"ONNX Runtime differs from PyTorch by {off:.3g} Lab units; nothing was written")
    return content


def export(folder: Path, output: Path) -> list[Path]:
    """Write a trained model's three files to another folder.

    Raises:
        InputError: there is no trained model, ONNX cannot be had, or another file would be overwritten.
    """
    model = load_model(folder)
    copies = {output / name: (folder / name).read_bytes() for name in (WEIGHTS, DESCRIPTION)}
    there = [path for path in copies if os.path.lexists(path)]
    foreign = [path for path in there if not path.is_file() or path.read_bytes() != copies[path]]
    if os.path.lexists(output / ONNX) and len(there) < len(
        copies
    ):  # beside the two it is this model's, of an earlier export
        foreign.append(output / ONNX)
    if foreign:
        raise InputError(f"{foreign[0]} would be overwritten; choose another --output")
    contents = {**copies, output / ONNX: to_onnx(model, load_description(folder)["size"])}
    for path, content in contents.items():
        files.write_bytes(path, content)
    return list(contents)
