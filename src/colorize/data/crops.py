"""Turn photographs into shards of square crops, on every core or on a cluster."""

import hashlib
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, cpu_count, delayed

from colorize.data.images import CropConfig, Record, Refused, crop_square
from colorize.files import InputError, write_array

HANG_SECONDS = 1800.0
"""Longest time that a worker may take for a shard; a shard of large photographs takes about a minute."""
SHARD_ROWS = 1000
SHARD_BYTES = 2**28
MIN_SHARDS = 16
"""Small data sets are cut into about this many shards, so that every core has work."""

Read = Callable[[str, str], bytes]
"""Reads the original bytes from shard and member."""
Run = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]], float], Iterator[Any]]
"""Calls a function with the arguments of each job and yields the results in order, or None for a job whose
workers died. Its last argument is the longest wait for a result, in seconds."""


def read_file(shard: str, member: str) -> bytes:
    """Read a file. The function is defined here because workers import the module of their reader."""
    return Path(member).read_bytes()


def _crop_row(row: Mapping[Any, str], read: Read, config: CropConfig) -> tuple[Record, np.ndarray | None]:
    try:
        content = read(row["shard"], row["member"])
    except (InputError, KeyError):
        return Record(row["photo"], reason="missing"), None
    if hashlib.sha256(content).hexdigest() != row["sha256"]:
        return Record(row["photo"], reason="hash_mismatch"), None
    try:
        pixels, record = crop_square(content, config)
    except Refused as refused:
        reason = str(refused)
        return Record(row["photo"], "skipped" if reason == "too_small" else "failed", reason), None
    record.photo = row["photo"]
    return record, pixels


def _crop_row_apart(
    row: Mapping[Any, str], read: Read, config: CropConfig
) -> tuple[Record, np.ndarray | None]:
    """Call `_crop_row` in a process of its own, which may crash."""
    try:
        return Parallel(n_jobs=2)([delayed(_crop_row)(row, read, config)])[0]
    except BrokenProcessPool:
        return Record(row["photo"], reason="crash"), None


def _crop_shard(
    rows: Sequence[Mapping[Any, str]], path: Path, read: Read, config: CropConfig, crop_row=_crop_row
) -> list[Record]:
    crops = np.empty((len(rows), config.size, config.size, 3), np.uint8)
    records = []
    count = 0
    for row in rows:
        record, pixels = crop_row(row, read, config)
        records.append(record)
        if pixels is not None:
            crops[count] = pixels
            count += 1
    if count:
        write_array(path, crops[:count])
    return records


def crop_shards(
    rows: Sequence[Mapping[Any, str]], read: Read, folder: Path, config: CropConfig, run: Run | None = None
) -> Iterator[list[Record]]:
    """Crop photographs into `folder`/crops-00000.npy and following, in the order of `rows`.

    The shards depend only on the rows and the size: any number of workers writes the same bytes. If a
        photograph
    crashes its worker, only this photograph is lost, and its record says crash. A single worker crashes with
    it.

    Args:
        rows: photo, shard, member and sha256 of each photograph.
        run: `colorize.data.cluster.results` of a client; its workers must see the photographs and `folder`
            under the same paths. None for `config.workers` processes of this machine.

    Yields:
        The records of each shard.

    Raises:
        InputError: a worker hangs, or no worker of the cluster is free for that long. A single worker is not
            watched; a hanging worker of a cluster is not stopped.
    """
    per_shard = min(SHARD_ROWS, SHARD_BYTES // (config.size**2 * 3) or 1, -(-len(rows) // MIN_SHARDS) or 1)
    jobs = [
        (rows[start : start + per_shard], folder / f"crops-{start // per_shard:05d}.npy", read, config)
        for start in range(0, len(rows), per_shard)
    ]
    workers = min(config.workers or cpu_count(), len(jobs))
    done = 0
    while done < len(jobs):
        try:
            if run:
                shards = run(_crop_shard, jobs[done:], HANG_SECONDS)
            else:
                pool = Parallel(workers, return_as="generator", timeout=HANG_SECONDS if workers > 1 else None)
                shards = pool(delayed(_crop_shard)(*job) for job in jobs[done:])
            for records in shards:
                done += 1
                # None: a photograph of the shard crashes the workers of the cluster.
                yield records or _crop_shard(*jobs[done - 1], crop_row=_crop_row_apart)
        except (TimeoutError, multiprocessing.TimeoutError) as error:
            first, last = jobs[done][0][0]["photo"], jobs[done][0][-1]["photo"]
            problem = f"{first} to {last} keeps a worker busy for over {HANG_SECONDS:g} seconds"
            remedy = "find it on this machine with crop.workers=1, and remove it"
            raise InputError(f"one of the photographs {problem}; {remedy}") from error
        except BrokenProcessPool:  # a photograph of some running shard: crop this one row by row
            done += 1
            yield _crop_shard(*jobs[done - 1], crop_row=_crop_row_apart)
