"""All that a training depends on, as one number: a finished training is only reused for equal inputs.

The fingerprint covers block, settings, seed, every source file that runs, data, torch, NumPy and the kind of
device. It does not cover which processor computes: what one machine began, another may finish.
"""

import hashlib
import json
from dataclasses import asdict

import numpy as np
import torch

from colorize import distributed, files, models
from colorize.data.shards import Crops
from colorize.models import ModelConfig
from colorize.settings import Seed
from colorize.training.device import TrainConfig
from pipeline import imports, paths
from pipeline.params import Params

DECODING = ("temperature", "saturation")
"""Parameters of the head that do not change the weights."""
HARMLESS = ("checkpoint_seconds", "dataset_gigabytes", "runs_gigabytes", "launcher")
"""Parameters of `train` that do not change the weights; the number of ranks does, in the last bits."""


class TrainParams(Params):
    seed: Seed
    model: str
    train: TrainConfig
    models: dict[str, ModelConfig]


def fingerprint(params: TrainParams, name: str, device: torch.device) -> str:
    """Hash everything that the trained weights depend on: 64 hexadecimal digits."""
    block = models.block_of(params.models, name)
    architecture = models.ARCHITECTURES / f"{block.arch}.py"
    origin = block.init_from
    if origin in params.models:
        origin = fingerprint(params, origin, device)
    elif origin:
        origin = files.sha256(models.initial_folder(origin) / models.WEIGHTS)
    config, described = asdict(params.train), models.describe_block(block)
    for harmless in HARMLESS:
        del config[harmless]
    for harmless in DECODING:
        del described["head"][harmless]
    covered = {
        "block": described,
        "init_from": origin,
        "train": config,
        "seed": params.seed,
        "size": block.working_size(Crops(paths.CROPS).side),
        "device": device.type,
        "ranks": distributed.world_size(),
        "packages": [torch.__version__, np.__version__],
        "sources": imports.digests([imports.PACKAGES["pipeline"] / "train.py", architecture]),
        "data": files.sha256_of([paths.CROPS, paths.SPLITS_CSV, paths.PRIOR]),
    }
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()
