"""Find and color many photographs and log each of them (album.py).

A photograph is not colored again while its row in the log is valid. A broken photograph gets a row with the
reason. A file is ours if the log lists it for this photograph with its present sha256. Other files are never
overwritten; this is checked before the first photograph is colored.
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
"""Largest height in pixels of a photograph on a sheet that compares models."""
WIDEST = 65_500
"""Largest width in pixels of a JPEG."""


@dataclass(frozen=True)
class System:
    """A trained model."""

    name: str
    model: Colorizer
    size: int
    """Side in pixels at which the model works."""
    sha256: str
    """Hash of the weights."""
    mean_ab: tuple[float, float] | None
    """Mean color of the training photographs in Lab units; None for models of earlier versions."""

    @staticmethod
    def load(folder: Path, device: str = "cpu") -> "System":
        """Load a trained model; raise InputError if the folder holds none."""
        description = load_description(folder)
        model = load_model(folder, device)
        sha256 = files.sha256(folder / WEIGHTS)
        return System(description["name"], model, description["size"], sha256, description["mean_ab"])

    def decode(self, **options: float | None) -> None:
        """Set a classifier's `temperature` or a regression's `saturation`; None keeps the model's value.

        Raises:
            InputError: the model does not have the option.
        """
        for name, value in options.items():
            if value is not None and not hasattr(self.model.head, name):
                raise InputError(f"{self.name} has no {name}; leave --{name} out")
            if value is not None:
                setattr(self.model.head, name, value)

    @property
    def asked(self) -> tuple[str, float | None, float | None]:
        """What the colors depend on: the hash of the weights and the decoding options."""
        head = self.model.head
        return self.sha256, getattr(head, "temperature", None), getattr(head, "saturation", None)


def find(paths: Sequence[Path], output: Path | None = None) -> list[Found]:
    """List the photographs among files and in folders, in order; list other files with the reason.

    Every named file is tried; in a folder some files are passed over (see `album.walk`).

    Raises:
        InputError: a path does not exist, there is nothing to try, or two photographs have one name.
    """
    items: dict[str, Found] = {}
    ignored: list[Found] = []
    for path in paths:
        if os.path.isdir(path):
            listed = walk(path, output)
        elif os.path.lexists(path):
            kind, status, reason = look(path)
            listed = [Found(path, path.name, kind, status and "failed", reason)]
        else:
            raise InputError(f"{path} does not exist; give photographs or folders of photographs")
        for item in listed:
            if item.status == "ignored":
                ignored.append(item)
                continue
            other = items.setdefault(item.name, item)
            if os.path.realpath(other.source) != os.path.realpath(item.source):
                pair = f"{other.source} and {item.source}"
                raise InputError(f"{pair} have one name; color them into different folders")
    everything = [*items.values(), *ignored]
    if all(item.status in ("skipped", "ignored") for item in everything):
        passed = counts(item.reason for item in everything)
        missing = f"there is no photograph in {', '.join(map(str, paths))}"
        remedy = f"give files or folders with {' '.join(sum(SUFFIXES.values(), ()))}"
        raise InputError(f"{missing}{passed and f' (passed over: {passed})'}; {remedy}")
    return everything


def color_all(
    items: Sequence[Found],
    systems: Sequence[System],
    output: Path,
    samples: int = 1,
    compare: bool = False,
    max_megapixels: float = CropConfig.max_megapixels,
) -> Iterator[Row]:
    """Color photographs into a folder; several models get a folder each.

    Args:
        items: of `find`; ignored ones get no row.
        compare: write one sheet per photograph with all models side by side, instead of their images.
        max_megapixels: refuse larger photographs before decoding them.

    Yields:
        A row for each finished item; at the end the log holds all rows.

    Raises:
        InputError: a model cannot draw samples, a file that is not ours would be overwritten, or the log is
            damaged.
    """
    options = {"samples": samples, "compare": compare, "models": [system.asked for system in systems]}
    made_by = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:16]
    log = read_log(output)
    items = [item for item in items if item.status != "ignored"]
    names = {}
    for item in items:
        if item.kind:
            suffix = f".{item.kind}" if f".{item.kind}" in fullsize.SAVE else ".png"
            names[item.name] = output_names(item.name, suffix, systems, samples, compare)
    _refuse_twins(names, output)
    rows = [_planned(item, names.get(item.name, []), log, made_by, output) for item in items]
    for folder in {(output / name).parent for outputs in names.values() for name in outputs}:
        for leftover in folder.glob(f".{'[0-9a-f]' * 8}{files.TEMPORARY}"):  # from a killed run
            leftover.unlink(missing_ok=True)
    write_log(output, log)
    try:
        for item, row in zip(items, rows, strict=True):
            known = log.get(row.photo)
            if not row.status:
                try:
                    made = _color(item, row, systems, samples, compare, max_megapixels)
                    _refuse_foreign(row, known, output)  # again, because a file may have appeared meanwhile
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
    """Name a photograph's results below the output folder; `suffix` is that of the written format."""
    if compare:
        return [f"{name}-compared.jpg"]
    # A suffix that does not fit the format stays in the name, because two sources may differ only in it.
    fits = Path(name).suffix.lower() in SUFFIXES[suffix[1:]]
    stem, suffix = os.path.splitext(name if fits else name + suffix)
    folders = [f"{system.name}/" for system in systems] if len(systems) > 1 else [""]
    numbers = [f"-{number}" for number in range(1, samples + 1)] if samples > 1 else [""]
    return [f"{folder}{stem}{number}{suffix}" for folder in folders for number in numbers]


def _refuse_twins(names: Mapping[str, Sequence[str]], output: Path) -> None:
    """Raise InputError if two photographs share a result, or one's file is where another needs a folder."""

    def check(key: Callable[[str], str]) -> None:
        owners = {key(LOG): LOG}
        for photo, outputs in names.items():
            for name in outputs:
                if (other := owners.setdefault(key(name), photo)) != photo:
                    conflict = f"{other} and {photo} would both become {output / name}"
                    raise InputError(f"{conflict}; color them into two folders")
        for photo, outputs in names.items():
            for folder in {str(folder) for name in outputs for folder in Path(name).parents}:
                if other := owners.get(key(folder), ""):
                    conflict = f"{photo} needs a folder where {other} would be"
                    raise InputError(f"{conflict}; color them into two folders")

    try:
        check(_folded)
    except InputError:
        check(_folding(output))


def _folded(name: str, case: bool = True, form: bool = True) -> str:
    """Remove differences of case, and of Unicode's forms of accents, from a name."""
    composed = unicodedata.normalize("NFC", name) if form else name
    return composed.casefold() if case else composed


def _folding(output: Path) -> Callable[[str], str]:
    """The function that maps names of one file to one name; it depends on the file system."""
    folder = next(folder for folder in (output, *output.parents) if folder.is_dir())
    try:
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as probe:
            Path(probe, "\u00e9").touch()
            case, form = (os.path.lexists(Path(probe, other)) for other in ("\u00c9", "e\u0301"))
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}; make it writable") from error
    return partial(_folded, case=case, form=form)


def _obstacle(path: Path) -> Path | None:
    """What stands in the way of a new file: something of its name, or a file in place of a parent folder."""
    nearest = next(place for place in (path, *path.parents) if os.path.lexists(place))
    return None if nearest != path and os.path.isdir(nearest) else nearest


def _planned(item: Found, names: Sequence[str], log: Mapping[str, Row], made_by: str, output: Path) -> Row:
    """The row of an item before anything is written; without a status if the item needs coloring.

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
    """Tell whether a photograph is done: same photograph, same models, and the outputs exist.

    Changed outputs count as done, unless a killed run may have left them unfinished.
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
    """Tell whether two rows are about one photograph: same place or same content."""
    return known is not None and (known.source == row.source or known.sha256 == row.sha256)


def _refuse_foreign(row: Row, known: Row | None, output: Path) -> None:
    """Raise InputError if an output would overwrite a file that is not ours or was changed."""
    for name in row.outputs.split("|"):
        path = output / name_of(name)
        if (obstacle := _obstacle(path)) is None:
            continue
        digests = known.hashes.get(name, []) if known and _is_same(known, row) else []
        if obstacle != path or not path.is_file() or files.sha256(path) not in digests:
            problem = f"{obstacle} would be overwritten, and is not ours or was changed"
            raise InputError(f"{problem}; choose another --output")


def _color(
    item: Found, row: Row, systems: Sequence[System], samples: int, compare: bool, max_megapixels: float
) -> list[bytes]:
    """Color a photograph; return the content of its files, in the order of the row's outputs.

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
    names = output_names(item.name, photograph.suffix, systems, samples, compare)
    row.outputs = "|".join(map(text_of, names))
    pictures: dict[str, Image.Image] = {}
    if compare:
        light = fullsize.small_light(photograph, systems[0].model, systems[0].size)
        pictures["grey"] = fullsize.paint(photograph, light, torch.zeros(2, *light.shape[2:]))
    for system in systems:
        light = fullsize.small_light(photograph, system.model, system.size)
        for number, ab in enumerate(fullsize.colorings(system.model, light, samples), start=1):
            label = system.name if samples == 1 else f"{system.name} {number}"
            pictures[label] = fullsize.paint(photograph, light, ab)
    if compare:
        return [sheets.encode(side_by_side(photograph, pictures), "jpeg")]
    return [fullsize.encode(photograph, picture) for picture in pictures.values()]


def _write(made: Sequence[bytes], row: Row, known: Row | None, output: Path) -> None:
    """Log what will be written, then write a photograph's outputs.

    Raises:
        InputError: the folder is not writable, or its file system refuses a name.
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
    """Show labelled images of one photograph in a row, upright, each at most `COMPARED` pixels high."""
    width, height = photograph.size
    scale = min(1, COMPARED / height, (WIDEST / len(pictures) - sheets.GAP) / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    cells = []
    for label, picture in pictures.items():
        upright = fullsize.upright(photograph, picture)
        cells.append((label, upright.resize(size, Image.Resampling.BICUBIC)))
    return sheets.grid([cells])
