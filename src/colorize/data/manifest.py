"""The list of photographs, photos.csv, and their original bytes.

`pack` writes the bytes into tar shards, 1000 photographs to a file, because many small files are slow in DVC; a local
folder is left where it is. `Reader` gives the bytes back.
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
    """What the source reads: a folder, a CSV or an archive."""
    seed: Seed = 1
    """Draws the items of `limit` and the split; training has another one."""
    limit: Count = 0
    """Keep only so many items, drawn with the seed; 0 keeps all."""
    url_column: str = "url"
    request_size: Positive = 256
    """Side in pixels that the Unsplash image service is asked for."""
    threads: Threads = 16
    attempts: Positive = 4
    timeout_seconds: Annotated[float, Gt(0)] = 60
    """Total deadline of one item, all its attempts' connections and bodies included, waiting for Retry-After not."""
    max_megabytes: Annotated[float, Gt(0)] = 50
    max_failed: Share = 0.1
    """Share of failed items at which the download counts as failed."""
    allow_private: bool = False
    """Whether addresses of this machine and of private networks may be fetched from."""


@dataclass
class Item:
    """One row of photos.csv, filled in as the item goes its way; `content` gives its bytes and is not written."""

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
        """Take the item out: `status` is "skipped", "failed", or "ignored": counted, without a row."""
        self.status, self.reason, self.retryable, self.sha256 = status, reason, retryable, ""


def pack(photos: Iterable[Item], folder: Path) -> None:
    """Write the bytes of every item that is ok into `folder`/photos-*.tar; note where, the sha256 and the size.

    Items whose `member` is already named are left where they are and only read for their sha256.

    Raises:
        InputError: bytes cannot be read, or the folder cannot be written to.
    """
    contents = _contents(photos)
    for number in itertools.count():
        first = next(contents, None)
        if first is None:
            return
        name = f"photos-{number:05d}.tar"
        with (
            files.atomic(folder / name) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for photo, content in itertools.chain([first], itertools.islice(contents, SHARD_ITEMS - 1)):
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
            raise InputError(
                f"photo {photo.photo} cannot be read ({error.strerror}); run this again"
            ) from error
        photo.sha256, photo.size = hashlib.sha256(content).hexdigest(), len(content)
        if not photo.member:
            yield photo, content


def write_manifest(path: Path, items: list[Item]) -> None:
    """Write photos.csv; what is ignored has no row in it."""
    items = [item for item in items if item.status != "ignored"]
    columns = [field.name for field in fields(Item) if field.name != "content"]
    frame = pd.DataFrame([[getattr(item, name) for name in columns] for item in items], columns=columns)
    frame["retryable"] = [str(p.retryable).lower() if p.status == "failed" else "" for p in items]
    # Addresses with a password are refused; so that it stays secret, it is not written down either.
    frame["url"] = [re.sub(r"//[^/?#]*@", "//", item.url) for item in items]
    frame = frame.rename(columns={"label": "class", "size": "bytes"})
    files.write_text(path, frame.to_csv(index=False, lineterminator="\n"))


class Reader:
    """Gives the original bytes back that a row of photos.csv points to.

    `photos` is the folder of the shards, `data_path` the folder that the folder source reads in place. Holds no
    open file, so that it may travel to worker processes.
    """

    def __init__(self, photos: Path, data_path: Path) -> None:
        self.photos = photos
        self.data_path = data_path
        self._places: dict[str, dict[str, tuple[int, int]]] = {}

    def read(self, shard: str, member: str) -> bytes:
        """The bytes of one item; an empty `shard` means a file of the data folder.

        Raises:
            InputError: the shard or the file is missing, or its name leads out of its folder.
            KeyError: the shard holds no such member.
        """
        folder, name = (self.photos, shard) if shard else (self.data_path, name_of(member))
        path = folder / name
        try:
            if not is_inside(path, folder):
                raise InputError(f"{name!r} leads out of {folder}; run the download again")
            if not shard:
                return path.read_bytes()
            index = self._index(shard)
            if member not in index:
                raise KeyError(f"{path} holds no {member}")
            offset, size = index[member]
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except (OSError, tarfile.TarError) as error:
            raise InputError(f"cannot read {path}: {error}; run the download again") from error

    def _index(self, shard: str) -> dict[str, tuple[int, int]]:
        if shard not in self._places:
            with tarfile.open(self.photos / shard, "r:") as tar:
                self._places[shard] = {info.name: (info.offset_data, info.size) for info in tar}
        return self._places[shard]


def is_inside(path: Path, root: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
