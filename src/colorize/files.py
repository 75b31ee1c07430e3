"""The one way to write and read files: atomic, durable, checked.

A reader sees the old content or the new one, never half of either: bytes go to a temporary name in the same
folder, are flushed to the disk and then renamed. Everything in this project that writes to disk comes through here.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np

TEMPORARY = ".partial"


class InputError(Exception):
    """Something a user can mend: one sentence that names the file, row or parameter and says what to do.

    It stands on one line, whatever the reasons and names that it quotes.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(" ".join(sentence.splitlines()))


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing in binary; it appears under its name only when the block ends without an error.

    Raises:
        InputError: the folder cannot be written to, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; make the folder writable or free some space"
        ) from error
    finally:
        if temporary.parent.is_dir() and os.access(temporary.parent, os.W_OK):
            temporary.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Delete what a killed process left half-written in `folder`."""
    for leftover in folder.glob(f".*{TEMPORARY}"):
        leftover.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8 with LF line ends, atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON that ends in a newline; NaN and infinity are refused.

    Raises:
        ValueError: a number is not finite.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_array(path: Path, array: np.ndarray) -> None:
    """Write one array as .npy."""
    with atomic(path) as file:
        # Given a file, NumPy writes to a copy of its descriptor and does not notice if closing that fails on a full disk.
        np.save(SimpleNamespace(write=file.write), array, allow_pickle=False)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as .npz; equal arrays give equal bytes."""
    with atomic(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def write_state(path: Path, state: Any) -> None:
    """Write tensors, numbers and strings with torch.save, sealed with a sha256 that `read_state` checks."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    with atomic(path) as file:
        file.write(hashlib.sha256(content).hexdigest().encode())
        file.write(content)


def read_state(path: Path, device: str = "cpu") -> Any:
    """Read what `write_state` wrote. Only tensors and plain values are ever unpickled.

    Raises:
        InputError: the file is cut short or changed since it was written.
    """
    import torch

    content = path.read_bytes()
    seal, payload = content[:64], content[64:]
    if hashlib.sha256(payload).hexdigest().encode() != seal:
        raise InputError(f"{path} is damaged: its sha256 does not match")
    return torch.load(io.BytesIO(payload), map_location=device, weights_only=True)


def parse_tensors(name: str, content: bytes) -> dict[str, Any]:
    """Tensors by name from the content of a .safetensors file or of one that torch.save wrote, told apart by their bytes.

    Only tensors and plain values are ever unpickled; whether the bytes are the right ones is for the caller to check.

    Raises:
        InputError: there are no named tensors in it; the sentence begins with `name`.
    """
    import safetensors.torch
    import torch

    try:
        if content[8:9] == b"{":  # eight bytes of length, then JSON
            return safetensors.torch.load(content)
        tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # the readers fail with whatever they like
        raise InputError(f"{name} is no weights file; give a state dict as .pth or .safetensors") from error
    if not isinstance(tensors, dict) or not all(isinstance(each, torch.Tensor) for each in tensors.values()):
        raise InputError(f"{name} holds more than named tensors; give a plain state dict")
    return dict(tensors)


def sha256_bytes(content: bytes) -> str:
    """The sha256 of some bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(paths: Iterable[Path]) -> dict[str, str]:
    """The sha256 of every file of `paths`, folders included whole, keyed by POSIX path in sorted order."""
    found: set[Path] = set()
    for path in paths:
        found.update(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else found.add(path)
    return {p.as_posix(): sha256(p) for p in sorted(found) if "__pycache__" not in p.parts}
