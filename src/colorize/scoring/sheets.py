"""Contact sheets of photographs, and the files that pictures become.

A ground is transparent and ink is a middle grey where the format allows it, so that one picture reads on a light and on a
dark page. Equal inputs give equal bytes. Nothing here writes files or knows where they lie.
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
    "jpeg": {"quality": 85, "subsampling": 0, "optimize": True},  # color is what is looked at: not subsampled
}
SMALLEST, LARGEST = 96, 160
"""Sides in pixels between which photographs are shown on a sheet: large enough to see, small enough to keep in git."""
STRIP = 80
"""Side in pixels of photographs in strips, of which there are many."""


def spread(photos: int, count: int) -> np.ndarray:
    """Positions of at most `count` of `photos`, evenly spread from the first to the last."""
    return np.unique(np.linspace(0, photos - 1, min(count, photos)).round().astype(int))


def encode(image: Image.Image, kind: str) -> bytes:
    """A picture as PNG, or as WebP or JPEG, which keep many photographs small."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **OPTIONS[kind])
    return buffer.getvalue()


def _wrap(label: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Break a label at underscores and spaces into lines that fit `width` pixels."""
    lines = [""]
    for part in label.replace("_", "_ ").split():
        joined = lines[-1] + ("" if not lines[-1] or lines[-1].endswith("_") else " ") + part
        if lines[-1] and font.getlength(joined) > width:
            lines.append(part)
        else:
            lines[-1] = joined
    return "\n".join(lines)


def thumbnail(pixels: np.ndarray, side: int) -> Image.Image:
    """A photograph uint8 [S, S, 3] at `side` pixels."""
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


def grid(rows: Sequence[Sequence[tuple[str, Image.Image]]], ground: str = "white") -> Image.Image:
    """Pictures in rows, each under its label. A label may be empty, of several lines, or wider than its picture.

    Args:
        ground: a color; "" is a transparent one.
    """
    font = ImageFont.load_default(LABEL_SIZE)
    line = LABEL_SIZE + 4
    labelled = [max((label.count("\n") + 1 for label, _ in row if label), default=0) * line for row in rows]
    heights = [
        top + max((picture.height for _, picture in row), default=0)
        for top, row in zip(labelled, rows, strict=True)
    ]
    widths = [sum(picture.width + GAP for _, picture in row) - GAP for row in rows]
    size = max(widths), sum(heights) + GAP * (len(rows) - 1)
    sheet = Image.new("RGB", size, ground) if ground else Image.new("RGBA", size)
    draw = ImageDraw.Draw(sheet)
    y = 0
    for row, label_height, height in zip(rows, labelled, heights, strict=True):
        x = 0
        for label, picture in row:
            sheet.paste(picture, (x, y + label_height))
            draw.multiline_text((x, y), label, fill="black" if ground else INK, font=font, spacing=4)
            x += picture.width + GAP
        y += height + GAP
    return sheet


def sheet(columns: Mapping[str, np.ndarray]) -> Image.Image:
    """Photographs in labelled columns, one row per photograph, on a transparent ground.

    Args:
        columns: label to uint8 [n, S, S, 3], all of one shape.
    """
    count, side = next(iter(columns.values())).shape[:2]
    cell = min(max(side, SMALLEST), LARGEST)
    font = ImageFont.load_default(LABEL_SIZE)
    labels = [_wrap(label, cell, font) for label in columns]
    rows = [[thumbnail(images[row], cell) for images in columns.values()] for row in range(count)]
    return grid(
        [list(zip(labels if row is rows[0] else [""] * len(row), row, strict=True)) for row in rows], ""
    )


def strips(systems: Mapping[str, np.ndarray], across: int = 3) -> Image.Image:
    """The same photographs of many systems: a labelled strip for each, `across` of them side by side, read by rows.

    Args:
        systems: label to uint8 [n, S, S, 3], all of one shape.
    """
    cells = [
        (label, Image.fromarray(np.hstack([np.asarray(thumbnail(pixels, STRIP)) for pixels in images])))
        for label, images in systems.items()
    ]
    return grid([cells[start : start + across] for start in range(0, len(cells), across)])


def examples(rows: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    """Rows of photographs uint8 [n, S, S, 3], each under its label."""
    blank = Image.new("RGB", (8 * SMALLEST, 1), "white")
    return grid(
        [
            [
                (label if not column else "", thumbnail(pixels, SMALLEST))
                for column, pixels in enumerate(images)
            ]
            or [(label, blank)]
            for label, images in rows
        ]
    )
