"""The Unsplash data set: tables with the addresses and main colors of photographs."""

import re
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import numpy as np
import pandas as pd

from colorize.data.manifest import Item
from colorize.data.sources.archive import read_members, read_rows
from colorize.data.sources.urls import checked_address, unique_items
from colorize.files import InputError

MAIN_COLORS = 10
LEVELS = ("red", "green", "blue")
COLOR_COLUMNS = ["photo", *LEVELS, "coverage"]


def list_items(path: Path, size: int) -> tuple[list[Item], pd.DataFrame]:
    tables = read_members(path, re.compile(r"(photos|colors)\.[ct]sv\d{3,}"))
    if not any(name.startswith("photos") for name in tables):
        raise InputError(f"{path} holds no photos.tsv000; data.path must be the Unsplash archive or folder")
    rows, colors = [], []
    for name, content in tables.items():
        where = f"{path}: {name}"
        if name.startswith("photos"):
            for place, row in read_rows(content, where, ["photo_id", "photo_image_url"], "\t"):
                if not re.fullmatch(r"[A-Za-z0-9_-]{11}", row["photo_id"]):
                    raise InputError(f"{place}: {row['photo_id']!r} is no photo_id of 11 characters; mend it")
                url = checked_address(row["photo_image_url"], place)
                rows.append((row["photo_id"], _cropped(url, size), ""))
        else:
            colors.append(_colors(content, where))
    if not rows:
        raise InputError(f"{path} lists no photo; download the archive again")
    colors = colors or [pd.DataFrame(columns=COLOR_COLUMNS)]
    return unique_items(rows), pd.concat(colors, ignore_index=True)


def _cropped(url: str, size: int) -> str:
    """Return the address of the photo, cropped at its center and scaled by the image service."""
    crop = {"w": str(size), "h": str(size), "fit": "crop"}
    try:
        parts = urlsplit(url)
    except ValueError:
        return url  # fetching it will report that it is not an address
    query = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0] not in crop]
    return urlunsplit(parts._replace(query=urlencode(query + list(crop.items()))))


def _colors(content: bytes, where: str) -> pd.DataFrame:
    rows = []
    for place, row in read_rows(content, where, ["photo_id", *LEVELS], "\t"):
        share = row["coverage"] if "coverage" in row else row.get("ai_coverage", "")
        try:
            levels, coverage = [int(row[name]) for name in LEVELS], float(share)
        except ValueError:
            levels, coverage = [], -1.0
        if not (levels and 0 <= min(levels) <= max(levels) <= 255 and 0 <= coverage <= 100):
            problem = f"red, green, blue (0..255) and coverage must be numbers, not {row}"
            raise InputError(f"{place}: {problem}; mend it")
        rows.append((row["photo_id"], *levels, coverage))
    kinds = dict.fromkeys(LEVELS, np.uint8) | {"coverage": float}
    frame = pd.DataFrame(rows, columns=COLOR_COLUMNS).astype(kinds)
    if frame["coverage"].max() > 1.5:  # percent instead of Unsplash's shares
        frame["coverage"] /= 100
    frame = frame.sort_values(["photo", "coverage"], ascending=[True, False], kind="stable")
    return frame.groupby("photo").head(MAIN_COLORS)
