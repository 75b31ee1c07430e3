"""Contact sheets of photographs, and the files that pictures become.

A ground is transparent and ink is a middle grey where the format allows it, so that one picture reads on a light and on a
dark page. Equal inputs give equal bytes. Nothing here writes files or knows where they lie.
"""

import io
from collections.abc import Mapping
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


def sheet(columns: Mapping[str, np.ndarray]) -> Image.Image:
    """Photographs in labelled columns, one row per photograph.

    Args:
        columns: label to uint8 [n, S, S, 3], all of one shape.
    """
    count, side = next(iter(columns.values())).shape[:2]
    cell = min(max(side, SMALLEST), LARGEST)
    font = ImageFont.load_default(LABEL_SIZE)
    labels = [_wrap(label, cell, font) for label in columns]
    top = (LABEL_SIZE + 4) * max(label.count("\n") + 1 for label in labels) + GAP
    picture = Image.new("RGBA", (len(columns) * (cell + GAP) - GAP, top + count * (cell + GAP) - GAP))
    draw = ImageDraw.Draw(picture)
    for column, (label, images) in enumerate(zip(labels, columns.values(), strict=True)):
        left = column * (cell + GAP)
        draw.multiline_text((left, 0), label, fill=INK, font=font, spacing=4)
        for row, pixels in enumerate(images):
            photo = Image.fromarray(pixels).resize((cell, cell), Image.Resampling.BICUBIC)
            picture.paste(photo, (left, top + row * (cell + GAP)))
    return picture


def strips(systems: Mapping[str, np.ndarray], across: int = 3) -> Image.Image:
    """The same photographs of many systems: a labelled strip for each, `across` of them side by side, read by rows.

    The ground is white, as JPEG has no transparent one.

    Args:
        systems: label to uint8 [n, S, S, 3], all of one shape.
    """
    count = len(next(iter(systems.values())))
    font = ImageFont.load_default(LABEL_SIZE)
    wide, high = count * (STRIP + 2) + 2 * GAP, LABEL_SIZE + STRIP + 2 * GAP
    rows = -(-len(systems) // across)
    picture = Image.new("RGB", (min(across, len(systems)) * wide, rows * high), "white")
    draw = ImageDraw.Draw(picture)
    for number, (label, images) in enumerate(systems.items()):
        left, top = number % across * wide + GAP, number // across * high
        draw.text((left, top), label, fill="black", font=font)
        for column, pixels in enumerate(images):
            photo = Image.fromarray(pixels).resize((STRIP, STRIP), Image.Resampling.BICUBIC)
            picture.paste(photo, (left + column * (STRIP + 2), top + LABEL_SIZE + GAP))
    return picture
