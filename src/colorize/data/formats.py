"""What the first bytes of a file say that it is: an image of a format that is read, or of one that is not.

The one table of formats: the download, the crop stage, `colorize apply`, `colorize score` and the page go by it. What the
bytes hold beyond their first ones is decided by images.py.
"""

HEAD_BYTES = 32
"""So many are enough for every format."""
SUFFIXES = {
    "jpg": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "png": (".png", ".apng"),
    "webp": (".webp",),
    "avif": (".avif",),
    "gif": (".gif",),
    "bmp": (".bmp", ".dib"),
    "tif": (".tif", ".tiff"),
}
"""The formats that are read, and how the names of such files end."""
UNREAD = {
    "heic": "HEIC or HEIF, as telephones store photographs",
    "raw": "a camera's raw file",
    "jpeg_xl": "JPEG XL",
    "jpeg_2000": "JPEG 2000",
    "photoshop": "Photoshop's own format",
    "pdf": "PDF",
}
"""Formats of photographs that are not read, by the reason for which they are refused."""

_STARTS = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    **dict.fromkeys(
        (b"II*\0", b"MM\0*", b"MM*\0", b"II+\0", b"MM\0+"), "tif"
    ),  # some write MM*; + is for large files
    b"\xff\x0a": "jpeg_xl",
    b"\0\0\0\x0cJXL \r\n\x87\n": "jpeg_xl",
    b"\xff\x4f\xff\x51": "jpeg_2000",
    b"\0\0\0\x0cjP  \r\n\x87\n": "jpeg_2000",
    b"8BPS": "photoshop",
    b"%PDF": "pdf",
    **dict.fromkeys((b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR"), "raw"),  # Fuji; Olympus
    **dict.fromkeys(
        (b"IIU\0", b"II\x1a\0\0\0HEAPCCDR", b"FOVb", b"\0MRM"), "raw"
    ),  # Panasonic; Canon; Sigma; Minolta
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
        found = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
        return "avif" if "avif" in found else next(iter(found), "")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    # "BM" alone also opens many a text: the reserved bytes and the size of the second header tell them apart.
    if head[:2] == b"BM" and head[6:10] == bytes(4) and head[14:18] in _BMP_HEADERS:
        return "bmp"
    kind = next((kind for start, kind in _STARTS.items() if head.startswith(start)), "")
    cameras = head[8:10] == b"CR" or head[8:12] in (b"IIII", b"MMMM")  # Canon; Phase One
    return "raw" if kind == "tif" and cameras else kind


def image_kind(head: bytes) -> str:
    """The format that the first `HEAD_BYTES` of a file give away, one of `SUFFIXES`; "" if it is none that is read."""
    kind = _kind(head)
    return kind if kind in SUFFIXES else ""


def why_no_image(head: bytes) -> str:
    """The reason for which content that begins with these bytes is refused; "" if it is an image that is read."""
    if not head:
        return "empty_file"
    kind = _kind(head) or "not_image"
    return "" if kind in SUFFIXES else kind
