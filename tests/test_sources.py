"""sources.py: what each source lists, packs and gives back; expected values are made by hand, Pillow and numpy."""

import gzip
import hashlib
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from faults import fault
from PIL import Image
from skimage import data
from test_coloring import ODD
from webserver import jpegs

from colorize.data import sources
from colorize.data.formats import image_kind
from colorize.data.manifest import DataConfig, Item, Reader, pack, write_manifest
from colorize.data.sources import list_items
from colorize.files import InputError

JPEG, OTHER = jpegs(2)


def listed(source: Any, path: Path, seed: int = 1, **others: Any) -> list[Item]:
    return list_items(DataConfig(source=source, path=str(path), **others), seed)[0]


def encoded(form: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (9, 7), 120).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def in_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write files, given as name=content, below a folder."""

    def write(contents: dict[str, bytes], folder: str = "pictures") -> Path:
        root = tmp_path / folder
        for name, content in contents.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        return root

    return write


# ---- what an image is ----


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("WEBP", "webp"),
        ("AVIF", "avif"),
        ("GIF", "gif"),
        ("BMP", "bmp"),
        ("TIFF", "tif"),
    ],
)
def test_images_are_known_by_their_first_bytes(form: str, kind: str) -> None:
    """Every format that Pillow writes here is recognised from 32 bytes."""
    assert image_kind(encoded(form)[:32]) == kind


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"<html>",
        b"BM",
        b"BMW and other makes of cars, a list",
        b"RIFF1234WAVEfmt ",
        b"GIF",
        b"%PDF-1.7",
        b"\xff\xd8",
    ],
)
def test_what_only_looks_like_an_image_is_none(head: bytes) -> None:
    """Prefixes that are shared with other formats, or too short, do not count."""
    assert image_kind(head) == ""


# ---- sample ----


def test_sample_windows_are_the_photographs_own_pixels(tmp_path: Path) -> None:
    """Windows of two sizes decode to the pixels of scikit-image's own loader; all of one photograph are one group."""
    (tmp_path / "sample.csv").write_text(
        "photo,side,step\nchelsea.png,100,100\nchelsea.png,300,150\ncoffee.png,400,400\n"
    )
    photos = listed("sample", tmp_path / "sample.csv")
    ids = [photo.photo for photo in photos]
    assert ids[:3] == ["chelsea/100-0-0", "chelsea/100-0-100", "chelsea/100-0-200"]
    assert len(ids) == 3 * 4 + 2 + 1
    assert {photo.group for photo in photos} == {"chelsea", "coffee"}
    for name, pixels in (
        ("chelsea/100-100-200", data.chelsea()[100:200, 200:300]),
        ("chelsea/300-0-150", data.chelsea()[:, 150:450]),
        ("coffee/400-0-0", data.coffee()[:, :400]),
    ):
        content = photos[ids.index(name)].content
        assert content is not None
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content()))), pixels)


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ("nobody.png,96,96", ["row 1", "nobody.png"]),
        ("../__init__.py,96,96", ["row 1"]),
        ("lfw_subset.npy,96,96", ["row 1", "lfw_subset.npy"]),
        ("chelsea.png,0,96", ["row 1", "side"]),
        ("chelsea.png,96,x", ["row 1", "step"]),
        ("chelsea.png,5000,1", ["row 1", "5000"]),
        ("chelsea.png,96,96\nchelsea.png,96,300", ["chelsea/96-0-0", "twice"]),
        ("", ["lists no photograph"]),
        ("chelsea.png,96,96,2", ["row 1", "4 fields"]),
        ("chelsea.png,96", ["row 1", "2 fields"]),
    ],
)
def test_a_bad_sample_row_is_named(tmp_path: Path, row: str, names: list[str]) -> None:
    """The sentence says which row and what is wrong with it."""
    (tmp_path / "sample.csv").write_text(f"photo,side,step\n{row}\n")
    with pytest.raises(InputError) as caught:
        listed("sample", tmp_path / "sample.csv")
    assert all(name in str(caught.value) for name in names)


# ---- folder ----


def test_folder_takes_images_by_content_and_classes_by_sub_folder(
    in_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """A photograph without a suffix counts, a text named .jpg is a failed row; other files are counted, and have no row."""
    root = in_folder(
        {
            "b/sky/one.jpg": JPEG,
            "b/two": OTHER,
            "a.PNG": encoded("PNG"),
            "b/fake.jpg": b"not an image",
            "b/empty.jpeg": b"",
            "notes.txt": b"hello",
            ".hidden/three.jpg": JPEG,
            "b/._one.jpg": JPEG,
        }
    )
    photos = listed("folder", root)
    rows = [
        (p.photo, p.group, p.label, p.status, p.reason, p.member) for p in photos if p.status != "ignored"
    ]
    assert rows == [
        ("a.PNG", "a.PNG", "", "ok", "", "a.PNG"),
        ("b/empty.jpeg", "b/empty.jpeg", "b", "failed", "empty_file", ""),
        ("b/fake.jpg", "b/fake.jpg", "b", "failed", "not_image", ""),
        ("b/sky/one.jpg", "b/sky/one.jpg", "b/sky", "ok", "", "b/sky/one.jpg"),
        ("b/two", "b/two", "b", "ok", "", "b/two"),
    ]
    assert [(p.photo, p.reason) for p in photos if p.status == "ignored"] == [
        (".hidden", "hidden"), ("b/._one.jpg", "hidden"), ("notes.txt", "not_image"),
    ]  # fmt: skip
    write_manifest(tmp_path / "photos.csv", photos)
    assert list(pd.read_csv(tmp_path / "photos.csv")["photo"]) == [row[0] for row in rows]


def test_links_never_lead_out_of_the_folder(in_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Links outwards, into folders, into nothing or in a circle are rows with a reason; a link within is a photo."""
    root = in_folder({"real.jpg": JPEG, "inner/x.jpg": OTHER})
    outside = in_folder({"secret.jpg": JPEG}, "outside")
    (root / "out.jpg").symlink_to(outside / "secret.jpg")
    (root / "out").symlink_to(outside)
    (root / "loop").symlink_to(root)
    (root / "circle.jpg").symlink_to(root / "circle.jpg")
    (root / "broken.jpg").symlink_to(root / "nothing.jpg")
    (root / "within.jpg").symlink_to(root / "real.jpg")
    assert {photo.photo: photo.reason for photo in listed("folder", root)} == {
        "broken.jpg": "not_a_file",
        "circle.jpg": "not_a_file",
        "inner/x.jpg": "",
        "loop": "link_to_folder",
        "out": "link_leaves_folder",
        "out.jpg": "link_leaves_folder",
        "real.jpg": "",
        "within.jpg": "",
    }
    linked = tmp_path / "linked"
    linked.symlink_to(root)
    assert len(listed("folder", linked)) == 8


def test_a_photograph_may_have_any_name(in_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Blanks of all kinds, joiners, line breaks, bytes that are no UTF-8: in the table as text, and found again by it."""
    root = in_folder({name if isinstance(name, str) else os.fsdecode(name): JPEG for name in ODD})
    photos = listed("folder", root)
    assert len(photos) == len(ODD) and {photo.status for photo in photos} == {"ok"}
    write_manifest(tmp_path / "photos.csv", photos)
    table = pd.read_csv(tmp_path / "photos.csv", dtype=str, keep_default_na=False)
    assert {"Scan\u00a01.jpg", "caf\\xe9.jpg", "caf\\x5cxe9.jpg", "two\\x0alines.jpg"} <= set(table["photo"])
    reader = Reader(tmp_path, root)
    assert all(reader.read("", member) == JPEG for member in table["member"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_photograph_is_a_row(in_folder: Callable[..., Path]) -> None:
    """No permission: failed, and worth another try."""
    root = in_folder({"a.jpg": JPEG, "b.jpg": JPEG})
    (root / "a.jpg").chmod(0)
    assert [(p.reason, p.retryable) for p in listed("folder", root)] == [("unreadable", True), ("", False)]


def test_a_pipe_is_not_waited_for(in_folder: Callable[..., Path]) -> None:
    """Only regular files are opened."""
    root = in_folder({"a.jpg": JPEG})
    os.mkfifo(root / "b.jpg")
    assert [photo.reason for photo in listed("folder", root)] == ["", "not_a_file"]


def test_folders_that_are_none_are_named(in_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Missing, a file, empty, without an image: one sentence each."""
    root = in_folder({"notes.txt": b"hello"})
    (tmp_path / "empty").mkdir()
    for path, says in [
        (tmp_path / "missing", "does not exist"),
        (root / "notes.txt", "a file"),
        (tmp_path / "empty", "without a single image"),
        (root, "without a single image"),
    ]:
        with pytest.raises(InputError, match=says):
            listed("folder", path)
    with pytest.raises(InputError, match="does not exist"):
        list_items(DataConfig(source="folder", path=""), 1)


# ---- urls ----


def test_url_lists_of_any_make_are_read(tmp_path: Path) -> None:
    """BOM, CRLF, blank lines, comments, quotes and spaces; a duplicate is one row more, but skipped."""
    text = '# mine\r\n\r\nname, url ,sha256\r\na,http://x.test/1#top,AB\r\n  \r\n#b\r\nc,"http://x.test/2,3",\r\nd,http://x.test/1#top,\r\n'
    (tmp_path / "list.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    photos = listed("urls", tmp_path / "list.csv")
    assert [(photo.url, photo.sha256, photo.status, photo.reason) for photo in photos] == [
        ("http://x.test/1#top", "ab", "ok", ""),
        ("http://x.test/2,3", "", "ok", ""),
        ("http://x.test/1#top", "", "skipped", "duplicate_url"),
    ]
    first = hashlib.sha256(b"http://x.test/1#top").hexdigest()[:16]
    assert [photos[0].photo, photos[2].photo] == [first, f"{first}-2"]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfhttp://x.test/1\r\n# no\r\n\r\n http://x.test/2 \r\n")
    assert [photo.url for photo in listed("urls", tmp_path / "list.txt")] == [
        "http://x.test/1",
        "http://x.test/2",
    ]


def test_a_column_of_another_name_is_chosen_and_a_missing_one_listed(tmp_path: Path) -> None:
    """The sentence lists the columns there are."""
    (tmp_path / "list.csv").write_text("id,link\n1,http://x.test/1\n")
    assert [p.url for p in listed("urls", tmp_path / "list.csv", url_column="link")] == ["http://x.test/1"]
    with pytest.raises(InputError, match="no column 'url'; it has id, link"):
        listed("urls", tmp_path / "list.csv")


@pytest.mark.parametrize("content", [b"", b"url\n", b"url\n\xff\xfe\n", b"url\n" + b"x" * 200_000, None])
def test_a_list_that_is_none_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    """Empty, only a header, not UTF-8, an absurd field, a folder."""
    path = tmp_path / "list.csv"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"list\.csv"):
        listed("urls", path)


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ("url\nhttp://x/1\n\n# no\nhttp://x/2?crop=1,2\n", "row 2 (line 5) has 2 fields, the header 1"),
        ("url,caption\nhttp://x/1,a\nhttp://x/2\n", "row 2 (line 3) has 1 fields, the header 2"),
        ('url,caption\nhttp://x/1,"a\nb"\nhttp://x/2,b,c\n', "row 2 (line 4) has 3 fields"),
        ('url,caption\nhttp://x/1,"a\nhttp://x/2,b\n', "line 2: unexpected end of data"),
        ('url\n"http://x/1"2\n', "line 2: "),
        ('url\n"http://x/1\nhttp://x/2"\n', "row 1 (line 2): 'http://x/1\\nhttp://x/2' holds a tab"),
        ("url\nhttp://x/1\ta\n", "row 1 (line 2): 'http://x/1\\ta' holds a tab"),
        ("url\nhttp://x/1\nhttp://x/\0\n", "line 3 is not UTF-8 text"),
        (b"url\nhttp://x/1\nhttp://x/\xe9\n", "line 3 is not UTF-8 text"),
        ("url\nhttp://x/1\n".encode("utf-16"), "line 1 is not UTF-8 text"),
        ("url\nhttp://x/1\n".encode("utf-16-le"), "line 1 is not UTF-8 text"),
        ("url,url\nhttp://x/1,http://x/2\n", "line 1: a column has no name, or that of another"),
        ("url,\nhttp://x/1,\n", "line 1: a column has no name"),
        ("url;caption\nhttp://x/1;a\n", "has no column 'url'; it has url;caption"),
        ("http://x/1\nhttp://x/2\n", "has no column 'url'; it has http://x/1"),
    ],
)
def test_a_list_that_can_be_read_in_two_ways_is_refused_with_the_row(
    tmp_path: Path, content: str | bytes, where: str
) -> None:
    """Otherwise another address would be asked, and another photograph stored as ok."""
    (tmp_path / "list.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as refused:
        listed("urls", tmp_path / "list.csv")
    assert where in str(refused.value) and "list.csv" in str(refused.value)


def test_a_row_without_an_address_has_failed(tmp_path: Path) -> None:
    """It is no photograph; rows of commas alone, as spreadsheets leave them, are no rows."""
    (tmp_path / "list.csv").write_text("url,caption\nhttp://x.test/1,a\n,b\n,c\n,\n,\n")
    rows = [(photo.status, photo.reason) for photo in listed("urls", tmp_path / "list.csv")]
    assert rows == [("ok", ""), ("failed", "no_address"), ("failed", "no_address")]


def test_passwords_in_addresses_are_not_written_down(tmp_path: Path) -> None:
    """photos.csv is kept and shared."""
    (tmp_path / "list.txt").write_text("https://me:secret@x.test/1?to=you@x.test\n")
    write_manifest(tmp_path / "photos.csv", listed("urls", tmp_path / "list.txt"))
    text = (tmp_path / "photos.csv").read_text()
    assert "secret" not in text and "https://x.test/1?to=you@x.test" in text


# ---- unsplash ----

PHOTOS = (
    "photo_id\tphoto_url\tphoto_image_url\tphoto_description\n"
    'aaaaaaaaaa1\tx\thttps://i.test/a?ixid=1&w=9&fit=max\t"two\nlines"\n'
    "bbbb-bb_bb2\tx\thttps://i.test/b\t#tag\n"
)
COLUMNS = "photo_id\tred\tgreen\tblue\tcoverage"
COLORS = "photo_id\thex\tred\tgreen\tblue\tkeyword\t{0}coverage\t{0}score\n" + "".join(
    f"aaaaaaaaaa1\tXX\t{n}\t0\t255\tred\t{n / 100}\t0.5\n" for n in range(12)
)
MORE = "photo_id\tphoto_url\tphoto_image_url\tphoto_description\nccccccccccc\tx\thttps://i.test/c\t\n"


@pytest.mark.parametrize("older", ["", "ai_"])
@pytest.mark.parametrize("suffix", ["tsv", "csv"])
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "folder"])
def test_unsplash_is_read_from_any_wrapping(
    in_folder: Callable[..., Path], tmp_path: Path, kind: str, suffix: str, older: str
) -> None:
    """Archive or folder, either suffix, several parts, a sub-folder; the ten largest colors, in order of coverage."""
    contents = {
        f"lite/photos.{suffix}001": MORE.encode(),
        f"lite/photos.{suffix}000": PHOTOS.encode(),
        f"lite/colors.{suffix}000": COLORS.format(older).encode(),
        f"lite/keywords.{suffix}000": b"\xff not read",
        f"__MACOSX/lite/._photos.{suffix}000": b"\xff not read",
        "../../evil.txt": b"never written",
    }
    path = tmp_path / f"lite.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    elif kind == "folder":
        contents.pop("../../evil.txt")
        path = in_folder(contents)
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as tar:
            for name, content in contents.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    photos, colors = list_items(DataConfig(source="unsplash", path=str(path), request_size=300), 1)
    assert [(photo.photo, photo.url) for photo in photos] == [
        ("aaaaaaaaaa1", "https://i.test/a?ixid=1&w=300&h=300&fit=crop"),
        ("bbbb-bb_bb2", "https://i.test/b?w=300&h=300&fit=crop"),
        ("ccccccccccc", "https://i.test/c?w=300&h=300&fit=crop"),
    ]
    assert colors is not None
    assert list(colors.columns) == ["photo", "red", "green", "blue", "coverage"]
    assert list(colors["red"]) == [11, 10, 9, 8, 7, 6, 5, 4, 3, 2]
    assert list(colors["coverage"]) == [0.11, 0.10, 0.09, 0.08, 0.07, 0.06, 0.05, 0.04, 0.03, 0.02]
    assert not (tmp_path.parent / "evil.txt").exists() and not (tmp_path / "lite").exists()


def test_coverage_in_percent_becomes_a_share(in_folder: Callable[..., Path]) -> None:
    """A table whose largest coverage is 80 is in percent."""
    rows = "photo_id\tred\tgreen\tblue\tcoverage\naaaaaaaaaa1\t1\t2\t3\t80\naaaaaaaaaa1\t4\t5\t6\t0.5\n"
    root = in_folder({"photos.tsv000": PHOTOS.encode(), "colors.tsv000": rows.encode()})
    _, colors = list_items(DataConfig(source="unsplash", path=str(root)), 1)
    assert colors is not None and list(colors["coverage"]) == [0.8, 0.005]


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        ({"colors.tsv000": b""}, "no photos.tsv000"),
        (
            {"photos.tsv000": b"photo_id\tphoto_url\n"},
            "no column 'photo_image_url'; it has photo_id, photo_url",
        ),
        ({"photos.tsv000": b"photo_id\tphoto_image_url\n../../../x\thttp://x\n"}, "row 1.*11 characters"),
        ({"photos.tsv000": b"photo_id\tphoto_image_url\n"}, "lists no photo"),
        ({"photos.tsv000": PHOTOS.encode(), "colors.tsv000": b"photo_id\tred\tgreen\n"}, "no column 'blue'"),
        (
            {
                "photos.tsv000": PHOTOS.encode(),
                "colors.tsv000": b"photo_id\tred\tgreen\tblue\tcoverage\nx\t1\t2\tblue\t.5\n",
            },
            "must be numbers",
        ),
        *[
            (
                {
                    "photos.tsv000": PHOTOS.encode(),
                    "colors.tsv000": f"{COLUMNS}\nx\t1\t2\t3\t.5\nx\t{row}\n".encode(),
                },
                r"row 2 \(line 3\)",
            )
            for row in (
                "1\t2\t256\t.5",
                "1\t2\t-1\t.5",
                "1\t2\t3\tnan",
                "1\t2\t3\t-1",
                "1\t2\t3\t101",
                "1\t2\t3",
                "1\t2\t3\t.5\t6",
            )
        ],
        ({"photos.tsv000": PHOTOS.encode() + b"ccccccccccc\tx\n"}, r"row 3 \(line 5\) has 2 fields"),
        (
            {"photos.tsv000": PHOTOS.encode() + b'ccccccccccc\tx\tx\t"open\n'},
            "line 5: unexpected end of data",
        ),
    ],
)
def test_an_unsplash_archive_that_is_none_is_one_sentence(
    in_folder: Callable[..., Path], contents: dict[str, bytes], says: str
) -> None:
    """Missing tables, columns, malformed ids."""
    with pytest.raises(InputError, match=says):
        listed("unsplash", in_folder(contents))


@pytest.mark.parametrize(
    "content", [b"hello", b"PK\x03\x04 cut", gzip.compress(bytes(3000), mtime=0)[:-20], b""]
)
@pytest.mark.parametrize("source", ["unsplash", "cifar10"])
def test_a_damaged_archive_is_one_sentence(tmp_path: Path, source: str, content: bytes) -> None:
    """Neither zip nor tar, or cut short."""
    (tmp_path / "archive").write_bytes(content)
    with pytest.raises(InputError, match="archive"):
        listed(source, tmp_path / "archive")


# ---- cifar10 ----


def batch(count: int, seed: int, keys: Callable[[str], Any] = str) -> dict[Any, Any]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3072), np.uint8)
    return {
        keys("data"): pixels,
        keys("labels"): [n % 3 for n in range(count)],
        keys("batch_label"): keys("a batch"),
    }


def cifar(protocol: int = 4, keys: Callable[[str], Any] = str) -> dict[str, bytes]:
    return {
        "data_batch_1": pickle.dumps(batch(3, 1, keys), protocol),
        "data_batch_2": pickle.dumps(batch(2, 2, keys), protocol),
        "test_batch": pickle.dumps(batch(2, 3, keys), protocol),
        "batches.meta": pickle.dumps({keys("label_names"): [keys("airplane"), keys("car")]}, protocol),
    }


@pytest.mark.parametrize("keys", [str, str.encode])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("old", [False, True])
def test_cifar_images_keep_their_pixels_order_and_split(
    in_folder: Callable[..., Path], keys: Callable[[str], Any], protocol: int, old: bool
) -> None:
    """Planes of red, green and blue in rows; ids in row order; label names where there are, numbers where not."""
    contents = cifar(protocol, keys)
    if old and protocol == 2:
        contents = {name: body.replace(b"numpy._core", b"numpy.core") for name, body in contents.items()}
    photos = listed("cifar10", in_folder(contents))
    assert [(p.photo, p.split, p.label) for p in photos] == [
        ("data_batch_1/00000", "train", "airplane"),
        ("data_batch_1/00001", "train", "car"),
        ("data_batch_1/00002", "train", "2"),
        ("data_batch_2/00000", "train", "airplane"),
        ("data_batch_2/00001", "train", "car"),
        ("test_batch/00000", "test", "airplane"),
        ("test_batch/00001", "test", "car"),
    ]
    content = photos[4].content
    assert content is not None
    image = np.asarray(Image.open(io.BytesIO(content())))
    flat = batch(2, 2)["data"][1]
    assert image[5, 7].tolist() == [flat[5 * 32 + 7], flat[1024 + 5 * 32 + 7], flat[2048 + 5 * 32 + 7]]


def test_cifar_binary_version_and_archive_give_the_same(
    in_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Records of one label and 3072 pixels, from a .tar.gz: the same images as from the pickles."""
    contents: dict[str, bytes] = {"batches.meta.txt": b"airplane\ncar\n\n"}
    for name, rows in [
        ("data_batch_1", batch(3, 1)),
        ("data_batch_2", batch(2, 2)),
        ("test_batch", batch(2, 3)),
    ]:
        records = np.concatenate([np.array(rows["labels"], np.uint8)[:, None], rows["data"]], 1)
        contents[f"{name}.bin"] = records.tobytes()
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as tar:
        tar.add(in_folder(contents, "binary"), "cifar-10-batches-bin")
    binary = listed("cifar10", tmp_path / "cifar.tar.gz")
    pickled = listed("cifar10", in_folder(cifar()))
    for photos, folder in [(binary, "a"), (pickled, "b")]:
        pack(photos, tmp_path / folder)
        write_manifest(tmp_path / folder / "photos.csv", photos)
    for name in ("photos.csv", "photos-00000.tar"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


class Malicious:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call = call, arguments

    def __reduce__(self) -> Any:
        return self.call


@fault(38, "a CIFAR batch that would run a program")
@pytest.mark.parametrize("place", ["batch", "labels", "meta"])
def test_a_malicious_pickle_is_refused_and_nothing_executed(
    in_folder: Callable[..., Path], tmp_path: Path, place: str
) -> None:
    """A global outside the allow-list is named in the error and never called."""
    mark = tmp_path / "executed"
    evil: Any = Malicious(os.system, f"touch {mark}")
    contents = cifar()
    if place == "batch":
        contents["data_batch_1"] = pickle.dumps(evil)
    elif place == "labels":
        contents["data_batch_1"] = pickle.dumps({**batch(3, 1), "labels": [evil]}, 4)
    else:
        contents["batches.meta"] = pickle.dumps({"label_names": evil})
    with pytest.raises(InputError, match="system"):
        listed("cifar10", in_folder(contents))
    assert not mark.exists()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"P1\n.",
        pickle.dumps([1, 2]),
        pickle.dumps({"data": 1, "labels": []}),
        pickle.dumps({**batch(3, 1), "labels": [0, 1]}, 4),
        pickle.dumps({**batch(3, 1), "data": np.zeros((3, 3072))}, 4),
        pickle.dumps({**batch(3, 1), "data": np.array([object()] * 3)}, 4).replace(b"builtins", b"builtinz"),
        pickle.dumps({**batch(3, 1), "data": np.zeros((3, 100), np.uint8)}, 4),
        pickle.dumps(batch(3, 1), 4)[:-500],
    ],
)
def test_a_batch_that_is_none_is_one_sentence(in_folder: Callable[..., Path], body: bytes) -> None:
    """Cut short, of another shape or another type; on one line, though the unpickler's reasons have several."""
    with pytest.raises(InputError, match="data_batch_1") as refused:
        listed("cifar10", in_folder(cifar() | {"data_batch_1": body}))
    assert "\n" not in str(refused.value)


def test_a_column_whose_name_has_two_lines_is_named_on_one(in_folder: Callable[..., Path]) -> None:
    """Found by fuzzing: a quotation mark in the first row of Unsplash's photos."""
    with pytest.raises(
        InputError, match="has no column 'photo_id'; it has photo, a name of two lines"
    ) as refused:
        listed("unsplash", in_folder({"photos.tsv000": b'photo\t"a name\nof two lines"\nx\ty\n'}))
    assert "\n" not in str(refused.value)


def test_a_binary_batch_cut_short_is_one_sentence(in_folder: Callable[..., Path]) -> None:
    """Its size must be a multiple of one record's."""
    with pytest.raises(InputError, match="3073"):
        listed("cifar10", in_folder({"data_batch_1.bin": bytes(3073 * 2 - 1)}))


# ---- limit, pack, Reader ----


def test_limit_draws_usable_items_with_the_seed_and_keeps_their_order(in_folder: Callable[..., Path]) -> None:
    """Same seed, same draw; another seed, another; never more than there are; what cannot be used is not drawn."""
    root = in_folder({f"{n:02d}.jpg": JPEG for n in range(30)} | {"bad.jpg": b"x"})

    def drawn(limit: int, seed: int) -> list[str]:
        return [photo.photo for photo in listed("folder", root, seed, limit=limit)]

    assert drawn(10, 1) == drawn(10, 1) == sorted(drawn(10, 1))
    assert len(set(drawn(10, 1))) == 10
    assert drawn(10, 1) != drawn(10, 2)
    assert len(drawn(99, 1)) == 30
    assert len(drawn(0, 1)) == 31


def test_packed_bytes_come_back_and_tell_nothing_about_who_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of a set number of items; every byte, sha256 and size as it was; neither owner nor time."""
    monkeypatch.setattr(sources, "SHARD_ITEMS", 4)
    bodies = list(jpegs(10))
    photos = [Item(f"x/{n}", f"x/{n}", content=lambda body=body: body) for n, body in enumerate(bodies)]  # type: ignore[misc]
    photos[2].end("failed", "http_404")
    pack(photos, tmp_path)
    assert [photo.shard for photo in photos] == [
        *["photos-00000.tar"] * 2, "", *["photos-00000.tar"] * 2, *["photos-00001.tar"] * 4, "photos-00002.tar",
    ]  # fmt: skip
    reader = pickle.loads(pickle.dumps(Reader(tmp_path, tmp_path)))
    for photo, body in zip(photos, bodies, strict=True):
        if photo.status == "ok":
            assert reader.read(photo.shard, photo.member) == body
            assert (photo.sha256, photo.size) == (hashlib.sha256(body).hexdigest(), len(body))
    with tarfile.open(tmp_path / "photos-00001.tar") as tar:
        for info in tar:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) == (
                0,
                0,
                0,
                "",
                "",
                0o644,
            )


def test_reader_reads_in_place_and_stays_there(in_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Names and links that lead out of the data folder, missing files, shards and members are named."""
    root = in_folder({"a/b.jpg": JPEG})
    outside = in_folder({"secret.jpg": OTHER}, "outside")
    (root / "link.jpg").symlink_to(outside / "secret.jpg")
    reader = Reader(tmp_path, root)
    assert reader.read("", "a/b.jpg") == JPEG
    for member in (
        "../outside/secret.jpg",
        str(outside / "secret.jpg"),
        "link.jpg",
        "\\x2e./outside/secret.jpg",
    ):
        with pytest.raises(InputError, match="leads out"):
            reader.read("", member)
    for shard in ("../outside/photos-00000.tar", str(outside / "photos-00000.tar")):
        with pytest.raises(InputError, match="leads out"):
            Reader(root, root).read(shard, "a")
    with pytest.raises(InputError, match=r"c\.jpg"):
        reader.read("", "a/c.jpg")
    with pytest.raises(InputError, match=r"photos-00000\.tar"):
        reader.read("photos-00000.tar", "a")
    pack([Item("a", "a", content=lambda: JPEG)], tmp_path)
    with pytest.raises(KeyError, match=r"b\.jpg"):
        reader.read("photos-00000.tar", "b.jpg")


def test_an_item_that_vanishes_before_packing_is_one_sentence(
    in_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """The photograph is named, and no shard remains."""
    root = in_folder({"a.jpg": JPEG})
    photos = listed("folder", root)
    (root / "a.jpg").unlink()
    with pytest.raises(InputError, match=r"a\.jpg"):
        pack(photos, tmp_path / "photos")
