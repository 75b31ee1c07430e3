"""Encoded photographs of unknown origin to upright sRGB squares, in shards of uint8 arrays.

Geometry is pinned: the centered square in source coordinates (or the whole photograph, which black bars then make a
square), then one antialiased resample with Lanczos's filter; JPEGs are decoded at a reduced scale of at least twice the
target: of 12 megapixels in a sixth of a full decode's time, and above 45 dB from it.
Whatever cannot be decoded completely is refused with a reason: no partial image is ever returned.
It does not judge what a photograph shows; selection.py does.
"""

import hashlib
import io
import multiprocessing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, ParallelBackendBase, cpu_count, delayed
from PIL import Image, ImageCms, ImageDraw, UnidentifiedImageError

from colorize.files import InputError, write_array
from colorize.formats import UNREAD
from colorize.settings import CropRule

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_SCANS = 500
"""Scans of a progressive JPEG: real ones have about ten, crafted ones thousands that take minutes."""
HANG_SECONDS = 1800.0
"""Longest time that a worker may take for a shard; large photographs take it about a minute."""
SHARD_ROWS = 1000
SHARD_BYTES = 2**28
MIN_SHARDS = 16
"""Small data sets are cut into about so many shards, so that every core has work."""

MAPPED_SHARDS = 256
"""Mapped at a time: each takes one of the files that a process may have open, often 1,024."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientations but the upright one: what makes them upright."""
TURNED_ASIDE = [UPRIGHT[orientation] for orientation in (5, 6, 7, 8)]
"""Those that exchange width and height."""
_ORIENTATION = 0x0112
SRGB = ImageCms.createProfile("sRGB")

Read = Callable[[str, str], bytes]
"""From shard and member to the original bytes."""


SENTENCES = {
    "empty_file": "The file is empty; copy it again.",
    "not_image": "This is no photograph that can be read; give JPEG, PNG, WebP, AVIF, TIFF, BMP or GIF.",
    "truncated": "The file ends in the middle of the photograph; copy it again.",
    "corrupt": "The file is damaged; copy it again.",
    "too_many_pixels": "The photograph has more pixels than are allowed; raise --max-megapixels (in params.yaml: "
    "crop.max_megapixels), or scale it down.",
    "too_many_scans": "The file is made to take long; save it again with another program.",
    "too_small": "The photograph is smaller than the crops, and crop.small says to drop such ones.",
    "mode": "Pixels of this kind (floats, 32-bit integers, Lab) are not read; save it as 8-bit JPEG or PNG.",
    "hdr": "The levels are those of an HDR display; save it as an ordinary JPEG or PNG.",
    "too_large_to_write": "The result is too large for its format; scale the photograph down or save it as PNG first.",
    **{reason: f"This is {words}, which is not read; export it as JPEG, PNG or TIFF." for reason, words in UNREAD.items()},
}
"""What each reason for which a photograph is refused means, and what to do."""


class Refused(Exception):
    """A photograph cannot be used; the message is the reason, one of `SENTENCES`."""


@dataclass
class Record:
    """What became of one photograph; width and height are those of the upright source, in pixels."""

    photo: str
    status: str = "failed"
    reason: str = ""
    note: str = ""
    width: int | None = None
    height: int | None = None
    small: bool = False


def crop_square(content: bytes, rule: CropRule) -> tuple[np.ndarray, Record]:
    """Decode a photograph to its central square, or to the whole of it, centered on a black one.

    Returns:
        uint8 [S, S, 3], upright sRGB with transparency on white, and a record without the photograph's name. Of an odd
        number of black rows or columns, the bottom or right bar has one more.

    Raises:
        Refused: not_image, truncated, corrupt, too_many_pixels, too_many_scans, mode (no defined way to 8-bit
            RGB) or too_small (only where the rule drops small ones).
    """
    with refusing():
        return _crop_square(content, rule)


@contextmanager
def refusing() -> Iterator[None]:
    """Turn whatever goes wrong with a photograph's bytes into `Refused`, its message the reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, which does not concern the pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except Refused:
            raise
        except UnidentifiedImageError as error:
            raise Refused("not_image") from error
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise Refused("too_many_pixels") from error
        except Exception as error:
            # Decoders fail with whatever they like, and a bad photograph is data, not a crash.
            raise Refused("truncated" if "truncated" in str(error).lower() else "corrupt") from error


def open_image(content: bytes) -> Image.Image:
    """A photograph of one of `FORMATS`, not decoded yet; call it and decode within `refusing`."""
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > MAX_SCANS:
        raise Refused("too_many_scans")
    return image


def orientation_of(image: Image.Image) -> int | None:
    """EXIF's orientation, 1 to 8 (1: upright); None if its metadata cannot be read."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow's EXIF parser fails with whatever it meets; broken metadata must not cost the pixels
        return None
    return found if found in UPRIGHT else 1


def _crop_square(content: bytes, rule: CropRule) -> tuple[np.ndarray, Record]:
    image = open_image(content)
    width, height = image.size
    decisive = (max if rule.fit == "pad" else min)(width, height)
    record = Record("", "ok", width=width, height=height, small=decisive < rule.size)
    if record.small and rule.small == "drop":
        raise Refused("too_small")
    across, down = (min(rule.size, max(1, round(rule.size * extent / decisive))) for extent in (width, height))
    drafted = image.draft(None, (2 * across, 2 * down))
    image.load()
    # The exact extent of the source in drafted pixels, whose last column and row may be only partly covered.
    right, bottom = drafted[1][2:] if drafted else image.size
    box: tuple[float, float, float, float] = (0, 0, right, bottom)
    if rule.fit == "crop":
        side = min(right, bottom)
        left, top = (right - side) / 2, (bottom - side) / 2
        box = (left, top, left + side, top + side)
    orientation = orientation_of(image)
    notes = ["exif_ignored"] if orientation is None else []
    scaled = plain(image).resize((across, down), Image.Resampling.LANCZOS, box)
    if profile := image.info.get("icc_profile"):
        try:
            scaled = to_srgb(profile, scaled.mode).apply(scaled)
        except (ImageCms.PyCMSError, ValueError, TypeError, OSError):
            notes.append("profile_ignored")
    scaled = scaled.convert("RGB")
    turn = UPRIGHT.get(orientation or 1)
    if turn is not None:  # a centered box turns onto itself, so turning the scaled one is exact
        scaled = scaled.transpose(turn)
        if turn in TURNED_ASIDE:
            record.width, record.height = height, width
    record.note = "+".join(notes)
    square = np.zeros((rule.size, rule.size, 3), np.uint8)
    top, left = (rule.size - scaled.height) // 2, (rule.size - scaled.width) // 2
    square[top : top + scaled.height, left : left + scaled.width] = np.asarray(scaled)
    return square, record


@lru_cache(maxsize=32)
def to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    """From an embedded profile to sRGB.

    Raises:
        ImageCms.PyCMSError, ValueError, TypeError, OSError: the profile is none, or of another mode.
    """
    return ImageCms.buildTransform(ImageCms.ImageCmsProfile(io.BytesIO(profile)), SRGB, mode, "RGB")


def plain(image: Image.Image) -> Image.Image:
    """8 bits per channel and nothing to see through: L, RGB or CMYK."""
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise Refused("mode")
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if image.mode in ("F", "LAB"):
        raise Refused("mode")
    if image.has_transparency_data:
        color = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), color).convert("RGB")
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("L" if image.mode == "1" else "RGB")


def _crop_row(row: Mapping[Any, str], read: Read, rule: CropRule) -> tuple[Record, np.ndarray | None]:
    try:
        content = read(row["shard"], row["member"])
    except (InputError, KeyError):
        return Record(row["photo"], reason="missing"), None
    if hashlib.sha256(content).hexdigest() != row["sha256"]:
        return Record(row["photo"], reason="hash_mismatch"), None
    try:
        pixels, record = crop_square(content, rule)
    except Refused as refused:
        reason = str(refused)
        return Record(row["photo"], "skipped" if reason == "too_small" else "failed", reason), None
    record.photo = row["photo"]
    return record, pixels


def _crop_row_apart(row: Mapping[Any, str], read: Read, rule: CropRule) -> tuple[Record, np.ndarray | None]:
    """`_crop_row` in a process of its own, which may die."""
    try:
        return Parallel(n_jobs=2)([delayed(_crop_row)(row, read, rule)])[0]
    except BrokenProcessPool:
        return Record(row["photo"], reason="crash"), None


def _crop_shard(
    rows: Sequence[Mapping[Any, str]], path: Path, read: Read, rule: CropRule, crop_row=_crop_row
) -> list[Record]:
    crops = np.empty((len(rows), rule.size, rule.size, 3), np.uint8)
    records = []
    count = 0
    for row in rows:
        record, pixels = crop_row(row, read, rule)
        records.append(record)
        if pixels is not None:
            crops[count] = pixels
            count += 1
    if count:
        write_array(path, crops[:count])
    return records


def crop_shards(
    rows: Sequence[Mapping[Any, str]], read: Read, folder: Path, rule: CropRule, backend: str | ParallelBackendBase = "loky"
) -> Iterator[list[Record]]:
    """Crop photographs into `folder`/crops-00000.npy and following, on every core, in the order of `rows`.

    Each row has photo, shard, member and sha256. Shards depend on the rows and the size alone, so they are the same
    bytes for any number of workers. A photograph whose decoder kills its process costs only itself: its record
    says crash (with one worker there is no other process to die in its place).

    Args:
        backend: joblib's loky, `rule.workers` processes of this machine; or a cluster, see `colorize.compute.connected`,
            whose workers read the photographs and write `folder` under the same paths as this process.

    Yields:
        The records of one shard after the other.

    Raises:
        InputError: a worker hangs in a photograph (with one worker there is nobody to notice); on a cluster it goes on
            hanging, and no worker being free for so long looks the same.
    """
    per_shard = min(SHARD_ROWS, SHARD_BYTES // (rule.size**2 * 3) or 1, -(-len(rows) // MIN_SHARDS) or 1)
    jobs = [
        (rows[start : start + per_shard], folder / f"crops-{start // per_shard:05d}.npy", read, rule)
        for start in range(0, len(rows), per_shard)
    ]
    workers = min(rule.workers or cpu_count(), len(jobs))
    alone = backend == "loky" and workers == 1
    done = 0
    while done < len(jobs):
        try:
            pool = Parallel(workers, backend=backend, return_as="generator", timeout=None if alone else HANG_SECONDS)
            for records in pool(delayed(_crop_shard)(*job) for job in jobs[done:]):
                done += 1
                # A cluster gives None for a shard of which a photograph kills the workers.
                yield records or _crop_shard(*jobs[done - 1], crop_row=_crop_row_apart)
        except (TimeoutError, multiprocessing.TimeoutError) as error:
            first, last = jobs[done][0][0]["photo"], jobs[done][0][-1]["photo"]
            raise InputError(
                f"one of the photographs {first} to {last} keeps a worker busy for over {HANG_SECONDS:g} seconds; find it "
                "with compute.backend=loky and crop.workers=1, and remove it"
            ) from error
        except BrokenProcessPool:  # by some photograph of the shards in flight: this one is taken apart
            done += 1
            yield _crop_shard(*jobs[done - 1], crop_row=_crop_row_apart)


class Crops:
    """Crops by their running number over all shards, in the order asked for: mapped, and read when rows are asked for.

    Args:
        indices: running numbers [n]; None takes all.

    Raises:
        InputError: there are no shards, one is damaged, or a number is beyond the last crop.
    """

    def __init__(self, folder: Path, indices: np.ndarray | None = None) -> None:
        self.paths = sorted(folder.glob("crops-*.npy"))
        if not self.paths:
            raise InputError(f"{folder} holds no crops; run the crop stage")
        self._map = lru_cache(MAPPED_SHARDS)(partial(np.load, mmap_mode="r", allow_pickle=False))
        self.ends = np.cumsum([len(self._shard(path)) for path in self.paths])
        self.indices = np.arange(self.ends[-1]) if indices is None else np.asarray(indices)
        if len(self) and not 0 <= self.indices.min() <= self.indices.max() < self.ends[-1]:
            highest = self.indices.max()
            raise InputError(
                f"{folder} holds {self.ends[-1]} crops, but number {highest} is asked for; run the filter stage"
            )

    def _shard(self, path: Path) -> np.ndarray:
        try:
            return self._map(path)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path} is damaged; delete it and run the crop stage") from error

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, rows: np.ndarray) -> "Crops":
        """Those at positions `rows`."""
        chosen = copy(self)
        chosen.indices = self.indices[rows]
        return chosen

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Read the crops at positions `rows`: uint8 [n, S, S, 3]."""
        wanted = self.indices[rows]
        crops = np.empty((len(wanted), *self._shard(self.paths[0]).shape[1:]), np.uint8)
        shard_of = np.searchsorted(self.ends, wanted, side="right")
        for number in np.unique(shard_of):
            places = np.flatnonzero(shard_of == number)
            shard = self._shard(self.paths[number])
            crops[places] = shard[wanted[places] - (self.ends[number] - len(shard))]
        return crops


def read_crops(folder: Path, indices: np.ndarray | None = None) -> np.ndarray:
    """Read crops by their running number over all shards, in the order asked for; None reads all.

    Returns:
        uint8 [n, S, S, 3]

    Raises:
        InputError: what `Crops` raises.
    """
    return Crops(folder, indices)[:]


def contact_sheet(rows: Sequence[tuple[str, np.ndarray]], columns: int = 8, side: int = 96) -> Image.Image:
    """Draw labelled rows of photographs; a row without any is a line of text.

    Args:
        rows: label and uint8 [n, S, S, 3]; the first `columns` are shown
        side: of each photograph on the sheet, in pixels
    """
    line, margin = 18, 4
    heights = [line + (side + margin if len(images) else 0) for _, images in rows]
    sheet = Image.new("RGB", (margin + columns * (side + margin), sum(heights) + margin), "white")
    draw = ImageDraw.Draw(sheet)
    top = margin
    for (label, images), height in zip(rows, heights, strict=True):
        draw.text((margin, top), label, fill="black")
        for column, pixels in enumerate(images[:columns]):
            thumbnail = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(thumbnail, (margin + column * (side + margin), top + line - margin))
        top += height
    return sheet
