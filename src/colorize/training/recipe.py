"""The recipe in force: what of a model's block holds here, and what differs from what the block asks for."""

from dataclasses import replace
from typing import Any

import torch

from colorize import distributed
from colorize.bins import Statistics
from colorize.models import ModelConfig
from colorize.settings import Prior
from colorize.training.device import TrainConfig, use_bf16
from colorize.training.loop import in_force


def trainable(block: ModelConfig, statistics: Statistics) -> tuple[ModelConfig, list[str]]:
    """Replace the released prior in a block if it is not available; return a sentence for the change.

    We may not distribute the released prior, and do not download it unless prior.released is set.
    """
    weights = block.head.weights
    if not weights.startswith("released") or weights in statistics.arrays:
        return block, []
    ours: Prior = "empirical" if weights == "released" else "smoothed"
    note = (
        f"prior.released is not set: weights from this data set's {ours} prior instead of the {weights} one"
    )
    return replace(block, head=replace(block.head, weights=ours)), [note]


def effective(
    config: TrainConfig, block: ModelConfig, size: int, photographs: int, device: torch.device
) -> tuple[dict[str, Any], list[str]]:
    """Describe the recipe in force beside the block's recipe; return it and a sentence for each difference.

    Args:
        size: side in pixels at which the model works.
        photographs: number of training photographs.
    """
    wanted, used = block.recipe, in_force(block.recipe, config)
    batch = -(-photographs // -(-photographs // wanted.batch))  # all batches of an epoch are about equal
    pairs = {
        "size": (block.size or size, size),
        "epochs": (wanted.epochs, used.epochs),
        "lr": (wanted.lr, used.lr),
        "batch": (wanted.batch, batch),
    }
    recipe: dict[str, Any] = {
        name: dict(zip(("asked", "in_force"), pair, strict=True)) for name, pair in pairs.items()
    }
    recipe |= {
        "patience": wanted.patience,
        "max_minutes": config.max_minutes,
        "device": device.type,
        "precision": "bf16" if use_bf16(config, device) else "fp32",
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "ranks": distributed.world_size(),
    }
    epochs = f"{used.epochs} epoch{'s' * (used.epochs > 1)} at most, not {wanted.epochs:,}"
    lr = f"{used.lr:g}, not {wanted.lr:g}"
    sentences = {
        "size": f"works at {size} pixels, not {block.size}, because crop.size is {size}",
        "epochs": f"trains for {epochs}, because train.max_epochs is {config.max_epochs}",
        "lr": f"trains with a learning rate of {lr}, because train.min_lr is {config.min_lr:g}",
        "batch": f"trains on {batch} photographs at once, not {wanted.batch}, because there are no more",
    }
    if photographs >= wanted.batch:
        del sentences["batch"]
    return recipe, [text for name, text in sentences.items() if pairs[name][0] != pairs[name][1]]
