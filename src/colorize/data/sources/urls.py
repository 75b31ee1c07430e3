"""Lists of addresses: lines of a text file, or a column of a CSV."""

import io
import re
from collections import Counter
from pathlib import Path

from colorize import files
from colorize.data.manifest import Item
from colorize.data.sources.archive import read_bytes, read_rows
from colorize.files import InputError


def list_items(path: Path, column: str) -> list[Item]:
    content, where = read_bytes(path), str(path)
    if path.suffix.lower() == ".txt":
        lines = [line.strip() for line in io.StringIO(files.decode(content, where), newline=None)]
        numbered = [(n, line) for n, line in enumerate(lines, 1) if line and line[0] != "#"]
        entries = [(f"{where}, line {n}", line, "") for n, line in numbered]
    else:
        table = read_rows(content, where, [column])
        entries = [(place, row[column], row.get("sha256", "").lower()) for place, row in table]
    if not entries:
        raise InputError(f"{path} lists no address; add one to each line")
    rows = []
    for place, url, expected in entries:
        name = files.sha256_bytes(checked_address(url, place).encode())[:16]
        rows.append((name, url, expected))
    return unique_items(rows)


def checked_address(url: str, where: str) -> str:
    """Refuse tabs and line breaks in an address, which urllib would silently drop."""
    if re.search(r"[\0-\x1f\x7f]", url):
        raise InputError(f"{where}: {url!r} holds a tab or a line break; give each address a row of its own")
    return url


def unique_items(rows: list[tuple[str, str, str]]) -> list[Item]:
    """Make items with unique names from (name, address, sha256 or ""); skip repeated addresses."""
    photos: list[Item] = []
    names, addresses = Counter[str](), set[str]()
    for name, url, expected in rows:
        names[name] += 1
        unique = name if names[name] == 1 else f"{name}-{names[name]}"
        photo = Item(unique, unique, sha256=expected, url=url)
        if not url:
            photo.end("failed", "no_address")
        elif url in addresses or unique != name:
            photo.end("skipped", "duplicate_url")
        addresses.add(url)
        photos.append(photo)
    return photos
