"""The list of photographs, photos.csv, and their original bytes.

`pack` writes the bytes into tar shards of 1000 photographs, because many small files are slow in DVC. A local
folder stays where it is. `Reader` reads the bytes back.
"""

import hashlib
import io
import itertools
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
from annotated_types import Gt

from colorize import files
from colorize.data.formats import image_kind
from colorize.files import InputError, name_of
from colorize.settings import Count, Positive, Seed, Share, Threads

SHARD_ITEMS = 1000


@dataclass(frozen=True)
class DataConfig:
    """Where photographs come from and how they are fetched."""

    source: Literal["sample", "folder", "urls", "unsplash", "cifar10"] = "sample"
    path: str = "data/sample.csv"
    """Input of the source: a folder, a CSV or an archive."""
    seed: Seed = 1
    """Seed for `limit` and the split; training has its own."""
    limit: Count = 0
    """Number of items to keep, drawn with the seed; 0 keeps all."""
    url_column: str = "url"
    request_size: Positive = 256
    """Side in pixels that the Unsplash image service is asked for."""
    threads: Threads = 16
    attempts: Positive = 4
    timeout_seconds: Annotated[float, Gt(0)] = 60
    """Limit for one item: all its attempts together, without waiting for Retry-After."""
    max_megabytes: Annotated[float, Gt(0)] = 50
    max_failed: Share = 0.1
    """The download fails at this share of failed items."""
    allow_private: bool = False
    """Allow addresses of this machine and of private networks."""


@dataclass
class Item:
    """One row of photos.csv, filled in step by step; `content` reads the bytes and is not written."""

    photo: str
    group: str
    label: str = ""
    split: str = ""
    status: str = "ok"
    reason: str = ""
    retryable: bool = False
    sha256: str = ""
    size: int = 0
    shard: str = ""
    member: str = ""
    url: str = ""
    content: Callable[[], bytes] | None = None

    def end(self, status: str, reason: str, retryable: bool = False) -> None:
        """Drop the item as "skipped", "failed" or "ignored" (counted, but without a row)."""
        self.status, self.reason, self.retryable, self.sha256 = status, reason, retryable, ""


def pack(photos: Iterable[Item], folder: Path) -> None:
    """Write the bytes of every valid item into `folder`/photos-*.tar; note the place, sha256 and size in the
    item.

    Items that already have a `member` stay where they are and are only read for their sha256.

    Raises:
        InputError: bytes cannot be read, or the folder is not writable.
    """
    contents = _contents(photos)
    for number in itertools.count():
        batch = itertools.islice(contents, SHARD_ITEMS)
        if (first := next(batch, None)) is None:
            return
        name = f"photos-{number:05d}.tar"
        with (
            files.atomic(folder / name) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for photo, content in itertools.chain([first], batch):
                photo.shard, photo.member = name, f"{photo.photo}.{image_kind(content)}"
                info = tarfile.TarInfo(photo.member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def _contents(photos: Iterable[Item]) -> Iterator[tuple[Item, bytes]]:
    for photo in photos:
        if photo.status != "ok" or photo.content is None:
            continue
        try:
            content = photo.content()
        except OSError as error:
            problem = f"photo {photo.photo} cannot be read ({error.strerror})"
            raise InputError(f"{problem}; run this again") from error
        photo.sha256, photo.size = hashlib.sha256(content).hexdigest(), len(content)
        if not photo.member:
            yield photo, content


def write_manifest(path: Path, items: list[Item]) -> None:
    """Write photos.csv, without ignored items."""
    items = [item for item in items if item.status != "ignored"]
    columns = [field.name for field in fields(Item) if field.name != "content"]
    frame = pd.DataFrame([[getattr(item, name) for name in columns] for item in items], columns=columns)
    frame["retryable"] = [str(p.retryable).lower() if p.status == "failed" else "" for p in items]
    # Addresses with a password were refused; keep the password secret.
    frame["url"] = [re.sub(r"//[^/?#]*@", "//", item.url) for item in items]
    frame = frame.rename(columns={"label": "class", "size": "bytes"})
    files.write_text(path, frame.to_csv(index=False, lineterminator="\n"))


class Reader:
    """Reads the original bytes of a row of photos.csv.

    It holds no open file, so it can be sent to worker processes.

    Args:
        photos: folder of the shards.
        data_path: folder that the folder source reads in place.
    """

    def __init__(self, photos: Path, data_path: Path) -> None:
        self.photos = photos
        self.data_path = data_path
        self._indices: dict[str, dict[str, tuple[int, int]]] = {}

    def read(self, shard: str, member: str) -> bytes:
        """Read the bytes of one item; an empty `shard` means a file of the data folder.

        Raises:
            InputError: the shard or the file is missing, or its name leads out of its folder.
            KeyError: the shard has no such member.
        """
        folder, name = (self.photos, shard) if shard else (self.data_path, name_of(member))
        path = folder / name
        try:
            if not is_inside(path, folder):
                raise InputError(f"{name!r} leads out of {folder}; run the download again")
            if not shard:
                return path.read_bytes()
            if shard not in self._indices:
                with tarfile.open(path, "r:") as tar:
                    self._indices[shard] = {info.name: (info.offset_data, info.size) for info in tar}
            offset, size = self._indices[shard][member]
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except (OSError, tarfile.TarError) as error:
            raise InputError(f"cannot read {path}: {error}; run the download again") from error


def is_inside(path: Path, root: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
