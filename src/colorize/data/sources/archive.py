"""Read tables and archives for several sources. Archives are read member by member and never extracted."""

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
"""Larger members are refused as archive bombs; those of the known data sets are far smaller."""


def encode_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def in_order(photos: list[Item], if_empty: str) -> list[Item]:
    if not photos:
        raise InputError(if_empty)
    return sorted(photos, key=lambda photo: photo.photo)


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        hint = "data.path must be a readable file"
        raise InputError(f"{path} cannot be read ({error.strerror}); {hint}") from error


def read_rows(
    content: bytes, where: str, needed: list[str], delimiter: str = ","
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a user's table (see `files.parse_table`), without surrounding blanks.

    Comma separated files may hold comments. In Unsplash's tab separated ones, "#" may begin a description.
    """
    for place, row in files.parse_table(content, where, needed, delimiter, by_hand=delimiter == ","):
        yield place, {column: text.strip() for column, text in row.items()}


def read_members(path: Path, wanted: re.Pattern[str]) -> dict[str, bytes]:
    """Read the files of a folder, a zip or a tar whose names, without folders, match; sorted by name.

    Raises:
        InputError: `path` is none of these, is damaged, or holds a file twice or a file that is too large.
    """
    members: dict[str, bytes] = {}
    try:
        for full_name, open_member in _archive(path):
            name = full_name.rpartition("/")[2]
            if not wanted.fullmatch(name):
                continue
            if name in members:
                raise InputError(f"{path} holds {name} twice; remove one")
            with open_member() as file:
                members[name] = file.read(MEMBER_BYTES + 1)
            if len(members[name]) > MEMBER_BYTES:
                raise InputError(f"{path}: {name} is larger than {MEMBER_BYTES} bytes; give the right file")
    # An encrypted zip raises RuntimeError.
    except (OSError, EOFError, RuntimeError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is neither a folder nor a sound zip or tar archive: {error}") from error
    return dict(sorted(members.items()))


def _archive(path: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the regular files of a folder, a zip or a tar: the name, and a function that opens the file."""
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
