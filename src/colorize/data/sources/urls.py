"""Lists of addresses: one to a line of a text file, or a column of a CSV."""

import hashlib
import io
import re
from collections import Counter
from pathlib import Path

from colorize import files
from colorize.data.manifest import Item
from colorize.data.sources.archive import read_bytes, read_rows
from colorize.files import InputError

# ---- urls and unsplash ----


def list_items(path: Path, column: str) -> list[Item]:
    content, where = read_bytes(path), str(path)
    if path.suffix.lower() == ".txt":
        lines = [line.strip() for line in io.StringIO(files.decode(content, where), newline=None)]
        numbered = [(n, line) for n, line in enumerate(lines, 1) if line and line[0] != "#"]
        found = [(f"{where}, line {n}", line, "") for n, line in numbered]
    else:
        table = read_rows(content, where, [column])
        found = [(place, row[column], row.get("sha256", "").lower()) for place, row in table]
    if not found:
        raise InputError(f"{path} lists no address; add one to each line")
    rows = [(checked_address(url, place), digits) for place, url, digits in found]
    return unique_items(
        [(hashlib.sha256(url.encode()).hexdigest()[:16], url, digits) for url, digits in rows]
    )


def checked_address(url: str, where: str) -> str:
    """An address as the list gives it; urllib would drop tabs and line breaks in silence: another address."""
    if re.search(r"[\0-\x1f\x7f]", url):
        raise InputError(f"{where}: {url!r} holds a tab or a line break; give each address a row of its own")
    return url


def unique_items(rows: list[tuple[str, str, str]]) -> list[Item]:
    """Rows from (name, address, sha256 or ""): every address once, every name unique."""
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
