"""Write and read files: atomic, durable, checked. All code of this project writes files through this module.

A file is written under a temporary name in the same folder, flushed to the disk and then renamed. So a reader
sees either the old content or the new one.
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

if TYPE_CHECKING:  # slow to import, and workers that only read bytes do not need it
    import pandas as pd

TEMPORARY = ".partial"
AGAIN = "run `dvc repro`"
NAME_ERRORS = {errno.ENAMETOOLONG: "name_too_long", errno.EILSEQ: "bad_name", errno.EINVAL: "bad_name"}
"""Errors of the operating system for names that are too long or that the file system does not accept."""
_UNPRINTABLE = "[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\udc80-\udcff]"
"""Control characters, line breaks, changes of writing direction, and bytes that are not UTF-8."""


def _escaped(match: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02x}" for byte in match[0].encode("utf-8", "surrogateescape"))


def text_of(name: str) -> str:
    """Convert a file's name to printable text: other characters become \\xNN, byte by byte.

    So does |, which separates names in a log. `name_of` is the inverse.
    """
    return re.sub(rf"{_UNPRINTABLE}|\||\\(?=x[0-9a-f]{{2}})", _escaped, name)


def name_of(text: str) -> str:
    """Convert the text of `text_of` back to the file's name."""
    content = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), text.encode())
    return content.decode("utf-8", "surrogateescape")


class InputError(Exception):
    """An error that a user can fix: one sentence that names the file, row or parameter and says what to do.

    The sentence is one printable line, whatever names it quotes.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(re.sub(_UNPRINTABLE, _escaped, " ".join(sentence.splitlines())))


class NameRefused(InputError):
    """The file system does not accept a file's name; `reason` is one of `NAME_ERRORS`."""

    def __init__(self, sentence: str, reason: str) -> None:
        super().__init__(sentence)
        self.reason = reason


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"cannot write {path}: {error.strerror or error}"
        if error.filename and error.errno in NAME_ERRORS:
            raise NameRefused(f"{problem}; change its name", NAME_ERRORS[error.errno]) from error
        raise InputError(f"{problem}; make the folder writable or free some space") from error


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turn errors that a user can fix into one sentence and exit status 1."""
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
        is_output = Path(name).parts[:1] in (("data",), ("metrics",))
        remedy = "`dvc repro` makes it" if is_output else "put it there or install it"
        sys.exit(f"error: {name} is missing; {remedy}")


@contextmanager
def reading(path: Path, remedy: str = AGAIN) -> Iterator[None]:
    """Turn every error in the block into an InputError that names the file and says `remedy`."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; {remedy}") from error
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path} cannot be read ({reason}); make it a readable file") from error
    except Exception as error:  # readers of damaged files raise all kinds of errors
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise InputError(f"{path} is damaged ({reason}); {remedy}") from error


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing in binary; the file appears only when the block ends without an error.

    Raises:
        InputError: the folder is not writable or does not accept the name, or the disk is full.
    """
    temporary = path.with_name(f".{secrets.token_hex(4)}{TEMPORARY}")  # short, even if the name is long
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
    """Append `text` to a file, durably; a crash may leave only a part of the text.

    Raises:
        InputError: the folder is not writable, or the disk is full.
    """
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())


def remove_partial(folder: Path) -> None:
    """Delete the half-written files of killed processes in `folder`."""
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
    """Write `value` as indented JSON; ValueError: a number is not finite."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_array(path: Path, array: np.ndarray) -> None:
    """Write one array as .npy."""
    with atomic(path) as file:
        # With a real file, NumPy writes to a copy of its descriptor and misses a full disk when closing it.
        np.save(SimpleNamespace(write=file.write), array, allow_pickle=False)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as .npz; equal arrays give equal bytes."""
    with atomic(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_json(path: Path, kinds: Mapping[str, type], remedy: str = AGAIN) -> dict[str, Any]:
    """Read an object from a JSON file and check that it has the keys of `kinds`, with values of these types.

    Raises:
        InputError: the file is missing or damaged, or a value is missing or has another type.
    """
    with reading(path, remedy):
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is not an object")
        for key, kind in kinds.items():
            if not isinstance(value[key], (int, float) if kind is float else kind):
                raise ValueError(f"its {key} is {value[key]!r}")
        return value


def read_arrays(path: Path, *names: str, remedy: str = AGAIN) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file; InputError: it is missing or damaged, or lacks one of `names`."""
    with reading(path, remedy), np.load(path, allow_pickle=False) as archive:
        return dict(archive) | {name: archive[name] for name in names}


def read_yaml(path: Path) -> Any:
    """Read a YAML file as plain values; 1e-4 is a number (PyYAML would read a string).

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
    except Exception as error:  # impossible dates, huge numbers, a thousand brackets
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def decode(content: bytes, where: str) -> str:
    """Decode UTF-8, with or without a byte order mark; InputError names `where` and the line."""
    try:
        text = content.decode("utf-8-sig")
        bad = content.find(b"\0")
    except UnicodeDecodeError as error:
        bad = error.start
    if bad >= 0:
        line = content[:bad].count(b"\n") + 1
        raise InputError(f"{where}, line {line} is not UTF-8 text; save it as UTF-8")
    return text


def parse_table(
    content: bytes, where: str, needed: Iterable[str], delimiter: str = ",", by_hand: bool = False
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each row of a CSV with a header: its place, for messages, and a dictionary of its texts.

    All rows must have as many fields as the header, the header's names must differ, and every quotation mark
    must be closed. Empty rows are skipped.

    Args:
        needed: columns that must exist.
        by_hand: allow comment lines that begin with "#", and blanks after a delimiter.

    Raises:
        InputError: the table is malformed; the sentence names `where`, the row (from 1, after the header) and
            the line.
    """
    line = 0  # where the current row begins

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

    records = rows()
    header = [name.strip() for name in next(records, [])]
    for column in needed:
        if column not in header:
            raise InputError(f"{where} has no column {column!r}; it has {', '.join(header) or 'none'}")
    if "" in header or len(set(header)) < len(header):
        problem = "a column has no name, or that of another"
        raise InputError(f"{where}, line {line}: {problem}; name each differently")
    for number, row in enumerate(records, 1):
        place = f"{where}, row {number} (line {line})"
        if len(row) != len(header):
            hint = f"put a text that holds {delimiter!r} into quotation marks"
            raise InputError(f"{place} has {len(row)} fields, the header {len(header)}; {hint}")
        yield place, dict(zip(header, row, strict=True))


def _cell(text: str, kind: Any) -> Any:
    if kind is int and not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ValueError("not a whole number")
    if kind is bool:
        return {"True": True, "False": False}[text]
    if isinstance(kind, type):
        return kind(text or "nan")
    if text not in kind:
        raise ValueError("not one of the known texts")
    return text


def read_table(
    path: Path,
    columns: Mapping[str, type | Collection[str]],
    others: type = str,
    needed: Iterable[str] | None = None,
    unique: str = "",
    remedy: str = AGAIN,
) -> "pd.DataFrame":
    """Read a table that a stage wrote, and check it, since a user may have edited it.

    Args:
        columns: type of each: str, int (0 or above), float (empty is NaN), bool, or a collection of texts.
        others: type of all other columns.
        needed: columns that must exist; None for all of `columns`.
        unique: the column whose values must differ.

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
    """Write tensors, numbers and strings with torch.save, after a sha256 that `read_state` checks."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    with atomic(path) as file:
        file.write(sha256_bytes(content).encode())
        file.write(content)


def read_state(path: Path, device: str = "cpu") -> Any:
    """Read what `write_state` wrote; only tensors and plain values are unpickled.

    Raises:
        InputError: the file is damaged.
    """
    import torch

    content = path.read_bytes()
    digest, payload = content[:64], content[64:]
    if sha256_bytes(payload).encode() != digest:
        raise InputError(f"{path} is damaged: its sha256 does not match")
    return torch.load(io.BytesIO(payload), map_location=device, weights_only=True)


def parse_tensors(name: str, content: bytes) -> dict[str, Any]:
    """Read named tensors from the content of a .safetensors file or of a file of torch.save.

    Only tensors and plain values are unpickled. The caller checks that the content is the right one.

    Raises:
        InputError: the content is something else; the sentence begins with `name`.
    """
    import safetensors.torch
    import torch

    try:
        if content[8:9] == b"{":  # eight bytes of length, then JSON
            return safetensors.torch.load(content)
        tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise all kinds of errors
        raise InputError(f"{name} is no weights file; give a state dict as .pth or .safetensors") from error
    if not isinstance(tensors, dict) or not all(isinstance(each, torch.Tensor) for each in tensors.values()):
        raise InputError(f"{name} holds more than named tensors; give a plain state dict")
    return dict(tensors)


def sha256_bytes(content: bytes | memoryview) -> str:
    """Return the sha256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def sha256(path: Path) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(paths: Iterable[Path]) -> dict[str, str]:
    """Return the sha256 of every file in `paths` and the folders among them, by POSIX path in sorted
    order."""
    everything: set[Path] = set()
    for path in paths:
        everything.update(filter(Path.is_file, path.rglob("*")) if path.is_dir() else [path])
    return {path.as_posix(): sha256(path) for path in sorted(everything) if "__pycache__" not in path.parts}
