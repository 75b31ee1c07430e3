"""Score trained models on any folder of color photographs, by the pipeline's own protocol.

Photographs are cropped as the crop stage does, at one size for all models, and scored as the evaluate stage does, beside the
baselines `grey` and `mean_color`, with bootstrap intervals and paired differences. What cannot be decoded is left out and
counted with its reason.
"""

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from colorize import files
from colorize.apply.coloring import System, find
from colorize.bins import Statistics
from colorize.data.album import counts
from colorize.data.crops import crop_shards, read_file
from colorize.data.images import CropConfig
from colorize.data.shards import Crops
from colorize.files import InputError, text_of
from colorize.models import build_baseline
from colorize.scoring import evaluation, metrics, plausibility
from colorize.scoring.evaluation import EvaluateConfig


@dataclass(frozen=True)
class Scores:
    """What came of scoring."""

    size: int
    """Side of the crops in pixels."""
    images: int
    """Photographs that were scored."""
    grey_truths: int
    """Those of them that are grey in truth, which PSNR leaves out."""
    failed: dict[str, str]
    """Photographs that were not, and why."""
    passed_over: Counter[str]
    """What in the folders is no photograph: how many files for each reason."""
    table: pd.DataFrame
    """Of `metrics.compare`; each photograph is its own group."""


def score(
    given: Sequence[Path],
    systems: Sequence[System],
    rule: EvaluateConfig,
    size: int = 0,
    device: torch.device | str = "cpu",
    max_megapixels: float = CropConfig.max_megapixels,
) -> Scores:
    """Score models and both baselines.

    Args:
        size: side of the crops; 0 takes the largest at which one of the models works.
        max_megapixels: larger photographs are refused before they are decoded.

    Raises:
        InputError: there is no usable photograph, the size is below a model's, or a model predicts something not finite.
    """
    size = size or max(system.size for system in systems)
    for system in systems:
        if system.size > size:
            raise InputError(
                f"{system.name} works at {system.size} pixels; score at that size or a larger one, not at {size}"
            )
    if systems[0].mean_ab is None:
        raise InputError(f"{systems[0].name} does not tell the mean color it learned from; train it again")
    items = find(given)
    failed = {text_of(item.name): item.reason for item in items if item.status == "failed"}
    passed_over = Counter(item.reason for item in items if item.status in ("skipped", "ignored"))
    rows = [
        {
            "photo": text_of(item.name),
            "shard": "",
            "member": str(item.source),
            "sha256": files.sha256(item.source),
        }
        for item in items
        if item.kind
    ]
    threads = torch.get_num_threads()
    cropping = CropConfig(size=size, workers=threads, max_megapixels=max_megapixels)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        records = [record for part in crop_shards(rows, read_file, folder, cropping) for record in part]
        kept = [record.photo for record in records if record.status == "ok"]
        failed |= {record.photo: record.reason for record in records if record.status != "ok"}
        if not kept:
            why = counts(failed.values())
            raise InputError(
                f"none of {len(failed)} photographs could be read ({why}); give color photographs"
            )
        crops = Crops(folder)
        mean = Statistics({"mean_ab": np.array(systems[0].mean_ab)})
        models = {system.name: (system.model, system.size) for system in systems}
        models |= {name: (build_baseline(name, mean), size) for name in metrics.BASELINES}
        critic = plausibility.critic(crops, rule.batch, device, threads)
        tables = {
            name: evaluation.score(
                name, model, side, kept, crops, rule.batch, rule.samples, device, threads, critic
            ).assign(group=kept)
            for name, (model, side) in models.items()
        }
    grey = int(tables[systems[0].name]["grey_truth"].sum())
    return Scores(size, len(kept), grey, failed, passed_over, metrics.compare(tables, rule.bootstrap))
