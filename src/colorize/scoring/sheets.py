"""Draw contact sheets and encode images.

Sheets are transparent with middle grey text where the format allows it, so that they are readable on light
and on dark pages. Equal inputs give equal bytes. Nothing here writes files.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK = "#808080"
LABEL_SIZE, GAP = 13, 6
OPTIONS: dict[str, dict[str, Any]] = {
    "png": {"optimize": True},
    "webp": {"quality": 85},
    "jpeg": {
        "quality": 85,
        "subsampling": 0,
        "optimize": True,
    },  # color matters here, so it is not subsampled
}
SMALLEST, LARGEST = 96, 160
"""Limits of the side in pixels of a photograph on a sheet: large enough to see, small enough for Git."""
STRIP = 80
"""Side in pixels of a photograph in a strip."""


def spread(photos: int, count: int) -> np.ndarray:
    """Positions of at most `count` of `photos` photographs, evenly spread from the first to the last."""
    return np.unique(np.linspace(0, photos - 1, min(count, photos)).round().astype(int))


def encode(image: Image.Image, kind: str) -> bytes:
    """Encode an image as "png", "webp" or "jpeg"."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **OPTIONS[kind])
    return buffer.getvalue()


def _wrap(label: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Break a label at underscores and spaces into lines of at most `width` pixels."""
    lines = [""]
    for part in label.replace("_", "_ ").split():
        joined = lines[-1] + ("" if not lines[-1] or lines[-1].endswith("_") else " ") + part
        if lines[-1] and font.getlength(joined) > width:
            lines.append(part)
        else:
            lines[-1] = joined
    return "\n".join(lines)


def thumbnail(pixels: np.ndarray, side: int) -> Image.Image:
    """Scale a photograph uint8 [S, S, 3] to `side` pixels."""
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


def grid(rows: Sequence[Sequence[tuple[str, Image.Image]]], ground: str = "white") -> Image.Image:
    """Arrange images in rows, each below its label.

    Args:
        rows: pairs of label and image.
        ground: background color; "" is transparent.
    """
    font = ImageFont.load_default(LABEL_SIZE)
    line = LABEL_SIZE + 4
    tops = [max((label.count("\n") + 1 for label, _ in row if label), default=0) * line for row in rows]
    heights = [top + max(image.height for _, image in row) for top, row in zip(tops, rows, strict=True)]
    widths = [sum(image.width + GAP for _, image in row) - GAP for row in rows]
    size = max(widths), sum(heights) + GAP * (len(rows) - 1)
    sheet = Image.new("RGB", size, ground) if ground else Image.new("RGBA", size)
    draw = ImageDraw.Draw(sheet)
    y = 0
    for row, top, height in zip(rows, tops, heights, strict=True):
        x = 0
        for label, image in row:
            sheet.paste(image, (x, y + top))
            draw.multiline_text((x, y), label, fill="black" if ground else INK, font=font, spacing=4)
            x += image.width + GAP
        y += height + GAP
    return sheet


def sheet(columns: Mapping[str, np.ndarray]) -> Image.Image:
    """Show photographs in labelled columns, one row per photograph, on a transparent background.

    Args:
        columns: label to uint8 [n, S, S, 3], all of one shape.
    """
    count, side = next(iter(columns.values())).shape[:2]
    cell = min(max(side, SMALLEST), LARGEST)
    font = ImageFont.load_default(LABEL_SIZE)
    rows = [
        [
            ("" if n else _wrap(label, cell, font), thumbnail(images[n], cell))
            for label, images in columns.items()
        ]
        for n in range(count)
    ]
    return grid(rows, "")


def strips(systems: Mapping[str, np.ndarray], across: int = 3) -> Image.Image:
    """Show the same photographs of many systems as labelled strips, `across` of them side by side.

    Args:
        systems: label to uint8 [n, S, S, 3], all of one shape.
    """
    cells = [
        (label, Image.fromarray(np.hstack([np.asarray(thumbnail(pixels, STRIP)) for pixels in images])))
        for label, images in systems.items()
    ]
    return grid([cells[start : start + across] for start in range(0, len(cells), across)])


def examples(rows: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    """Show rows of photographs uint8 [n, S, S, 3], each row below its label."""
    blank = Image.new("RGB", (8 * SMALLEST, 1), "white")
    cells = []
    for label, images in rows:
        pictures = [thumbnail(pixels, SMALLEST) for pixels in images] or [blank]
        cells.append(list(zip([label, *[""] * len(pictures)], pictures, strict=False)))
    return grid(cells)
