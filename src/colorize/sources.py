"""Five places photographs come from, behind one interface: `list_photos`, then `pack`, then `Reader`.

A source is a function that lists its items as rows of photos.csv (`Photo`), each with its status and a way to its
bytes. `pack` writes original bytes into tar shards, 1000 to a file, because many small files are slow in DVC; a
local folder is left where it is. Archives are read member by member and never extracted, and CIFAR-10's pickles
through an allow-list, so that nothing in them can be executed.

Nothing is decoded or judged here beyond the first bytes, and nothing is fetched: that is fetch.py.
"""

import hashlib
import io
import itertools
import os
import pickle
import re
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import numpy as np
import pandas as pd
from PIL import Image

from colorize import files
from colorize.album import IMAGE_SUFFIXES, counts, walk
from colorize.files import InputError, name_of, text_of
from colorize.formats import image_kind
from colorize.settings import Source

SHARD_ITEMS = 1000
MAIN_COLORS = 10
LEVELS = ("red", "green", "blue")
COLOR_COLUMNS = ["photo", *LEVELS, "coverage"]
MEMBER_BYTES = 2**31
"""No table or batch of the known data sets comes near it; an archive bomb does."""


@dataclass
class Photo:
    """One row of photos.csv, filled in as the item goes its way; `content` gives its bytes and is not written."""

    photo: str
    group: str
    label: str = ""
    split: str = ""
    status: str = "ok"
    reason: str = ""
    retryable: bool = False
    sha256: str = ""
    size: int = 0
    shard: str = ""
    member: str = ""
    url: str = ""
    content: Callable[[], bytes] | None = None

    def end(self, status: str, reason: str, retryable: bool = False) -> None:
        """Take the item out: `status` is "skipped", "failed", or "ignored": counted, without a row."""
        self.status, self.reason, self.retryable, self.sha256 = status, reason, retryable, ""


def list_photos(settings: Source, seed: int) -> tuple[list[Photo], pd.DataFrame | None]:
    """List the items of the source that `settings` chooses, without fetching any.

    Returns:
        The rows in their final order, and the main colors where the source lists them, otherwise None: columns
        photo, red, green, blue (0..255) and coverage (share, 0..1), up to ten rows per photo by falling coverage.

    Raises:
        InputError: the source is missing, empty or not what it should be.
    """
    path = Path(settings.path)
    if not os.path.exists(settings.path):
        raise InputError(f"data.path is {settings.path!r}, which does not exist; name what data.source reads")
    colors = None
    if settings.source == "sample":
        photos = _sample(path)
    elif settings.source == "folder":
        photos = _folder(path)
    elif settings.source == "urls":
        photos = _urls(path, settings.url_column)
    elif settings.source == "unsplash":
        photos, colors = _unsplash(path, settings.request_size)
    else:
        photos = _cifar10(path)
    if settings.limit:
        usable = [photo for photo in photos if photo.status == "ok"] or photos
        size = min(settings.limit, len(usable))
        drawn = np.random.default_rng(seed).choice(len(usable), size, replace=False)
        photos = [usable[index] for index in np.sort(drawn)]
    return photos, colors


def pack(photos: Iterable[Photo], folder: Path) -> None:
    """Write the bytes of every item that is ok into `folder`/photos-*.tar; note where, the sha256 and the size.

    Items whose `member` is already named are left where they are and only read for their sha256.

    Raises:
        InputError: bytes cannot be read, or the folder cannot be written to.
    """
    contents = _contents(photos)
    for number in itertools.count():
        first = next(contents, None)
        if first is None:
            return
        name = f"photos-{number:05d}.tar"
        with (
            files.atomic(folder / name) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for photo, content in itertools.chain([first], itertools.islice(contents, SHARD_ITEMS - 1)):
                photo.shard, photo.member = name, f"{photo.photo}.{image_kind(content)}"
                info = tarfile.TarInfo(photo.member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def _contents(photos: Iterable[Photo]) -> Iterator[tuple[Photo, bytes]]:
    for photo in photos:
        if photo.status != "ok" or photo.content is None:
            continue
        try:
            content = photo.content()
        except OSError as error:
            raise InputError(f"photo {photo.photo} cannot be read ({error.strerror}); run this again") from error
        photo.sha256, photo.size = hashlib.sha256(content).hexdigest(), len(content)
        if not photo.member:
            yield photo, content


def write_photos(path: Path, photos: list[Photo]) -> None:
    """Write photos.csv; what is ignored has no row in it."""
    photos = [photo for photo in photos if photo.status != "ignored"]
    columns = [field.name for field in fields(Photo) if field.name != "content"]
    frame = pd.DataFrame([[getattr(photo, name) for name in columns] for photo in photos], columns=columns)
    frame["retryable"] = [str(p.retryable).lower() if p.status == "failed" else "" for p in photos]
    # Addresses with a password are refused; so that it stays secret, it is not written down either.
    frame["url"] = [re.sub(r"//[^/?#]*@", "//", photo.url) for photo in photos]
    frame = frame.rename(columns={"label": "class", "size": "bytes"})
    files.write_text(path, frame.to_csv(index=False, lineterminator="\n"))


class Reader:
    """Gives the original bytes back that a row of photos.csv points to.

    `photos` is the folder of the shards, `data_path` the folder that the folder source reads in place. Holds no
    open file, so that it may travel to worker processes.
    """

    def __init__(self, photos: Path, data_path: Path) -> None:
        self.photos = photos
        self.data_path = data_path
        self._places: dict[str, dict[str, tuple[int, int]]] = {}

    def read(self, shard: str, member: str) -> bytes:
        """The bytes of one item; an empty `shard` means a file of the data folder.

        Raises:
            InputError: the shard or the file is missing, or its name leads out of its folder.
            KeyError: the shard holds no such member.
        """
        folder, name = (self.photos, shard) if shard else (self.data_path, name_of(member))
        path = folder / name
        try:
            if not _inside(path, folder):
                raise InputError(f"{name!r} leads out of {folder}; run the download again")
            if not shard:
                return path.read_bytes()
            index = self._index(shard)
            if member not in index:
                raise KeyError(f"{path} holds no {member}")
            offset, size = index[member]
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except (OSError, tarfile.TarError) as error:
            raise InputError(f"cannot read {path}: {error}; run the download again") from error

    def _index(self, shard: str) -> dict[str, tuple[int, int]]:
        if shard not in self._places:
            with tarfile.open(self.photos / shard, "r:") as tar:
                self._places[shard] = {info.name: (info.offset_data, info.size) for info in tar}
        return self._places[shard]


# ---- sample ----


def _sample(path: Path) -> list[Photo]:
    """Square windows of scikit-image's photographs: `side` pixels wide and high, every `step` pixels down and across."""
    # Late, because the workers that only read need not wait for it.
    import skimage

    shipped = Path(skimage.__file__).parent / "data"
    photos: list[Photo] = []
    for where, row in _table(_content(path), str(path), ["photo", "side", "step"]):
        name = row["photo"]
        if name not in os.listdir(shipped) or Path(name).suffix not in IMAGE_SUFFIXES:
            raise InputError(f"{where}: scikit-image ships no photograph {name!r}; choose one from {shipped.name}/")
        if not re.fullmatch(r"[1-9][0-9]{0,4},[1-9][0-9]{0,4}", f"{row['side']},{row['step']}"):
            raise InputError(f"{where}: side and step must be whole numbers above 0")
        side, step, group = int(row["side"]), int(row["step"]), Path(name).stem
        with Image.open(shipped / name) as image:
            pixels = np.asarray(image.convert("RGB"))
        height, width = pixels.shape[:2]
        if min(height, width) < side:
            raise InputError(f"{where}: {name} is smaller than a window of {side} pixels; lower side")
        for top, left in itertools.product(range(0, height - side + 1, step), range(0, width - side + 1, step)):
            window = pixels[top : top + side, left : left + side]
            photos.append(Photo(f"{group}/{side}-{top}-{left}", group, content=partial(_png, window)))
    if twice := [photo for photo, count in Counter(photo.photo for photo in photos).items() if count > 1]:
        raise InputError(f"{path}: {twice[0]} is listed twice; remove one of the rows")
    return _sorted(photos, f"{path} lists no photograph; restore it")


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# ---- folder ----


def _folder(root: Path) -> list[Photo]:
    if not root.is_dir():
        raise InputError(f"data.path is {root}, a file; the folder source needs a folder of images")
    photos = []
    for item in walk(root):
        name = text_of(item.name)
        photo = Photo(name, name, name.rpartition("/")[0])
        if item.status == "ignored":
            photo.end("ignored", item.reason)
        elif os.path.islink(item.source) and not _inside(item.source, root):
            photo.end("skipped", "link_leaves_folder")
        elif item.reason:
            photo.end(item.status, item.reason, retryable=item.reason == "unreadable")
        else:
            photo.member, photo.content = name, item.source.read_bytes
        photos.append(photo)
    passed = counts(photo.reason for photo in photos)
    none = f"data.path is {root}, a folder without a single image{passed and f' ({passed})'}; put photographs into it"
    return _sorted(photos if any(photo.status != "ignored" for photo in photos) else [], none)


def _inside(path: Path, root: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


# ---- urls and unsplash ----


def _urls(path: Path, column: str) -> list[Photo]:
    content, where = _content(path), str(path)
    if path.suffix.lower() == ".txt":
        lines = [line.strip() for line in io.StringIO(files.decode(content, where), newline=None)]
        numbered = [(n, line) for n, line in enumerate(lines, 1) if line and line[0] != "#"]
        found = [(f"{where}, line {n}", line, "") for n, line in numbered]
    else:
        table = _table(content, where, [column])
        found = [(place, row[column], row.get("sha256", "").lower()) for place, row in table]
    if not found:
        raise InputError(f"{path} lists no address; add one to each line")
    rows = [(_address(url, place), digits) for place, url, digits in found]
    return _addresses([(hashlib.sha256(url.encode()).hexdigest()[:16], url, digits) for url, digits in rows])


def _address(url: str, where: str) -> str:
    """An address as the list gives it; urllib would drop tabs and line breaks in silence: another address."""
    if re.search(r"[\0-\x1f\x7f]", url):
        raise InputError(f"{where}: {url!r} holds a tab or a line break; give each address a row of its own")
    return url


def _addresses(rows: list[tuple[str, str, str]]) -> list[Photo]:
    """Rows from (name, address, sha256 or ""): every address once, every name unique."""
    photos: list[Photo] = []
    names, addresses = Counter[str](), set[str]()
    for name, url, expected in rows:
        names[name] += 1
        unique = name if names[name] == 1 else f"{name}-{names[name]}"
        photo = Photo(unique, unique, sha256=expected, url=url)
        if not url:
            photo.end("failed", "no_address")
        elif url in addresses or unique != name:
            photo.end("skipped", "duplicate_url")
        addresses.add(url)
        photos.append(photo)
    return photos


def _unsplash(path: Path, size: int) -> tuple[list[Photo], pd.DataFrame]:
    tables = _members(path, re.compile(r"(photos|colors)\.[ct]sv\d{3,}"))
    if not any(name.startswith("photos") for name in tables):
        raise InputError(f"{path} holds no photos.tsv000; data.path must be the Unsplash archive or folder")
    rows, colors = [], []
    for name, content in tables.items():
        where = f"{path}: {name}"
        if name.startswith("photos"):
            for place, row in _table(content, where, ["photo_id", "photo_image_url"], "\t"):
                if not re.fullmatch(r"[A-Za-z0-9_-]{11}", row["photo_id"]):
                    raise InputError(f"{place}: {row['photo_id']!r} is no photo_id of 11 characters; mend it")
                url = _address(row["photo_image_url"], place)
                rows.append((row["photo_id"], _cropped(url, size), ""))
        else:
            colors.append(_colors(content, where))
    if not rows:
        raise InputError(f"{path} lists no photo; download the archive again")
    return _addresses(rows), pd.concat(colors, ignore_index=True) if colors else pd.DataFrame(columns=COLOR_COLUMNS)


def _cropped(url: str, size: int) -> str:
    """The address of the same photo, cropped at its center and scaled by the image service."""
    asked = {"w": str(size), "h": str(size), "fit": "crop"}
    try:
        parts = urlsplit(url)
    except ValueError:
        return url  # no address at all; fetching it says so
    query = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0] not in asked]
    return urlunsplit(parts._replace(query=urlencode(query + list(asked.items()))))


def _colors(content: bytes, where: str) -> pd.DataFrame:
    rows = []
    for place, row in _table(content, where, ["photo_id", *LEVELS], "\t"):
        share = row["coverage"] if "coverage" in row else row.get("ai_coverage", "")
        try:
            levels, coverage = [int(row[name]) for name in LEVELS], float(share)
        except ValueError:
            levels, coverage = [], -1.0
        if not (levels and 0 <= min(levels) <= max(levels) <= 255 and 0 <= coverage <= 100):
            wanted = "red, green, blue (0..255) and coverage must be numbers"
            raise InputError(f"{place}: {wanted}, not {row}; mend it")
        rows.append((row["photo_id"], *levels, coverage))
    kinds = dict.fromkeys(LEVELS, np.uint8) | {"coverage": float}
    frame = pd.DataFrame(rows, columns=COLOR_COLUMNS).astype(kinds)
    # Unsplash gives shares; a table in percent gives itself away.
    if frame["coverage"].max() > 1.5:
        frame["coverage"] /= 100
    frame = frame.sort_values(["photo", "coverage"], ascending=[True, False], kind="stable")
    return frame.groupby("photo").head(MAIN_COLORS)


# ---- cifar10 ----


def _uint8(code: str, *_: object) -> np.dtype[np.uint8]:
    if code not in ("u1", "uint8"):
        raise pickle.UnpicklingError(f"its pixels are of type {code}, not of uint8")
    return np.dtype(np.uint8)


class _Unpickler(pickle.Unpickler):
    """Rebuilds arrays of uint8, lists and strings; whatever else a pickle asks for is named, not imported.

    The four names are stand-ins: numpy's own would also build arrays of pointers out of a pickle's bytes.
    """

    allowed = {
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: np.empty(0, np.uint8),
        ("numpy", "ndarray"): None,
        ("numpy", "dtype"): _uint8,
        ("_codecs", "encode"): lambda text, *_: text.encode("latin1"),
    }

    def find_class(self, module: str, name: str) -> Any:
        key = module.replace("numpy._core", "numpy.core"), name
        if key not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 file needs")
        return self.allowed[key]


def _cifar10(path: Path) -> list[Photo]:
    found = _members(path, re.compile(r"((data_batch_\d+|test_batch)(\.bin)?)|batches\.meta(\.txt)?"))
    meta = [name for name in found if name.startswith("batches.meta")]
    labels = _label_names(found.pop(meta[0]), f"{path}: {meta[0]}") if meta else []
    photos = []
    for name, content in found.items():
        batch = name.removesuffix(".bin")
        pixels, classes = (_binary if name.endswith(".bin") else _pickled)(content, f"{path}: {name}")
        split = "test" if batch == "test_batch" else "train"
        for index, (flat, number) in enumerate(zip(pixels, classes, strict=True)):
            photo = f"{batch}/{index:05d}"
            label = labels[number] if 0 <= number < len(labels) else str(number)
            image = flat.reshape(3, 32, 32).transpose(1, 2, 0)
            photos.append(Photo(photo, photo, label, split, content=partial(_png, image)))
    return _sorted(photos, f"{path} holds no data_batch_* and no test_batch; data.path must be CIFAR-10")


def _unpickle(content: bytes, where: str) -> dict[str, Any]:
    try:
        value = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    # A damaged pickle may raise anything at all.
    except Exception as error:
        raise InputError(f"{where} is not a CIFAR-10 file: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where} is not a CIFAR-10 file: it holds no dictionary")
    return {_string(key): entry for key, entry in value.items()}


def _string(name: object) -> str:
    return name.decode("latin1") if isinstance(name, bytes) else str(name)


def _label_names(content: bytes, where: str) -> list[str]:
    if where.endswith(".txt"):
        return files.decode(content, where).split()
    names = _unpickle(content, where).get("label_names")
    return [_string(name) for name in names] if isinstance(names, list) else []


def _pickled(content: bytes, where: str) -> tuple[np.ndarray, list[int]]:
    batch = _unpickle(content, where)
    pixels, classes = batch.get("data"), batch.get("labels")
    if not (
        isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and pixels.shape[1:] == (3072,)
        and isinstance(classes, list)
        and len(classes) == len(pixels)
        and all(isinstance(number, int) for number in classes)
    ):
        raise InputError(f"{where} is not a CIFAR-10 batch: it needs uint8 data [n, 3072] and n labels")
    return pixels, classes


def _binary(content: bytes, where: str) -> tuple[np.ndarray, list[int]]:
    if len(content) % 3073:
        raise InputError(f"{where} is cut short: its size is no multiple of 3073 bytes; download it again")
    records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
    return records[:, 1:], records[:, 0].tolist()


# ---- what several sources share ----


def _sorted(photos: list[Photo], if_empty: str) -> list[Photo]:
    if not photos:
        raise InputError(if_empty)
    return sorted(photos, key=lambda photo: photo.photo)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); data.path must be a readable file") from error


def _table(
    content: bytes,
    where: str,
    needed: list[str],
    delimiter: str = ",",
) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a user's table, texts without surrounding blanks.

    A comma separated file may hold comments; in a tab separated one, Unsplash's, "#" may open a description.
    """
    for place, row in files.parse_table(content, where, needed, delimiter, by_hand=delimiter == ","):
        yield place, {column: text.strip() for column, text in row.items()}


def _members(path: Path, wanted: re.Pattern[str]) -> dict[str, bytes]:
    """The files of a folder, a zip or a tar whose own name is wanted, sorted by it; nothing is extracted.

    Raises:
        InputError: `path` is neither, is damaged, or holds a wanted file twice or absurdly large.
    """
    found: dict[str, bytes] = {}
    try:
        for name, open_member in _archive(path):
            own = name.rpartition("/")[2]
            if not wanted.fullmatch(own):
                continue
            if own in found:
                raise InputError(f"{path} holds {own} twice; remove one")
            with open_member() as file:
                found[own] = file.read(MEMBER_BYTES + 1)
            if len(found[own]) > MEMBER_BYTES:
                raise InputError(f"{path}: {own} is larger than {MEMBER_BYTES} bytes and so not what it should be")
    # RuntimeError: an encrypted zip.
    except (OSError, EOFError, RuntimeError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is neither a folder nor a sound zip or tar archive: {error}") from error
    return dict(sorted(found.items()))


def _archive(path: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The regular files of a folder, a zip or a tar: name, and a function that opens it."""
    if path.is_dir():
        for inner in path.rglob("*"):
            if inner.is_file():
                yield inner.name, partial(inner.open, "rb")
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield name, partial(archive.open, name)
    else:
        with tarfile.open(path) as tar:
            for info in tar:
                if info.isfile():
                    yield info.name, partial(tar.extractfile, info)
