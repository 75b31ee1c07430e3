"""Score trained models on any color photographs, with the pipeline's protocol.

Photographs are cropped like in the crop stage, at one size for all models, and scored like in the evaluate
stage: beside both baselines, with bootstrap intervals and paired differences. Unreadable photographs are left
out and listed with the reason.
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
    """The result of scoring."""

    size: int
    """Side of the crops in pixels."""
    images: int
    """Scored photographs."""
    grey_truths: int
    """Scored photographs that are grey in truth, which PSNR leaves out."""
    failed: dict[str, str]
    """Photographs that could not be scored, and why."""
    passed_over: Counter[str]
    """Files in the folders that are no photographs: reason to number."""
    table: pd.DataFrame
    """Of `metrics.compare`; each photograph is its own group."""


def score(
    paths: Sequence[Path],
    systems: Sequence[System],
    config: EvaluateConfig,
    size: int = 0,
    device: torch.device | str = "cpu",
    max_megapixels: float = CropConfig.max_megapixels,
) -> Scores:
    """Score models and both baselines.

    Args:
        size: side of the crops in pixels; 0 takes the largest size of the models.
        max_megapixels: refuse larger photographs before decoding them.

    Raises:
        InputError: no photograph is usable, the size is below a model's, or a prediction is not finite.
    """
    size = size or max(system.size for system in systems)
    for system in systems:
        if system.size > size:
            limit = f"{system.name} works at {system.size} pixels"
            raise InputError(f"{limit}; score at that size or a larger one, not at {size}")
    if systems[0].mean_ab is None:
        raise InputError(f"{systems[0].name} does not tell the mean color it learned from; train it again")
    items = find(paths)
    failed = {text_of(item.name): item.reason for item in items if item.status == "failed"}
    passed_over = Counter(item.reason for item in items if item.status in ("skipped", "ignored"))
    rows = []
    for item in items:
        if item.kind:
            row = {"photo": text_of(item.name), "shard": "", "member": str(item.source)}
            rows.append(row | {"sha256": files.sha256(item.source)})
    threads = torch.get_num_threads()
    cropping = CropConfig(size=size, workers=threads, max_megapixels=max_megapixels)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        records = [record for part in crop_shards(rows, read_file, folder, cropping) for record in part]
        kept = [record.photo for record in records if record.status == "ok"]
        failed |= {record.photo: record.reason for record in records if record.status != "ok"}
        if not kept:
            reasons = f"none of {len(failed)} photographs could be read ({counts(failed.values())})"
            raise InputError(f"{reasons}; give color photographs")
        crops = Crops(folder)
        mean = Statistics({"mean_ab": np.array(systems[0].mean_ab)})
        models = {system.name: (system.model, system.size) for system in systems}
        models |= {name: (build_baseline(name, mean), size) for name in metrics.BASELINES}
        critic = plausibility.critic(crops, config.batch, device, threads)
        tables = {
            name: evaluation.score(
                name, model, side, kept, crops, config.batch, config.samples, device, threads, critic
            ).assign(group=kept)
            for name, (model, side) in models.items()
        }
    grey = int(tables[systems[0].name]["grey_truth"].sum())
    return Scores(size, len(kept), grey, failed, passed_over, metrics.compare(tables, config.bootstrap))
