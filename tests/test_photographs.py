"""Coloring at full size: lightness, size and metadata stay; color follows edges and orientation."""

import io
import threading

import numpy as np
import pytest
import torch
from imagefiles import profile
from PIL import ExifTags, Image, ImageCms
from skimage.color import rgb2lab

from colorize.apply import fullsize
from colorize.data.images import UPRIGHT

SIZE = 32


def encoded(pixels: np.ndarray, kind: str = "png", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def colored(content: bytes, color: tuple[float, float] = (20.0, -15.0)) -> tuple[bytes, fullsize.Photograph]:
    """A photograph with the same ab predicted everywhere."""
    photograph = fullsize.read(content)
    light = torch.rand(1, 1, 8, 8) * 100
    ab = torch.tensor(color)[:, None, None].expand(2, 8, 8)
    return fullsize.encode(photograph, fullsize.paint(photograph, light, ab)), photograph


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parametrize("size", [(7, 300), (301, 5), (130, 257), (1, 1)])
def test_the_size_and_the_lightness_stay(size: tuple[int, int]) -> None:
    """Of any shape, across the edges of bands; by scikit-image's L*."""
    source = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    out = pixels(colored(encoded(source))[0])
    assert out.shape == source.shape
    error = np.abs(rgb2lab(out)[..., 0] - rgb2lab(source)[..., 0])
    assert error.mean() < 0.3 and error.max() < 1.5


def test_any_number_of_threads_paints_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each paints bands of its own and waits for no other; torch's number of threads is as before."""
    generator = torch.Generator().manual_seed(1)
    light = torch.rand(1, 1, 48, 64, generator=generator) * 100
    ab = torch.randn(2, 48, 64, generator=generator) * 60  # much of it is out of the gamut
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    photograph = fullsize.read(encoded(noise))
    shown, seen = fullsize.shown, []

    def look(lab: torch.Tensor) -> torch.Tensor:
        seen.append((threading.get_ident(), torch.get_num_threads()))
        if len(seen) <= threads:
            all_paint.wait(30)
        return shown(lab)

    monkeypatch.setattr(fullsize, "shown", look)
    painted = {}
    for threads in (1, 2):
        seen.clear()
        all_paint = threading.Barrier(threads)
        torch.set_num_threads(threads)
        painted[threads] = fullsize.paint(photograph, light, ab).tobytes()
        assert torch.get_num_threads() == threads
        assert len({painter for painter, _ in seen}) == threads and {inner for _, inner in seen} == {1}
    assert painted[1] == painted[2]


def test_a_color_stays_the_one_predicted_where_the_display_can_show_it() -> None:
    """On middle greys; where it cannot, the hue stays and the chroma is less."""
    grey = np.repeat(np.arange(0, 256, dtype=np.uint8)[:, None, None], 3, axis=2)
    lab = rgb2lab(pixels(colored(encoded(grey))[0]))[:, 0]
    middle = lab[100:180]
    assert np.abs(middle[:, 1:] - (20, -15)).max() < 1
    dark = lab[5:60]
    chroma = np.hypot(dark[:, 1], dark[:, 2])
    assert (chroma < 26).all()
    shown = dark[chroma > 4]
    assert np.abs(np.degrees(np.arctan2(shown[:, 2], shown[:, 1]) - np.arctan2(-15, 20))).max() < 12


@pytest.mark.parametrize(("kind", "orientation"), [("avif", 6), *(("jpeg", turn) for turn in (1, *UPRIGHT))])
def test_a_turned_photograph_is_colored_as_it_is_seen(kind: str, orientation: int) -> None:
    """The model's left half is red as one sees it; the file keeps its pixels' order and its orientation."""
    upright = np.full((40, 60, 3), 120, np.uint8)
    stored = Image.fromarray(upright)
    turn = UPRIGHT.get(orientation)
    if turn is not None:
        quarters = {Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_90}
        [undo] = quarters - {turn} if turn in quarters else {turn}
        stored = stored.transpose(undo)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "a camera"
    photograph = fullsize.read(encoded(np.asarray(stored), kind, exif=exif, quality=95))
    assert photograph.size == (60, 40)
    ab = torch.zeros(2, 8, 12)
    ab[0, :, :6] = 40
    result = fullsize.encode(photograph, fullsize.paint(photograph, torch.full((1, 1, 8, 12), 50.0), ab))
    image = Image.open(io.BytesIO(result))
    found = image.getexif()
    assert (image.size, found[0x0112], found[0x010F]) == (stored.size, orientation, "a camera")
    seen = np.asarray(image if turn is None else image.transpose(turn)).astype(int)
    redness = seen[..., 0] - seen[..., 1]
    assert redness[:, :20].min() > 30 and np.abs(redness[:, 40:]).max() < 8


def test_color_does_not_bleed_over_an_edge_that_the_small_copy_blurs() -> None:
    """A red disk's edge on grey, at eight times the model's size: less error than by bilinear spreading."""
    down, across = np.mgrid[:256, :256]
    disk = (down - 120) ** 2 + (across - 133) ** 2 < 70**2
    truth = np.where(disk[..., None], (240, 130, 120), (60, 62, 66)).astype(np.uint8)
    photograph = fullsize.read(encoded(truth))
    small = rgb2lab(np.asarray(photograph.rgb.resize((32, 32), Image.Resampling.BOX)))
    light, ab = torch.tensor(small, dtype=torch.float32).permute(2, 0, 1)[None].split((1, 2), dim=1)
    ours = np.asarray(fullsize.paint(photograph, light, ab[0])).astype(float)
    bilinear = fullsize.paint(photograph, torch.full_like(light, 50), ab[0])  # no slope
    plain = np.asarray(bilinear).astype(float)
    assert np.square(ours - truth).mean() < 0.5 * np.square(plain - truth).mean()


def test_metadata_that_cannot_be_written_again_costs_no_pixels() -> None:
    """A maker's name of type float: the photograph is colored, without its EXIF, and that is noted."""
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime] = 0.25
    written = bytearray(exif.tobytes())
    assert written[18:20] == b"\x00\x02"  # the type of the first entry: ASCII
    written[19] = 11
    result, photograph = colored(encoded(np.full((20, 30, 3), 128, np.uint8), "jpeg", exif=bytes(written)))
    assert photograph.notes == ("exif_ignored",) and Image.open(io.BytesIO(result)).size == (30, 20)


def test_metadata_that_its_format_cannot_hold_costs_no_pixels() -> None:
    """EXIF over three segments of a JPEG, of which Pillow writes one: left out, and that is noted."""
    exif = Image.Exif()
    exif[0x010F] = 120_000 * "x"
    written = exif.tobytes()
    parts = [written[:60_000]]
    parts += [b"Exif\0\0" + written[start : start + 60_000] for start in (60_000, 120_000)]
    segments = b"".join(b"\xff\xe1" + (len(part) + 2).to_bytes(2) + part for part in parts)
    plain = encoded(np.full((20, 30, 3), 128, np.uint8), "jpeg")
    result, photograph = colored(plain[:2] + segments + plain[2:])
    assert photograph.notes == ("exif_ignored",) and Image.open(io.BytesIO(result)).size == (30, 20)


def test_a_profile_that_leads_one_way_is_followed_and_not_written() -> None:
    """As scanners have: the result is sRGB; with that profile other colors would be meant."""
    source = encoded(np.full((20, 30, 3), 128, np.uint8), "tiff", icc_profile=profile(b"RGB ", one_way=True))
    photograph = fullsize.read(source)
    assert np.abs(np.asarray(photograph.rgb).astype(int) - 119).max() <= 1  # 128 / 255 of L* 100
    result = Image.open(io.BytesIO(fullsize.encode(photograph, photograph.rgb)))
    assert "icc_profile" not in result.info and np.array_equal(result, photograph.rgb)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "avif", "tiff"])
def test_what_the_camera_wrote_is_kept(kind: str) -> None:
    """Its blocks too: exposure and place, whatever the format; and the result can be read again."""
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime] = 0.25
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    result, photograph = colored(encoded(np.full((20, 30, 3), 128, np.uint8), kind, exif=exif.tobytes()))
    found = Image.open(io.BytesIO(result)).getexif()
    assert photograph.notes == () and found[0x010F] == "a camera"
    assert found.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime] == 0.25
    assert found.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"


def test_profile_transparency_and_resolution_are_kept() -> None:
    """A PNG with alpha stays one; a profile of RGB is in the result, and its colors are meant in it."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = np.dstack(
        [np.full((20, 30, 3), 128, np.uint8), np.tile(np.arange(30, dtype=np.uint8) * 8, (20, 1))]
    )
    result = Image.open(io.BytesIO(colored(encoded(source, "png", icc_profile=profile, dpi=(300, 300)))[0]))
    assert result.mode == "RGBA" and np.array_equal(np.asarray(result)[..., 3], source[..., 3])
    assert result.info["icc_profile"] == profile and result.info["dpi"][0] == pytest.approx(300, abs=0.1)


@pytest.mark.parametrize(
    ("mode", "kind", "suffix"),
    [("L", "jpeg", ".jpg"), ("1", "png", ".png"), ("P", "gif", ".png"), ("I;16", "png", ".png"),
     ("CMYK", "jpeg", ".jpg"), ("L", "webp", ".webp"), ("LA", "png", ".png"), ("L", "tiff", ".tif"),
     ("RGB", "bmp", ".png"), ("L", "avif", ".avif")],
)  # fmt: skip
def test_every_format_comes_out_in_color(mode: str, kind: str, suffix: str) -> None:
    """As the same format where that can hold color and metadata."""
    levels = {"I;16": 30000, "LA": (120, 255), "CMYK": (0, 0, 0, 120), "RGB": (120, 120, 120)}
    image = Image.new("L" if mode == "P" else mode, (24, 17), levels.get(mode, 120)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    result, photograph = colored(buffer.getvalue())
    assert photograph.suffix == suffix
    assert Image.open(io.BytesIO(result)).size == (24, 17)
    if mode != "1":
        assert np.ptp(pixels(result)[8, 8].astype(int)) > 20


@pytest.mark.parametrize(("any_size", "shape"), [(True, (32, 48)), (False, (32, 32))])
def test_a_model_sees_the_whole_photograph(any_size: bool, shape: tuple[int, int]) -> None:
    """In its proportions if it can take them, squeezed into its square if not."""

    class Model:
        pass

    model = Model()
    model.any_size = any_size  # type: ignore[attr-defined]
    photograph = fullsize.read(encoded(np.full((100, 150, 3), 99, np.uint8)))
    assert fullsize.small_light(photograph, model, SIZE).shape == (1, 1, *shape)  # type: ignore[arg-type]
    wide = fullsize.read(encoded(np.full((10, 1000, 3), 99, np.uint8)))
    assert fullsize.small_light(wide, model, SIZE).shape[-1] == (128 if any_size else 32)  # type: ignore[arg-type]
