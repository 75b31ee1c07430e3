"""An album in color by several models, as one sheet: `python benchmarks/album.py FOLDER SHEET.jpg MODEL...`.

The photographs are colored at their full size, exactly as `colorize apply` does it, and only then scaled down: a row of the
originals, below it a row for each model. Models are named as for `colorize apply`: a folder, an experiment, a name.
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps
from tqdm import tqdm

from colorize import coloring, figures, files
from colorize.project import find_model

HEIGHT = 150


def row(label: str, pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one height under a label."""
    scaled = [picture.resize((round(picture.width * HEIGHT / picture.height), HEIGHT)) for picture in pictures]
    top = figures.LABEL_SIZE + figures.GAP
    sheet = Image.new("RGB", (sum(each.width + figures.GAP for each in scaled), top + HEIGHT + figures.GAP), "white")
    ImageDraw.Draw(sheet).text((0, 0), label, fill="black", font=ImageFont.load_default(figures.LABEL_SIZE))
    left = 0
    for each in scaled:
        sheet.paste(each, (left, top))
        left += each.width + figures.GAP
    return sheet


def upright(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def main() -> None:
    album, target, *names = sys.argv[1:]
    items = coloring.find([Path(album)])
    rows = [row("original", [upright(item.source) for item in items])]
    for name in names:
        with tempfile.TemporaryDirectory() as temporary:
            system = coloring.System.load(find_model(name, Path(temporary)))
            out = Path(temporary) / "colored"
            done = list(tqdm(coloring.color_all(items, [system], out), desc=system.name, total=len(items)))
            rows.append(row(system.name, [upright(out / each.outputs) for each in done]))
    sheet = Image.new("RGB", (rows[0].width, sum(each.height for each in rows)), "white")
    for number, each in enumerate(rows):
        sheet.paste(each, (0, number * each.height))
    files.write_bytes(Path(target), figures.encode(sheet, "jpeg"))


if __name__ == "__main__":
    main()
