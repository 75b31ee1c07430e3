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
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from colorize import distributed, files, models
from colorize.bins import Statistics
from colorize.data.dataset import Photos, Streamed
from colorize.data.shards import Crops
from colorize.files import InputError
from colorize.models.base import Colorizer, parameter_count
from colorize.training import runs
from colorize.training.device import held_bytes, select_device
from colorize.training.loop import Progress, Row, end_of, fit, history_csv, in_force
from colorize.training.recipe import effective, trainable
from pipeline import paths
from pipeline.fingerprint import TrainParams, fingerprint
from pipeline.params import stage


def share_of(indices: np.ndarray, share: float) -> np.ndarray:
    """Choose a share of the photographs, in order; a larger share contains every smaller one."""
    order = np.random.default_rng(1).permutation(len(indices))  # the same photographs for every seed
    return indices[np.sort(order[: round(share * len(indices))])]


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
        recipe, differences = effective(params.train, block, size, len(indices["train"]), device)
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

    with runs.lock(folder, name) if first else nullcontext():
        if first:
            files.remove_partial(folder)
            if notes:
                tqdm.write(f"{name}: {'; '.join(notes)}")
        torch.manual_seed(params.seed)
        model = models.build_model(block, size, statistics, downloads=paths.DOWNLOADS).to(device)
        distributed.synchronize(model, name, device)
        state, seed = folder / runs.STATE, params.seed
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
        runs.prune(paths.run_folder(name, description["fingerprint"]), params.train.runs_gigabytes)
    return progress


def main(params: TrainParams) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="block of params.yaml; writes data/zoo/NAME instead of data/model")
    arguments = parser.parse_args()
    name = arguments.model or params.model
    out = paths.ZOO / name if arguments.model else paths.MODEL
    gpus = range(0 if params.train.device == "cpu" else torch.cuda.device_count())
    if "LOCAL_RANK" in os.environ:  # each rank of torchrun takes one GPU
        gpus = gpus[distributed.local_rank() :][:1]
    with runs.claim_gpu(paths.RUNS, gpus) as gpu, distributed.init(select_device(params.train, gpu)):
        train(params, name, out, gpu)


if __name__ == "__main__":
    stage(TrainParams, main)
