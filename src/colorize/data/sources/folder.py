"""A folder of photographs, read in place."""

import os
from pathlib import Path

from colorize.data.album import counts, walk
from colorize.data.manifest import Item, is_inside
from colorize.data.sources.archive import in_order
from colorize.files import InputError, text_of


def list_items(root: Path) -> list[Item]:
    if not root.is_dir():
        raise InputError(f"data.path is {root}, a file; the folder source needs a folder of images")
    photos = []
    for item in walk(root):
        name = text_of(item.name)
        photo = Item(name, name, name.rpartition("/")[0])
        if item.status == "ignored":
            photo.end("ignored", item.reason)
        elif os.path.islink(item.source) and not is_inside(item.source, root):
            photo.end("skipped", "link_leaves_folder")
        elif item.reason:
            photo.end(item.status, item.reason, retryable=item.reason == "unreadable")
        else:
            photo.member, photo.content = name, item.source.read_bytes
        photos.append(photo)
    reasons = counts(photo.reason for photo in photos)
    problem = f"data.path is {root}, a folder without a single image{reasons and f' ({reasons})'}"
    usable = any(photo.status != "ignored" for photo in photos)
    return in_order(photos if usable else [], f"{problem}; put photographs into it")
