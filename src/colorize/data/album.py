"""A folder of photographs: the one walk through it, and the log of what became of each photograph.

The pipeline's folder source, `colorize apply` and `colorize score` walk alike. What a file is, its first bytes say. Hidden
files, sidecars, cameras' raw files and our own results are passed over, each with its reason; a file that claims to be a
photograph and is none, or is one of a format that is not read, has failed.

The log is `colorize.csv` in a folder of results. While photographs are colored it only grows: a line that tells what
will be written stands there before anything is, so that whatever a killed run leaves is known as ours.
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
"""Files that claim to be photographs; what they are is decided by their first bytes."""
RAW_SUFFIXES = {
    *(
        ".3fr",
        ".arw",
        ".cr2",
        ".cr3",
        ".crw",
        ".dcr",
        ".dng",
        ".erf",
        ".fff",
        ".iiq",
        ".kdc",
        ".mef",
        ".mos",
        ".mrw",
    ),
    *(".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
}
"""Of cameras' raw files: most begin as TIFF does, and what can be read of them is a thumbnail."""
BESIDE = {"raw", "photoshop"}
"""Kinds of files that lie beside the photographs that were made of them."""
PHOTOGRAPHIC = {"heic", "jpeg_xl", "jpeg_2000"}
"""Kinds of photographs that are not read, whatever their suffix."""
SIDECARS = {"@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", "lost+found", "System Volume Information"}
"""Folders in which file servers and operating systems keep thumbnails and what was thrown away."""


@dataclass(frozen=True)
class Found:
    """A file that was found, and what is to be done with it."""

    source: Path
    name: str
    """Below the folder that was walked, with / between its parts."""
    kind: str = ""
    """Of a photograph: one of formats.SUFFIXES."""
    status: str = ""
    """failed, skipped (it has a row of its own) or ignored (it is only counted); "" if it is a photograph."""
    reason: str = ""


@dataclass
class Row:
    """A row of the log: what became of a photograph. Names are as `files.text_of` writes them."""

    photo: str
    outputs: str = ""
    """Names below the folder of results, joined by |."""
    status: str = "failed"
    """done, kept (it was done before), failed, skipped, or started: its outputs were about to be written."""
    reason: str = ""
    note: str = ""
    sha256: str = ""
    """Of the photograph."""
    made_by: str = ""
    """Stands for the models and how they were asked."""
    source: str = ""
    """Where the photograph lies, from the folder of results."""
    written: str = ""
    """All results of this photograph, joined by |: the sha256, a blank, the name; the newest first."""

    @property
    def hashes(self) -> dict[str, list[str]]:
        """The sha256 of each name in `written`, newest first."""
        found: dict[str, list[str]] = {}
        for entry in filter(None, self.written.split("|")):
            digest, _, name = entry.partition(" ")
            found.setdefault(name, []).append(digest)
        return found


COLUMNS = [field.name for field in fields(Row)]


def _table(rows: Iterable[Iterable[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def read_log(folder: Path) -> dict[str, Row]:
    """What a folder of results holds, by photograph; nothing if it has no log. Half a last line is not read.

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
    """Write what became of every photograph, in order of names."""
    files.write_text(folder / LOG, _table([COLUMNS, *(astuple(rows[name]) for name in sorted(rows))]))


def append_log(folder: Path, row: Row) -> None:
    """Add a row to a log that is there; it replaces the photograph's earlier one."""
    files.append_text(folder / LOG, _table([astuple(row)]))


def results(folder: Path) -> dict[str, list[str]]:
    """The real paths of our results in a folder, as its log lists them, and the sha256 that each had."""
    try:
        log = read_log(folder)
    except InputError:  # somebody else's table
        return {}
    listed = (each for row in log.values() for each in row.hashes.items())
    return {os.path.realpath(folder / name_of(name)): digests for name, digests in listed}


def look(path: Path) -> tuple[str, str, str]:
    """The kind, status and reason (see `Found`) of a file, a link, or whatever else has a name."""
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
    if suffix == ".thm":  # a camera's, beside a film or a raw file
        return "", "ignored", "thumbnail"
    if not reason:
        return kind, "", ""
    return "", "skipped" if reason in BESIDE else "failed" if reason in PHOTOGRAPHIC else failed, reason


def walk(root: Path, output: Path | None = None) -> list[Found]:
    """Everything in a folder and below it, in order of paths; no link to a folder is followed.

    Args:
        output: where results are to be written; if that is a folder below `root`, nothing in it is a photograph.

    Raises:
        InputError: a folder cannot be listed.
    """

    def give_up(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be listed ({error.strerror}); make it readable")

    items: list[Found] = []
    target = os.path.realpath(output) if output else None
    ours = results(output) if output else {}

    def enter(path: Path) -> bool:
        """Whether this is a folder to go into; anything else becomes an item."""
        found = "", "", ""
        if path.name.startswith(".") or path.name in SIDECARS:
            found = "", "ignored", "hidden"
        elif os.path.islink(path) or not os.path.isdir(path):
            found = look(path)
            real = os.path.realpath(path) if ours else ""
            if real in ours and files.sha256(path) in ours[real]:
                found = "", "ignored", "result"
        elif os.path.realpath(path) == target:
            found = "", "ignored", "result"
        else:
            return True
        items.append(Found(path, path.relative_to(root).as_posix(), *found))
        return False

    for parent, folders, names in os.walk(root, onerror=give_up):
        if LOG in names:
            ours |= results(Path(parent))
        folders[:] = [name for name in folders if enter(Path(parent, name))]
        for name in names:
            enter(Path(parent, name))
    return sorted(items, key=lambda item: item.source.parts)


def counts(reasons: Iterable[str]) -> str:
    """How many there are of each: "hidden 3, raw 1"."""
    return ", ".join(f"{reason} {count}" for reason, count in sorted(Counter(reasons).items()) if reason)
