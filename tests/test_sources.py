"""What each source lists, packs and gives back."""

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
from imagefiles import encoded
from PIL import Image
from skimage import data
from webserver import jpegs

from colorize.data import manifest
from colorize.data.formats import image_kind
from colorize.data.manifest import DataConfig, Item, Reader, pack, write_manifest
from colorize.data.sources import archive, list_items
from colorize.files import InputError

JPEG, OTHER = jpegs(2)


ODD = (
    "Scan\u00a01.jpg",
    "two\nlines.jpg",
    " b.jpg",
    "z\u200d.jpg",
    "caf\\xe9.jpg",
    b"caf\xe9.jpg",
    "-m.jpg",
    "a|b.jpg",
)


def listed(source: Any, path: Path, seed: int = 1, **others: Any) -> list[Item]:
    return list_items(DataConfig(source=source, path=str(path), **others), seed)[0]


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
    "head", [b"", b"<html>", b"BM", b"BMW and other cars", b"RIFF1234WAVEfmt ", b"GIF", b"\xff\xd8"]
)
def test_what_only_begins_like_an_image_is_none(head: bytes) -> None:
    assert image_kind(head) == ""


# ---- sample ----


def test_sample_windows_are_the_photographs_own_pixels(tmp_path: Path) -> None:
    """Those of scikit-image's own loader; all windows of one photograph are one group."""
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
    ("row", "words"),
    [
        ("nobody.png,96,96", "row 1.*nobody.png"),
        ("../__init__.py,96,96", "row 1"),
        ("chelsea.png,0,96", "row 1.*side"),
        ("chelsea.png,96,x", "row 1.*step"),
        ("chelsea.png,5000,1", "row 1.*5000"),
        ("chelsea.png,96,96\nchelsea.png,96,300", "chelsea/96-0-0.*twice"),
        ("", "lists no photograph"),
        ("chelsea.png,96", "row 1.*2 fields"),
    ],
)
def test_a_bad_sample_row_is_named(tmp_path: Path, row: str, words: str) -> None:
    (tmp_path / "sample.csv").write_text(f"photo,side,step\n{row}\n")
    with pytest.raises(InputError, match=words):
        listed("sample", tmp_path / "sample.csv")


# ---- folder ----


def test_folder_takes_images_by_content_and_classes_by_sub_folder(in_folder, tmp_path) -> None:
    """A photograph without a suffix counts, a text named .jpg has failed; other files have no row."""
    contents = {"b/sky/one.jpg": JPEG, "b/two": OTHER, "b/fake.jpg": b"no image", "notes.txt": b"hello"}
    photos = listed("folder", in_folder(contents | {"a.PNG": encoded(Image.new("L", (9, 7)), "PNG")}))
    rows = [(p.photo, p.group, p.label, p.status, p.reason, p.member) for p in photos]
    assert rows == [
        ("a.PNG", "a.PNG", "", "ok", "", "a.PNG"),
        ("b/fake.jpg", "b/fake.jpg", "b", "failed", "not_image", ""),
        ("b/sky/one.jpg", "b/sky/one.jpg", "b/sky", "ok", "", "b/sky/one.jpg"),
        ("b/two", "b/two", "b", "ok", "", "b/two"),
        ("notes.txt", "notes.txt", "", "ignored", "not_image", ""),
    ]
    write_manifest(tmp_path / "photos.csv", photos)
    assert list(pd.read_csv(tmp_path / "photos.csv")["photo"]) == [row[0] for row in rows[:-1]]


def test_only_regular_files_of_the_folder_are_opened(in_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Links outwards, into folders, nowhere or in a circle, and pipes are rows with a reason."""
    root = in_folder({"real.jpg": JPEG, "inner/x.jpg": OTHER})
    outside = in_folder({"secret.jpg": JPEG}, "outside")
    os.mkfifo(root / "pipe.jpg")
    links = {
        "out.jpg": outside / "secret.jpg",
        "out": outside,
        "loop": root,
        "circle.jpg": root / "circle.jpg",
    }
    links |= {"broken.jpg": root / "nothing.jpg", "within.jpg": root / "real.jpg"}
    for name, target in links.items():
        (root / name).symlink_to(target)
    assert {photo.photo: photo.reason for photo in listed("folder", root)} == {
        **dict.fromkeys(("broken.jpg", "circle.jpg", "pipe.jpg"), "not_a_file"),
        **{"loop": "link_to_folder", "out": "link_leaves_folder", "out.jpg": "link_leaves_folder"},
        **dict.fromkeys(("inner/x.jpg", "real.jpg", "within.jpg"), ""),
    }
    (tmp_path / "linked").symlink_to(root)
    assert len(listed("folder", tmp_path / "linked")) == 9


def test_a_photograph_may_have_any_name(in_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Blanks, joiners, line breaks, bytes that are no UTF-8: in the table as text, and found again by it."""
    root = in_folder({name if isinstance(name, str) else os.fsdecode(name): JPEG for name in ODD})
    photos = listed("folder", root)
    assert len(photos) == len(ODD) and {photo.status for photo in photos} == {"ok"}
    write_manifest(tmp_path / "photos.csv", photos)
    table = pd.read_csv(tmp_path / "photos.csv", dtype=str, keep_default_na=False)
    assert {"Scan\u00a01.jpg", "caf\\xe9.jpg", "caf\\x5cxe9.jpg", "two\\x0alines.jpg"} <= set(table["photo"])
    reader = Reader(tmp_path, root)
    assert all(reader.read("", member) == JPEG for member in table["member"])


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing", "does not exist"),
        ("pictures/notes.txt", "a file"),
        ("empty", "without a single image"),
        ("pictures", "without a single image"),
    ],
)
def test_folders_that_are_none_are_named(in_folder, tmp_path: Path, path: str, words: str) -> None:
    in_folder({"notes.txt": b"hello"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=words):
        listed("folder", tmp_path / path)


# ---- urls ----


@fault(
    15,
    "a list with a byte order mark, CRLF, blank lines, comments, spaces; 100,000 rows; no text",
    "Read, or refused with the file's name; every row is an item.",
)
def test_url_lists_of_any_make_are_read(tmp_path: Path) -> None:
    """A duplicate is one row more, but skipped."""
    text = "# mine\r\n\r\nname, url ,sha256\r\na,http://x.test/1#top,AB\r\n  \r\n#b\r\n"
    text += 'c,"http://x.test/2,3",\r\nd,http://x.test/1#top,\r\n'
    (tmp_path / "list.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    photos = listed("urls", tmp_path / "list.csv")
    assert [(photo.url, photo.sha256, photo.status, photo.reason) for photo in photos] == [
        ("http://x.test/1#top", "ab", "ok", ""),
        ("http://x.test/2,3", "", "ok", ""),
        ("http://x.test/1#top", "", "skipped", "duplicate_url"),
    ]
    first = hashlib.sha256(b"http://x.test/1#top").hexdigest()[:16]
    assert [photos[0].photo, photos[2].photo] == [first, f"{first}-2"]
    many = "".join(f" http://x.test/{number} \r\n\r\n" for number in range(100_000))
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf# no\r\n" + many.encode())
    photos = listed("urls", tmp_path / "list.txt")
    assert [photo.url for photo in photos[:2]] == ["http://x.test/0", "http://x.test/1"]
    assert len({photo.photo for photo in photos}) == 100_000
    (tmp_path / "list.csv").write_text("id,link\n1,http://x.test/1\n")
    assert [p.url for p in listed("urls", tmp_path / "list.csv", url_column="link")] == ["http://x.test/1"]


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"", ""),
        (b"url\n", ""),
        (b"url\n" + b"x" * 200_000, ""),
        (b"url\nhttp://x/1\n\n# no\nhttp://x/2?crop=1,2\n", "row 2 (line 5) has 2 fields, the header 1"),
        (b'url,caption\nhttp://x/1,"a\nb"\nhttp://x/2,b,c\n', "row 2 (line 4) has 3 fields"),
        (b'url,caption\nhttp://x/1,"a\nhttp://x/2,b\n', "line 2: unexpected end of data"),
        (b'url\n"http://x/1"2\n', "line 2: "),
        (b'url\n"http://x/1\nhttp://x/2"\n', "row 1 (line 2): 'http://x/1\\nhttp://x/2' holds a tab"),
        (b"url\nhttp://x/1\nhttp://x/\0\n", "line 3 is not UTF-8 text"),
        (b"url\nhttp://x/1\nhttp://x/\xe9\n", "line 3 is not UTF-8 text"),
        ("url\nhttp://x/1\n".encode("utf-16"), "line 1 is not UTF-8 text"),
        (b"url,url\nhttp://x/1,http://x/2\n", "line 1: a column has no name, or that of another"),
        (b"url;caption\nhttp://x/1;a\n", "has no column 'url'; it has url;caption"),
        (b"http://x/1\nhttp://x/2\n", "has no column 'url'; it has http://x/1"),
    ],
)
def test_a_list_that_can_be_read_in_two_ways_is_refused(tmp_path: Path, content: bytes, where: str) -> None:
    """Otherwise another address would be asked, and another photograph stored as ok."""
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(InputError) as refused:
        listed("urls", tmp_path / "list.csv")
    assert where in str(refused.value) and "list.csv" in str(refused.value)


def test_passwords_are_not_written_down_and_rows_need_an_address(tmp_path: Path) -> None:
    """Rows of commas alone, as spreadsheets leave them, are no rows."""
    (tmp_path / "list.csv").write_text("url,caption\nhttps://me:secret@x.test/1?to=you@x.test,a\n,b\n,\n,\n")
    write_manifest(tmp_path / "photos.csv", photos := listed("urls", tmp_path / "list.csv"))
    assert [(photo.status, photo.reason) for photo in photos] == [("ok", ""), ("failed", "no_address")]
    text = (tmp_path / "photos.csv").read_text()
    assert "secret" not in text and "https://x.test/1?to=you@x.test" in text


# ---- unsplash ----

PHOTOS = (
    "photo_id\tphoto_url\tphoto_image_url\tphoto_description\n"
    'aaaaaaaaaa1\tx\thttps://i.test/a?ixid=1&w=9&fit=max\t"two\nlines"\n'
    "bbbb-bb_bb2\tx\thttps://i.test/b\t#tag\n"
)
COLORS = "photo_id\thex\tred\tgreen\tblue\tkeyword\t{0}coverage\t{0}score\n" + "".join(
    f"aaaaaaaaaa1\tXX\t{n}\t0\t255\tred\t{n / 100}\t0.5\n" for n in range(12)
)
MORE = "photo_id\tphoto_url\tphoto_image_url\tphoto_description\nccccccccccc\tx\thttps://i.test/c\t\n"


@pytest.mark.parametrize(
    ("kind", "suffix", "older"),
    [("zip", "tsv", ""), ("tar", "csv", "ai_"), ("tar.gz", "tsv", "ai_"), ("", "csv", "")],
)
def test_unsplash_is_read_from_any_wrapping(in_folder, tmp_path, kind: str, suffix: str, older: str) -> None:
    """Several parts, a sub-folder; the ten largest colors in order of coverage."""
    contents = {
        f"lite/photos.{suffix}001": MORE.encode(),
        f"lite/photos.{suffix}000": PHOTOS.encode(),
        f"lite/colors.{suffix}000": COLORS.format(older).encode(),
        f"lite/keywords.{suffix}000": b"\xff not read",
        f"__MACOSX/lite/._photos.{suffix}000": b"\xff not read",
    }
    path = folder = in_folder(contents)
    if kind == "zip":
        with zipfile.ZipFile(path := tmp_path / "lite.zip", "w") as archive:
            archive.writestr("../../evil.txt", b"never written")
            for name in contents:
                archive.write(folder / name, name)
    elif kind:
        with tarfile.open(path := tmp_path / "lite", "w:gz" if kind == "tar.gz" else "w") as tar:
            tar.add(folder, "x")
    photos, listing = list_items(DataConfig(source="unsplash", path=str(path), request_size=300), 1)
    assert [(photo.photo, photo.url) for photo in photos] == [
        ("aaaaaaaaaa1", "https://i.test/a?ixid=1&w=300&h=300&fit=crop"),
        ("bbbb-bb_bb2", "https://i.test/b?w=300&h=300&fit=crop"),
        ("ccccccccccc", "https://i.test/c?w=300&h=300&fit=crop"),
    ]
    assert listing is not None and list(listing.columns) == ["photo", "red", "green", "blue", "coverage"]
    assert list(listing["red"]) == [11, 10, 9, 8, 7, 6, 5, 4, 3, 2]
    assert np.allclose(listing["coverage"], listing["red"] / 100)
    assert not (tmp_path.parent / "evil.txt").exists() and not (tmp_path / "x").exists()


def test_coverage_in_percent_becomes_a_share(in_folder) -> None:
    rows = "photo_id\tred\tgreen\tblue\tcoverage\naaaaaaaaaa1\t1\t2\t3\t80\naaaaaaaaaa1\t4\t5\t6\t0.5\n"
    root = in_folder({"photos.tsv000": PHOTOS.encode(), "colors.tsv000": rows.encode()})
    _, colors = list_items(DataConfig(source="unsplash", path=str(root)), 1)
    assert colors is not None and list(colors["coverage"]) == [0.8, 0.005]


@pytest.mark.parametrize(
    ("photos", "colors", "says"),
    [
        (None, "", "no photos.tsv000"),
        ("photo_id\tphoto_url\n", None, "no column 'photo_image_url'; it has photo_id, photo_url"),
        ('photo\t"of two\nlines"\nx\ty\n', None, "no column 'photo_id'; it has photo, of two lines"),
        ("photo_id\tphoto_image_url\n../../../x\thttp://x\n", None, "row 1.*11 characters"),
        ("photo_id\tphoto_image_url\n", None, "lists no photo"),
        (f"{PHOTOS}ccccccccccc\tx\n", None, r"row 3 \(line 5\) has 2 fields"),
        (f'{PHOTOS}ccccccccccc\tx\tx\t"open\n', None, "line 5: unexpected end of data"),
        (PHOTOS, "photo_id\tred\tgreen\n", "no column 'blue'"),
        *[
            (PHOTOS, f"photo_id\tred\tgreen\tblue\tcoverage\nx\t1\t2\t3\t.5\nx\t{row}\n", says)
            for row, says in [
                ("1\t2\tblue\t.5", "must be numbers"),
                ("1\t2\t256\t.5", r"row 2 \(line 3\)"),
                ("1\t2\t-1\t.5", r"row 2 \(line 3\)"),
                ("1\t2\t3\tnan", r"row 2 \(line 3\)"),
                ("1\t2\t3\t101", r"row 2 \(line 3\)"),
                ("1\t2\t3", r"row 2 \(line 3\)"),
                ("1\t2\t3\t.5\t6", r"row 2 \(line 3\)"),
            ]
        ],
    ],
)
def test_an_unsplash_archive_that_is_none_is_one_sentence(in_folder, photos, colors, says) -> None:
    tables = {"photos.tsv000": photos, "colors.tsv000": colors}
    root = in_folder({name: text.encode() for name, text in tables.items() if text is not None})
    with pytest.raises(InputError, match=says) as refused:
        listed("unsplash", root)
    assert "\n" not in str(refused.value)


CUT = gzip.compress(bytes(3000), mtime=0)[:-20]


@pytest.mark.parametrize("content", [b"hello", b"PK\x03\x04 cut", CUT, b""])
@pytest.mark.parametrize("source", ["unsplash", "cifar10"])
def test_a_damaged_archive_is_one_sentence(tmp_path: Path, source: str, content: bytes) -> None:
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


BATCHES = [batch(3, 1), batch(2, 2), batch(2, 3)]


def cifar(protocol: int = 4, keys: Callable[[str], Any] = str) -> dict[str, bytes]:
    return {
        "data_batch_1": pickle.dumps(batch(3, 1, keys), protocol),
        "data_batch_2": pickle.dumps(batch(2, 2, keys), protocol),
        "test_batch": pickle.dumps(batch(2, 3, keys), protocol),
        "batches.meta": pickle.dumps({keys("label_names"): [keys("airplane"), keys("car")]}, protocol),
    }


@pytest.mark.parametrize("keys", [str, str.encode])
@pytest.mark.parametrize(
    ("protocol", "module"), [(2, b"numpy._core"), (2, b"numpy.core"), (4, b"numpy._core")]
)
def test_cifar_images_keep_their_pixels_order_and_split(in_folder, keys, protocol, module) -> None:
    """Label names where there are, numbers where not."""
    contents = {name: body.replace(b"numpy._core", module) for name, body in cifar(protocol, keys).items()}
    photos = listed("cifar10", in_folder(contents))
    names = [f"data_batch_1/{n:05}" for n in range(3)] + [f"data_batch_2/{n:05}" for n in range(2)]
    assert [photo.photo for photo in photos] == [*names, "test_batch/00000", "test_batch/00001"]
    assert [photo.split for photo in photos] == ["train"] * 5 + ["test"] * 2
    assert [photo.label for photo in photos] == ["airplane", "car", "2", *["airplane", "car"] * 2]
    content = photos[4].content
    assert content is not None
    image = np.asarray(Image.open(io.BytesIO(content())))
    assert np.array_equal(image, batch(2, 2)["data"][1].reshape(3, 32, 32).transpose(1, 2, 0))


def test_cifar_binary_version_and_archive_give_the_same(in_folder, tmp_path) -> None:
    """Records of one label and 3072 pixels, from a .tar.gz: the same images as from the pickles."""
    contents: dict[str, bytes] = {"batches.meta.txt": b"airplane\ncar\n\n"}
    for name, rows in zip(("data_batch_1", "data_batch_2", "test_batch"), BATCHES, strict=True):
        records = np.concatenate([np.array(rows["labels"], np.uint8)[:, None], rows["data"]], 1)
        contents[f"{name}.bin"] = records.tobytes()
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as tar:
        tar.add(in_folder(contents, "binary"), "cifar-10-batches-bin")
    for path, folder in ((tmp_path / "cifar.tar.gz", "a"), (in_folder(cifar()), "b")):
        photos = listed("cifar10", path)
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
def test_a_malicious_pickle_is_refused_and_nothing_executed(in_folder, tmp_path: Path, place: str) -> None:
    """A global outside the allow-list is named in the error and never called."""
    mark = tmp_path / "executed"
    evil: Any = Malicious(os.system, f"touch {mark}")
    bad = {
        "batch": {"data_batch_1": evil},
        "labels": {"data_batch_1": BATCHES[0] | {"labels": [evil]}},
        "meta": {"batches.meta": {"label_names": evil}},
    }[place]
    with pytest.raises(InputError, match="system"):
        listed("cifar10", in_folder(cifar() | {name: pickle.dumps(value, 4) for name, value in bad.items()}))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("data_batch_1.bin", bytes(3073 * 2 - 1)),
        *[
            ("data_batch_1", body)
            for body in (
                b"",
                b"P1\n.",
                pickle.dumps([1, 2]),
                pickle.dumps({"data": 1, "labels": []}),
                pickle.dumps(BATCHES[0] | {"labels": [0, 1]}, 4),
                pickle.dumps(BATCHES[0] | {"data": np.zeros((3, 3072))}, 4),
                pickle.dumps(BATCHES[0] | {"data": np.zeros((3, 100), np.uint8)}, 4),
                pickle.dumps(BATCHES[0], 4)[:-500],
            )
        ],
    ],
)
def test_a_batch_that_is_none_is_one_sentence(in_folder: Callable[..., Path], name: str, body: bytes) -> None:
    """On one line, though the unpickler's reasons have several."""
    with pytest.raises(InputError, match="data_batch_1") as refused:
        listed("cifar10", in_folder(({} if name.endswith(".bin") else cifar()) | {name: body}))
    assert "\n" not in str(refused.value)


@fault(
    37,
    "an archive with ../, absolute names, links, devices, a name twice, a giant within",
    "Only regular files of the expected names are read; one name twice or above 2 GB is one sentence.",
)
def test_archives_are_read_and_never_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, path, regular = bytes(3073), tmp_path / "cifar.tar", tarfile.REGTYPE

    def read(*members: tuple[str, bytes, bytes]) -> int:
        with tarfile.open(path, "w") as tar:
            for name, kind, body in members:
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, "/etc/passwd"
                info.size = len(body) if kind == regular else 0
                tar.addfile(info, io.BytesIO(body))
        return len(listed("cifar10", path))

    odd = [("../escaped", regular, b"1"), ("/tmp/absolute-by-colorize", regular, b"2")]
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
    odd += [("data_batch_2.bin", kind, b"") for kind in kinds]
    assert read(("data_batch_1.bin", regular, record), *odd) == 1
    assert [*tmp_path.iterdir()] == [path] and not (tmp_path.parent / "escaped").exists()
    assert not Path("/tmp/absolute-by-colorize").exists()
    with pytest.raises(InputError, match="holds data_batch_1.bin twice"):
        read(("data_batch_1.bin", regular, record), ("x/data_batch_1.bin", regular, record))
    monkeypatch.setattr(archive, "MEMBER_BYTES", 10_000)
    with pytest.raises(InputError, match="larger than 10000 bytes"):
        read(("data_batch_1.bin", regular, record * 4))


# ---- limit, pack, Reader ----


def test_limit_draws_usable_items_with_the_seed_and_keeps_their_order(in_folder) -> None:
    root = in_folder({f"{n:02d}.jpg": JPEG for n in range(30)} | {"bad.jpg": b"x"})

    def drawn(limit: int, seed: int) -> list[str]:
        return [photo.photo for photo in listed("folder", root, seed, limit=limit)]

    assert drawn(10, 1) == drawn(10, 1) == sorted(set(drawn(10, 1))) != drawn(10, 2)
    assert [len(drawn(limit, 1)) for limit in (10, 99, 0)] == [10, 30, 31]


def test_packed_bytes_come_back_and_tell_nothing_about_who_packed(tmp_path, monkeypatch) -> None:
    """Shards of a set number of items; every byte, sha256 and size as it was; neither owner nor time."""
    monkeypatch.setattr(manifest, "SHARD_ITEMS", 4)
    bodies = list(jpegs(10))
    photos = [Item(f"x/{n}", f"x/{n}", content=bodies[n].__bytes__) for n in range(10)]
    photos[2].end("failed", "http_404")
    pack(photos, tmp_path)
    assert [photo.shard[11:12] for photo in photos] == [*"00", "", *"00", *"1111", "2"]
    reader = pickle.loads(pickle.dumps(Reader(tmp_path, tmp_path)))
    for photo, body in zip(photos, bodies, strict=True):
        if photo.status == "ok":
            assert reader.read(photo.shard, photo.member) == body
            assert (photo.sha256, photo.size) == (hashlib.sha256(body).hexdigest(), len(body))
    with tarfile.open(tmp_path / "photos-00001.tar") as tar:
        tells = {(i.mtime, i.uid, i.gid, i.uname, i.gname, i.mode) for i in tar}
    assert tells == {(0, 0, 0, "", "", 0o644)}


def test_a_photograph_that_vanishes_before_it_is_packed_is_named(in_folder: Callable[..., Path]) -> None:
    root = in_folder({"a.jpg": JPEG})
    photos = listed("folder", root)
    (root / "a.jpg").unlink()
    with pytest.raises(InputError, match=r"a\.jpg"):
        pack(photos, root / "photos")


def test_reader_reads_in_place_and_stays_there(in_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Names and links that lead out of the data folder, missing files, shards and members are named."""
    root = in_folder({"a/b.jpg": JPEG})
    outside = in_folder({"secret.jpg": OTHER}, "outside")
    (root / "link.jpg").symlink_to(outside / "secret.jpg")
    reader = Reader(tmp_path, root)
    assert reader.read("", "a/b.jpg") == JPEG
    out = ("../outside/secret.jpg", str(outside / "secret.jpg"), "link.jpg", "\\x2e./outside/secret.jpg")
    shards = ("../outside/photos-00000.tar", str(outside / "photos-00000.tar"))
    for place in (*(("", member) for member in out), *((shard, "a") for shard in shards)):
        with pytest.raises(InputError, match="leads out"):
            reader.read(*place) if not place[0] else Reader(root, root).read(*place)
    for place, says in ((("", "a/c.jpg"), r"c\.jpg"), (("photos-00000.tar", "a"), r"photos-00000\.tar")):
        with pytest.raises(InputError, match=says):
            reader.read(*place)
    pack([Item("a", "a", content=JPEG.__bytes__)], tmp_path)
    with pytest.raises(KeyError, match=r"b\.jpg"):
        reader.read("photos-00000.tar", "b.jpg")
