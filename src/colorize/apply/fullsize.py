"""Color photographs of any size and format at full size: keep the lightness, predict the color.

The model sees a small upright copy. Its ab is turned back, scaled up to all pixels and combined with the
photograph's own L*. Scaling is bilinear plus edge-aware detail: in windows of 3x3 pixels of the small copy,
ab is fitted as a linear function of L* (the local model of the guided filter), and the slope times the
lightness that bilinear scaling blurs away is added. Full guided filtering would smooth the prediction and is
worse than bilinear (benchmarks/upsampling.py). Colors outside the display's gamut become paler; their
lightness stays.

Bands of rows are processed in parallel, one thread each. So the bytes do not depend on the number of threads,
and memory stays close to that of the decoded photograph. EXIF, ICC profile, transparency, orientation and
resolution are kept.

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
"""Radius of the fitting windows, in pixels of the small copy."""
FLAT = 50.0
"""Ridge of the fit: variance of L* in a window, in Lab units squared, below which the slope shrinks."""
BAND = 1 << 15
"""Approximate number of pixels in a band: fits a core's cache, and keeps Python's overhead small."""
MOST_THREADS = 8
"""More threads would wait for Python's lock; each needs 10 MB."""
LONGEST = 4
"""Largest ratio of the sides of the small copy."""
PALER_STEPS = 8
"""Bisection steps to find the largest share of ab inside the gamut."""
SAVED_AS = {"JPEG": ".jpg", "WEBP": ".webp", "TIFF": ".tif", "AVIF": ".avif"}
"""Source format to written suffix; all others become .png (GIF has few colors, BMP no metadata)."""
SAVE: dict[str, dict[str, Any]] = {
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".png": {"format": "PNG"},
    ".webp": {"format": "WEBP", "quality": 95},
    # Speed 9 takes a seventh of the default time for a sixth more bytes; the bytes depend on the threads.
    ".avif": {"format": "AVIF", "quality": 90, "subsampling": "4:4:4", "speed": 9, "max_threads": 1},
    ".tif": {"format": "TIFF"},  # uncompressed: Pillow's compressing writer loses EXIF blocks
}
LAYOUT = {
    *range(254, 270), 273, *range(277, 282), 284, 285, 292, 293, 297, *range(317, 348), 513, 514,
    *range(529, 533), 34675,
}  # fmt: skip
"""TIFF tags that describe the layout of pixels; 34675 is the ICC profile, which is kept separately."""
UNTURNED: dict[Image.Transpose, Callable[[Tensor], Tensor]] = {
    Image.Transpose.FLIP_LEFT_RIGHT: lambda maps: maps.flip(-1),
    Image.Transpose.ROTATE_180: lambda maps: maps.flip(-1, -2),
    Image.Transpose.FLIP_TOP_BOTTOM: lambda maps: maps.flip(-2),
    Image.Transpose.TRANSPOSE: lambda maps: maps.mT,
    Image.Transpose.TRANSVERSE: lambda maps: maps.flip(-1, -2).mT,
    Image.Transpose.ROTATE_270: lambda maps: maps.rot90(1, (-2, -1)),
    Image.Transpose.ROTATE_90: lambda maps: maps.rot90(-1, (-2, -1)),
}
"""Inverses of Pillow's transposes, for maps [..., h, w]."""
TOLERANCE = 0.3
"""Largest change in Lab units by gamut clipping at which a color counts as inside the gamut."""


@dataclass
class Photograph:
    """A decoded photograph in its stored orientation."""

    rgb: Image.Image
    """sRGB, 8 bits."""
    alpha: Image.Image | None
    """Mode L; None if fully opaque."""
    orientation: int
    """EXIF orientation, 1 to 8."""
    suffix: str
    """Suffix of the written file."""
    exif: bytes
    profile: bytes
    """ICC profile of an RGB color space with a transform from sRGB; empty if there is none."""
    dpi: tuple[float, float] | None
    notes: tuple[str, ...]
    """What was ignored: exif_ignored, profile_ignored, frames_ignored."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright photograph."""
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
        except Exception:  # as in images.orientation_of: broken metadata must not lose the pixels
            notes = list(dict.fromkeys(["exif_ignored", *notes]))
            exif, dpi = b"", None
        rgb.info = {}  # else Pillow would write the old profile
        return Photograph(rgb, decoded.alpha, decoded.orientation, suffix, exif, profile, dpi, tuple(notes))


def _from_srgb(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """Build the transform from sRGB to a profile; None if it is invalid or one-way, as of some scanners."""
    try:
        return ImageCms.buildTransform(SRGB, ImageCms.ImageCmsProfile(io.BytesIO(profile)), "RGB", "RGB")
    except NO_PROFILE:
        return None


def _save(picture: Image.Image, suffix: str, metadata: dict[str, Any]) -> bytes:
    if suffix == ".webp":
        metadata = metadata | {"dpi": None}  # WebP stores no resolution
    buffer = io.BytesIO()
    picture.save(buffer, **SAVE[suffix], **{key: value for key, value in metadata.items() if value})
    return buffer.getvalue()


def _descriptive(exif: Image.Exif) -> bytes:
    """Remove the tags that describe the old file, such as its layout and its grey thumbnail."""
    kept = Image.Exif()
    blocks = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
    for tag, value in exif.items():
        if tag not in LAYOUT and tag not in blocks:  # a block's value is its position in the old file
            kept[tag] = value
    for block in blocks:
        if tags := exif.get_ifd(block):
            kept.get_ifd(block).update(tags)
    return kept.tobytes()


def encode(photograph: Photograph, rgb: Image.Image) -> bytes:
    """Encode other pixels, sRGB of the stored size, with the photograph's format and metadata.

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
    except (OSError, ValueError, struct.error) as error:  # not the metadata: `read` has tried to save that
        raise Refused("too_large_to_write") from error


def upright(photograph: Photograph, stored: Image.Image) -> Image.Image:
    """Turn an image from the photograph's stored orientation to the upright one."""
    turn = UPRIGHT.get(photograph.orientation)
    return stored if turn is None else stored.transpose(turn)


def small_light(photograph: Photograph, model: Colorizer, side: int) -> Tensor:
    """Make the model's input: upright lightness [1, 1, h, w], L* in 0 to 100.

    Models that take any size get the whole photograph with its short side at `side`, both sides rounded to
    multiples of 8. Other models get it squeezed into a square.
    """
    size = (side, side)
    if model.any_size:
        scale = side / min(photograph.size)
        width, height = (8 * max(1, round(min(scale * n, LONGEST * side) / 8)) for n in photograph.size)
        size = (height, width) if UPRIGHT.get(photograph.orientation) in TURNED_ASIDE else (width, height)
    small = photograph.rgb.resize(size, Image.Resampling.BICUBIC, reducing_gap=3)
    return _lightness(np.asarray(upright(photograph, small)))


@torch.inference_mode()
def colorings(model: Colorizer, light: Tensor, samples: int = 1) -> Tensor:
    """Predict ab [samples, 2, h, w] in Lab units for a lightness [1, 1, h, w].

    Raises:
        InputError: `samples` is above 1 and the model cannot draw samples, or a prediction is not finite.
    """
    colors = model.predict(light, samples)
    if samples > 1 and colors.samples is None:
        raise InputError("this model has one coloring of a photograph; leave --samples out")
    ab = colors.ab if colors.samples is None else colors.samples[0]
    if not torch.isfinite(ab).all():
        raise InputError("this model predicts NaN or infinity; train it again, with a lower learning rate")
    return ab


def paint(photograph: Photograph, light: Tensor, ab: Tensor) -> Image.Image:
    """Combine a photograph's own lightness with predicted color, using torch's number of threads.

    Args:
        light: input of the model, [1, 1, h, w].
        ab: its prediction, [2, h, w] in Lab units.

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
    torch.set_num_threads(1)  # applies to every thread started from here on
    try:
        maps = spread()
        with ThreadPoolExecutor(min(threads, MOST_THREADS)) as pool:
            list(pool.map(paint_band, range(0, height, rows)))
    finally:
        torch.set_num_threads(threads)
    return Image.fromarray(painted)


def slope(light: Tensor, ab: Tensor) -> Tensor:
    """Slope of ab over L* in the window around each pixel, by ridge regression: [B, 2, h, w].

    Args:
        light: [B, 1, h, w].
        ab: [B, 2, h, w].
    """

    def mean(maps: Tensor) -> Tensor:
        return F.avg_pool2d(maps, 2 * RADIUS + 1, 1, RADIUS, count_include_pad=False)

    light = light - 50  # zero-centered, which float32 holds more precisely
    covariance = mean(light * ab) - mean(light) * mean(ab)
    return covariance / ((mean(light**2) - mean(light) ** 2).clamp_min(0) + FLAT)


def shown(lab: Tensor) -> Tensor:
    """Convert Lab [1, 3, H, W] to sRGB in 0 to 1; scale ab outside the gamut down until it fits."""
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
        paler = torch.cat((out[:, :1], out[:, 1:] * (share + step)), dim=1)
        inside = (rgb_to_lab(lab_to_rgb(paler)) - paler).abs().amax(1, keepdim=True) <= TOLERANCE
        share, step = share + step * inside, step / 2
    rgb[:, :, down, across] = lab_to_rgb(torch.cat((out[:, :1], out[:, 1:] * share), dim=1))[:, :, 0]
    return rgb


def _rows(maps: Tensor, top: int, count: int, height: int) -> Tensor:
    """Rows `top` to `top + count` of maps [1, C, h, W], scaled bilinearly to `height` rows."""
    low = maps.shape[2]
    position = ((torch.arange(top, top + count) + 0.5) * (low / height) - 0.5).clamp(0, low - 1)
    above = position.long()
    below = (above + 1).clamp(max=low - 1)
    return torch.lerp(maps[:, :, above], maps[:, :, below], (position - above)[:, None])


def _lightness(pixels: np.ndarray) -> Tensor:
    """Convert uint8 [h, w, 3] to L* [1, 1, h, w]."""
    return bytes_to_light(torch.tensor(pixels).permute(2, 0, 1)[None])
