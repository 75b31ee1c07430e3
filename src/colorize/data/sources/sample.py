"""The embedded sample: windows of scikit-image's photographs."""

import itertools
import os
import re
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from colorize.data.album import IMAGE_SUFFIXES
from colorize.data.manifest import Item
from colorize.data.sources.archive import encode_png, in_order, read_bytes, read_rows
from colorize.files import InputError


def list_items(path: Path) -> list[Item]:
    """Cut square windows of `side` pixels, every `step` pixels, from scikit-image's photographs."""
    import skimage  # slow to import, and workers that only read do not need it

    shipped = Path(skimage.__file__).parent / "data"
    photos: list[Item] = []
    for where, row in read_rows(read_bytes(path), str(path), ["photo", "side", "step"]):
        name = row["photo"]
        if name not in os.listdir(shipped) or Path(name).suffix not in IMAGE_SUFFIXES:
            problem = f"scikit-image ships no photograph {name!r}"
            raise InputError(f"{where}: {problem}; choose one from {shipped.name}/")
        if not re.fullmatch(r"[1-9][0-9]{0,4},[1-9][0-9]{0,4}", f"{row['side']},{row['step']}"):
            raise InputError(f"{where}: side and step must be whole numbers above 0")
        side, step, group = int(row["side"]), int(row["step"]), Path(name).stem
        with Image.open(shipped / name) as image:
            pixels = np.asarray(image.convert("RGB"))
        height, width = pixels.shape[:2]
        if min(height, width) < side:
            raise InputError(f"{where}: {name} is smaller than a window of {side} pixels; lower side")
        tops, lefts = range(0, height - side + 1, step), range(0, width - side + 1, step)
        for top, left in itertools.product(tops, lefts):
            window = pixels[top : top + side, left : left + side]
            photos.append(Item(f"{group}/{side}-{top}-{left}", group, content=partial(encode_png, window)))
    if twice := [photo for photo, count in Counter(photo.photo for photo in photos).items() if count > 1]:
        raise InputError(f"{path}: {twice[0]} is listed twice; remove one of the rows")
    return in_order(photos, f"{path} lists no photograph; restore it")
