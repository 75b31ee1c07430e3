"""The five sources of photographs. Each file lists the items of one source; fetch.py downloads them.

An item is a row of photos.csv with its status and a way to read its bytes.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from colorize.data.manifest import DataConfig, Item
from colorize.data.sources import cifar10, folder, sample, unsplash, urls
from colorize.files import InputError


def list_items(settings: DataConfig, seed: int) -> tuple[list[Item], pd.DataFrame | None]:
    """List the items of the source of `settings`, without fetching them.

    Returns:
        The items in their final order, and the main colors, or None if the source has none: columns photo,
            red,
        green, blue (0..255) and coverage (0..1), up to ten rows per photo by falling coverage.

    Raises:
        InputError: the source is missing, empty or malformed.
    """
    path = Path(settings.path)
    if not os.path.exists(settings.path):
        raise InputError(f"data.path is {settings.path!r}, which does not exist; name what data.source reads")
    colors = None
    if settings.source == "sample":
        photos = sample.list_items(path)
    elif settings.source == "folder":
        photos = folder.list_items(path)
    elif settings.source == "urls":
        photos = urls.list_items(path, settings.url_column)
    elif settings.source == "unsplash":
        photos, colors = unsplash.list_items(path, settings.request_size)
    else:
        photos = cifar10.list_items(path)
    if settings.limit:
        usable = [photo for photo in photos if photo.status == "ok"] or photos
        size = min(settings.limit, len(usable))
        drawn = np.random.default_rng(seed).choice(len(usable), size, replace=False)
        photos = [usable[index] for index in np.sort(drawn)]
    return photos, colors
