"""Encoded photographs of unknown origin to upright sRGB squares, in shards of uint8 arrays.

`open_image` and `decode` are the one reader of photographs: the crop stage and `colorize score` make squares of what they
give, `colorize apply` and the page color it. There is one way to 8 bits, by what the file says of its levels; what it does
not say is refused. A 16-bit channel of a color image is cut to its upper 8 bits by Pillow, which is one level off at most.

Geometry of the squares is pinned: the centered square in source coordinates (or the whole photograph, which black bars then
make a square), then one antialiased resample with Lanczos's filter; JPEGs are decoded at a reduced scale of at least twice
the target: of 12 megapixels in a sixth of a full decode's time, and above 45 dB from it.
Whatever cannot be decoded completely is refused with a reason: no partial image is ever returned.
It does not judge what a photograph shows; selection.py does.
"""

import io
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Le
from PIL import Image, ImageChops, ImageCms, ImagePalette
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import COMPRESSION_INFO, II, MM, OPEN_INFO, ImageFileDirectory_v2, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from colorize.data.formats import HEAD_BYTES, UNREAD, image_kind, why_no_image
from colorize.settings import Workers

OPENERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "jpg": JpegImageFile,  # a camera's JPEG with a second picture (MPO) too: its first one is the photograph
    "png": PngImageFile,
    "webp": WebPImageFile,
    "avif": AvifImageFile,
    "gif": GifImageFile,
    "bmp": BmpImageFile,
    "tif": TiffImageFile,
}
"""What decodes each of `formats.SUFFIXES`."""
for order, mode in ((II, "I;16"), (MM, "I;16B")):
    for photometric in (0, 1):  # Pillow decodes them all, but its table has not every combination
        OPEN_INFO.setdefault((order, photometric, (1,), 1, (12,), ()), ("I;16", "I;12"))
        OPEN_INFO.setdefault((order, photometric, (1,), 1, (16,), ()), (mode, mode))
MAX_PAGES = 64
"""Pages of a TIFF that are looked at."""
BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC, SAMPLES_PER_PIXEL, PLANAR = 258, 259, 262, 277, 284
PREDICTOR, COLOR_MAP, SUB_IFDS, INK_SET, EXTRA_SAMPLES = 317, 320, 330, 332, 338
SAMPLE_FORMAT, YCBCR_SUBSAMPLING = 339, 530
"""Tags of TIFF."""
DNG_VERSION = 50706
RAW = {(32803,), (34892,)}
"""Photometric interpretations of what a sensor saw: a mosaic of colors, or one that was filled in."""
TRANSFERS = {
    "png": re.compile(rb"\0\0\0\x04cICP.(.)", re.DOTALL),
    "avif": re.compile(rb"colrnclx..\0(.)", re.DOTALL),
}
"""Where files name the transfer function of their levels, by its number in ITU-T H.273, table 3."""
HDR = {b"\x10", b"\x12"}
"""PQ and HLG, whose levels are no sRGB's."""
NO_PROFILE = (ImageCms.PyCMSError, ValueError, TypeError, OSError)
"""What Pillow raises for a profile that is none, or that does not fit the pixels."""
KEYS = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}
"""From a PNG's transparent level to that of the decoded pixels, by Pillow's name of how they lie in the file."""
TOLD = {
    "truncated": "truncated",
    "unknown pixel mode": "mode",
    "cannot handle": "mode",
    "unsupported": "mode",
    "not installed": "avif",
}
"""Words of Pillow's errors to reasons."""
MAX_SCANS = 500
"""Scans of a progressive JPEG: real ones have about ten, crafted ones thousands that take minutes."""

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


SENTENCES = {
    "unreadable": "The file cannot be opened; make it readable.",
    "missing": "The file is gone; run the same command again.",
    "hash_mismatch": "The file changed while it was read; run the same command again.",
    "crash": "The program that decodes such files crashes on it; save it again with another program.",
    "not_a_file": "This is a broken link, a pipe or the like; give the photograph itself.",
    "thumbnail": "This is a camera's thumbnail of a film or a raw file; give the photograph itself.",
    "name_too_long": "The name of its result would be too long; shorten the photograph's name.",
    "bad_name": "The folder of results does not take such a name; rename the photograph.",
    "empty_file": "The file is empty; copy it again.",
    "not_image": "This is no photograph that can be read; give JPEG, PNG, WebP, AVIF, TIFF, BMP or GIF.",
    "truncated": "The file ends in the middle of the photograph; copy it again.",
    "corrupt": "The file is damaged; copy it again.",
    "too_many_pixels": "The photograph has more pixels than are allowed; raise --max-megapixels (in params.yaml: "
    "crop.max_megapixels), or scale it down.",
    "out_of_memory": "There is too little memory for so many pixels; end other programs, or scale the photograph down.",
    "too_many_scans": "The file is made to take long; save it again with another program.",
    "too_small": "The photograph is smaller than the crops, and crop.small says to drop such ones.",
    "mode": "Pixels of this kind (floats, 32-bit integers, Lab) are not read; save it as 8-bit JPEG or PNG.",
    "hdr": "The levels are those of an HDR display; save it as an ordinary JPEG or PNG.",
    "too_large_to_write": "The result is too large for its format; scale the photograph down or save it as PNG first.",
    "avif": "The installed Pillow does not read AVIF; install its wheel from PyPI, or save the file as JPEG or PNG.",
    **{
        reason: f"This is {words}, which is not read; export it as JPEG, PNG or TIFF."
        for reason, words in UNREAD.items()
    },
}
"""What each reason for which a photograph is refused means, and what to do."""


@dataclass(frozen=True)
class CropConfig:
    """How a photograph becomes a square."""

    size: Annotated[int, Ge(8), Le(4096)] = 64
    """Side of the crop in pixels."""
    fit: Literal["crop", "pad"] = "crop"
    """crop: the centered square; pad: the whole photograph, centered between black bars (document 004)."""
    small: Literal["enlarge", "drop"] = "enlarge"
    """What happens to photographs that are too small: whose short side (pad: long side) is below `size`."""
    max_megapixels: Annotated[float, Gt(0)] = 200
    """A larger photograph is refused before it is decoded: a small file may unpack to more than the memory holds."""
    workers: Workers = 0
    """Processes of this machine; 0 takes every core."""
    cluster: str = ""
    """Address of a Dask scheduler whose workers crop instead; the results are the same bytes."""


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


@dataclass
class Decoded:
    """A photograph's pixels as its file stores them: not turned, 8 bits a channel."""

    picture: Image.Image
    """L, RGB or CMYK. The levels of L are sRGB's; those of the others are the profile's, or sRGB's if there is none."""
    alpha: Image.Image | None
    """L, where something can be seen through."""
    profile: bytes
    """ICC, of a color space; empty if there is none."""
    orientation: int
    """EXIF's, 1 to 8."""
    notes: list[str]
    """What was ignored: exif_ignored, frames_ignored, profile_ignored."""

    @property
    def on_white(self) -> Image.Image:
        """The picture with nothing to see through."""
        if self.alpha is None:
            return self.picture
        white = Image.new(self.picture.mode, self.picture.size, "white")
        white.paste(self.picture, mask=self.alpha)
        return white

    def srgb(self, picture: Image.Image) -> Image.Image:
        """The picture, or what was made from it, as sRGB; a profile that does not fit it is dropped and noted."""
        if self.profile:
            try:
                return to_srgb(self.profile, picture.mode).apply(picture)
            except NO_PROFILE:
                self.profile = b""
                self.notes.append("profile_ignored")
        return picture if picture.mode == "RGB" else picture.convert("RGB")


def crop_square(content: bytes, rule: CropConfig) -> tuple[np.ndarray, Record]:
    """Decode a photograph to its central square, or to the whole of it, centered on a black one.

    Returns:
        uint8 [S, S, 3], upright sRGB with transparency on white, and a record without the photograph's name. Of an odd
        number of black rows or columns, the bottom or right bar has one more.

    Raises:
        Refused: it cannot be read, or it is too small (only where the rule drops small ones).
    """
    with opened(content, rule.max_megapixels) as image:
        width, height = image.size
        decisive = (max if rule.fit == "pad" else min)(width, height)
        record = Record("", "ok", width=width, height=height, small=decisive < rule.size)
        if record.small and rule.small == "drop":
            raise Refused("too_small")
        across, down = (
            min(rule.size, max(1, round(rule.size * extent / decisive))) for extent in (width, height)
        )
        drafted = image.draft(None, (2 * across, 2 * down))
        decoded = decode(image)
        # The exact extent of the source in drafted pixels, whose last column and row may be only partly covered.
        right, bottom = drafted[1][2:] if drafted else image.size
        box: tuple[float, float, float, float] = (0, 0, right, bottom)
        if rule.fit == "crop":
            side = min(right, bottom)
            left, top = (right - side) / 2, (bottom - side) / 2
            box = (left, top, left + side, top + side)
        scaled = decoded.srgb(decoded.on_white.resize((across, down), Image.Resampling.LANCZOS, box))
        turn = UPRIGHT.get(decoded.orientation)
        if turn is not None:  # a centered box turns onto itself, so turning the scaled one is exact
            scaled = scaled.transpose(turn)
            if turn in TURNED_ASIDE:
                record.width, record.height = height, width
        record.note = "+".join(decoded.notes)
        square = np.zeros((rule.size, rule.size, 3), np.uint8)
        top, left = (rule.size - scaled.height) // 2, (rule.size - scaled.width) // 2
        square[top : top + scaled.height, left : left + scaled.width] = np.asarray(scaled)
        return square, record


@contextmanager
def opened(content: bytes, max_megapixels: float) -> Iterator[Image.Image]:
    """A photograph whose header is read; whatever goes wrong with its bytes, in the block too, becomes `Refused`."""
    allowed = int(min(round(max_megapixels * 1e6, 3), 2**62))
    if (
        Image.MAX_IMAGE_PIXELS is not None
    ):  # one for the process, in which other threads may read: never lowered
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, allowed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, which does not concern the pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = _open(content)
            if image.width * image.height > allowed:
                raise Refused("too_many_pixels")
            yield image
    except Refused:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise Refused("too_many_pixels") from error
    except MemoryError as error:
        raise Refused("out_of_memory") from error
    except Exception as error:
        # Decoders fail with whatever they like, and a bad photograph is data, not a crash.
        told = str(error).lower()
        raise Refused(next((reason for words, reason in TOLD.items() if words in told), "corrupt")) from error


def _open(content: bytes) -> Image.Image:
    head = content[:HEAD_BYTES]
    if reason := why_no_image(head):
        raise Refused(reason)
    kind = image_kind(head)
    if kind == "jpg" and content.count(b"\xff\xda") > MAX_SCANS:
        raise Refused("too_many_scans")
    named = set(TRANSFERS[kind].findall(content)) if kind in TRANSFERS else set()
    if named and named <= HDR:
        raise Refused("hdr")
    image = OPENERS[kind](io.BytesIO(_at_whole_page(content) if kind == "tif" else content))
    if named:  # it comes before a PNG's gamma
        image.info.pop("gamma", None)
    return image


def _at_whole_page(content: bytes) -> bytes:
    """The same TIFF, but it opens at its first whole page: a thumbnail or a mask comes first in some.

    Raises:
        Refused: raw: it is a camera's, of which Pillow decodes a preview at most; mode: its pixels' kind is unknown.
    """
    if content.startswith(b"MM\0+"):  # the large kind of the other byte order, which Pillow misreads
        raise Refused("mode")
    file, header = io.BytesIO(content), content[: 16 if content[2] == ord("+") else 8]

    def chain(offset: int) -> Iterator[ImageFileDirectory_v2]:
        seen: set[int] = set()
        with suppress(Exception):  # Pillow's parser fails with whatever it meets; there the chain ends
            while offset and offset not in seen and len(seen) < MAX_PAGES:
                seen.add(offset)
                file.seek(offset)
                page = ImageFileDirectory_v2(header)
                page.load(file)
                yield page
                offset = page.next

    pages = list(chain(ImageFileDirectory_v2(header).next))
    starts = [start for page in pages for start in _numbers(page, SUB_IFDS)]
    below = [page for start in starts[:MAX_PAGES] for page in islice(chain(start), 1)]
    whole = [page for page in pages if not _is_part(page)]
    kinds = {_numbers(page, PHOTOMETRIC)[:1] for page in pages + below}
    if kinds & RAW or any(DNG_VERSION in page for page in pages) or below and not whole:
        raise Refused("raw")
    page = (whole or pages)[0]
    if not _is_defined(page):
        raise Refused("mode")
    if page is pages[0]:
        return content
    kind = ("<" if content[:2] == b"II" else ">") + ("Q" if len(header) == 16 else "L")
    return header[: len(header) // 2] + struct.pack(kind, page.offset) + content[len(header) :]


def _is_defined(page: ImageFileDirectory_v2) -> bool:
    """Whether the tags of a TIFF's page tell what its levels mean, and Pillow decodes them so."""

    def tag(number: int, default: int) -> int:
        return (*_numbers(page, number), default)[0]

    compression, photometric, samples = tag(COMPRESSION, 1), tag(PHOTOMETRIC, -1), tag(SAMPLES_PER_PIXEL, 1)
    known = compression in COMPRESSION_INFO and compression != 50001  # Pillow's wheels have no WebP in TIFF
    if not known or tag(INK_SET, 1) != 1 or set(_numbers(page, SAMPLE_FORMAT)) - {1}:
        return False
    if photometric < 0:  # black and white are anybody's guess then, but in fax codes and old JPEG
        return compression in (2, 3, 4, 6)
    if photometric == 6 and compression == 1:
        return _numbers(page, YCBCR_SUBSAMPLING) == (1, 1)
    if tag(PREDICTOR, 1) != 1 and (compression == 1 or tag(BITS_PER_SAMPLE, 1) not in (8, 16)):
        return False  # libtiff would not add up the differences
    if tag(PLANAR, 1) == 2 and samples > 1:  # Pillow mixes up the planes of others
        plain = tag(BITS_PER_SAMPLE, 1) == 8 and _numbers(page, EXTRA_SAMPLES) in ((), (2,))
        return photometric in (2, 5, 6) and (plain or compression != 1)
    return True


def _numbers(page: ImageFileDirectory_v2, tag: int) -> tuple[int, ...]:
    """The values of a tag; none if it is missing or holds no whole numbers."""
    found = page.get(tag, ())
    found = found if isinstance(found, tuple) else (found,)
    return found if all(isinstance(value, int) for value in found) else ()


def _is_part(page: ImageFileDirectory_v2) -> bool:
    """Whether a page of a TIFF is a thumbnail or a mask (TIFF 6.0: NewSubfileType, SubfileType)."""
    newer, older = ((*_numbers(page, tag), 0)[0] for tag in (254, 255))
    return bool(newer & 5) or older == 2 or _numbers(page, PHOTOMETRIC) == (4,)


def orientation_of(image: Image.Image) -> int | None:
    """EXIF's orientation, 1 to 8 (1: upright); None if its metadata cannot be read."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except (
        Exception
    ):  # Pillow's EXIF parser fails with whatever it meets; broken metadata must not cost the pixels
        return None
    return found if found in UPRIGHT else 1


def decode(image: Image.Image) -> Decoded:
    """Decode what was opened, at the scale that its `draft` chose.

    Raises:
        Refused: mode: the file does not tell which of its levels are black and white.
    """
    layout = image.tile[0].args if isinstance(image, PngImageFile) and image.tile else None
    frames = getattr(image, "is_animated", False)
    if isinstance(image, TiffImageFile) and max(_numbers(image.tag_v2, COLOR_MAP), default=256) < 256:
        # Some write a palette's levels as 8 bits where 16 are due.
        image.palette = ImagePalette.raw("RGB;L", bytes(image.tag_v2[COLOR_MAP]))
    image.load()
    if (key := image.info.get("transparency")) and layout in KEYS:
        scale = KEYS[layout]
        image.info["transparency"] = (
            int(key * scale) if isinstance(key, int) else tuple(int(level * scale) for level in key)
        )
    orientation = orientation_of(image)
    notes = ["exif_ignored"] * (orientation is None) + ["frames_ignored"] * frames
    profile = image.info.get("icc_profile") or b""
    gamma = 0 if profile or "srgb" in image.info else image.info.get("gamma", 0)
    if abs(2.2 * gamma - 1) < 0.05:  # as a PNG of sRGB says
        gamma = 0

    if image.mode.startswith("I;16"):
        levels, alpha = _deep(image)
    else:
        picture, alpha = _shallow(image)
        if picture.mode == "RGB" and _is_grey(profile) and not _has_color(picture):
            picture = picture.getchannel("G")
        if picture.mode != "L" or not (profile or gamma):
            if gamma:
                picture = picture.point(3 * _tones(b"", gamma, 256).tolist())
            return Decoded(picture, alpha, profile, orientation or 1, notes)
        levels = np.asarray(picture)
    count = 2 ** (8 * levels.itemsize)
    try:
        tones = _tones(profile, gamma, count)
    except NO_PROFILE:
        notes.append("profile_ignored")
        tones = _tones(b"", 0, count)
    return Decoded(Image.fromarray(tones[levels]), alpha, b"", orientation or 1, notes)


def _shallow(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Picture (L, RGB or CMYK) and alpha of an image of 8 bits a channel or fewer."""
    if image.mode in ("I", "F", "LAB"):
        raise Refused("mode")
    seen = "L" if image.mode in ("1", "L", "LA", "La") else "CMYK" if image.mode == "CMYK" else "RGB"
    if not image.has_transparency_data:
        return image if image.mode == seen else image.convert(seen), None
    both = image if image.mode == seen + "A" else image.convert(seen + "A")
    return both.convert(seen), both.getchannel("A")


def _deep(image: Image.Image) -> tuple[np.ndarray, Image.Image | None]:
    """Levels (0 is black and 65535 white) and alpha of a grey image of more than 8 bits."""
    levels = np.asarray(image)
    key = image.info.get("transparency")
    alpha = None if key is None else Image.fromarray(np.where(levels == key, 0, 255).astype(np.uint8))
    if isinstance(image, TiffImageFile):
        white = 2 ** _numbers(image.tag_v2, BITS_PER_SAMPLE)[0] - 1
        if white < 65535:
            levels = (levels.astype(np.uint32) * 65535 // white).astype(np.uint16)
        if _numbers(image.tag_v2, PHOTOMETRIC) == (0,):
            levels = 65535 - levels
    return levels, alpha


def _is_grey(profile: bytes) -> bool:
    """Whether an ICC profile is one of grey levels."""
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space == "GRAY"
    except NO_PROFILE:
        return False


def _has_color(picture: Image.Image) -> bool:
    red, green, blue = picture.split()
    return any(ImageChops.difference(green, other).getbbox() for other in (red, blue))


@lru_cache(maxsize=32)
def _tones(profile: bytes, gamma: float, count: int) -> np.ndarray:
    """What `count` equidistant levels from black to white are in sRGB: uint8 [count].

    Args:
        profile: ICC, of grey; or empty.
        gamma: a PNG's, by which light was raised to levels; 0 if the levels are sRGB's.

    Raises:
        ImageCms.PyCMSError, ValueError, TypeError, OSError: the profile is none, or of another color space.
    """
    levels: np.ndarray = np.arange(count, dtype=np.uint16 if count > 256 else np.uint8)
    if profile:
        ramp = Image.fromarray(levels.reshape(-1, 256))
        # Not optimized: the tables that LittleCMS would make are up to 10 levels off in the shadows.
        return np.asarray(to_srgb(profile, ramp.mode, ImageCms.Flags.NOOPTIMIZE).apply(ramp))[..., 1].ravel()
    shares = levels / (count - 1)
    if gamma:
        light = shares ** (1 / gamma)
        shares = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(255 * shares).astype(np.uint8)


@lru_cache(maxsize=32)
def to_srgb(
    profile: bytes, mode: str, flags: ImageCms.Flags = ImageCms.Flags.NONE
) -> ImageCms.ImageCmsTransform:
    """From an embedded profile to sRGB.

    Raises:
        ImageCms.PyCMSError, ValueError, TypeError, OSError: the profile is none, or of another color space.
    """
    return ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)), SRGB, mode, "RGB", flags=flags
    )
