"""Every kind of image becomes upright 8-bit sRGB, or is refused with a reason; shards and their reading."""

import contextlib
import io
import math
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from clusters import Store
from faults import fault
from imagefiles import chunk, encoded, png, profile, rows_of, tiff, tiles
from PIL import AvifImagePlugin, Image, ImageCms
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from colorize.apply import fullsize
from colorize.data import images
from colorize.data.crops import crop_shards
from colorize.data.formats import why_no_image
from colorize.data.images import SENTENCES, CropConfig, Refused, crop_square
from colorize.data.shards import MAPPED_SHARDS, Crops
from colorize.files import InputError, write_array

RULE = CropConfig(size=32, workers=1)
PHOTO = Image.fromarray(data.astronaut())


def crop(content: bytes, rule: CropConfig = RULE) -> np.ndarray:
    return crop_square(content, rule)[0]


def agree(content: bytes, color: np.ndarray, alpha: np.ndarray | float = 1.0, off: float = 0.55) -> None:
    """Hold both readers to hand-computed pixels: sRGB in 0 to 255 [8, 8] or [8, 8, 3], cover in 0 to 1."""
    color = np.broadcast_to(color[..., None] if color.ndim == 2 else color, (8, 8, 3))
    cover = np.broadcast_to(np.asarray(alpha, float), (8, 8))[..., None]
    photograph = fullsize.read(content)
    found = 255 if photograph.alpha is None else np.asarray(photograph.alpha)[..., None]
    assert (np.abs(np.asarray(photograph.rgb) - color) * (cover > 0)).max() <= off
    assert np.abs(found - 255 * cover).max() <= 1
    on_white = color * cover + 255 * (1 - cover)
    assert np.abs(crop(content, CropConfig(size=8)) - on_white).max() <= off + (0.6 if cover.min() < 1 else 0)


def srgb(light: np.ndarray) -> np.ndarray:
    """Light in 0 to 1 as levels in 0 to 255 (IEC 61966-2-1)."""
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


# ---- geometry ----


@pytest.mark.parametrize(("width", "margin"), [(96, 32), (33, 0.5)])
def test_the_crop_is_the_centered_square(width: int, margin: float) -> None:
    """A square that is red in a blue wide picture fills the crop; the filter reaches 3 pixels."""
    picture = np.full((32, width, 3), (0, 0, 255), np.uint8)
    picture[:, int(margin) : int(margin) + 32] = (255, 0, 0)
    assert (crop(encoded(Image.fromarray(picture), "PNG"))[:, 3:-3, 0] == 255).all()


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("shape", [(1536, 1024), (1023, 1535), (1301, 1299), (2001, 299)])
def test_decoding_at_a_reduced_scale_equals_a_full_decode(shape: tuple[int, int], fit: str) -> None:
    """To 40 dB; the last one is padded to 64x10."""
    content = encoded(PHOTO.resize(shape, Image.Resampling.LANCZOS), "JPEG", quality=92)
    side, (left, top) = min(shape), (0.0, 0.0)
    ours, box = crop(content, CropConfig(size=64, fit=fit)), None
    if fit == "crop":
        left, top = (shape[0] - side) / 2, (shape[1] - side) / 2
        box = (left, top, left + side, top + side)
    else:
        inside = ours.any(axis=2)
        ours = ours[inside.any(axis=1)][:, inside.any(axis=0)]
        assert sorted(ours.shape[:2]) == [round(64 * side / max(shape)), 64]
    size = ours.shape[1::-1]
    reference = Image.open(io.BytesIO(content)).resize(size, Image.Resampling.LANCZOS, box)
    assert peak_signal_noise_ratio(np.asarray(reference), ours) >= 40


@fault(
    21,
    "photographs of 1x6000 pixels, of one pixel, below the crops' size",
    "Enlarged and marked `small`, or `skipped`, `too_small`, as `crop.small` says.",
)
@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 6000), (6000, 1), (31, 31), (31, 99), (32, 5), (32, 99)])
def test_small_photographs_are_enlarged_or_refused(shape: tuple[int, int], fit: str) -> None:
    """Small is the short side if the photograph is cropped, the long one if it is padded."""
    content = encoded(Image.new("RGB", shape, (10, 200, 30)), "PNG")
    small = (min if fit == "crop" else max)(shape) < 32
    pixels, record = crop_square(content, CropConfig(size=32, fit=fit))
    assert {*map(tuple, pixels.reshape(-1, 3))} <= {(10, 200, 30), (0, 0, 0)} and pixels.any()
    assert record.small == small and (record.width, record.height) == shape
    with pytest.raises(Refused, match="too_small") if small else contextlib.nullcontext():
        crop(content, CropConfig(size=32, fit=fit, small="drop"))


def turned(upright: np.ndarray, orientation: int, kind: str) -> bytes:
    """A photograph as a camera stores it: rows and columns turned, and EXIF that says how."""
    # EXIF 2.32, tag 0x0112: where the stored row 0 and column 0 lie in the upright picture.
    stored = upright if orientation < 5 else upright.transpose(1, 0, 2)
    rows, columns = [(1, 1), (1, -1), (-1, -1), (-1, 1), (1, 1), (-1, 1), (-1, -1), (1, -1)][orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(stored[::rows, ::columns]), kind, exif=exif)


@fault(23, "EXIF orientations 1 to 8", "Upright before they are cropped, once.")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    """The corner that EXIF calls the upper left ends up there, however rows and columns are stored."""
    upright = np.zeros((48, 64, 3), np.uint8)
    upright[:24, :32], upright[:24, 32:], upright[24:, :32] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    pixels, record = crop_square(turned(upright, orientation, kind), RULE)
    difference = np.abs(pixels.astype(int) - crop(encoded(Image.fromarray(upright), "PNG")))
    assert all(difference[y : y + 8, x : x + 8].max() < 20 for y in (4, 20) for x in (4, 20))
    assert (record.width, record.height) == (64, 48)


@fault(23, "EXIF that is broken, or of 60 KB")
def test_broken_exif_is_ignored():
    """Metadata that cannot be read costs no pixels."""
    for exif in (b"\xff\xff\xff\xff garbage", b"\x00\x00\x00\x08\xff\xff" + bytes(60_000)):
        content = encoded(PHOTO, "JPEG", exif=b"Exif\x00\x00MM\x00*" + exif)
        assert np.array_equal(crop(content), crop(encoded(PHOTO, "JPEG")))


# ---- colors ----


MEANINGS = {
    "nothing": (b"", b"", lambda levels: 255 * levels),
    "profile": (chunk(b"iCCP", b"x\0\0" + zlib.compress(profile(b"GRAY"))), profile(b"GRAY"), srgb),
    "gamma": (chunk(b"gAMA", struct.pack(">I", 55556)), b"", lambda levels: srgb(levels**1.8)),
}
"""What a file says of its greys: as a chunk of PNG, as a profile, and what they are in sRGB, from 0 to 1."""


@fault(27, "transparency: an alpha channel, a transparent level or color, a palette's")
@pytest.mark.parametrize("meaning", MEANINGS)
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_png_of_any_bits_is_read_by_what_it_says_of_its_levels(bits: int, meaning: str) -> None:
    """Laid on white in crops, kept by `colorize apply`; hidden colors never show."""
    told, _, tone = MEANINGS[meaning]
    random = np.random.default_rng(bits)
    white = 2**bits - 1
    grey = random.integers(0, white + 1, (8, 8))
    key = int(grey[2, 3])
    agree(png(grey, bits, 0, told), tone(grey / white))
    agree(png(grey, bits, 0, told, chunk(b"tRNS", struct.pack(">H", key))), tone(grey / white), grey != key)
    if bits <= 8:
        palette = np.repeat(random.integers(0, 256, (2**bits, 1)), 3, axis=1)
        cover = random.integers(0, 256, 2**bits)
        colors, clear = (
            chunk(name, array.astype(np.uint8).tobytes())
            for name, array in ((b"PLTE", palette), (b"tRNS", cover))
        )
        agree(png(grey, bits, 3, told, colors), tone(palette[grey] / 255))
        agree(png(grey, bits, 3, told, colors, clear), tone(palette[grey] / 255), cover[grey] / 255)
    if bits >= 8:
        # Pillow has only the upper 8 of 16 bits of these; a steep curve makes more of the difference.
        off = {8: 0.55, 16: 1.05 if meaning == "nothing" else 13}[bits]
        deep = random.integers(white // 4, white + 1, (8, 8, 4))
        agree(png(deep[..., :2], bits, 4, told), tone(deep[..., 0] / white), deep[..., 1] / white, off)
        if meaning != "profile":
            key = struct.pack(">3H", *deep[2, 3, :3].tolist())
            agree(png(deep[..., :3], bits, 2, told), tone(deep[..., :3] / white), off=off)
            agree(png(deep, bits, 6, told), tone(deep[..., :3] / white), deep[..., 3] / white, off)
            covered = np.arange(64).reshape(8, 8) != 19
            keyed = png(deep[..., :3], bits, 2, told, chunk(b"tRNS", key))
            agree(keyed, tone(deep[..., :3] / white), covered, off)


@fault(26, "1 to 16 bits per level; white that is 0; palettes; inks")
@pytest.mark.parametrize("packing", [1, 8], ids=["plain", "deflated"])
@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
def test_a_tiff_of_any_bits_is_read_by_its_tags(order: str, big: bool, packing: int) -> None:
    """Scaled by the tags, never clipped, never a negative. What floats mean is not told: `mode`."""

    def written(samples: np.ndarray, bits: int, photometric: int, **tags: object) -> bytes:
        given = {int(tag[1:]): value for tag, value in tags.items()}
        return tiff((samples, bits, {262: photometric, 259: packing, **given}), order=order, big=big)

    random = np.random.default_rng(0)
    assert np.array_equal(tifffile.imread(io.BytesIO(written(GREY, 16, 0))), GREY), "the writer is right"
    for bits in (1, 2, 4, 8, 12, 16):
        white = 2**bits - 1
        grey = random.integers(0, white + 1, (8, 8))
        for photometric, levels in ((0, 1 - grey / white), (1, grey / white)):
            for name, (_, icc, tone) in MEANINGS.items():
                if name != "gamma":
                    agree(written(grey, bits, photometric, t34675=icc or None), tone(levels))
        # Statistics of the levels, which TIFF 6.0 says are "not to be used to affect the visual appearance".
        agree(written(grey, bits, 1, t280=0, t281=white // 2), 255 * grey / white)
        if bits <= 8:
            palette = random.integers(0, 256, (2**bits, 3))
            for scale in (257, 1):  # some write 8 bits where 16 are due
                agree(written(grey, bits, 3, t320=(palette.T * scale).ravel().tolist()), palette[grey])
    for bits, off in ((8, 0.55), (16, 1.05)):
        white = 2**bits - 1
        color = random.integers(white // 4, white + 1, (8, 8, 4))
        rgb, cover = color[..., :3] / white, color[..., 3] / white
        agree(written(color[..., :3], bits, 2), 255 * rgb, off=off)
        agree(written(color, bits, 2, t338=0), 255 * rgb, off=off)
        agree(written(color, bits, 2, t338=2), 255 * rgb, cover, off)
        agree(written(color, bits, 5), 255 * (1 - rgb) * (1 - cover[..., None]), off=off + 1)
        if bits == 8 or packing == 8:
            agree(written(color[..., :3], bits, 2, t284=2), 255 * rgb, off=off)
        multiplied = np.dstack([np.round(color[..., :3] * cover[..., None]), color[..., 3]])
        # Divided by a quarter, an error is four times it.
        agree(written(multiplied, bits, 2, t338=1), 255 * rgb, cover, 5)
    pair = random.integers(64, 256, (8, 8, 2))
    agree(written(pair, 8, 1, t338=2), pair[..., 0], pair[..., 1] / 255)
    multiplied = np.dstack([np.round(pair[..., 0] * pair[..., 1] / 255), pair[..., 1]])
    agree(written(multiplied, 8, 1, t338=1), pair[..., 0], pair[..., 1] / 255, 5)


GREY, COLOR = np.full((8, 8), 90), np.full((8, 8, 3), 90)


@pytest.mark.parametrize(
    "content",
    [
        tiff((GREY, 8, {262: 1, 339: 2})),  # signed
        tiff((GREY, 16, {262: 1, 339: 2})),
        tiff((GREY, 32, {262: 1})),
        tiff((GREY, 32, {262: 1, 339: 3})),  # float
        tiff((GREY, 8, {262: None})),  # black or white is 0?
        tiff((GREY, 16, {262: None})),
        tiff((COLOR, 8, {262: 8})),  # L*a*b*
        tiff((COLOR, 8, {262: 6, 530: (2, 2)})),  # subsampled
        tiff((GREY, 8, {262: 1, 317: 2})),  # differences, which only LZW's and deflate's decoders add up
        tiff((COLOR, 16, {262: 2, 284: 2})),  # planes of 16 bits, of which Pillow takes half
        # planes, of which Pillow takes one
        tiff((np.dstack([GREY, GREY]), 8, {262: 1, 338: 2, 284: 2, 259: 8})),
        tiff((np.dstack([COLOR, GREY]), 8, {262: 5, 332: 2})),  # inks, but not those of CMYK
        tiff((GREY, 8, {262: 1, 259: 34712})),  # JPEG 2000 within
        tiff((GREY, 8, {262: 1}), order=">", big=True),
        tiff((np.dstack([GREY, GREY]), 16, {262: 1, 338: 2})),
        # 12 bits
        encoded(Image.new("RGB", (8, 8)), "JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
    ],
)
def test_levels_without_a_defined_meaning_are_refused(content: bytes) -> None:
    """Guessing would make negatives, white pictures and mixed planes."""
    for reader in (crop, fullsize.read):
        with pytest.raises(Refused, match="mode"):
            reader(content)


@pytest.mark.parametrize(("transfer", "refused"), [(16, True), (18, True), (13, False)])
def test_levels_of_an_hdr_display_are_refused(transfer: int, refused: bool) -> None:
    """PQ and HLG, told by their number in ITU-T H.273; those of sRGB are taken, and come before a gamma."""
    avif = encoded(Image.new("RGB", (8, 8)), "AVIF")
    place = avif.index(b"colrnclx") + 10
    told = chunk(b"cICP", bytes((1, transfer, 0, 1)))
    for content in (png(COLOR, 8, 2, told), avif[:place] + bytes((0, transfer)) + avif[place + 2 :]):
        with pytest.raises(Refused, match="hdr") if refused else contextlib.nullcontext():
            crop(content)
    if not refused:
        agree(png(COLOR, 8, 2, MEANINGS["gamma"][0], told), COLOR)


@fault(25, "CMYK photographs", "Converted (C, M, Y, K subtract; Adobe's inversion is undone): red stays red.")
@pytest.mark.parametrize(
    ("mode", "color", "kind", "options", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), "WEBP", {"lossless": True}, [255, 255, 255]),
        ("RGBA", (200, 0, 100, 51), "WEBP", {"lossless": True}, [244, 204, 224]),
        ("CMYK", (0, 255, 255, 0), "TIFF", {}, [255, 0, 0]),
        ("CMYK", (0, 255, 255, 0), "JPEG", {"quality": 95}, [255, 0, 0]),
        ("RGB", (1, 2, 3), "BMP", {}, [1, 2, 3]),
        ("1", 1, "BMP", {}, [255, 255, 255]),
        ("L", 77, "GIF", {}, [77, 77, 77]),
        ("L", 77, "GIF", {"transparency": 77}, [255, 255, 255]),
    ],
)
def test_every_mode_becomes_rgb_on_white(mode, color, kind, options, expected) -> None:
    """Hand-computed: transparency lies on white, its hidden color never shows; C, M, Y, K subtract."""
    mean = crop(encoded(Image.new(mode, (40, 50), color), kind, **options)).mean(axis=(0, 1))
    assert np.abs(mean - expected).max() <= (3 if kind == "JPEG" else 0.05)


@fault(
    29,
    "animations, and TIFFs of many pages",
    "The first frame is the photograph; the others are not decoded, and that is noted: `frames_ignored`.",
)
@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG", "AVIF"])
def test_animations_give_their_first_frame(kind: str) -> None:
    first, second = (Image.new("RGB", (40, 40), color) for color in ("red", "blue"))
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}}.get(kind, {})
    content = encoded(first, kind, save_all=True, append_images=[second], **options)
    pixels, record = crop_square(content, RULE)
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 2 and record.note == "frames_ignored"


@pytest.mark.parametrize(
    "part", [{254: 1}, {254: 4}, {255: 2}, {262: 4}], ids=["thumbnail", "mask", "old", "mask only"]
)
def test_a_thumbnail_or_a_mask_before_the_photograph_is_not_taken_for_it(part: dict[int, int]) -> None:
    """TIFF's pages of NewSubfileType, SubfileType or PhotometricInterpretation 4."""
    for order, big in (("<", False), (">", False), ("<", True)):
        first = (np.zeros((8, 8), int), 1, {262: 1, **part})
        agree(tiff(first, (GREY, 8, {262: 1}), order=order, big=big), GREY)


def test_a_camera_that_stores_a_second_picture_in_a_jpeg_changes_nothing() -> None:
    """MPO: the first picture is the photograph, for both readers; an index that is broken costs nothing."""
    photo = PHOTO.resize((64, 48))
    plain = encoded(photo, "JPEG", quality=90)
    pair = encoded(photo, "MPO", quality=90, save_all=True, append_images=[photo.resize((32, 24))])
    assert Image.open(io.BytesIO(pair)).format == "MPO"
    for content in (pair, pair.replace(b"MPF\0II*\0", b"MPF\0II*\1")):
        assert np.array_equal(crop(content), crop(plain))
        assert fullsize.read(content).suffix == ".jpg"
        assert np.array_equal(fullsize.read(content).rgb, fullsize.read(plain).rgb)


@fault(
    28,
    "a color profile other than sRGB",
    "Converted to sRGB: half the light is level 188 (IEC 61966-2-1).",
)
def test_color_profiles_are_converted_to_srgb() -> None:
    """White bars and black ones are left alone."""
    image = Image.new("RGB", (40, 40), (128, 128, 0))
    pixels, record = crop_square(encoded(image, "PNG", icc_profile=profile(b"RGB ")), RULE)
    half = round(float(srgb(np.array(128 / 255))))
    assert np.abs(pixels.astype(int) - (half, half, 0)).max() <= 2 and record.note == ""
    names_srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = crop(encoded(PHOTO, "PNG", icc_profile=names_srgb)).astype(int)
    assert np.abs(same - crop(encoded(PHOTO, "PNG"))).max() <= 1


@fault(28, "a color profile that is broken", "The pixels are those without it; `profile_ignored`.")
@pytest.mark.parametrize(
    ("mode", "icc"), [("RGB", b"no profile"), ("RGB", profile(b"RGB ")[:150]), ("L", profile(b"RGB "))]
)
def test_a_broken_profile_is_ignored_and_noted(mode: str, icc: bytes) -> None:
    """So is one of another color space."""
    pixels, record = crop_square(encoded(PHOTO.convert(mode), "PNG", icc_profile=icc), RULE)
    assert np.array_equal(pixels, crop(encoded(PHOTO.convert(mode), "PNG")))
    assert record.note == "profile_ignored"


# ---- padding ----

PADDED = CropConfig(size=32, fit="pad", workers=1)


@pytest.mark.parametrize(
    ("shape", "bars"),
    [
        ((64, 32), (8, 8, 0, 0)),
        ((32, 64), (0, 0, 8, 8)),
        ((64, 34), (7, 8, 0, 0)),  # 17 rows: the odd one is below
        ((63, 31), (8, 8, 0, 0)),  # 15.7 rows are 16
        ((16, 8), (8, 8, 0, 0)),  # enlarged
        ((6000, 1), (15, 16, 0, 0)),  # never less than one row
    ],
)
@pytest.mark.parametrize("orientation", [1, 3])
def test_padding_keeps_the_whole_photograph_between_black_bars(shape, bars, orientation) -> None:
    """Hand-computed bars above, below, left and right of the upright photograph; inside is nothing else."""
    photograph = PHOTO.resize(shape, Image.Resampling.LANCZOS)
    pixels, record = crop_square(turned(np.asarray(photograph), orientation, "PNG"), PADDED)
    above, below, left, right = bars
    inner = pixels[above : 32 - below, left : 32 - right]
    expected = photograph.resize(inner.shape[1::-1], Image.Resampling.LANCZOS)
    assert np.abs(inner.astype(int) - np.asarray(expected)).max() <= (0 if orientation == 1 else 12)
    assert pixels.sum(dtype=int) == inner.sum(dtype=int) and (record.width, record.height) == shape


def test_transparency_is_white_and_bars_are_black() -> None:
    pixels = crop(encoded(Image.new("RGBA", (64, 32), (9, 9, 9, 0)), "PNG"), PADDED)
    assert (pixels[8:24] == 255).all() and not pixels[:8].any() and not pixels[24:].any()


# ---- refusals ----


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF"])
@pytest.mark.parametrize(("limit", "refused"), [(0.1, True), (0.101, False), (0.02, True), (math.inf, False)])
def test_the_largest_photograph_is_a_parameter(kind, limit, refused, monkeypatch) -> None:
    """To the pixel, for both readers; Pillow's own limit does not stand in the way."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    content = encoded(Image.new("L", (1000, 101)), kind)
    for reader in (
        lambda c: crop(c, CropConfig(size=8, max_megapixels=limit)),
        lambda c: fullsize.read(c, limit),
    ):
        with pytest.raises(Refused, match="too_many_pixels") if refused else contextlib.nullcontext():
            reader(content)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "heic"),  # a telephone's
        (b"\xff\x0a\xfa\x1f", "jpeg_xl"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "jpeg_xl"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "jpeg_2000"),
        (b"8BPS\0\1", "photoshop"),
        (b"II*\0\x10\0\0\0CR\2\0", "raw"),  # Canon
        (b"FUJIFILMCCD-RAW 0201", "raw"),
        (b"IIRO\x08\0\0\0", "raw"),  # Olympus
        (b"IIU\0\x18\0\0\0", "raw"),  # Panasonic
        (b"II*\0\x08\0\0\0IIIITwaR", "raw"),  # Phase One
    ],
)
def test_formats_that_are_not_read_are_called_by_their_names(head: bytes, reason: str) -> None:
    """The sentence says what to do; the download refuses them for the same reason."""
    for reader in (crop, fullsize.read):
        with pytest.raises(Refused, match=f"^{reason}$"):
            reader(head + bytes(100))
    assert why_no_image(head.ljust(32, b"\0")) == reason and "export" in SENTENCES[reason]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("tags", "seen"),
    [({254: 1}, 1), ({50706: b"\1\4\0\0"}, 1), ({}, 32803), ({}, 34892)],
    ids=["a preview first", "DNG", "a mosaic of colors", "one filled in"],
)
def test_the_preview_in_a_raw_file_is_not_taken_for_the_photograph(tags, seen, order) -> None:
    """Nikon's, Sony's, Adobe's begin as a TIFF does: a small picture, and what the sensor saw below it."""
    sensor = (GREY, 16, {262: seen})
    content = tiff((COLOR, 8, {262: 2, **tags}), sensor, order=order, below=True)
    for reader in (crop, fullsize.read):
        with pytest.raises(Refused, match="raw"):
            reader(content)
    reduced = (COLOR, 8, {262: 2, 254: 1})
    agree(tiff((COLOR, 8, {262: 2}), reduced, order=order, below=True), COLOR)  # a pyramid is none


@pytest.mark.parametrize(("kind", "reason"), [("JPEG", "out_of_memory"), ("AVIF", "avif")])
def test_what_the_machine_lacks_is_not_told_as_damage(kind, reason, monkeypatch) -> None:
    """Too little memory, a Pillow without AVIF."""

    def starved(file: io.BytesIO) -> Image.Image:
        raise MemoryError

    content = encoded(PHOTO, kind)
    monkeypatch.setitem(images.OPENERS, "jpg", starved)
    monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
    with pytest.raises(Refused, match=reason):
        crop(content)
    assert SENTENCES[reason]


# ---- shards ----


@pytest.mark.slow
@fault(22, "a decoder that crashes, or is killed for its memory")
def test_a_photograph_that_kills_its_process_costs_only_itself(tmp_path: Path) -> None:
    """`failed`, `crash`: it costs only itself; the others' crops are those of a run without it."""

    def cropped(name: str, workers: int, deadly: str = "") -> list[images.Record]:
        store = Store(tiles(), tmp_path / f"notes of {name}", deadly, deaths=99)
        rule = CropConfig(size=16, workers=workers)
        shards = crop_shards(rows_of(tiles()), store.read, tmp_path / name, rule)
        return [record for shard in shards for record in shard]

    whole, records = cropped("whole", 1), cropped("crops", 2, deadly="80")
    assert [record.photo for record in records] == list(tiles())
    assert [(r.photo, r.status, r.reason) for r in records if r.status != "ok"] == [("80", "failed", "crash")]
    survivors = np.array([record.photo != "80" for record in whole])
    assert np.array_equal(Crops(tmp_path / "crops")[:], Crops(tmp_path / "whole")[survivors])


def test_crops_are_read_in_the_order_asked_for(tmp_path):
    """Over shards of unequal length, repeated and out of order; nothing asked for gives nothing."""
    crops = np.random.default_rng(3).integers(0, 256, (12, 8, 8, 3), np.uint8)
    for number, (start, end) in enumerate(((0, 5), (5, 6), (6, 12))):
        write_array(tmp_path / f"crops-{number:05d}.npy", crops[start:end])
    assert np.array_equal(Crops(tmp_path)[:], crops)
    wanted = np.array([11, 0, 5, 5, 4, 6])
    assert np.array_equal(Crops(tmp_path, wanted)[:], crops[wanted])
    assert Crops(tmp_path, np.array([], int))[:].shape == (0, 8, 8, 3)
    for beyond in (12, -1):
        with pytest.raises(InputError, match="12 crops"):
            Crops(tmp_path, np.array([beyond]))


def test_missing_and_damaged_shards_are_named(tmp_path):
    """One sentence that names the folder or the file."""
    with pytest.raises(InputError, match="holds no crops"):
        Crops(tmp_path)[:]
    write_array(tmp_path / "crops-00000.npy", np.zeros((4, 8, 8, 3), np.uint8))
    whole = (tmp_path / "crops-00000.npy").read_bytes()
    for content in (whole[:200], whole[:60], b""):
        (tmp_path / "crops-00000.npy").write_bytes(content)
        with pytest.raises(InputError, match="crops-00000.npy is damaged"):
            Crops(tmp_path)[:]


def test_more_shards_than_a_process_may_have_files_open_are_read(tmp_path: Path) -> None:
    for number in range(400):
        write_array(tmp_path / f"crops-{number:05}.npy", np.full((1, 8, 8, 3), number % 256, np.uint8))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAPPED_SHARDS + 100, hard))
    try:
        crops = Crops(tmp_path)[:]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert crops[:, 0, 0, 0].tolist() == [number % 256 for number in range(400)]
