"""Train one model: `python -m pipeline.train [--model NAME]`; by default the one that params.yaml chooses.

`torchrun --nproc-per-node N -m pipeline.train` trains it with N processes, each with its own GPU. A single
process takes the first GPU that no other training uses.

The training state lies in runs/<name>-<fingerprint>/, outside of all outs, because DVC deletes outs before it
runs. The fingerprint covers all inputs of the weights: block, parameters, seed, imported source files, data,
torch, NumPy and the kind of device. So a state is only continued with the same inputs, and a finished state
is reused instead of retraining. If another process is training the same fingerprint, we wait for its result.
The fingerprint does not cover the processor: one machine may finish what another one began. Measured seconds
go to timing.csv in that folder, never into an out. If `init_from` names another model of params.yaml, its
finished state is used, or it is trained first; weights from other data or parameters are never used.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from tqdm import tqdm

from colorize import distributed, files, models
from colorize.bins import Statistics
from colorize.data.dataset import Photos, Streamed
from colorize.data.shards import Crops
from colorize.files import InputError
from colorize.models import ModelConfig
from colorize.models.base import Colorizer, parameter_count
from colorize.settings import Prior, Seed
from colorize.training.device import TrainConfig, held_bytes, select_device, use_bf16
from colorize.training.loop import Progress, Row, end_of, fit, history_csv, in_force
from pipeline import imports, paths
from pipeline.params import Params, stage

STATE = "state.pt"
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


def prune(keep: Path, gigabytes: float) -> None:
    """Delete the oldest run folders, but not `keep` or running ones, until the total is below `gigabytes`."""
    ours = [folder for folder in paths.RUNS.iterdir() if (folder / STATE).exists()]  # others are the user's
    folders = sorted(ours, key=lambda folder: folder.stat().st_mtime, reverse=True)
    total = 0
    for folder in [keep, *(f for f in folders if f != keep)]:
        with suppress(Timeout, FileNotFoundError):  # another process trains in it or has just deleted it
            total += sum(file.stat().st_size for file in folder.iterdir())
            if folder != keep and total > gigabytes * 1e9:
                with FileLock(folder / "lock", timeout=0):
                    shutil.rmtree(folder)


def lock(folder: Path, name: str) -> AcquireReturnProxy:
    """Lock a run's folder, as a context manager; if another process has the lock, say so and wait."""
    file = FileLock(folder / "lock")
    try:
        return file.acquire(timeout=0)
    except Timeout:
        message = f"{name}: another process is training it in {folder}; waiting for its weights"
        tqdm.write(message, file=sys.stderr)
        return file.acquire()


def share_of(indices: np.ndarray, share: float) -> np.ndarray:
    """Choose a share of the photographs, in order; a larger share contains every smaller one."""
    order = np.random.default_rng(1).permutation(len(indices))  # the same photographs for every seed
    return indices[np.sort(order[: round(share * len(indices))])]


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


def recipe_of(
    params: TrainParams, block: ModelConfig, size: int, photographs: int, device: torch.device
) -> tuple[dict[str, Any], list[str]]:
    """Describe the recipe in force beside the block's recipe; return it and a sentence for each difference.

    Args:
        size: side in pixels at which the model works.
        photographs: number of training photographs.
    """
    config, wanted, used = params.train, block.recipe, in_force(block.recipe, params.train)
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


def trained(params: TrainParams, name: str, gpu: int = 0) -> tuple[Colorizer, Progress, dict[str, Any]]:
    """Train a model, or load its finished state; return the model, its progress and its description.

    All ranks call this; only rank 0 reads and writes the state.

    Args:
        gpu: number of the GPU to use, if any.

    Raises:
        InputError: there is too little data, or several ranks cannot train this model on the CPU.
    """
    device = select_device(params.train, gpu)
    first = distributed.rank() == 0
    statistics = Statistics.read(paths.PRIOR)
    block, notes = trainable(models.block_of(params.models, name), statistics)
    size = block.working_size(Crops(paths.CROPS).side)
    if block.init_from:
        notes.append(f"starts from the weights of {block.init_from}")
    splits = files.read_table(paths.SPLITS_CSV, paths.SPLIT, unique="index")
    indices = {split: splits.loc[splits["split"] == split, "index"].to_numpy() for split in ("train", "val")}
    indices["train"] = share_of(indices["train"], block.recipe.share)
    if len(indices["train"]) < 2 or len(indices["val"]) < 1:
        counts = f"there are {len(indices['train'])} and {len(indices['val'])}"
        raise InputError(
            f"training needs 2 photographs and 1 for validation; {counts}: add photographs or change "
            "filter.train and filter.val, or raise the model's recipe.share"
        )
    recipe: dict[str, Any] = {}
    if models.model_class(block).phases:
        recipe, differences = recipe_of(params, block, size, len(indices["train"]), device)
        notes += differences
    sets = {
        split: Photos(Streamed(Crops(paths.CROPS, rows), device), size) for split, rows in indices.items()
    }
    if sum(photos.bytes for photos in sets.values()) <= held_bytes(params.train, device):
        sets = {split: photos.held() for split, photos in sets.items()}
    digits = fingerprint(params, name, device)
    folder = paths.run_folder(name, digits)
    folder.mkdir(parents=True, exist_ok=True)

    def report(row: Row) -> None:
        values = f"train {row['train_loss']:.5g}  val {row['val_loss']:.5g}"
        tqdm.write(f"{name}  epoch {row['epoch']:g}  {values}")

    def begin() -> None:
        if block.init_from in params.models:
            models.start_from(model, trained(params, block.init_from, gpu)[0])
        elif block.init_from:
            models.start_from(model, models.load_model(models.initial_folder(block.init_from), device.type))

    with lock(folder, name) if first else nullcontext():
        if first:
            files.remove_partial(folder)
            if notes:
                tqdm.write(f"{name}: {'; '.join(notes)}")
        torch.manual_seed(params.seed)
        model = models.build_model(block, size, statistics, downloads=paths.DOWNLOADS).to(device)
        distributed.synchronize(model, name, device)
        state, seed = folder / STATE, params.seed
        progress = fit(
            model, sets["train"], sets["val"], block.recipe, params.train, seed, state, report, begin
        )
        if first:
            lines = [f"{epoch},{seconds:.3f}" for epoch, seconds in enumerate(progress.seconds, start=1)]
            files.write_text(folder / paths.TIMING, "\n".join(["epoch,seconds", *lines]) + "\n")
    if recipe:
        recipe["ended_by"] = end_of(progress, in_force(block.recipe, params.train), params.train)
        if recipe["ended_by"] == "minutes":
            notes.append(
                f"stopped before its last epoch, because train.max_minutes is {params.train.max_minutes:g}"
            )
    description = {
        "name": name,
        "block": models.describe_block(block),
        "seed": params.seed,
        "size": size,
        "parameters": parameter_count(model),
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "recipe": recipe,
        "fingerprint": digits,
        "mean_ab": [float(f"{value:.6g}") for value in statistics.arrays["mean_ab"]],
        "notes": notes,
    }
    return model, progress, description


def train(params: TrainParams, name: str, out: Path, gpu: int = 0) -> Progress:
    """Train a model or load its finished state, and write it to `out`; raise the errors of `trained`."""
    model, progress, description = trained(params, name, gpu)
    if distributed.local_rank() == 0:  # on every machine, because DVC expects the out there
        print(f"{name}: {progress.epoch} epochs, weights of epoch {progress.best_epoch}")
        models.save_model(out, model, description, history_csv(progress.history))
        prune(paths.run_folder(name, description["fingerprint"]), params.train.runs_gigabytes)
    return progress


@contextmanager
def own_gpu(gpus: Sequence[int]) -> Iterator[int]:
    """Reserve the first GPU that no other training of this project uses; share the first if all are used."""
    paths.RUNS.mkdir(parents=True, exist_ok=True)
    chosen = gpus[0] if gpus else 0
    with ExitStack() as stack:
        for number in gpus:
            with suppress(Timeout):
                stack.enter_context(FileLock(paths.RUNS / f"gpu-{number}.lock", timeout=0))
                chosen = number
                break
        yield chosen


def main(params: TrainParams) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="block of params.yaml; writes data/zoo/NAME instead of data/model")
    arguments = parser.parse_args()
    name = arguments.model or params.model
    out = paths.ZOO / name if arguments.model else paths.MODEL
    gpus = range(0 if params.train.device == "cpu" else torch.cuda.device_count())
    if "LOCAL_RANK" in os.environ:  # each rank of torchrun takes one GPU
        gpus = gpus[distributed.local_rank() :][:1]
    with own_gpu(gpus) as gpu, distributed.init(select_device(params.train, gpu)):
        train(params, name, out, gpu)


if __name__ == "__main__":
    stage(TrainParams, main)
