"""Photographs of any size and format, colored at their own size: the lightness stays, a model gives the color.

A model sees a small copy, upright; what it predicts is turned back, spread over all pixels and put under the photograph's
own L*. Spreading is edge-aware: it is bilinear, and what that blurs is given back where color follows lightness. In
windows of 3x3 pixels of the small copy ab is fitted as a linear function of L* (the local model of the guided filter); its
slope times the lightness that the small copy lacks is added. Whole guided filtering smooths what the model predicted and
comes out worse than bilinear (benchmarks/upsampling.py). A color that the display cannot show at its lightness is made
paler, not lighter or darker. Work goes by bands of rows, one thread each: no thread waits for another in every operation,
the bytes are the same for any number of threads, and memory is that of the decoded photograph and little more. EXIF and
ICC profile, transparency, orientation and resolution are kept.

Source: He, Sun, Tang, "Guided Image Filtering", TPAMI 2013, section 3 (the local linear model).
"""

import io
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms
from torch import Tensor
from torch.nn import functional as F

from colorize.color import bytes_to_light, lab_to_clipped_rgb, lab_to_rgb, rgb_to_lab
from colorize.data.images import NO_PROFILE, SRGB, TURNED_ASIDE, UPRIGHT, CropConfig, Refused, decode, opened
from colorize.files import InputError
from colorize.models.base import Colorizer

RADIUS = 1
"""Of the windows in which color is fitted to lightness, in pixels of the small copy."""
FLAT = 50.0
"""Variance of L* in such a window, in Lab units squared, below which lightness tells little about color."""
BAND = 1 << 15
"""Pixels of a band of whole rows, about: what a core's cache holds, and enough for Python's part of the time to be small."""
MOST_THREADS = 8
"""More would wait for Python's lock; each needs 10 MB."""
LONGEST = 4
"""Sides of the small copy: the long one is at most so many times the short one."""
PALER_STEPS = 8
"""Halvings of the interval in which a color's share is searched that the display can show."""
SAVED_AS = {"JPEG": ".jpg", "WEBP": ".webp", "TIFF": ".tif", "AVIF": ".avif"}
"""Formats that can be read to the suffixes of those that are written; .png for all others: GIF holds too few colors, BMP
no metadata."""
SAVE: dict[str, dict[str, Any]] = {
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".png": {"format": "PNG"},
    ".webp": {"format": "WEBP", "quality": 95},
    # Speed 9 takes a seventh of the default's time for a sixth more bytes; with more threads the bytes are others.
    ".avif": {"format": "AVIF", "quality": 90, "subsampling": "4:4:4", "speed": 9, "max_threads": 1},
    ".tif": {"format": "TIFF"},  # plain: Pillow's compressing writer cannot hold EXIF's blocks
}
LAYOUT = {*range(254, 270), 273, *range(277, 282), 284, 285, 292, 293, 297, 317, 318, 319, *range(320, 348), 513, 514,
          *range(529, 533), 34675}  # fmt: skip
"""TIFF's tags that tell how pixels lie in a file; 34675 is the ICC profile, which is kept for itself."""
UNTURNED: dict[Image.Transpose, Callable[[Tensor], Tensor]] = {
    Image.Transpose.FLIP_LEFT_RIGHT: lambda maps: maps.flip(-1),
    Image.Transpose.ROTATE_180: lambda maps: maps.flip(-1, -2),
    Image.Transpose.FLIP_TOP_BOTTOM: lambda maps: maps.flip(-2),
    Image.Transpose.TRANSPOSE: lambda maps: maps.mT,
    Image.Transpose.TRANSVERSE: lambda maps: maps.flip(-1, -2).mT,
    Image.Transpose.ROTATE_270: lambda maps: maps.rot90(1, (-2, -1)),
    Image.Transpose.ROTATE_90: lambda maps: maps.rot90(-1, (-2, -1)),
}
"""What undoes Pillow's turns on maps [..., h, w]."""
TOLERANCE = 0.3
"""Lab units by which a color may change when it is clipped to the gamut."""


@dataclass
class Photograph:
    """A decoded photograph, as it is stored: not turned."""

    rgb: Image.Image
    """sRGB, 8 bits."""
    alpha: Image.Image | None
    """L, where something can be seen through."""
    orientation: int
    """EXIF's, 1 to 8."""
    suffix: str
    """Of the file that is written."""
    exif: bytes
    profile: bytes
    """ICC, of an RGB color space, that leads back from sRGB too; empty if there is none such."""
    dpi: tuple[float, float] | None
    notes: tuple[str, ...]
    """What was ignored: exif_ignored, profile_ignored, frames_ignored."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height when upright."""
        width, height = self.rgb.size
        return (height, width) if UPRIGHT.get(self.orientation) in TURNED_ASIDE else (width, height)


def read(content: bytes, max_megapixels: float = CropConfig.max_megapixels) -> Photograph:
    """Decode a photograph.

    Raises:
        Refused: it cannot be read.
    """
    with opened(content, max_megapixels) as image:
        decoded = decode(image)
        suffix = SAVED_AS.get(str(image.format), ".png")
        rgb = decoded.srgb(decoded.picture)
        profile = decoded.profile if decoded.picture.mode == "RGB" and _from_srgb(decoded.profile) else b""
        notes, exif, dpi = decoded.notes, b"", image.info.get("dpi")
        try:
            exif = _descriptive(image.getexif())
            _save(Image.new("RGB", (1, 1)), suffix, {"exif": exif, "dpi": dpi})
        except Exception:  # as in images.orientation_of: broken metadata must not cost the pixels
            notes = list(dict.fromkeys(["exif_ignored", *notes]))
            exif, dpi = b"", None
        rgb.info = {}  # Pillow would write what it finds there: an old profile
        return Photograph(rgb, decoded.alpha, decoded.orientation, suffix, exif, profile, dpi, tuple(notes))


def _from_srgb(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """To an embedded profile; None if it is none or, as of some scanners, leads to sRGB and not back."""
    try:
        return ImageCms.buildTransform(SRGB, ImageCms.ImageCmsProfile(io.BytesIO(profile)), "RGB", "RGB")
    except NO_PROFILE:
        return None


def _save(picture: Image.Image, suffix: str, metadata: dict[str, Any]) -> bytes:
    if suffix == ".webp":
        metadata = metadata | {"dpi": None}  # the format has none
    buffer = io.BytesIO()
    picture.save(buffer, **SAVE[suffix], **{key: value for key, value in metadata.items() if value})
    return buffer.getvalue()


def _descriptive(exif: Image.Exif) -> bytes:
    """EXIF without what describes the layout of the file it was in, a thumbnail of the grey photograph among it."""
    kept = Image.Exif()
    blocks = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
    for tag, value in exif.items():
        if tag not in LAYOUT and tag not in blocks:  # the value of a block's tag is its place in the old file
            kept[tag] = value
    for block in blocks:
        if found := exif.get_ifd(block):
            kept.get_ifd(block).update(found)
    return kept.tobytes()


def encode(photograph: Photograph, rgb: Image.Image) -> bytes:
    """A file like the photograph's with other pixels, sRGB of its stored size.

    Raises:
        Refused: too_large_to_write: the format cannot hold so many pixels.
    """
    if transform := _from_srgb(photograph.profile):
        rgb = transform.apply(rgb)
    if photograph.alpha is not None and photograph.suffix != ".jpg":
        rgb.putalpha(photograph.alpha)
    metadata = {"exif": photograph.exif, "icc_profile": photograph.profile, "dpi": photograph.dpi}
    try:
        return _save(rgb, photograph.suffix, metadata)
    except (
        OSError,
        ValueError,
        struct.error,
    ) as error:  # the metadata was tried when the photograph was read
        raise Refused("too_large_to_write") from error


def upright(photograph: Photograph, stored: Image.Image) -> Image.Image:
    """A picture of the photograph's stored orientation, turned as the photograph is to be seen."""
    turn = UPRIGHT.get(photograph.orientation)
    return stored if turn is None else stored.transpose(turn)


def small_light(photograph: Photograph, model: Colorizer, side: int) -> Tensor:
    """The lightness that a model sees, upright, [1, 1, h, w] with L* in 0 to 100.

    A model that takes any size sees the whole photograph with its short side at `side`, both rounded to multiples of 8;
    any other sees it squeezed into a square.
    """
    width, height = photograph.size
    across = down = side
    if model.any_size:
        scale = side / min(width, height)
        across, down = (
            8 * max(1, round(min(scale * extent, LONGEST * side) / 8)) for extent in (width, height)
        )
    stored = (down, across) if UPRIGHT.get(photograph.orientation) in TURNED_ASIDE else (across, down)
    small = photograph.rgb.resize(stored, Image.Resampling.BICUBIC, reducing_gap=3)
    return _lightness(np.asarray(upright(photograph, small)))


@torch.inference_mode()
def colorings(model: Colorizer, light: Tensor, samples: int = 1) -> Tensor:
    """What a model makes of a lightness [1, 1, h, w]: ab, [samples, 2, h, w] in Lab units.

    Args:
        samples: colorings of the photograph; more than one only of models that have several.

    Raises:
        InputError: the model has only one coloring, or predicts something not finite.
    """
    colors = model.predict(light, samples)
    if samples > 1 and colors.samples is None:
        raise InputError("this model has one coloring of a photograph; leave --samples out")
    ab = colors.ab if colors.samples is None else colors.samples[0]
    if not torch.isfinite(ab).all():
        raise InputError("this model predicts NaN or infinity; train it again, with a lower learning rate")
    return ab


def paint(photograph: Photograph, light: Tensor, ab: Tensor) -> Image.Image:
    """Put a predicted color under a photograph's own lightness, with as many threads as torch may use.

    Args:
        light: what the model saw, [1, 1, h, w].
        ab: what it predicted from that, [2, h, w] in Lab units.

    Returns:
        sRGB of the stored size and orientation.
    """
    width, height = photograph.rgb.size
    source = np.asarray(photograph.rgb)
    painted = np.empty_like(source)
    rows = max(1, BAND // width)

    @torch.inference_mode()
    def spread() -> Tensor:
        maps = torch.cat((light, ab[None], slope(light, ab[None])), dim=1)
        turn = UPRIGHT.get(photograph.orientation)
        maps = maps if turn is None else UNTURNED[turn](maps)
        return F.interpolate(maps, (maps.shape[2], width), mode="bilinear", align_corners=False)

    @torch.inference_mode()
    def paint_band(top: int) -> None:
        band = source[top : top + rows]
        lightness = _lightness(band)
        blurred, color, slopes = _rows(maps, top, len(band), height).split((1, 2, 2), dim=1)
        rgb = shown(torch.cat((lightness, color + slopes * (lightness - blurred)), dim=1))
        painted[top : top + rows] = (rgb[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of each thread that is started from here on
    try:
        maps = spread()
        with ThreadPoolExecutor(min(threads, MOST_THREADS)) as pool:
            list(pool.map(paint_band, range(0, height, rows)))
    finally:
        torch.set_num_threads(threads)
    return Image.fromarray(painted)


def slope(light: Tensor, ab: Tensor) -> Tensor:
    """How much ab rises with L* in the window around each pixel, by ridge regression: [B, 2, h, w].

    Args:
        light: [B, 1, h, w].
        ab: [B, 2, h, w].
    """

    def mean(maps: Tensor) -> Tensor:
        return F.avg_pool2d(maps, 2 * RADIUS + 1, 1, RADIUS, count_include_pad=False)

    light = light - 50  # float32 loses less about the middle
    covariance = mean(light * ab) - mean(light) * mean(ab)
    return covariance / ((mean(light**2) - mean(light) ** 2).clamp_min(0) + FLAT)


def shown(lab: Tensor) -> Tensor:
    """L*a*b* [1, 3, H, W] as sRGB in 0 to 1; a color out of the gamut gets the largest share of its ab that is in it."""
    rgb, clipped = lab_to_clipped_rgb(lab)
    down, across = clipped[0].nonzero().unbind(1)
    off = rgb_to_lab(rgb[:, :, down, across][:, :, None]) - lab[:, :, down, across][:, :, None]
    outside = (off.abs().amax((0, 1, 2)) > TOLERANCE).nonzero()[:, 0]
    if not len(outside):
        return rgb
    down, across = down[outside], across[outside]
    out = lab[:, :, down, across][:, :, None]
    share, step = torch.zeros_like(out[:, :1]), 0.5
    for _ in range(PALER_STEPS):
        tried = torch.cat((out[:, :1], out[:, 1:] * (share + step)), dim=1)
        inside = (rgb_to_lab(lab_to_rgb(tried)) - tried).abs().amax(1, keepdim=True) <= TOLERANCE
        share, step = share + step * inside, step / 2
    rgb[:, :, down, across] = lab_to_rgb(torch.cat((out[:, :1], out[:, 1:] * share), dim=1))[:, :, 0]
    return rgb


def _rows(maps: Tensor, top: int, count: int, height: int) -> Tensor:
    """Rows `top` and following of maps [1, C, h, W] scaled bilinearly to `height` rows."""
    low = maps.shape[2]
    position = ((torch.arange(top, top + count) + 0.5) * (low / height) - 0.5).clamp(0, low - 1)
    above = position.long()
    below = (above + 1).clamp(max=low - 1)
    return torch.lerp(maps[:, :, above], maps[:, :, below], (position - above)[:, None])


def _lightness(pixels: np.ndarray) -> Tensor:
    """uint8 [h, w, 3] to L*, [1, 1, h, w]."""
    return bytes_to_light(torch.tensor(pixels).permute(2, 0, 1)[None])
