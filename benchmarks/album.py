"""Draw an album in the colors of several models: `python benchmarks/album.py FOLDER SHEET.jpg MODEL...`.

Photographs are colored at full size like in `colorize apply`, then scaled down. A row of originals is
followed by one row per model, then by the next photographs. Models are named like in `colorize apply`: a
folder, an experiment, a name.
"""

import argparse
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
    """Read a photograph, upright and scaled to the height of a row."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    return upright.resize((min(WIDTH, round(upright.width * HEIGHT / upright.height)), HEIGHT))


def bands(widths: list[int]) -> Iterator[slice]:
    """Split images of these widths into rows that fit `WIDTH`."""
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
    rows = []
    for place in places:
        for label, pictures in systems.items():
            rows.append([("" if column else label, each) for column, each in enumerate(pictures[place])])
    files.write_bytes(target, sheets.encode(sheets.grid(rows), "jpeg"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("album", type=Path)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("model", nargs="+")
    arguments = parser.parse_args()
    with files.one_sentence():
        draw(arguments.album, arguments.sheet, arguments.model)
