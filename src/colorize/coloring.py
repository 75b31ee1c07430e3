"""Color many photographs of one's own: find them, color them, keep account of every one.

The account is `colorize.csv` in the output folder: one row per photograph with what became of it, the sha256 of the
photograph and of what colored it. A photograph whose row still holds is not colored again. A broken one is a row, not an
end. A file that is not ours is never overwritten: a folder is ours once it has an account. It knows neither params.yaml
nor DVC.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFont

from colorize import figures, files, formats, photographs
from colorize.files import InputError
from colorize.images import Refused
from colorize.models import WEIGHTS, Colorizer, load_description, load_model
from colorize.settings import CropRule

ACCOUNT = "colorize.csv"
ACCOUNT_SECONDS = 5.0
"""Between two times that the account is written; a killed run colors no more than that again."""
COMPARED = 480
"""Height in pixels to which photographs are scaled down on a sheet that compares models."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Of the files in a folder that are taken for photographs; one that is named is tried whatever its suffix."""


@dataclass(frozen=True)
class Item:
    """A photograph to color."""

    source: Path
    name: str
    """Below the output folder, with the source's own suffix."""


@dataclass
class Row:
    """What became of a photograph."""

    photo: str
    outputs: str = ""
    """Names below the output folder, joined by |."""
    status: str = "failed"
    """done, kept (it was done before) or failed."""
    reason: str = ""
    note: str = ""
    sha256: str = ""
    made_by: str = ""


COLUMNS = [field.name for field in fields(Row)]


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
        mean = tuple(description["mean_ab"]) if "mean_ab" in description else None
        return System(description["name"], model, description["size"], files.sha256(folder / WEIGHTS), mean)


def find(given: Sequence[Path], output: Path | None = None) -> list[Item]:
    """The photographs among files and below folders, in the order given, folders sorted; none that lie below `output`.

    Raises:
        InputError: a path does not exist, there is no photograph, or two would get one name.
    """
    items: dict[str, Item] = {}
    for path in given:
        if path.is_dir():
            below = [p for p in sorted(path.rglob("*")) if p.is_file() and p.suffix.lower() in SUFFIXES]
            results = [p for p in below if output and p.resolve().is_relative_to(output.resolve())]
            found = [Item(p, p.relative_to(path).as_posix()) for p in below if p not in results]
        elif path.exists():
            found = [Item(path, path.name)]
        else:
            raise InputError(f"{path} does not exist; give photographs or folders of photographs")
        for item in found:
            other = items.setdefault(item.name, item)
            if other.source.resolve() != item.source.resolve():
                raise InputError(f"{other.source} and {item.source} have one name; color them into different folders")
    if not items:
        raise InputError(
            f"there is no photograph in {', '.join(map(str, given))}; give files or folders with {' '.join(SUFFIXES)}"
        )
    return list(items.values())


def read_account(output: Path) -> dict[str, Row]:
    """What an output folder holds already, by photograph; nothing if it is new.

    Raises:
        InputError: the account is damaged.
    """
    path = output / ACCOUNT
    if not path.exists():
        return {}
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        return {row["photo"]: Row(*(row[name] for name in COLUMNS)) for row in table.to_dict("records")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no account of ours; delete it or choose another --output") from error


def write_account(output: Path, rows: Mapping[str, Row]) -> None:
    """Write what became of every photograph, in order of names."""
    table = pd.DataFrame([astuple(rows[name]) for name in sorted(rows)], columns=COLUMNS)
    files.write_text(output / ACCOUNT, table.to_csv(index=False, lineterminator="\n"))


def color_all(
    items: Sequence[Item],
    systems: Sequence[System],
    output: Path,
    samples: int = 1,
    temperature: float | None = None,
    compare: bool = False,
    max_megapixels: float = CropRule.max_megapixels,
) -> Iterator[Row]:
    """Color photographs into a folder; one model's lie there, several models' in a folder of each.

    Args:
        compare: one sheet per photograph with all models side by side, instead of their pictures.
        max_megapixels: larger photographs are refused before they are decoded.

    Yields:
        A row for each item as it ends; the account is written with it.

    Raises:
        InputError: a model cannot do what is asked, a photograph would be overwritten, or the account is damaged.
    """
    asked = {"samples": samples, "temperature": temperature, "compare": compare, "models": [s.sha256 for s in systems]}
    made_by = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    ours = (output / ACCOUNT).exists()
    account = read_account(output)
    write_account(output, account)
    written = time.monotonic()
    try:
        for item in items:
            row = Row(item.name, made_by=made_by)
            try:
                content = item.source.read_bytes()
                row.sha256 = hashlib.sha256(content).hexdigest()
                known = account.get(item.name)
                if known and holds(known, row, output):
                    row = replace(known, status="kept")
                else:
                    made = _color(item, content, row, systems, samples, temperature, compare, max_megapixels)
                    for name in made:
                        if (output / name).resolve() == item.source.resolve() or not ours and (output / name).exists():
                            raise InputError(f"{output / name} would be overwritten; choose another --output")
                    for name, picture in made.items():
                        files.write_bytes(output / name, picture)
                    row.outputs, row.status = "|".join(made), "done"
            except (Refused, OSError) as error:
                row.reason = str(error) if isinstance(error, Refused) else "unreadable"
            account[item.name] = row
            if time.monotonic() - written > ACCOUNT_SECONDS:
                write_account(output, account)
                written = time.monotonic()
            yield row
    finally:
        write_account(output, account)


def holds(known: Row, row: Row, output: Path) -> bool:
    """Whether a photograph is done: the same one, by the same models, and its outputs are there."""
    same = (known.sha256, known.made_by) == (row.sha256, row.made_by) and known.status != "failed"
    return same and all((output / name).exists() for name in known.outputs.split("|"))


def _color(
    item: Item,
    content: bytes,
    row: Row,
    systems: Sequence[System],
    samples: int,
    temperature: float | None,
    compare: bool,
    max_megapixels: float,
) -> dict[str, bytes]:
    """The files that a photograph becomes, by name below the output folder; its notes go to `row`."""
    photograph = photographs.read(content, max_megapixels)
    row.note = "+".join(photograph.notes)
    # A suffix that does not fit what is written stays in the name: two sources may differ in their suffix only.
    named = (
        Path(item.name)
        if Path(item.name).suffix.lower() in formats.SUFFIXES[photograph.suffix[1:]]
        else Path(item.name + photograph.suffix)
    )
    made: dict[str, bytes] = {}
    shown: dict[str, Image.Image] = {}
    if compare:
        light = photographs.small_light(photograph, systems[0].model, systems[0].size)
        shown["grey"] = photographs.paint(photograph, light, torch.zeros(2, *light.shape[2:]))
    for system in systems:
        light = photographs.small_light(photograph, system.model, system.size)
        for number, ab in enumerate(photographs.colorings(system.model, light, samples, temperature), start=1):
            picture = photographs.paint(photograph, light, ab)
            label = system.name if samples == 1 else f"{system.name} {number}"
            if compare:
                shown[label] = picture
                continue
            folder = Path(system.name) if len(systems) > 1 else Path()
            name = folder / named.with_stem(named.stem + (f"-{number}" if samples > 1 else ""))
            made[name.as_posix()] = photographs.encode(photograph, picture)
    if compare:
        made[f"{item.name}-compared.jpg"] = figures.encode(side_by_side(photograph, shown), "jpeg")
    return made


def side_by_side(photograph: photographs.Photograph, pictures: Mapping[str, Image.Image]) -> Image.Image:
    """Labelled pictures of one photograph in a row, upright, each at most `COMPARED` pixels high."""
    width, height = photograph.size
    scale = min(1, COMPARED / height)
    across, down = max(1, round(width * scale)), max(1, round(height * scale))
    font = ImageFont.load_default(figures.LABEL_SIZE)
    top = figures.LABEL_SIZE + figures.GAP
    sheet = Image.new("RGB", (len(pictures) * (across + figures.GAP) - figures.GAP, top + down), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (label, picture) in enumerate(pictures.items()):
        left = column * (across + figures.GAP)
        draw.text((left, 0), label, fill="black", font=font)
        sheet.paste(photographs.upright(photograph, picture).resize((across, down), Image.Resampling.BICUBIC), (left, top))
    return sheet
