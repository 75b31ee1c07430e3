"""Recognize image formats by the first bytes of a file. images.py checks the rest of the content.

The download, the crop stage, `colorize apply`, `colorize score` and the web page all use this table.
"""

HEAD_BYTES = 32
"""Enough for every format."""
SUFFIXES = {
    "jpg": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "png": (".png", ".apng"),
    "webp": (".webp",),
    "avif": (".avif",),
    "gif": (".gif",),
    "bmp": (".bmp", ".dib"),
    "tif": (".tif", ".tiff"),
}
"""The formats that are read, and the suffixes of their files."""
UNREAD = {
    "heic": "HEIC or HEIF, as telephones store photographs",
    "raw": "a camera's raw file",
    "jpeg_xl": "JPEG XL",
    "jpeg_2000": "JPEG 2000",
    "photoshop": "Photoshop's own format",
    "pdf": "PDF",
}
"""Formats that are not read, by the reason for refusing them."""

_STARTS = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    # Some cameras write MM*; + is for large files.
    **dict.fromkeys((b"II*\0", b"MM\0*", b"MM*\0", b"II+\0", b"MM\0+"), "tif"),
    b"\xff\x0a": "jpeg_xl",
    b"\0\0\0\x0cJXL \r\n\x87\n": "jpeg_xl",
    b"\xff\x4f\xff\x51": "jpeg_2000",
    b"\0\0\0\x0cjP  \r\n\x87\n": "jpeg_2000",
    b"8BPS": "photoshop",
    b"%PDF": "pdf",
    # Fuji, Olympus, Panasonic, Canon, Sigma, Minolta:
    **dict.fromkeys((b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0"), "raw"),
    **dict.fromkeys((b"II\x1a\0\0\0HEAPCCDR", b"FOVb", b"\0MRM"), "raw"),
}
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "avif"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "heic"),
    b"crx ": "raw",
}
_BMP_HEADERS = {size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124)}


def _kind(head: bytes) -> str:
    if head[4:8] == b"ftyp":  # a box with a brand, a version and the brands that it is compatible with
        size = int.from_bytes(head[:4])
        brands = [head[start : start + 4] for start in (8, *range(16, min(size, len(head)), 4))]
        kinds = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
        return "avif" if "avif" in kinds else next(iter(kinds), "")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    # Texts may begin with "BM" too: check the reserved bytes and the size of the second header.
    if head[:2] == b"BM" and head[6:10] == bytes(4) and head[14:18] in _BMP_HEADERS:
        return "bmp"
    kind = next((kind for start, kind in _STARTS.items() if head.startswith(start)), "")
    cameras = head[8:10] == b"CR" or head[8:12] in (b"IIII", b"MMMM")  # Canon; Phase One
    return "raw" if kind == "tif" and cameras else kind


def image_kind(head: bytes) -> str:
    """Return the format of a file by its first `HEAD_BYTES`: one of `SUFFIXES`, or "" for any other."""
    kind = _kind(head)
    return kind if kind in SUFFIXES else ""


def why_no_image(head: bytes) -> str:
    """Return the reason to refuse a file by its first bytes; "" if the format is read."""
    if not head:
        return "empty_file"
    kind = _kind(head) or "not_image"
    return "" if kind in SUFFIXES else kind
