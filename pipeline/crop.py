"""Original bytes to upright sRGB squares: data/photos -> data/crops.

SPEC 2.3. Every photograph that was fetched gets one row in crops.csv: ok, or why not. An unreadable photograph is
data, not an error, as long as one can be read.
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
        InputError: photos.csv is missing or damaged, or not one photograph can be read.
    """
    columns = dict.fromkeys(("photo", "status", "shard", "member", "sha256"), str)
    photos = read_table(paths.PHOTOS_CSV, columns, unique="photo", remedy="run `dvc repro download`")
    fetched = photos[photos.status == "ok"][["photo", "shard", "member", "sha256"]].to_dict("records")

    remove_partial(paths.CROPS)
    for stale in paths.CROPS.glob("crops-*.npy"):
        stale.unlink()
    # Worker processes keep the folder they were started in, hence whole paths.
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
        remedy = (
            SENTENCES.get(reasons.index[0], "") if counted else "No row is ok; check data.path in params.yaml"
        )
        raise InputError(
            f"none of the {len(records)} photographs in {paths.PHOTOS_CSV} can be used ({counted or 'none'}). {remedy}"
        )
    crops = pd.DataFrame([asdict(record) for record in records])
    crops[["width", "height"]] = crops[["width", "height"]].astype("Int64")
    ok = crops.status == "ok"
    crops["index"] = (ok.cumsum() - 1).where(ok).astype("Int64")
    write_text(paths.CROPS_CSV, crops.to_csv(index=False, lineterminator="\n"))
    told = f" ({counted})" if counted else ""
    print(
        f"crop: {ok.sum()} of {len(crops)} photographs at {params.crop.size} pixels, {crops.small.sum()} enlarged, "
        f"{(crops.status == 'skipped').sum()} too small, {(crops.status == 'failed').sum()} unreadable{told}, "
        f"{(crops.note != '').sum()} with notes"
    )


if __name__ == "__main__":
    stage(CropParams, main)
