"""An album in color by several models, as one sheet: `python benchmarks/album.py FOLDER SHEET.jpg MODEL...`.

The photographs are colored at their full size, exactly as `colorize apply` does it, and only then scaled down: a row of
originals, below it a row for each model, and so on for the photographs that a row has no place for. Models are named as for
`colorize apply`: a folder, an experiment, a name.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageOps
from tqdm import tqdm

from colorize import files
from colorize.apply import coloring
from colorize.apply.project import find_model
from colorize.files import InputError
from colorize.scoring import sheets

HEIGHT = 160
WIDTH = 1095


def scaled(path: Path) -> Image.Image:
    """A photograph, upright, at the sheet's height."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    return upright.resize((min(WIDTH, round(upright.width * HEIGHT / upright.height)), HEIGHT))


def bands(widths: list[int]) -> Iterator[slice]:
    """Which pictures stand in one row: as many as it has a place for."""
    start, used = 0, 0
    for number, width in enumerate(widths):
        if used + width > WIDTH:
            yield slice(start, number)
            start, used = number, 0
        used += width + sheets.GAP
    yield slice(start, len(widths))


def draw(album: Path, target: Path, names: list[str]) -> None:
    items = [item for item in coloring.find([album]) if item.status != "ignored"]
    systems = {"original": [scaled(item.source) for item in items]}
    for name in names:
        with tempfile.TemporaryDirectory() as temporary:
            system = coloring.System.load(find_model(name, Path(temporary)))
            out = Path(temporary) / "colored"
            done = list(tqdm(coloring.color_all(items, [system], out), desc=name, total=len(items)))
            if failed := [each.photo for each in done if not each.outputs]:
                raise InputError(f"{failed[0]} cannot be colored; take it out of {album}")
            systems[system.name] = [scaled(out / each.outputs) for each in done]
    places = bands([picture.width for picture in systems["original"]])
    rows = [[(label if not column else "", picture) for column, picture in enumerate(pictures[place])]
            for place in places for label, pictures in systems.items()]  # fmt: skip
    sheet = sheets.grid(rows)
    files.write_bytes(target, sheets.encode(sheet, "jpeg"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("album", type=Path)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("model", nargs="+")
    given = parser.parse_args()
    try:
        draw(given.album, given.sheet, given.model)
    except InputError as error:
        sys.exit(f"error: {error}")
