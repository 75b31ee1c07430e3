"""Walk a folder of photographs, and log what became of each photograph.

The folder source of the pipeline, `colorize apply` and `colorize score` use the same walk. The first bytes of
a file decide its kind. Hidden files, sidecars, raw files of cameras and our own results are ignored, each
with a reason. A file that claims to be a photograph but is none, or has a format that is not read, counts as
failed.

The log is `colorize.csv` in a folder of results. Coloring only appends to it: it names each output before it
writes it, so that the outputs of a killed run are known as ours.
"""

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from colorize import files
from colorize.data.formats import HEAD_BYTES, SUFFIXES, image_kind, why_no_image
from colorize.files import InputError, name_of

LOG = "colorize.csv"
IMAGE_SUFFIXES = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes} | {
    *(".heic", ".heif", ".hif", ".jxl", ".jp2", ".mpo")
}
"""Suffixes of files that claim to be photographs."""
RAW_SUFFIXES = {
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos"),
    *(".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
}  # fmt: skip
"""Suffixes of cameras' raw files. Most begin like TIFF, but hold only a thumbnail that can be read."""
BESIDE = {"raw", "photoshop"}
"""Kinds of files that often lie beside the photographs made from them."""
PHOTOGRAPHIC = {"heic", "jpeg_xl", "jpeg_2000"}
"""Kinds of photographs that are not read, for any suffix."""
SIDECARS = {"@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", "lost+found", "System Volume Information"}
"""Folders of file servers and operating systems for thumbnails and deleted files."""


@dataclass(frozen=True)
class Found:
    """A file of the walk, and what to do with it."""

    source: Path
    name: str
    """Path below the walked folder, with /."""
    kind: str = ""
    """For a photograph, one of formats.SUFFIXES."""
    status: str = ""
    """failed, skipped (has its own row), ignored (is only counted), or "" for a photograph."""
    reason: str = ""


@dataclass
class Row:
    """A row of the log: what became of a photograph. Names are written by `files.text_of`."""

    photo: str
    outputs: str = ""
    """Names below the folder of results, joined by |."""
    status: str = "failed"
    """done, kept (done before), failed, skipped, or started (its outputs were about to be written)."""
    reason: str = ""
    note: str = ""
    sha256: str = ""
    """sha256 of the photograph."""
    made_by: str = ""
    """Identifies the models and the options of the run."""
    source: str = ""
    """Path of the photograph, relative to the folder of results."""
    written: str = ""
    """All results of this photograph, newest first, joined by |: sha256, a blank, name."""

    @property
    def hashes(self) -> dict[str, list[str]]:
        """The sha256s of each name in `written`, newest first."""
        digests: dict[str, list[str]] = {}
        for entry in filter(None, self.written.split("|")):
            digest, _, name = entry.partition(" ")
            digests.setdefault(name, []).append(digest)
        return digests


COLUMNS = [field.name for field in fields(Row)]


def _table(rows: Iterable[Iterable[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def read_log(folder: Path) -> dict[str, Row]:
    """Read the log of a folder, by photograph; empty without a log. An incomplete last line is dropped.

    Raises:
        InputError: the log is damaged, or is not ours.
    """
    path = folder / LOG
    if not os.path.lexists(path):
        return {}
    try:
        content = path.read_bytes()
        rows = files.parse_table(content[: content.rfind(b"\n") + 1], str(path), COLUMNS)
        log = {row["photo"]: Row(**row) for _, row in rows}
        if any("\0" in name_of(name) for row in log.values() for name in (row.outputs, row.written)):
            raise ValueError
        return log
    except (OSError, TypeError, ValueError, InputError) as error:
        raise InputError(f"{path} is not our log; move it away, or choose another --output") from error


def write_log(folder: Path, rows: Mapping[str, Row]) -> None:
    """Write the whole log, sorted by photograph."""
    files.write_text(folder / LOG, _table([COLUMNS, *(astuple(rows[name]) for name in sorted(rows))]))


def append_log(folder: Path, row: Row) -> None:
    """Append a row to the log; it replaces the photograph's earlier row."""
    files.append_text(folder / LOG, _table([astuple(row)]))


def results(folder: Path) -> dict[str, list[str]]:
    """Return the real paths of our results in a folder, by its log, and the sha256s of each."""
    try:
        log = read_log(folder)
    except InputError:  # not our table
        return {}
    listed = (each for row in log.values() for each in row.hashes.items())
    return {os.path.realpath(folder / name_of(name)): digests for name, digests in listed}


def look(path: Path) -> tuple[str, str, str]:
    """Return the kind, status and reason (see `Found`) of a path."""
    suffix = path.suffix.lower()
    failed = "failed" if suffix in IMAGE_SUFFIXES else "ignored"
    try:
        if path.is_symlink() and path.is_dir():
            return "", "skipped", "link_to_folder"
        if not path.is_file():
            return "", "skipped", "not_a_file"
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return "", failed, "unreadable"
    kind, reason = image_kind(head), why_no_image(head)
    if suffix in RAW_SUFFIXES and (kind == "tif" or reason == "not_image"):
        reason = "raw"
    if suffix == ".thm":  # a camera writes it beside a film or a raw file
        return "", "ignored", "thumbnail"
    if not reason:
        return kind, "", ""
    status = "skipped" if reason in BESIDE else "failed" if reason in PHOTOGRAPHIC else failed
    return "", status, reason


def walk(root: Path, output: Path | None = None) -> list[Found]:
    """List all files in and below a folder, sorted by path; links to folders are not followed.

    Args:
        output: folder for results; if it is below `root`, its files are ignored.

    Raises:
        InputError: a folder cannot be listed.
    """

    def give_up(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be listed ({error.strerror}); make it readable")

    items: list[Found] = []
    target = os.path.realpath(output) if output else None
    ours = results(output) if output else {}

    def enter(path: Path) -> bool:
        """Return whether to enter this folder; list anything else."""
        if path.name.startswith(".") or path.name in SIDECARS:
            verdict = "", "ignored", "hidden"
        elif os.path.islink(path) or not os.path.isdir(path):
            verdict = look(path)
            real = os.path.realpath(path) if ours else ""
            if real in ours and files.sha256(path) in ours[real]:
                verdict = "", "ignored", "result"
        elif os.path.realpath(path) == target:
            verdict = "", "ignored", "result"
        else:
            return True
        items.append(Found(path, path.relative_to(root).as_posix(), *verdict))
        return False

    for parent, folders, names in os.walk(root, onerror=give_up):
        if LOG in names:
            ours |= results(Path(parent))
        folders[:] = [name for name in folders if enter(Path(parent, name))]
        for name in names:
            enter(Path(parent, name))
    return sorted(items, key=lambda item: item.source.parts)


def counts(reasons: Iterable[str]) -> str:
    """Count the reasons: "hidden 3, raw 1"."""
    return ", ".join(f"{reason} {count}" for reason, count in sorted(Counter(reasons).items()) if reason)
