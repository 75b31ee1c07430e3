"""Photographs to shards of squares, on every core or on a cluster.

Shards depend on the rows and the size alone, so they are the same bytes for any number of workers.
"""

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
"""Longest time that a worker may take for a shard; large photographs take it about a minute."""
SHARD_ROWS = 1000
SHARD_BYTES = 2**28
MIN_SHARDS = 16
"""Small data sets are cut into about so many shards, so that every core has work."""

Read = Callable[[str, str], bytes]
"""From shard and member to the original bytes."""


def read_file(shard: str, member: str) -> bytes:
    """A file's bytes. It stands here because worker processes import the module in which their reader stands."""
    return Path(member).read_bytes()


def _crop_row(row: Mapping[Any, str], read: Read, rule: CropConfig) -> tuple[Record, np.ndarray | None]:
    try:
        content = read(row["shard"], row["member"])
    except (InputError, KeyError):
        return Record(row["photo"], reason="missing"), None
    if hashlib.sha256(content).hexdigest() != row["sha256"]:
        return Record(row["photo"], reason="hash_mismatch"), None
    try:
        pixels, record = crop_square(content, rule)
    except Refused as refused:
        reason = str(refused)
        return Record(row["photo"], "skipped" if reason == "too_small" else "failed", reason), None
    record.photo = row["photo"]
    return record, pixels


def _crop_row_apart(row: Mapping[Any, str], read: Read, rule: CropConfig) -> tuple[Record, np.ndarray | None]:
    """`_crop_row` in a process of its own, which may die."""
    try:
        return Parallel(n_jobs=2)([delayed(_crop_row)(row, read, rule)])[0]
    except BrokenProcessPool:
        return Record(row["photo"], reason="crash"), None


def _crop_shard(
    rows: Sequence[Mapping[Any, str]], path: Path, read: Read, rule: CropConfig, crop_row=_crop_row
) -> list[Record]:
    crops = np.empty((len(rows), rule.size, rule.size, 3), np.uint8)
    records = []
    count = 0
    for row in rows:
        record, pixels = crop_row(row, read, rule)
        records.append(record)
        if pixels is not None:
            crops[count] = pixels
            count += 1
    if count:
        write_array(path, crops[:count])
    return records


Run = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]], float], Iterator[Any]]
"""Calls a function with the arguments of each job, gives up after so many seconds: its results in order, None for a job
whose workers died."""


def crop_shards(
    rows: Sequence[Mapping[Any, str]], read: Read, folder: Path, rule: CropConfig, run: Run | None = None
) -> Iterator[list[Record]]:
    """Crop photographs into `folder`/crops-00000.npy and following, on every core, in the order of `rows`.

    Each row has photo, shard, member and sha256. Shards depend on the rows and the size alone, so they are the same
    bytes for any number of workers. A photograph whose decoder kills its process costs only itself: its record
    says crash (with one worker there is no other process to die in its place).

    Args:
        run: what a cluster does the work with, `colorize.cluster.results` of a client; its workers read the photographs and
            write `folder` under the same paths as this process. None: `rule.workers` processes of this machine.

    Yields:
        The records of one shard after the other.

    Raises:
        InputError: a worker hangs in a photograph (with one worker there is nobody to notice); on a cluster it goes on
            hanging, and no worker being free for so long looks the same.
    """
    per_shard = min(SHARD_ROWS, SHARD_BYTES // (rule.size**2 * 3) or 1, -(-len(rows) // MIN_SHARDS) or 1)
    jobs = [
        (rows[start : start + per_shard], folder / f"crops-{start // per_shard:05d}.npy", read, rule)
        for start in range(0, len(rows), per_shard)
    ]
    workers = min(rule.workers or cpu_count(), len(jobs))
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
                # A cluster gives None for a shard of which a photograph kills the workers.
                yield records or _crop_shard(*jobs[done - 1], crop_row=_crop_row_apart)
        except (TimeoutError, multiprocessing.TimeoutError) as error:
            first, last = jobs[done][0][0]["photo"], jobs[done][0][-1]["photo"]
            raise InputError(
                f"one of the photographs {first} to {last} keeps a worker busy for over {HANG_SECONDS:g} seconds; find it "
                "on this machine with crop.workers=1, and remove it"
            ) from error
        except BrokenProcessPool:  # by some photograph of the shards in flight: this one is taken apart
            done += 1
            yield _crop_shard(*jobs[done - 1], crop_row=_crop_row_apart)
