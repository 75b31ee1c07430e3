"""Decode and crop photographs to upright sRGB squares: data/photos -> data/crops (SPEC 2.3).

Every fetched photograph gets one row in crops.csv: ok, or the reason why not. Unreadable photographs are no
error as long as one is readable.
"""

import sys
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from colorize.data import cluster
from colorize.data.crops import crop_shards
from colorize.data.images import SENTENCES, CropConfig
from colorize.data.manifest import DataConfig, Reader
from colorize.files import InputError, read_table, remove_partial, write_text
from pipeline import paths
from pipeline.params import Params, stage


class CropParams(Params):
    data: DataConfig
    crop: CropConfig


def main(params: CropParams) -> None:
    """Crop every fetched photograph.

    Raises:
        InputError: photos.csv is missing or damaged, or no photograph is readable.
    """
    columns = dict.fromkeys(("photo", "status", "shard", "member", "sha256"), str)
    photos = read_table(paths.PHOTOS_CSV, columns, unique="photo", remedy="run `dvc repro download`")
    fetched = photos[photos.status == "ok"][["photo", "shard", "member", "sha256"]].to_dict("records")

    remove_partial(paths.CROPS)
    for stale in paths.CROPS.glob("crops-*.npy"):
        stale.unlink()
    # Absolute paths, because worker processes keep the folder in which they were started.
    reader = Reader(paths.PHOTOS.resolve(), Path(params.data.path).resolve())
    records = []
    with (
        cluster.connected(params.crop.cluster) as run,
        tqdm(total=len(fetched), desc="crop", unit="photo", file=sys.stderr, disable=None) as bar,
    ):
        for shard in crop_shards(fetched, reader.read, paths.CROPS.resolve(), params.crop, run):
            records += shard
            bar.update(len(shard))
    remove_partial(paths.CROPS)

    reasons = pd.Series([record.reason for record in records if record.reason], dtype=str).value_counts()
    counted = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    if not any(record.status == "ok" for record in records):
        remedy = "No row is ok; check data.path in params.yaml"
        if counted:
            remedy = SENTENCES.get(reasons.index[0], "")
        unusable = f"none of the {len(records)} photographs in {paths.PHOTOS_CSV} can be used"
        raise InputError(f"{unusable} ({counted or 'none'}). {remedy}")
    crops = pd.DataFrame([asdict(record) for record in records])
    crops[["width", "height"]] = crops[["width", "height"]].astype("Int64")
    ok = crops.status == "ok"
    crops["index"] = (ok.cumsum() - 1).where(ok).astype("Int64")
    write_text(paths.CROPS_CSV, crops.to_csv(index=False, lineterminator="\n"))
    why = f" ({counted})" if counted else ""
    print(
        f"crop: {ok.sum()} of {len(crops)} photographs at {params.crop.size} pixels, "
        f"{crops.small.sum()} enlarged, {(crops.status == 'skipped').sum()} too small, "
        f"{(crops.status == 'failed').sum()} unreadable{why}, {(crops.note != '').sum()} with notes"
    )


if __name__ == "__main__":
    stage(CropParams, main)
