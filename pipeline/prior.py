"""Compute the prior of the training split over the 313 bins, its smoothed form, and the class weights."""

import io
from pathlib import Path

import numpy as np

from colorize import files
from colorize.bins import PriorConfig, Q, Statistics
from colorize.data.fetch import read_pinned
from colorize.data.shards import Crops
from colorize.files import InputError
from pipeline import paths
from pipeline.params import Params, stage

PIXELS_AT_ONCE = 2**24


def read_released(config: PriorConfig) -> np.ndarray | None:
    """Read the released prior [313] from a path or URL; return None if the parameter is empty.

    Raises:
        InputError: the file is missing, or is not the one with the sha256 of the parameters.
    """
    if not config.released:
        return None
    content = read_pinned("prior.released", config.released, config.sha256, paths.DOWNLOADS)
    with files.reading(Path(config.released), "give prior_probs.npy"):
        prior = np.load(io.BytesIO(content), allow_pickle=False)
    if prior.shape != (Q,):
        raise InputError(f"prior.released: {config.released} has shape {prior.shape}, not ({Q},)")
    return prior


class PriorParams(Params):
    prior: PriorConfig


def main(params: PriorParams) -> None:
    released = read_released(params.prior)
    splits = files.read_table(paths.SPLITS_CSV, paths.SPLIT, unique="index")
    training = splits.loc[splits["split"] == "train", "index"].to_numpy()
    if not len(training):
        raise InputError(f"{paths.SPLITS_CSV} lists no training photograph; raise filter.train")
    # In chunks, to limit memory.
    crops = Crops(paths.CROPS, training)
    step = PIXELS_AT_ONCE // crops.side**2
    chunks = (crops[start : start + step] for start in range(0, len(crops), step))
    statistics = Statistics.measure(chunks, params.prior, released)
    statistics.write(paths.PRIOR)
    counts = statistics.arrays["counts"]
    a, b = statistics.arrays["mean_ab"]
    occupied = f"{(counts > 0).sum()} of {Q} bins"
    print(f"prior: {counts.sum():,} pixels of {len(training):,} photographs in {occupied}")
    print(f"mean color: a* {a:.2f}, b* {b:.2f}")


if __name__ == "__main__":
    stage(PriorParams, main)
