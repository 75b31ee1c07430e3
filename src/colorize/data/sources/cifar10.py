"""CIFAR-10, as pickles or binary batches. Pickles are read through an allow-list, so no code in them runs."""

import io
import pickle
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from colorize import files
from colorize.data.manifest import Item
from colorize.data.sources.archive import encode_png, in_order, read_members
from colorize.files import InputError


def _uint8(code: str, *_: object) -> np.dtype[np.uint8]:
    if code not in ("u1", "uint8"):
        raise pickle.UnpicklingError(f"its pixels are of type {code}, not of uint8")
    return np.dtype(np.uint8)


class _Unpickler(pickle.Unpickler):
    """Rebuilds arrays of uint8, lists and strings; it imports nothing.

    The four names map to safe stand-ins: NumPy's functions would also build arrays of pointers.
    """

    allowed = {
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: np.empty(0, np.uint8),
        ("numpy", "ndarray"): None,
        ("numpy", "dtype"): _uint8,
        ("_codecs", "encode"): lambda text, *_: text.encode("latin1"),
    }

    def find_class(self, module: str, name: str) -> Any:
        key = module.replace("numpy._core", "numpy.core"), name
        if key not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 file needs")
        return self.allowed[key]


def list_items(path: Path) -> list[Item]:
    members = read_members(path, re.compile(r"((data_batch_\d+|test_batch)(\.bin)?)|batches\.meta(\.txt)?"))
    meta = [name for name in members if name.startswith("batches.meta")]
    labels = _label_names(members.pop(meta[0]), f"{path}: {meta[0]}") if meta else []
    photos = []
    for name, content in members.items():
        batch = name.removesuffix(".bin")
        pixels, classes = (_binary if name.endswith(".bin") else _pickled)(content, f"{path}: {name}")
        split = "test" if batch == "test_batch" else "train"
        for index, (flat, number) in enumerate(zip(pixels, classes, strict=True)):
            photo = f"{batch}/{index:05d}"
            label = labels[number] if 0 <= number < len(labels) else str(number)
            image = flat.reshape(3, 32, 32).transpose(1, 2, 0)
            photos.append(Item(photo, photo, label, split, content=partial(encode_png, image)))
    return in_order(photos, f"{path} holds no data_batch_* and no test_batch; data.path must be CIFAR-10")


def _unpickle(content: bytes, where: str) -> dict[str, Any]:
    try:
        value = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises all kinds of errors
        raise InputError(f"{where} is not a CIFAR-10 file: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where} is not a CIFAR-10 file: it holds no dictionary")
    return {_string(key): entry for key, entry in value.items()}


def _string(name: object) -> str:
    return name.decode("latin1") if isinstance(name, bytes) else str(name)


def _label_names(content: bytes, where: str) -> list[str]:
    if where.endswith(".txt"):
        return files.decode(content, where).split()
    names = _unpickle(content, where).get("label_names")
    return [_string(name) for name in names] if isinstance(names, list) else []


def _pickled(content: bytes, where: str) -> tuple[np.ndarray, list[int]]:
    batch = _unpickle(content, where)
    pixels, classes = batch.get("data"), batch.get("labels")
    if not (
        isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and pixels.shape[1:] == (3072,)
        and isinstance(classes, list)
        and len(classes) == len(pixels)
        and all(isinstance(number, int) for number in classes)
    ):
        raise InputError(f"{where} is not a CIFAR-10 batch: it needs uint8 data [n, 3072] and n labels")
    return pixels, classes


def _binary(content: bytes, where: str) -> tuple[np.ndarray, list[int]]:
    if len(content) % 3073:
        raise InputError(f"{where} is cut short: its size is no multiple of 3073 bytes; download it again")
    records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
    return records[:, 1:], records[:, 0].tolist()
