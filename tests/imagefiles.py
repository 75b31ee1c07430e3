"""Image files that Pillow writes, and those that it does not: of any bits, interpretation and profile."""

import hashlib
import io
import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from skimage import data

SUB_IFDS = 330
D50 = (0.9642, 1.0, 0.8249)
PRIMARIES = {b"r": (0.4360, 0.2225, 0.0139), b"g": (0.3851, 0.7169, 0.0971), b"b": (0.1431, 0.0606, 0.7141)}
"""XYZ of those of sRGB, adapted to D50."""


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The file that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiles() -> dict[str, bytes]:
    """Sixty tiles of a photograph, as files."""
    picture = data.astronaut()
    corners = [(8 * i, 5 * i) for i in range(60)]
    return {f"{y}": encoded(Image.fromarray(picture[y : y + 40, x : x + 40]), "PNG") for y, x in corners}


def rows_of(contents: Mapping[str, bytes]) -> list[dict[str, str]]:
    """The rows of photos.csv of such files."""
    return [
        {"photo": name, "shard": "", "member": name, "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    ]


def chunk(name: bytes, content: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(samples: np.ndarray, bits: int, color: int, *chunks: bytes) -> bytes:
    """A PNG of samples [h, w] or [h, w, channels] with its color type; the chunks stand before the pixels."""
    height, width = samples.shape[:2]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    rows = b"".join(b"\0" + packed(row, bits, ">") for row in samples.reshape(height, -1))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels and holds none."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b""))


def packed(values: np.ndarray, bits: int, order: str) -> bytes:
    """One row of samples as a file holds them: below 8 bits, and of 12, without gaps."""
    if bits in (8, 16, 32):
        return values.astype(f"{order}u{bits // 8}").tobytes()
    digits = "".join(f"{int(value):0{bits}b}" for value in values)
    return int(digits + "0" * (-len(digits) % 8), 2).to_bytes(-(-len(digits) // 8))


Tags = Mapping[int, int | Sequence[int] | bytes | None]


def tiff(
    *pages: tuple[np.ndarray, int, Tags], order: str = "<", big: bool = False, below: bool = False
) -> bytes:
    """A TIFF of pages: samples [h, w] or [h, w, channels], their bits, and tags; None leaves out a usual one.

    Args:
        order: < or >, the byte order.
        big: BigTIFF.
        below: the second page hangs below the first one (SubIFDs) and does not follow it.
    """
    place = "Q" if big else "L"
    out = bytearray(b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 43 if big else 42)
    out += struct.pack(f"{order}HHQ", 8, 0, 0) if big else struct.pack(f"{order}L", 0)
    link = 8 if big else 4
    for samples, bits, given in pages:
        channels = samples.shape[2] if samples.ndim == 3 else 1
        planes = [samples[..., plane] for plane in range(channels)] if given.get(284) == 2 else [samples]
        starts, sizes = [], []
        for plane in planes:
            strip = b"".join(packed(row, bits, order) for row in plane.reshape(len(plane), -1))
            strip = zlib.compress(strip) if given.get(259) == 8 else strip
            starts.append(len(out))
            sizes.append(len(strip))
            out += strip + bytes(len(strip) % 2)
        size = {256: samples.shape[1], 257: len(samples), 258: [bits] * channels, 277: channels}
        strips = {273: starts, 278: len(samples), 279: sizes}
        tags = {tag: value for tag, value in {**size, 259: 1, **strips, **given}.items() if value is not None}
        if below and link < 9:
            tags[SUB_IFDS] = 0
        entries = b""
        for tag, value in sorted(tags.items()):
            numbers = [value] if isinstance(value, int) else value
            kind, code = (4, "L") if tag in (273, 279, SUB_IFDS) else (3, "H")
            if isinstance(value, bytes):
                kind, code = 7, "B"
            content = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
            if len(content) > (8 if big else 4):
                out += content + bytes(len(content) % 2)
                content = struct.pack(order + place, len(out) - len(content) - len(content) % 2)
            entries += struct.pack(f"{order}HH{place}", tag, kind, len(numbers))
            entries += content.ljust(8 if big else 4, b"\0")
        start = len(out)
        struct.pack_into(f"{order}{place}", out, link, start)
        out += struct.pack(f"{order}{'Q' if big else 'H'}", len(tags)) + entries
        link = start + 2 + 12 * sorted(tags).index(SUB_IFDS) + 8 if SUB_IFDS in tags else len(out)
        out += struct.pack(f"{order}{place}", 0)
    return bytes(out)


def profile(space: bytes, gamma: float = 1.0, one_way: bool = False) -> bytes:
    """An ICC v2 profile of the primaries of sRGB (D50), or of its greys, with another tone curve.

    Args:
        space: b"RGB " or b"GRAY".
        one_way: a table from levels to Lab and none back, as some scanners have; the mean level is 2.55 L*.
    """

    def s15(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256))
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(80),
        b"wtpt": b"XYZ " + bytes(4) + s15(*D50),
    }
    if one_way:
        ramp = bytes(range(256))
        table = b"mft1" + bytes(4) + bytes((3, 3, 2, 0)) + s15(1, 0, 0, 0, 1, 0, 0, 0, 1) + 3 * ramp
        tags[b"A2B0"] = table + b"".join(bytes((round(255 * n / 7), 128, 128)) for n in range(8)) + 3 * ramp
    elif space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        for name, xyz in PRIMARIES.items():
            tags |= {name + b"XYZ": b"XYZ " + bytes(4) + s15(*xyz), name + b"TRC": curve}
    table, body = b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    kind = (b"scnr" if one_way else b"mntr") + space + (b"Lab " if one_way else b"XYZ ")
    header = (
        struct.pack(">II", 0, 0x02400000) + kind + bytes(12) + b"acsp" + bytes(28) + s15(*D50) + bytes(48)
    )
    return (
        struct.pack(">I", 132 + len(table) + len(body)) + header + struct.pack(">I", len(tags)) + table + body
    )
