"""What several sources read: tables, and archives member by member. Nothing is ever extracted."""

import io
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from colorize import files
from colorize.data.manifest import Item
from colorize.files import InputError

MEMBER_BYTES = 2**31
"""No table or batch of the known data sets comes near it; an archive bomb does."""


def encode_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# ---- what several sources share ----


def in_order(photos: list[Item], if_empty: str) -> list[Item]:
    if not photos:
        raise InputError(if_empty)
    return sorted(photos, key=lambda photo: photo.photo)


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); data.path must be a readable file"
        ) from error


def read_rows(
    content: bytes,
    where: str,
    needed: list[str],
    delimiter: str = ",",
) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a user's table, texts without surrounding blanks.

    A comma separated file may hold comments; in a tab separated one, Unsplash's, "#" may open a description.
    """
    for place, row in files.parse_table(content, where, needed, delimiter, by_hand=delimiter == ","):
        yield place, {column: text.strip() for column, text in row.items()}


def read_members(path: Path, wanted: re.Pattern[str]) -> dict[str, bytes]:
    """The files of a folder, a zip or a tar whose own name is wanted, sorted by it; nothing is extracted.

    Raises:
        InputError: `path` is neither, is damaged, or holds a wanted file twice or absurdly large.
    """
    found: dict[str, bytes] = {}
    try:
        for name, open_member in _archive(path):
            own = name.rpartition("/")[2]
            if not wanted.fullmatch(own):
                continue
            if own in found:
                raise InputError(f"{path} holds {own} twice; remove one")
            with open_member() as file:
                found[own] = file.read(MEMBER_BYTES + 1)
            if len(found[own]) > MEMBER_BYTES:
                raise InputError(
                    f"{path}: {own} is larger than {MEMBER_BYTES} bytes and so not what it should be"
                )
    # RuntimeError: an encrypted zip.
    except (OSError, EOFError, RuntimeError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is neither a folder nor a sound zip or tar archive: {error}") from error
    return dict(sorted(found.items()))


def _archive(path: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The regular files of a folder, a zip or a tar: name, and a function that opens it."""
    if path.is_dir():
        for inner in path.rglob("*"):
            if inner.is_file():
                yield inner.name, partial(inner.open, "rb")
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield name, partial(archive.open, name)
    else:
        with tarfile.open(path) as tar:
            for info in tar:
                if info.isfile():
                    yield info.name, partial(tar.extractfile, info)
