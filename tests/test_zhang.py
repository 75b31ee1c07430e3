"""Document 001's networks: their counts, and what the blocks of params.yaml make of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

from colorize.bins import PriorConfig, Statistics
from colorize.models import build_model, describe_block, load_model, save_model
from colorize.models.base import parameter_count
from pipeline.check import AllParams
from pipeline.params import load

BLOCKS = load(AllParams, ROOT / "params.yaml").models
FULL, SIMPLIFIED = 32_235_385, 15_387_513


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("zhang_rebalanced_ours", FULL),
        ("zhang_simplified", SIMPLIFIED),
        ("zhang_euclidean", FULL - (256 + 1) * 313 + (256 + 1) * 2),
        ("zhang_released_code", FULL - 2 * (64 + 128 + 256 + 4 * 512)),
    ],
)
def test_parameter_counts_are_the_documents(name: str, count: int) -> None:
    """Section 4.1; two outputs instead of 313; batch norms without scale and offset."""
    with torch.device("meta"):
        assert parameter_count(build_model(BLOCKS[name], 64)) == count


def test_batch_norm_without_affine_learns_nothing() -> None:
    """The released code's: no parameter in any of the seven, running statistics still there."""
    with torch.device("meta"):
        layers = build_model(BLOCKS["zhang_released_code"], 64).modules()
    norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 7 and not any(list(norm.parameters()) for norm in norms)
    assert all(norm.running_mean is not None for norm in norms)


def test_the_grid_has_as_many_outputs_as_cells_and_loads_without_the_statistics(tmp_path: Path) -> None:
    """Four colors in three cells: the trunk ends in 3 maps, after saving and loading too."""
    colors = np.array([[[[250, 20, 20], [250, 20, 21]], [[20, 200, 20], [128, 128, 128]]]], np.uint8)
    statistics = Statistics.measure(colors, PriorConfig())
    block = BLOCKS["zhang_simplified_grid"]
    torch.manual_seed(0)
    model = build_model(block, 16, statistics).eval()
    assert model.head.channels == 3 and model.net[-1].out_channels == 3
    save_model(tmp_path, model, {"block": describe_block(block), "size": 16}, "")
    loaded = load_model(tmp_path)
    light = torch.rand(1, 1, 16, 16) * 100
    with torch.no_grad():
        assert torch.equal(loaded.colorize(light), model.colorize(light))
    assert torch.equal(loaded.head.centers, torch.tensor(statistics.centers("grid")).float())
    assert loaded.head.class_weights.tolist() == pytest.approx(
        statistics.weights("empirical", "grid").tolist()
    )
