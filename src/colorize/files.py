"""The one way to write and read files: atomic, durable, checked.

A reader sees the old content or the new one, never half of either: bytes go to a temporary name in the same
folder, are flushed to the disk and then renamed. Everything in this project that writes to disk comes through here.
"""

import csv
import errno
import hashlib
import io
import json
import os
import re
import secrets
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:  # late, because the workers that only read bytes need not wait for it
    import pandas as pd

TEMPORARY = ".partial"
AGAIN = "run `dvc repro`"
NAME_ERRORS = {errno.ENAMETOOLONG: "name_too_long", errno.EILSEQ: "bad_name", errno.EINVAL: "bad_name"}
"""Errors of the operating system for a name that is too long, or that the file system does not take."""


_UNPRINTABLE = "[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\udc80-\udcff]"
"""Control characters, what breaks lines or turns the direction of writing, and bytes that are no UTF-8."""


def _escaped(found: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02x}" for byte in found[0].encode("utf-8", "surrogateescape"))


def text_of(name: str) -> str:
    """A file's name as text that tables and screens can hold; whatever they cannot is \\xNN, byte by byte.

    The | that separates names in a log is such a byte, too. `name_of` turns the text back.
    """
    return re.sub(rf"{_UNPRINTABLE}|\||\\(?=x[0-9a-f]{{2}})", _escaped, name)


def name_of(text: str) -> str:
    """The file's name of which `text_of` made this text."""
    content = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), text.encode())
    return content.decode("utf-8", "surrogateescape")


class InputError(Exception):
    """Something a user can mend: one sentence that names the file, row or parameter and says what to do.

    It stands on one line and can be printed, whatever the reasons and names that it quotes.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(re.sub(_UNPRINTABLE, _escaped, " ".join(sentence.splitlines())))


class NameRefused(InputError):
    """A file's name is too long, or the file system does not take it: `reason` says which."""

    def __init__(self, sentence: str, reason: str) -> None:
        super().__init__(sentence)
        self.reason = reason


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        told = f"cannot write {path}: {error.strerror or error}"
        if error.filename and error.errno in NAME_ERRORS:
            raise NameRefused(f"{told}; change its name", NAME_ERRORS[error.errno]) from error
        raise InputError(f"{told}; make the folder writable or free some space") from error


@contextmanager
def one_sentence() -> Iterator[None]:
    """End the process with one sentence and exit status 1 for whatever a user can mend."""
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {error}")
    except MemoryError as error:
        sys.exit(f"error: there is not enough memory ({error}); ask for less at a time")
    except OSError as error:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "the disk"
        if not isinstance(error, FileNotFoundError):
            sys.exit(f"error: {name}: {error.strerror or error}; make it writable or free some space")
        made = Path(name).parts[:1] in (("data",), ("metrics",))
        how = "`dvc repro` makes it" if made else "put it there or install it"
        sys.exit(f"error: {name} is missing; {how}")


@contextmanager
def reading(path: Path, remedy: str = AGAIN) -> Iterator[None]:
    """Blame the file at `path` for whatever goes wrong inside: an InputError names it and says `remedy`."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; {remedy}") from error
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{path} cannot be read ({why}); make it a readable file") from error
    except Exception as error:  # readers of damaged files fail with whatever they like
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise InputError(f"{path} is damaged ({reason}); {remedy}") from error


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing in binary; it appears under its name only when the block ends without an error.

    Raises:
        InputError: the folder cannot be written to or takes no such name, or the disk is full.
    """
    temporary = path.with_name(f".{secrets.token_hex(4)}{TEMPORARY}")  # short, whatever the name's length
    try:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def append_text(path: Path, text: str) -> None:
    """Add `text` to the end of a file, durably; a crash may leave half of it there.

    Raises:
        InputError: the folder cannot be written to, or the disk is full.
    """
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())


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


def read_json(path: Path, kinds: Mapping[str, type], remedy: str = AGAIN) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        kinds: of what must be in it.

    Raises:
        InputError: the file is missing or damaged, or the object lacks something or holds it in another kind.
    """
    with reading(path, remedy):
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it holds no object")
        for key, kind in kinds.items():
            if not isinstance(value[key], (int, float) if kind is float else kind):
                raise ValueError(f"its {key} is {value[key]!r}")
        return value


def read_arrays(path: Path, *names: str, remedy: str = AGAIN) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name.

    Raises:
        InputError: the file is missing or damaged, or lacks one of `names`.
    """
    with reading(path, remedy), np.load(path, allow_pickle=False) as archive:
        return dict(archive) | {name: archive[name] for name in names}


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, as plain values; 1e-4 is a number (PyYAML reads it as a string).

    Raises:
        InputError: the file is missing or is not YAML.
    """
    from ruamel.yaml import YAML

    try:
        return YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; run this from the project's folder") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); make it a readable file") from error
    except Exception as error:  # dates of no month, numbers of too many digits, a thousand brackets
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def decode(content: bytes, where: str) -> str:
    """Text from UTF-8, with or without a byte order mark.

    Raises:
        InputError: it is something else; the sentence names `where` and the line.
    """
    try:
        text = content.decode("utf-8-sig")
        at = content.find(b"\0")
    except UnicodeDecodeError as error:
        at = error.start
    if at >= 0:
        line = content[:at].count(b"\n") + 1
        raise InputError(f"{where}, line {line} is not UTF-8 text; save it as UTF-8")
    return text


def parse_table(
    content: bytes, where: str, needed: Iterable[str], delimiter: str = ",", by_hand: bool = False
) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV with a header, each as its place for a message and column -> text.

    Nothing is guessed: every row has as many fields as the header, whose names are different, and every quotation
    mark its partner. Empty rows are passed over.

    Args:
        needed: columns that must be there.
        by_hand: whether lines may be comments that begin with "#", and blanks may follow a delimiter.

    Raises:
        InputError: the table is none; the sentence names `where`, the row (from 1, without the header) and line.
    """
    line = 0  # the first one of a row

    def lines() -> Iterator[str]:
        nonlocal line
        for number, text in enumerate(io.StringIO(decode(content, where), newline=""), 1):
            if line or not (by_hand and text.lstrip().startswith("#")):
                line = line or number
                yield text

    def rows() -> Iterator[list[str]]:
        nonlocal line
        reader = csv.reader(lines(), delimiter=delimiter, strict=True, skipinitialspace=by_hand)
        while True:
            line = 0
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise InputError(f"{where}, line {line}: {error}; mend its quotation marks") from error
            if any(map(str.strip, row)):
                yield row

    found = rows()
    header = [name.strip() for name in next(found, [])]
    for column in needed:
        if column not in header:
            raise InputError(f"{where} has no column {column!r}; it has {', '.join(header) or 'none'}")
    if "" in header or len(set(header)) < len(header):
        why = "a column has no name, or that of another"
        raise InputError(f"{where}, line {line}: {why}; name each differently")
    for number, row in enumerate(found, 1):
        place = f"{where}, row {number} (line {line})"
        if len(row) != len(header):
            hint = f"put a text that holds {delimiter!r} into quotation marks"
            raise InputError(f"{place} has {len(row)} fields, the header {len(header)}; {hint}")
        yield place, dict(zip(header, row, strict=True))


def _cell(text: str, kind: Any) -> Any:
    if kind is int and not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ValueError("it is no whole number")
    if kind is bool:
        return {"True": True, "False": False}[text]
    if isinstance(kind, type):
        return kind(text or "nan")
    if text not in kind:
        raise ValueError("it is none of those known")
    return text


def read_table(
    path: Path,
    columns: Mapping[str, type | Collection[str]],
    others: type = str,
    needed: Iterable[str] | None = None,
    unique: str = "",
    remedy: str = AGAIN,
) -> "pd.DataFrame":
    """A table that a stage wrote, in which someone may have edited something.

    Args:
        columns: what each holds: str, int (0 or above), float (NaN where empty), bool, or one of some texts.
        others: what all other columns hold.
        needed: those that must be there; None: all of `columns`.
        unique: the column in which no value may stand twice.

    Raises:
        InputError: the file is missing, or a row does not fit; the sentence names the row and the line.
    """
    import pandas as pd

    with reading(path, remedy):
        content = path.read_bytes()
    kinds: dict[str, Any] = {}
    rows, seen = [], set()
    for place, row in parse_table(content, str(path), columns if needed is None else needed):
        kinds = kinds or {name: columns.get(name, others) for name in row}
        for name, kind in kinds.items():
            try:
                if kind is not str:
                    row[name] = _cell(row[name], kind)
            except (ValueError, KeyError) as error:
                raise InputError(f"{place}: {name} cannot be {row[name]!r}; {remedy}") from error
        if unique in row and row[unique] in seen:
            raise InputError(f"{place}: {unique} {row[unique]!r} stands twice; {remedy}")
        seen.add(row.get(unique))
        rows.append(list(row.values()))
    frame = pd.DataFrame(rows, columns=list(row) if rows else list(columns))
    numbers = {name: kind for name, kind in columns.items() if kind in (int, float, bool) and name in frame}
    return frame.astype(numbers)


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
