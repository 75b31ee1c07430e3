"""Decode photographs of unknown origin to upright 8-bit sRGB, and crop them to squares.

`opened` and `decode` are the only reader of photographs: the crop stage and `colorize score` make squares of
the result; `colorize apply` and the web page color it. The file's own tags decide how its levels become 8
bits; without them the file is refused. Pillow cuts a 16-bit channel of a color image to its upper 8 bits, an
error of at most one level.

A square is the center of the source (or the whole photograph between black bars), resampled once with an
antialiased Lanczos filter. JPEGs are decoded at a reduced scale of at least twice the target: for 12
megapixels this takes a sixth of the time of a full decode and stays within 45 dB of it. A photograph that
cannot be decoded completely is refused with a reason.
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
    "jpg": JpegImageFile,  # also MPO, a JPEG with a second picture: the first one is the photograph
    "png": PngImageFile,
    "webp": WebPImageFile,
    "avif": AvifImageFile,
    "gif": GifImageFile,
    "bmp": BmpImageFile,
    "tif": TiffImageFile,
}
"""Decoders of `formats.SUFFIXES`."""
for order, mode in ((II, "I;16"), (MM, "I;16B")):
    for photometric in (0, 1):  # Pillow can decode all these, but its table lacks some combinations
        OPEN_INFO.setdefault((order, photometric, (1,), 1, (12,), ()), ("I;16", "I;12"))
        OPEN_INFO.setdefault((order, photometric, (1,), 1, (16,), ()), (mode, mode))
MAX_PAGES = 64
"""Pages of a TIFF that are examined."""
BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC, SAMPLES_PER_PIXEL, PLANAR = 258, 259, 262, 277, 284
PREDICTOR, COLOR_MAP, SUB_IFDS, INK_SET, EXTRA_SAMPLES = 317, 320, 330, 332, 338
SAMPLE_FORMAT, YCBCR_SUBSAMPLING = 339, 530
"""TIFF tags."""
DNG_VERSION = 50706
RAW = {(32803,), (34892,)}
"""Photometric interpretations of sensor data: a color filter array, or linear raw."""
TRANSFERS = {
    "png": re.compile(rb"\0\0\0\x04cICP.(.)", re.DOTALL),
    "avif": re.compile(rb"colrnclx..\0(.)", re.DOTALL),
}
"""Patterns that find the transfer function of a file, a number of ITU-T H.273, table 3."""
HDR = {b"\x10", b"\x12"}
"""The transfer functions PQ and HLG."""
NO_PROFILE = (ImageCms.PyCMSError, ValueError, TypeError, OSError)
"""Pillow's errors for an invalid profile, or one that does not fit the pixels."""
KEYS = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}
"""Factors from a PNG's transparent level to decoded levels, by Pillow's name of the pixel layout."""
REASONS = {
    "truncated": "truncated",
    "unknown pixel mode": "mode",
    "cannot handle": "mode",
    "unsupported": "mode",
    "not installed": "avif",
}
"""Reasons by words in Pillow's errors."""
MAX_SCANS = 500
"""Limit for a progressive JPEG: real ones have about ten scans, malicious ones thousands, which take
minutes."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transforms that make EXIF's other orientations upright."""
TURNED_ASIDE = [UPRIGHT[orientation] for orientation in (5, 6, 7, 8)]
"""Transforms that exchange width and height."""
SRGB = ImageCms.createProfile("sRGB")
SENTENCES = {
    "unreadable": "The file cannot be opened; make it readable.",
    "missing": "The file is gone; run the same command again.",
    "hash_mismatch": "The file changed while it was read; run the same command again.",
    "crash": "The program that decodes such files crashes on it; save it again with another program.",
    "not_a_file": "This is not a regular file; give the photograph itself.",
    "thumbnail": "This is a camera's thumbnail of a film or a raw file; give the photograph itself.",
    "name_too_long": "The name of its result would be too long; shorten the photograph's name.",
    "bad_name": "The folder of results does not take such a name; rename the photograph.",
    "empty_file": "The file is empty; copy it again.",
    "not_image": "This is no photograph that can be read; give JPEG, PNG, WebP, AVIF, TIFF, BMP or GIF.",
    "truncated": "The file ends in the middle of the photograph; copy it again.",
    "corrupt": "The file is damaged; copy it again.",
    "too_many_pixels": "The photograph has more pixels than are allowed; raise --max-megapixels "
    "(in params.yaml: crop.max_megapixels), or scale it down.",
    "out_of_memory": "There is too little memory for so many pixels; end other programs, or scale it down.",
    "too_many_scans": "The file would take very long to decode; save it again with another program.",
    "too_small": "The photograph is smaller than the crops, and crop.small is drop.",
    "mode": "Pixels of this kind (floats, 32-bit integers, Lab) are not read; save it as 8-bit JPEG or PNG.",
    "hdr": "The levels are made for an HDR display; save it as an ordinary JPEG or PNG.",
    "too_large_to_write": "The result is too large for its format; scale it down or save it as PNG first.",
    "avif": "The installed Pillow lacks AVIF; install its wheel from PyPI, or save the file as JPEG or PNG.",
    **{
        reason: f"This is {words}, which is not read; export it as JPEG, PNG or TIFF."
        for reason, words in UNREAD.items()
    },
}
"""For each reason of a refusal, what it means and what to do."""


@dataclass(frozen=True)
class CropConfig:
    """How a photograph becomes a square."""

    size: Annotated[int, Ge(8), Le(4096)] = 64
    """Side of the crop in pixels."""
    fit: Literal["crop", "pad"] = "crop"
    """crop: the centered square; pad: the whole photograph, centered between black bars (document 004)."""
    small: Literal["enlarge", "drop"] = "enlarge"
    """What to do with photographs whose short side (pad: long side) is below `size`."""
    max_megapixels: Annotated[float, Gt(0)] = 200
    """Larger photographs are refused before decoding: a small file may unpack to more than the memory
    holds."""
    workers: Workers = 0
    """Processes of this machine; 0 means one per core."""
    cluster: str = ""
    """Address of a Dask scheduler whose workers crop instead; the results are the same bytes."""


class Refused(Exception):
    """A photograph cannot be used; the message is a key of `SENTENCES`."""


@dataclass
class Record:
    """The result for one photograph; width and height of the upright source are in pixels."""

    photo: str
    status: str = "failed"
    reason: str = ""
    note: str = ""
    width: int | None = None
    height: int | None = None
    small: bool = False


@dataclass
class Decoded:
    """The pixels of a photograph, 8 bits a channel, not yet turned upright."""

    picture: Image.Image
    """L, RGB or CMYK. L is always sRGB; the others follow the profile, or are sRGB without one."""
    alpha: Image.Image | None
    """L; None if the image is opaque."""
    profile: bytes
    """ICC profile; empty for none."""
    orientation: int
    """EXIF orientation, 1 to 8."""
    notes: list[str]
    """Of exif_ignored, frames_ignored, profile_ignored."""

    @property
    def on_white(self) -> Image.Image:
        """The picture on a white background."""
        if self.alpha is None:
            return self.picture
        white = Image.new(self.picture.mode, self.picture.size, "white")
        white.paste(self.picture, mask=self.alpha)
        return white

    def srgb(self, picture: Image.Image) -> Image.Image:
        """Convert the picture, or a scaled copy, to sRGB; drop and note a profile that does not fit."""
        if self.profile:
            try:
                return to_srgb(self.profile, picture.mode).apply(picture)
            except NO_PROFILE:
                self.profile = b""
                self.notes.append("profile_ignored")
        return picture if picture.mode == "RGB" else picture.convert("RGB")


def crop_square(content: bytes, config: CropConfig) -> tuple[np.ndarray, Record]:
    """Decode a photograph to its central square, or to the whole of it between black bars.

    Returns:
        uint8 [S, S, 3], upright sRGB on white, and a record without a name. If the number of black rows or
        columns is odd, the bottom or right bar has one more.

    Raises:
        Refused: the photograph cannot be read, or it is too small and `config.small` is drop.
    """
    with opened(content, config.max_megapixels) as image:
        width, height = image.size
        decisive = (max if config.fit == "pad" else min)(width, height)
        record = Record("", "ok", width=width, height=height, small=decisive < config.size)
        if record.small and config.small == "drop":
            raise Refused("too_small")
        scale = config.size / decisive
        across, down = (min(config.size, max(1, round(side * scale))) for side in (width, height))
        drafted = image.draft(None, (2 * across, 2 * down))
        decoded = decode(image)
        # The exact size of the source in drafted pixels; it may cover the last column and row only partly.
        right, bottom = drafted[1][2:] if drafted else image.size
        box: tuple[float, float, float, float] = (0, 0, right, bottom)
        if config.fit == "crop":
            side = min(right, bottom)
            left, top = (right - side) / 2, (bottom - side) / 2
            box = (left, top, left + side, top + side)
        scaled = decoded.srgb(decoded.on_white.resize((across, down), Image.Resampling.LANCZOS, box))
        turn = UPRIGHT.get(decoded.orientation)
        if turn is not None:  # turning after scaling is exact, since the box is centered
            scaled = scaled.transpose(turn)
            if turn in TURNED_ASIDE:
                record.width, record.height = height, width
        record.note = "+".join(decoded.notes)
        square = np.zeros((config.size, config.size, 3), np.uint8)
        top, left = (config.size - scaled.height) // 2, (config.size - scaled.width) // 2
        square[top : top + scaled.height, left : left + scaled.width] = np.asarray(scaled)
        return square, record


@contextmanager
def opened(content: bytes, max_megapixels: float) -> Iterator[Image.Image]:
    """Open a photograph and read its header; errors of its bytes, also in the block, become `Refused`."""
    allowed = int(min(round(max_megapixels * 1e6, 3), 2**62))
    if Image.MAX_IMAGE_PIXELS is not None:  # never lowered: other threads share it
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, allowed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata does not matter for the pixels
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
    except Exception as error:  # decoders raise all kinds of errors
        text = str(error).lower()
        reason = next((reason for words, reason in REASONS.items() if words in text), "corrupt")
        raise Refused(reason) from error


def _open(content: bytes) -> Image.Image:
    head = content[:HEAD_BYTES]
    if reason := why_no_image(head):
        raise Refused(reason)
    kind = image_kind(head)
    if kind == "jpg" and content.count(b"\xff\xda") > MAX_SCANS:
        raise Refused("too_many_scans")
    transfers = set(TRANSFERS[kind].findall(content)) if kind in TRANSFERS else set()
    if transfers and transfers <= HDR:
        raise Refused("hdr")
    image = OPENERS[kind](io.BytesIO(_at_whole_page(content) if kind == "tif" else content))
    if transfers:  # takes precedence over a PNG's gamma
        image.info.pop("gamma", None)
    return image


def _at_whole_page(content: bytes) -> bytes:
    """Make a TIFF begin with its first whole page, since some begin with a thumbnail or a mask.

    Raises:
        Refused: raw: it is a camera's raw file, of which Pillow decodes at most a preview; mode: unknown
            pixels.
    """
    if content.startswith(b"MM\0+"):  # big-endian BigTIFF, which Pillow misreads
        raise Refused("mode")
    file, header = io.BytesIO(content), content[: 16 if content[2] == ord("+") else 8]

    def chain(offset: int) -> Iterator[ImageFileDirectory_v2]:
        seen: set[int] = set()
        with suppress(Exception):  # Pillow's parser raises all kinds of errors, which end the chain
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
    """Check that the tags of a TIFF page define its levels and that Pillow decodes them correctly."""

    def tag(number: int, default: int) -> int:
        return (*_numbers(page, number), default)[0]

    compression, photometric, samples = tag(COMPRESSION, 1), tag(PHOTOMETRIC, -1), tag(SAMPLES_PER_PIXEL, 1)
    known = compression in COMPRESSION_INFO and compression != 50001  # Pillow's wheels have no WebP in TIFF
    if not known or tag(INK_SET, 1) != 1 or set(_numbers(page, SAMPLE_FORMAT)) - {1}:
        return False
    if photometric < 0:  # only fax codes and old JPEG define black and white without it
        return compression in (2, 3, 4, 6)
    if photometric == 6 and compression == 1:
        return _numbers(page, YCBCR_SUBSAMPLING) == (1, 1)
    if tag(PREDICTOR, 1) != 1 and (compression == 1 or tag(BITS_PER_SAMPLE, 1) not in (8, 16)):
        return False  # libtiff does not undo the predictor
    if tag(PLANAR, 1) == 2 and samples > 1:  # Pillow mixes up other planes
        plain = tag(BITS_PER_SAMPLE, 1) == 8 and _numbers(page, EXTRA_SAMPLES) in ((), (2,))
        return photometric in (2, 5, 6) and (plain or compression != 1)
    return True


def _numbers(page: ImageFileDirectory_v2, tag: int) -> tuple[int, ...]:
    """Return the values of a tag; empty if it is missing or not whole numbers."""
    values = page.get(tag, ())
    values = values if isinstance(values, tuple) else (values,)
    return values if all(isinstance(value, int) for value in values) else ()


def _is_part(page: ImageFileDirectory_v2) -> bool:
    """Check for a thumbnail or a mask (TIFF 6.0: NewSubfileType, SubfileType)."""
    newer, older = ((*_numbers(page, tag), 0)[0] for tag in (254, 255))
    return bool(newer & 5) or older == 2 or _numbers(page, PHOTOMETRIC) == (4,)


def orientation_of(image: Image.Image) -> int | None:
    """Return EXIF's orientation, 1 to 8 (1: upright); None if the metadata cannot be read."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # Pillow's parser raises all kinds of errors, but the pixels may be fine
        return None
    return orientation if orientation in UPRIGHT else 1


def decode(image: Image.Image) -> Decoded:
    """Decode an opened image, at the scale of its `draft`; Refused: mode: its black and white are unknown."""
    layout = image.tile[0].args if isinstance(image, PngImageFile) and image.tile else None
    frames = getattr(image, "is_animated", False)
    if isinstance(image, TiffImageFile) and max(_numbers(image.tag_v2, COLOR_MAP), default=256) < 256:
        # Some programs write a palette of 8-bit levels instead of 16-bit levels.
        image.palette = ImagePalette.raw("RGB;L", bytes(image.tag_v2[COLOR_MAP]))
    image.load()
    if (key := image.info.get("transparency")) and layout in KEYS:
        scaled = np.multiply(key, KEYS[layout]).astype(int).tolist()
        image.info["transparency"] = scaled if isinstance(key, int) else tuple(scaled)
    orientation = orientation_of(image)
    notes = ["exif_ignored"] * (orientation is None) + ["frames_ignored"] * frames
    profile = image.info.get("icc_profile") or b""
    gamma = 0 if profile or "srgb" in image.info else image.info.get("gamma", 0)
    if abs(2.2 * gamma - 1) < 0.05:  # the value for sRGB
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
    """Return the picture (L, RGB or CMYK) and alpha of an image of at most 8 bits a channel."""
    if image.mode in ("I", "F", "LAB"):
        raise Refused("mode")
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "CMYK" if image.mode == "CMYK" else "RGB"
    if not image.has_transparency_data:
        return image if image.mode == mode else image.convert(mode), None
    both = image if image.mode == mode + "A" else image.convert(mode + "A")
    return both.convert(mode), both.getchannel("A")


def _deep(image: Image.Image) -> tuple[np.ndarray, Image.Image | None]:
    """Return the levels (0 is black, 65535 is white) and alpha of a grey image of more than 8 bits."""
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
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space == "GRAY"
    except NO_PROFILE:
        return False


def _has_color(picture: Image.Image) -> bool:
    red, green, blue = picture.split()
    return any(ImageChops.difference(green, other).getbbox() for other in (red, blue))


@lru_cache(maxsize=32)
def _tones(profile: bytes, gamma: float, count: int) -> np.ndarray:
    """Convert `count` equidistant levels from black to white to sRGB: uint8 [count].

    Args:
        profile: grey ICC profile; or empty.
        gamma: exponent from light to levels, of a PNG; 0 for sRGB.

    Raises:
        ImageCms.PyCMSError, ValueError, TypeError, OSError: the profile is invalid, or not grey.
    """
    levels: np.ndarray = np.arange(count, dtype=np.uint16 if count > 256 else np.uint8)
    if profile:
        ramp = Image.fromarray(levels.reshape(-1, 256))
        # Without LittleCMS's optimization, whose tables are up to 10 levels off in the shadows.
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
    """Build the transform from an ICC profile to sRGB; it raises `NO_PROFILE` if the profile does not fit."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.buildTransform(source, SRGB, mode, "RGB", flags=flags)
