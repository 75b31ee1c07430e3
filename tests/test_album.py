"""One walk for the pipeline, the command line and the scores, and what it passes over."""

import os
from pathlib import Path

import pytest
from conftest import _photographs
from imagefiles import encoded
from PIL import Image

from colorize.apply import score
from colorize.apply.coloring import System, find
from colorize.bins import Statistics
from colorize.data.album import walk
from colorize.data.images import SENTENCES
from colorize.data.manifest import DataConfig
from colorize.data.sources import list_items
from colorize.files import InputError, text_of
from colorize.models import build_baseline
from colorize.scoring.evaluation import EvaluateConfig

PHOTO = Image.fromarray(_photographs(1, 24)[0])


JPEG = encoded(PHOTO, "JPEG")
BOX = b"\0\0\0\x18ftyp%s\0\0\0\0mif1%s"
FILES = {
    # photographs, whatever they are called
    **dict.fromkeys(
        ("p.jpg", "P.JPG", "p.jpeg", "p.jpe", "p.jfif", "q", "deep/er/p.txt", "Thumbs.jpg"), ("", JPEG)
    ),
    "p.png.jpg": ("", encoded(PHOTO, "PNG")),
    "p.avif": ("", encoded(PHOTO, "AVIF")),
    "p.tif": ("", encoded(PHOTO, "TIFF", big_tiff=True)),
    # what claims to be a photograph and is none, or is one that is not read
    "text.jpg": ("not_image", b"this is text"),
    "empty.jpg": ("empty_file", b""),
    "IMG_1.HEIC": ("heic", BOX % (b"heic", b"heic")),
    "IMG_2.jpg": ("heic", BOX % (b"mif1", b"heic")),
    "gone.jpg": ("not_a_file", None),
    # cameras' raw files: what a TIFF reader would find in them is a thumbnail
    "DSC_1.NEF": ("raw", encoded(PHOTO, "TIFF")),
    "DSC_2.dng": ("raw", encoded(PHOTO, "TIFF")),
    "DSC_3.raw": ("raw", b"\1\2\3\4" * 9),
    "DSC_4.CR3": ("raw", BOX % (b"crx ", b"crx ")),
    # nobody's photographs
    **dict.fromkeys(
        (".hidden.jpg", "._p.jpg", ".thumbnails/p.jpg", "@eaDir/p.jpg", "__MACOSX/p.jpg"), ("hidden", JPEG)
    ),
    "MVI_1.THM": ("thumbnail", JPEG),
    **dict.fromkeys(
        ("Thumbs.db", "desktop.ini", "p.xmp", "IMG_1.MOV", "notes.txt", "empty.txt"),
        ("not_image", b"\xd0\xcf"),
    ),
}
CLASSES = {
    "": "ok",
    **dict.fromkeys(("heic", "empty_file"), "failed"),
    **dict.fromkeys(("raw", "not_a_file"), "skipped"),
    **dict.fromkeys(("hidden", "thumbnail"), "ignored"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for name, (_, content) in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content) if content is not None else path.symlink_to("nothing")
    return root


def expected() -> dict[str, tuple[str, str]]:
    """Status and reason of each file; a hidden folder is one, whatever is in it."""
    found = {}
    for name, (reason, _) in FILES.items():
        hidden = next((part for part in Path(name).parts if part[0] in ".@_"), None)
        failed = name == "text.jpg"
        found[hidden or name] = (CLASSES.get(reason) or ("failed" if failed else "ignored"), reason)
    return found


def test_the_pipeline_and_the_command_line_walk_alike(folder: Path) -> None:
    """Every file has a status, and one that is not taken a reason."""
    listed = list_items(DataConfig(source="folder", path=str(folder)), 1)[0]
    of_source = {item.photo: (item.status, item.reason) for item in listed}
    of_command = {text_of(item.name): (item.status or "ok", item.reason) for item in find([folder])}
    assert of_source == of_command == expected()


def test_a_file_that_is_named_is_tried(folder: Path) -> None:
    """A hidden one is taken; what is no photograph has failed, for a reason that there is a sentence for."""
    named = {"._p.jpg": "", "notes.txt": "not_image", "DSC_1.NEF": "raw", "gone.jpg": "not_a_file"}
    named |= {"MVI_1.THM": "thumbnail"}
    found = find([folder / name for name in named])
    assert {item.name: item.reason for item in found} == named
    assert {item.status for item in found if item.reason} == {"failed"}
    assert {*named.values()} - {""} < SENTENCES.keys()


@pytest.mark.parametrize("names", [["DSC_1.NEF", "._p.jpg", "notes.txt"], ["notes.txt"], []])
def test_a_folder_without_a_photograph_says_what_there_is(folder, tmp_path, names) -> None:
    only = tmp_path / "only"
    only.mkdir()
    for name in names:
        (folder / name).rename(only / name)
    with pytest.raises(InputError, match="there is no photograph in .*only") as refused:
        find([only])
    assert all(f"{FILES[name][0]} 1" in str(refused.value) for name in names)


def test_scores_are_of_the_same_photographs(folder: Path) -> None:
    """And tell the rest. One photograph is enough: several would start workers."""
    found = expected()
    for name, (status, _) in found.items():
        if status == "ok" and name != "p.jfif":
            (folder / name).unlink()
    grey = System("grey", build_baseline("grey", Statistics({})), 16, "1", (0, 0))
    scores = score.score([folder], [grey], EvaluateConfig(bootstrap=2))
    assert scores.images == 1
    assert scores.failed == {name: reason for name, (status, reason) in found.items() if status == "failed"}
    assert scores.passed_over.total() == sum(status in ("skipped", "ignored") for status, _ in found.values())


def test_links_and_odd_things_stop_no_walk(folder: Path, tmp_path: Path) -> None:
    """A link to a photograph is one, wherever it leads; links to folders, loops and pipes are passed over."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/q.jpg").write_bytes(JPEG)
    links = {"out.jpg": tmp_path / "elsewhere/q.jpg", "linked": tmp_path / "elsewhere", "loop": folder}
    for name, target in (links | {"circle": folder / "circle"}).items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe.jpg")
    found = {item.name: item.reason for item in walk(folder) if item.name not in expected()}
    assert found == {
        **{"out.jpg": "", "linked": "link_to_folder", "loop": "link_to_folder"},
        **{"circle": "not_a_file", "pipe.jpg": "not_a_file"},
    }
