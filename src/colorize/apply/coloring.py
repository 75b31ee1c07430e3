"""Color many photographs of one's own: find them, color them, keep log of every one (album.py).

A photograph whose row still holds is not colored again. A broken one is a row, not an end. A file is ours if the log
lists it among what was written of that photograph, with the sha256 that it has: anything else is never overwritten, and all
of that is looked at before the first photograph is colored. It knows neither params.yaml nor DVC.
"""

import hashlib
import json
import os
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from colorize import files
from colorize.apply import fullsize
from colorize.data.album import LOG, Found, Row, append_log, counts, look, read_log, walk, write_log
from colorize.data.formats import SUFFIXES
from colorize.data.images import CropConfig, Refused
from colorize.files import InputError, NameRefused, name_of, text_of
from colorize.models import WEIGHTS, load_description, load_model
from colorize.models.base import Colorizer
from colorize.scoring import sheets

COMPARED = 480
"""Height in pixels to which photographs are scaled down on a sheet that compares models."""
WIDEST = 65_500
"""Pixels across a JPEG."""


@dataclass(frozen=True)
class System:
    """A trained model and how it is asked."""

    name: str
    model: Colorizer
    size: int
    sha256: str
    """Of its weights."""
    mean_ab: tuple[float, float] | None
    """Mean color of the photographs that it learned from, in Lab units; None if it was trained before that was kept."""

    @staticmethod
    def load(folder: Path, device: str = "cpu") -> "System":
        """Raises InputError: there is no trained model in the folder."""
        description = load_description(folder)
        model = load_model(folder, device)
        sha256 = files.sha256(folder / WEIGHTS)
        return System(description["name"], model, description["size"], sha256, description["mean_ab"])

    def decode(self, **asked: float | None) -> None:
        """Set how the model decodes: a classifier's `temperature`, a regression's `saturation`; None keeps its own.

        Raises:
            InputError: it has none such.
        """
        for name, value in asked.items():
            if value is not None and not hasattr(self.model.head, name):
                raise InputError(f"{self.name} has no {name}; leave --{name} out")
            if value is not None:
                setattr(self.model.head, name, value)

    @property
    def asked(self) -> tuple[str, float | None, float | None]:
        """What its colors depend on: the weights, and how they are decoded."""
        head = self.model.head
        return self.sha256, getattr(head, "temperature", None), getattr(head, "saturation", None)


def find(given: Sequence[Path], output: Path | None = None) -> list[Found]:
    """What there is among files and in folders, in the order given: photographs, and what is none, with the reason.

    A file that is named is tried whatever it is; of those in a folder some are passed over (see `album.walk`).

    Raises:
        InputError: a path does not exist, there is nothing to try, or two photographs would get one name.
    """
    items: dict[str, Found] = {}
    ignored: list[Found] = []
    for path in given:
        if os.path.isdir(path):
            found = walk(path, output)
        elif os.path.lexists(path):
            kind, status, reason = look(path)
            found = [Found(path, path.name, kind, status and "failed", reason)]
        else:
            raise InputError(f"{path} does not exist; give photographs or folders of photographs")
        for item in found:
            if item.status == "ignored":
                ignored.append(item)
                continue
            other = items.setdefault(item.name, item)
            if os.path.realpath(other.source) != os.path.realpath(item.source):
                raise InputError(
                    f"{other.source} and {item.source} have one name; color them into different folders"
                )
    everything = [*items.values(), *ignored]
    if all(item.status in ("skipped", "ignored") for item in everything):
        passed = counts(item.reason for item in everything)
        raise InputError(
            f"there is no photograph in {', '.join(map(str, given))}{passed and f' (passed over: {passed})'}; "
            f"give files or folders with {' '.join(sum(SUFFIXES.values(), ()))}"
        )
    return everything


def color_all(
    items: Sequence[Found],
    systems: Sequence[System],
    output: Path,
    samples: int = 1,
    compare: bool = False,
    max_megapixels: float = CropConfig.max_megapixels,
) -> Iterator[Row]:
    """Color photographs into a folder; one model's lie there, several models' in a folder of each.

    Args:
        items: as `find` gives them; what is ignored gets no row.
        compare: one sheet per photograph with all models side by side, instead of their pictures.
        max_megapixels: larger photographs are refused before they are decoded.

    Yields:
        A row for each item as it ends; when all have ended, they stand in the log.

    Raises:
        InputError: a model cannot do what is asked, a file that is not ours would be overwritten, or the log is damaged.
    """
    asked = {"samples": samples, "compare": compare, "models": [system.asked for system in systems]}
    made_by = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    log = read_log(output)
    items = [item for item in items if item.status != "ignored"]
    written = {
        item.name: f".{item.kind}" if f".{item.kind}" in fullsize.SAVE else ".png"
        for item in items
        if item.kind
    }
    names = {name: output_names(name, suffix, systems, samples, compare) for name, suffix in written.items()}
    _refuse_twins(names, output)
    rows = [_planned(item, names.get(item.name, []), log, made_by, output) for item in items]
    for folder in {(output / name).parent for outputs in names.values() for name in outputs}:
        for leftover in folder.glob(f".{'[0-9a-f]' * 8}{files.TEMPORARY}"):  # of a killed run
            leftover.unlink(missing_ok=True)
    write_log(output, log)
    try:
        for item, row in zip(items, rows, strict=True):
            known = log.get(row.photo)
            if not row.status:
                try:
                    made = _color(item, row, systems, samples, compare, max_megapixels)
                    _refuse_foreign(row, known, output)  # which may be there by now
                    log[row.photo] = row
                    _write(made, row, known, output)
                except (Refused, NameRefused) as refused:
                    row.outputs, row.status = "", "failed"
                    row.reason = getattr(refused, "reason", str(refused))
            log[row.photo] = row
            yield row
    finally:
        write_log(output, read_log(output) | log)


def output_names(name: str, suffix: str, systems: Sequence[System], samples: int, compare: bool) -> list[str]:
    """The names of a photograph's results below the output folder; `suffix` tells the format that is written."""
    if compare:
        return [f"{name}-compared.jpg"]
    # A suffix that does not fit the format stays in the name: two sources may differ in their suffix only.
    stem, suffix = os.path.splitext(
        name if Path(name).suffix.lower() in SUFFIXES[suffix[1:]] else name + suffix
    )
    folders = [f"{system.name}/" for system in systems] if len(systems) > 1 else [""]
    numbers = [f"-{number}" for number in range(1, samples + 1)] if samples > 1 else [""]
    return [f"{folder}{stem}{number}{suffix}" for folder in folders for number in numbers]


def _refuse_twins(names: Mapping[str, Sequence[str]], output: Path) -> None:
    """Raises InputError: two photographs would get one result, or one a file where another needs a folder."""

    def check(key: Callable[[str], str]) -> None:
        owners = {key(LOG): LOG}
        for photo, outputs in names.items():
            for name in outputs:
                if (other := owners.setdefault(key(name), photo)) != photo:
                    raise InputError(
                        f"{other} and {photo} would both become {output / name}; color them into two folders"
                    )
        for photo, outputs in names.items():
            for way in {str(way) for name in outputs for way in Path(name).parents}:
                if other := owners.get(key(way), ""):
                    raise InputError(
                        f"{photo} needs a folder where {other} would be; color them into two folders"
                    )

    try:
        check(_folded)
    except InputError:
        check(_folding(output))


def _folded(name: str, case: bool = True, form: bool = True) -> str:
    """A name without the difference of upper and lower case, or of Unicode's forms of accents."""
    composed = unicodedata.normalize("NFC", name) if form else name
    return composed.casefold() if case else composed


def _folding(output: Path) -> Callable[[str], str]:
    """What makes one of two names that are one file in a folder: it depends on the file system."""
    there = next(folder for folder in (output, *output.parents) if folder.is_dir())
    try:
        with tempfile.TemporaryDirectory(prefix=".", dir=there) as probe:
            Path(probe, "\u00e9").touch()
            case, form = (os.path.lexists(Path(probe, other)) for other in ("\u00c9", "e\u0301"))
    except OSError as error:
        raise InputError(f"cannot write into {there}: {error.strerror}; make it writable") from error
    return partial(_folded, case=case, form=form)


def _obstacle(path: Path) -> Path | None:
    """What is there where a file is to be written, or on the way to it."""
    if os.path.lexists(path):
        return path
    way = next(folder for folder in path.parents if os.path.lexists(folder))
    return None if os.path.isdir(way) else way


def _planned(item: Found, names: Sequence[str], log: Mapping[str, Row], made_by: str, output: Path) -> Row:
    """The row of an item before anything is written; without a status if it is to be colored.

    Raises:
        InputError: a file that is not ours would be overwritten.
    """
    source = os.path.relpath(os.path.realpath(item.source), os.path.realpath(output))
    outputs = "|".join(map(text_of, names))
    row = Row(text_of(item.name), outputs, item.status, item.reason, made_by=made_by, source=text_of(source))
    known = log.get(row.photo)
    row.written = known.written if known else ""
    if any(_obstacle(output / name) for name in names):
        try:
            row.sha256 = files.sha256(item.source)
        except OSError:
            return replace(row, outputs="", status="failed", reason="unreadable")
        if known and holds(known, row, output):
            return replace(known, status="kept")
        _refuse_foreign(row, known, output)
    return row


def holds(known: Row, row: Row, output: Path) -> bool:
    """Whether a photograph is done: the same one, by the same models, and its outputs are there.

    What became of them since is the user's business, unless a killed run may not have written them.
    """
    if (known.sha256, known.made_by, known.outputs) != (row.sha256, row.made_by, row.outputs):
        return False
    paths = {name: output / name_of(name) for name in known.outputs.split("|")}
    if known.status == "started":
        return all(
            path.is_file() and files.sha256(path) == known.hashes[name][0] for name, path in paths.items()
        )
    return known.status in ("done", "kept") and all(path.exists() for path in paths.values())


def _is_same(known: Row | None, row: Row) -> bool:
    """Whether two rows are about one photograph: it lies where it lay, or has the same content."""
    return known is not None and (known.source == row.source or known.sha256 == row.sha256)


def _refuse_foreign(row: Row, known: Row | None, output: Path) -> None:
    """Raises InputError: an output would overwrite a file that is not ours or that was changed since."""
    for name in row.outputs.split("|"):
        path = output / name_of(name)
        if (obstacle := _obstacle(path)) is None:
            continue
        digests = known.hashes.get(name, []) if known and _is_same(known, row) else []
        if obstacle != path or not path.is_file() or files.sha256(path) not in digests:
            raise InputError(
                f"{obstacle} would be overwritten, and is not ours or was changed; choose another --output"
            )


def _color(
    item: Found,
    row: Row,
    systems: Sequence[System],
    samples: int,
    compare: bool,
    max_megapixels: float,
) -> list[bytes]:
    """The files that a photograph becomes, in the order of the row's outputs.

    Raises:
        Refused: the photograph cannot be read.
    """
    try:
        content = item.source.read_bytes()
    except OSError as error:
        raise Refused("unreadable") from error
    row.sha256 = files.sha256_bytes(content)
    photograph = fullsize.read(content, max_megapixels)
    row.note = "+".join(photograph.notes)
    row.outputs = "|".join(
        map(text_of, output_names(item.name, photograph.suffix, systems, samples, compare))
    )
    shown: dict[str, Image.Image] = {}
    if compare:
        light = fullsize.small_light(photograph, systems[0].model, systems[0].size)
        shown["grey"] = fullsize.paint(photograph, light, torch.zeros(2, *light.shape[2:]))
    for system in systems:
        light = fullsize.small_light(photograph, system.model, system.size)
        for number, ab in enumerate(fullsize.colorings(system.model, light, samples), start=1):
            label = system.name if samples == 1 else f"{system.name} {number}"
            shown[label] = fullsize.paint(photograph, light, ab)
    if compare:
        return [sheets.encode(side_by_side(photograph, shown), "jpeg")]
    return [fullsize.encode(photograph, picture) for picture in shown.values()]


def _write(made: Sequence[bytes], row: Row, known: Row | None, output: Path) -> None:
    """Write a photograph's outputs, after the log says what will be written.

    Raises:
        InputError: the folder cannot be written to, or does not take a name.
    """
    names = row.outputs.split("|")
    new = [f"{files.sha256_bytes(content)} {name}" for name, content in zip(names, made, strict=True)]
    earlier = row.written.split("|") if _is_same(known, row) and row.written else []
    row.status, row.written = "started", "|".join(dict.fromkeys(new + earlier))
    append_log(output, row)
    for name, content in zip(names, made, strict=True):
        files.write_bytes(output / name_of(name), content)
    row.status, row.written = "done", "|".join(new + [entry for entry in earlier if entry[65:] not in names])


def side_by_side(photograph: fullsize.Photograph, pictures: Mapping[str, Image.Image]) -> Image.Image:
    """Labelled pictures of one photograph in a row, upright, each at most `COMPARED` pixels high."""
    width, height = photograph.size
    scale = min(1, COMPARED / height, (WIDEST / len(pictures) - sheets.GAP) / width)
    across, down = max(1, round(width * scale)), max(1, round(height * scale))
    shown = {label: fullsize.upright(photograph, picture) for label, picture in pictures.items()}
    scaled = [
        (label, picture.resize((across, down), Image.Resampling.BICUBIC)) for label, picture in shown.items()
    ]
    return sheets.grid([scaled])
