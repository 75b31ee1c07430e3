"""Decoding: every kind of image to upright 8-bit sRGB, or a refusal with a reason; shards and their reading."""

import contextlib
import hashlib
import io
import os
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from faults import fault
from PIL import Image, ImageCms
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from colorize.files import InputError, write_array
from colorize.images import MAPPED_SHARDS, Crops, Refused, contact_sheet, crop_shards, crop_square
from colorize.settings import CropRule

RULE = CropRule(size=32, workers=1)
PHOTO = Image.fromarray(data.astronaut())


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def crop(content: bytes, rule: CropRule = RULE) -> np.ndarray:
    return crop_square(content, rule)[0]


def mean_of(content: bytes) -> list[float]:
    return [round(float(level), 1) for level in crop(content).mean(axis=(0, 1))]


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data_chunk = b"IDAT" + zlib.compress(b"")
    return b"\x89PNG\r\n\x1a\n" + chunks + struct.pack(">I", 8) + data_chunk + bytes(4)


# ---- geometry ----


def test_the_crop_is_the_centered_square_in_source_coordinates():
    """A square marked red in a blue wide picture fills the crop, odd margins too; the filter reaches 3 pixels."""
    for width, height, margin in ((96, 32, 32), (33, 32, 0.5)):
        picture = np.zeros((height, width, 3), np.uint8)
        picture[..., 2] = 255
        picture[:, int(margin) : int(margin) + 32] = (255, 0, 0)
        inner = crop(encoded(Image.fromarray(picture), "PNG"))[:, 3:-3]
        assert (inner.reshape(-1, 3)[:, 0] == 255).all(), "only red inside"


@pytest.mark.parametrize("shape", [(1536, 1024), (1023, 1535), (1301, 1299)])
def test_decoding_at_a_reduced_scale_equals_a_full_decode_to_45_db(shape):
    """JPEG draft, then one resample of a fractional box, against a full decode and the same resample."""
    content = encoded(PHOTO.resize(shape, Image.Resampling.LANCZOS), "JPEG", quality=92)
    full = Image.open(io.BytesIO(content))
    side = min(shape)
    left, top = (shape[0] - side) / 2, (shape[1] - side) / 2
    reference = full.resize((64, 64), Image.Resampling.LANCZOS, (left, top, left + side, top + side))
    ours = crop(content, CropRule(size=64))
    assert peak_signal_noise_ratio(np.asarray(reference), ours) >= 45


@pytest.mark.parametrize("shape", [(1, 1), (1, 6000), (6000, 1), (3, 2)])
def test_extreme_shapes_are_enlarged_and_marked_small(shape):
    """A few pixels of one color give a crop of that color."""
    pixels, record = crop_square(encoded(Image.new("RGB", shape, (10, 200, 30)), "PNG"), RULE)
    assert (pixels == (10, 200, 30)).all()
    assert record.small and (record.width, record.height) == shape


def test_small_photographs_are_refused_where_the_rule_drops_them():
    """Below the size in one direction is small; exactly the size is not."""
    rule = CropRule(size=32, small="drop")
    with pytest.raises(Refused, match="too_small"):
        crop(encoded(Image.new("RGB", (31, 99)), "PNG"), rule)
    assert crop(encoded(Image.new("RGB", (32, 99)), "PNG"), rule).shape == (32, 32, 3)


def turned(upright: np.ndarray, orientation: int, kind: str) -> bytes:
    """A photograph as a camera stores it: rows and columns turned, and EXIF that says how."""
    # EXIF 2.32, tag 0x0112: where the stored row 0 and column 0 lie in the upright picture.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(stored), kind, exif=exif)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind, orientation):
    """The corner that EXIF calls the upper left ends up there, whatever the stored order of rows and columns."""
    upright = np.zeros((48, 64, 3), np.uint8)
    upright[:24, :32], upright[:24, 32:], upright[24:, :32] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    pixels, record = crop_square(turned(upright, orientation, kind), RULE)
    expected = crop(encoded(Image.fromarray(upright), "PNG"))
    assert np.abs(pixels[4:12, 4:12].astype(int) - expected[4:12, 4:12]).max() < 20
    assert np.abs(pixels[4:12, 20:28].astype(int) - expected[4:12, 20:28]).max() < 20
    assert np.abs(pixels[20:28, 4:12].astype(int) - expected[20:28, 4:12]).max() < 20
    assert (record.width, record.height) == (64, 48)


def test_broken_exif_is_ignored():
    """Metadata that cannot be read costs no pixels."""
    content = encoded(PHOTO, "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage")
    assert np.array_equal(crop(content), crop(encoded(PHOTO, "JPEG")))


# ---- colors ----


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_never_clipped(kind):
    """The mean of a full 16-bit ramp is 127.5, not white."""
    ramp = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    content = encoded(Image.fromarray(ramp), kind)
    assert Image.open(io.BytesIO(content)).mode.startswith("I")
    pixels = crop(content).astype(float)
    assert abs(pixels.mean() - 127.5) < 0.6
    assert pixels.min() < 3 and pixels.max() > 252


def test_levels_without_a_defined_white_are_refused():
    """32-bit integers beyond 16 bits and floats have no known range: guessing would make white images."""
    large = Image.fromarray(np.full((40, 40), 70000, np.int32))
    for image in (large, Image.fromarray(np.full((40, 40), 0.5, np.float32))):
        with pytest.raises(Refused, match="mode"):
            crop(encoded(image, "TIFF"))


@pytest.mark.parametrize(
    ("mode", "color", "kind", "expected"),
    [
        ("L", 77, "PNG", [77, 77, 77]),
        ("1", 1, "PNG", [255, 255, 255]),
        ("LA", (100, 0), "PNG", [255, 255, 255]),
        ("LA", (100, 255), "PNG", [100, 100, 100]),
        ("RGBA", (255, 0, 0, 0), "PNG", [255, 255, 255]),
        ("RGBA", (200, 0, 100, 51), "PNG", [244, 204, 224]),
        ("RGBA", (255, 0, 0, 0), "WEBP", [255, 255, 255]),
        ("CMYK", (0, 255, 255, 0), "TIFF", [255, 0, 0]),
        ("CMYK", (255, 0, 0, 51), "TIFF", [0, 204, 204]),
        ("RGB", (1, 2, 3), "BMP", [1, 2, 3]),
    ],
)
def test_every_mode_becomes_rgb_on_white(mode, color, kind, expected):
    """Hand-computed: transparency lies on white, its hidden color never shows; C, M, Y, K subtract."""
    options = {"lossless": True} if kind == "WEBP" else {}
    assert mean_of(encoded(Image.new(mode, (40, 50), color), kind, **options)) == expected


def test_cmyk_jpegs_keep_their_colors():
    """Adobe stores CMYK inverted in JPEG: red stays red, within JPEG's error."""
    pixels = crop(encoded(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 3


def test_a_transparent_palette_color_becomes_white():
    """tRNS of a palette and of plain RGB are transparency too."""
    palette = Image.new("P", (40, 40), 1)
    palette.putpalette([0, 0, 0, 9, 99, 199])
    assert mean_of(encoded(palette, "PNG")) == [9, 99, 199]
    assert mean_of(encoded(palette, "PNG", transparency=1)) == [255, 255, 255]
    assert mean_of(encoded(palette, "GIF", transparency=1)) == [255, 255, 255]
    keyed = encoded(Image.new("RGB", (40, 40), (5, 6, 7)), "PNG", transparency=(5, 6, 7))
    assert mean_of(keyed) == [255, 255, 255]


def test_animations_give_their_first_frame():
    """GIF, WebP and multi-page TIFF."""
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert mean_of(content) == [255, 0, 0]


def linear_profile() -> bytes:
    """An ICC v2 profile of the sRGB primaries (D50) without a tone curve."""

    def s15(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    xyz = {
        b"wtpt": (0.9642, 1.0, 0.8249),
        b"rXYZ": (0.4360, 0.2225, 0.0139),
        b"gXYZ": (0.3851, 0.7169, 0.0971),
        b"bXYZ": (0.1431, 0.0606, 0.7141),
    }
    tags = {name: b"XYZ " + bytes(4) + s15(*value) for name, value in xyz.items()}
    tags |= {name: b"curv" + bytes(8) for name in (b"rTRC", b"gTRC", b"bTRC")}
    tags[b"desc"] = b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(80)
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    header = bytes(4) + struct.pack(">I", 0x02400000) + b"mntrRGB XYZ " + bytes(12) + b"acsp"
    header += bytes(28) + s15(0.9642, 1.0, 0.8249) + bytes(48)
    return struct.pack(">I", start + len(body)) + header + struct.pack(">I", len(tags)) + table + body


def test_color_profiles_are_converted_to_srgb():
    """Half of the light in a linear profile is level 188 in sRGB (IEC 61966-2-1)."""
    image = Image.new("RGB", (40, 40), (128, 128, 0))
    expected = 255 * (1.055 * (128 / 255) ** (1 / 2.4) - 0.055)
    pixels, record = crop_square(encoded(image, "PNG", icc_profile=linear_profile()), RULE)
    assert np.abs(pixels.astype(int) - (round(expected), round(expected), 0)).max() <= 2
    assert record.note == ""


def test_an_srgb_profile_changes_next_to_nothing():
    """A photograph that says it is sRGB is taken at its word."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with_profile = crop(encoded(PHOTO, "PNG", icc_profile=profile)).astype(int)
    assert np.abs(with_profile - crop(encoded(PHOTO, "PNG"))).max() <= 1


@pytest.mark.parametrize("profile", [b"no profile at all", linear_profile()[:150]])
def test_a_broken_profile_is_ignored_and_noted(profile):
    """The pixels are those without a profile."""
    pixels, record = crop_square(encoded(PHOTO, "PNG", icc_profile=profile), RULE)
    assert np.array_equal(pixels, crop(encoded(PHOTO, "PNG")))
    assert record.note == "profile_ignored"


def test_a_profile_of_another_color_space_is_ignored_and_noted():
    """An RGB profile in a grey image."""
    grey = Image.new("L", (40, 40), 99)
    pixels, record = crop_square(encoded(grey, "PNG", icc_profile=linear_profile()), RULE)
    assert (pixels == 99).all() and record.note == "profile_ignored"


# ---- padding ----

PADDED = CropRule(size=32, fit="pad", workers=1)


@pytest.mark.parametrize(
    ("shape", "bars"),
    [
        ((64, 32), (8, 8, 0, 0)),  # landscape
        ((32, 64), (0, 0, 8, 8)),  # portrait
        ((64, 34), (7, 8, 0, 0)),  # 17 rows: the odd one is below
        ((34, 64), (0, 0, 7, 8)),
        ((63, 31), (8, 8, 0, 0)),  # 15.7 rows are 16
        ((64, 64), (0, 0, 0, 0)),
        ((16, 8), (8, 8, 0, 0)),  # enlarged
        ((6000, 1), (15, 16, 0, 0)),  # never less than one row
    ],
)
def test_padding_keeps_the_whole_photograph_between_black_bars(shape: tuple[int, int], bars: tuple[int, ...]) -> None:
    """Document 004. Hand-computed bars above, below, left and right; inside is the scaled photograph and nothing else."""
    content = encoded(PHOTO.resize(shape, Image.Resampling.LANCZOS), "PNG")
    pixels, record = crop_square(content, PADDED)
    above, below, left, right = bars
    inner = pixels[above : 32 - below, left : 32 - right]
    expected = Image.open(io.BytesIO(content)).resize(inner.shape[1::-1], Image.Resampling.LANCZOS)
    assert np.array_equal(inner, np.asarray(expected))
    assert pixels.sum(dtype=int) == inner.sum(dtype=int), "black outside"
    assert (record.width, record.height) == shape


@pytest.mark.parametrize("orientation", range(1, 9))
def test_padding_is_that_of_the_upright_photograph(orientation: int) -> None:
    """An odd bar does not change sides with the stored order of rows and columns."""
    upright = np.asarray(PHOTO.resize((64, 34)))
    pixels, record = crop_square(turned(upright, orientation, "PNG"), PADDED)
    expected = crop(encoded(Image.fromarray(upright), "PNG"), PADDED).astype(int)
    difference = np.abs(pixels.astype(int) - expected)
    assert difference.mean() < 0.2 and difference.max() <= 12  # rows and columns are resampled, and clipped, in turns
    assert (pixels[:7] == 0).all() and (pixels[-8:] == 0).all() and pixels[7].any() and pixels[-9].any()
    assert (record.width, record.height) == (64, 34)


@pytest.mark.parametrize("shape", [(1536, 1024), (1023, 1535), (2001, 299)])
def test_padding_decodes_at_a_reduced_scale_too(shape: tuple[int, int]) -> None:
    """JPEG draft against a full decode, to 40 dB: the last shape is one of 64x10."""
    content = encoded(PHOTO.resize(shape, Image.Resampling.LANCZOS), "JPEG", quality=92)
    ours = crop(content, CropRule(size=64, fit="pad"))
    rows, columns = (ours.any((1, 2)).sum(), ours.any((0, 2)).sum())
    assert max(rows, columns) == 64 and min(rows, columns) == round(64 * min(shape) / max(shape))
    reference = Image.open(io.BytesIO(content)).resize((columns, rows), Image.Resampling.LANCZOS)
    top, left = (64 - rows) // 2, (64 - columns) // 2
    inner = ours[top : top + rows, left : left + columns]
    assert peak_signal_noise_ratio(np.asarray(reference), inner) >= 40


def test_transparency_is_white_and_bars_are_black() -> None:
    """A see-through photograph between its bars; color profiles leave the bars alone."""
    clear = encoded(Image.new("RGBA", (64, 32), (9, 9, 9, 0)), "PNG")
    profiled = encoded(Image.new("RGB", (64, 32), (255, 255, 255)), "PNG", icc_profile=linear_profile())
    for content in (clear, profiled):
        pixels = crop(content, PADDED)
        assert (pixels[8:24] >= 254).all() and (pixels[:8] == 0).all() and (pixels[24:] == 0).all()


def test_a_padded_photograph_is_small_by_its_long_side() -> None:
    """It is enlarged only where that is below the size; then it is refused where the rule drops small ones."""
    rule = CropRule(size=32, fit="pad", small="drop")
    assert not crop_square(encoded(Image.new("RGB", (32, 5)), "PNG"), rule)[1].small
    with pytest.raises(Refused, match="too_small"):
        crop(encoded(Image.new("RGB", (31, 31)), "PNG"), rule)


# ---- refusals ----

JPEG = encoded(PHOTO, "JPEG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not_image"),
        (b"this is a text named photo.jpg\n" * 50, "not_image"),
        (np.random.default_rng(1).bytes(5000), "not_image"),
        (b"PK\x03\x04" + JPEG, "not_image"),
        (encoded(PHOTO, "PDF"), "not_image"),
        (encoded(PHOTO, "PPM"), "not_image"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (JPEG[:-2], "truncated"),
        (encoded(PHOTO, "PNG")[:20000], "truncated"),
        (encoded(PHOTO, "TIFF")[:20000], "not_image|truncated|corrupt"),
        (encoded(PHOTO, "GIF")[:20000], "truncated|corrupt"),
        (encoded(PHOTO, "BMP")[:20000], "truncated"),
        (encoded(PHOTO, "WEBP")[:5000], "not_image|truncated|corrupt"),
        (png_header(10000, 9000), "too_many_pixels"),
        (png_header(30000, 30000), "too_many_pixels"),
        (JPEG + b"\xff\xda" * 1000, "too_many_scans"),
    ],
)
def test_what_cannot_be_decoded_is_refused_with_a_reason(content, reason):
    """Never a traceback of the decoder, never a partial image; bombs go by their header, before any decoding."""
    with pytest.raises(Refused) as refused:
        crop(content)
    assert str(refused.value) in reason.split("|")


def test_damaged_bytes_never_raise_anything_but_a_refusal():
    """Random bytes changed in valid files: a crop or a refusal."""
    rng = np.random.default_rng(7)
    small = PHOTO.resize((64, 64))
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"):
        content = np.frombuffer(encoded(small, kind), np.uint8)
        for _ in range(40):
            damaged = content.copy()
            damaged[rng.integers(0, len(content), 8)] = rng.integers(0, 256, 8)
            with contextlib.suppress(Refused):
                assert crop(damaged.tobytes()).shape == (32, 32, 3)


# ---- shards ----


def tiles() -> dict[str, bytes]:
    """Sixty tiles of a photograph, as files."""
    picture = data.astronaut()
    corners = [(8 * i, 5 * i) for i in range(60)]
    return {f"{y}": encoded(Image.fromarray(picture[y : y + 40, x : x + 40]), "PNG") for y, x in corners}


def rows_of(contents: dict[str, bytes]) -> list[dict[str, str]]:
    return [
        {"photo": name, "shard": "", "member": name, "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    ]


class Store:
    """Stands in for colorize.sources.Reader; one of its photographs may kill the process that reads it."""

    def __init__(self, contents: dict[str, bytes], deadly: str = "") -> None:
        self.contents, self.deadly, self.parent = contents, deadly, os.getpid()

    def read(self, shard: str, member: str) -> bytes:
        if member == self.deadly and os.getpid() != self.parent:
            os._exit(9)
        return self.contents[member]


def crop_all(folder: Path, workers: int, deadly: str = "") -> list:
    folder.mkdir()
    contents = tiles()
    rule = CropRule(size=16, workers=workers)
    shards = crop_shards(rows_of(contents), Store(contents, deadly).read, folder, rule)
    return [record for shard in shards for record in shard]


def test_any_number_of_workers_writes_the_same_bytes(tmp_path):
    """One process and two: same files, same content, same records; more than one shard even for few photographs."""
    one, two = crop_all(tmp_path / "one", 1), crop_all(tmp_path / "two", 2)
    assert one == two
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert len(names) >= 10
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@fault(22, "a decoder that crashes, or is killed for its memory")
def test_a_photograph_that_kills_its_process_costs_only_itself(tmp_path):
    """`failed`, `crash`: it costs only itself; the others' crops are those of a run without it."""
    records = crop_all(tmp_path / "crops", 2, deadly="80")
    assert [record.photo for record in records] == list(tiles())
    assert [(r.photo, r.status, r.reason) for r in records if r.status != "ok"] == [("80", "failed", "crash")]
    whole = crop_all(tmp_path / "whole", 1)
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


def test_a_contact_sheet_shows_the_photographs_of_its_rows():
    """The colors given are the colors drawn; a row without photographs is one line of text."""
    red, blue = np.zeros((9, 8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    sheet = np.asarray(contact_sheet([("red", red), ("blue", blue)], columns=8, side=20)).reshape(-1, 3)
    assert (sheet == (255, 0, 0)).all(axis=1).sum() == 8 * 400
    assert (sheet == (0, 0, 255)).all(axis=1).sum() == 400
    assert contact_sheet([("nothing", np.empty(0))]).height < 40


def test_more_shards_than_a_process_may_have_files_open_are_read(tmp_path: Path) -> None:
    """A hundred thousand photographs are a hundred shards; twenty-five million would be twenty-five thousand."""
    for number in range(400):
        write_array(tmp_path / f"crops-{number:05}.npy", np.full((1, 8, 8, 3), number % 256, np.uint8))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAPPED_SHARDS + 100, hard))
    try:
        crops = Crops(tmp_path)[:]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert crops[:, 0, 0, 0].tolist() == [number % 256 for number in range(400)]
