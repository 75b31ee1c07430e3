"""What comes from others, damaged and made up, is taken or refused in one sentence.

`make faults` runs 20,000 cases of each; here a few, always the same.
"""

import asyncio
import json
import pickle
import tempfile
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, _photographs
from hypothesis import given, settings
from hypothesis import strategies as st
from imagefiles import encoded
from PIL import Image
from ruamel.yaml import YAML
from test_sources import COLORS, PHOTOS, cifar, listed

from colorize import files
from colorize.apply import app, export, score
from colorize.apply.coloring import System, color_all, find
from colorize.apply.fullsize import read
from colorize.bins import PriorConfig, Statistics
from colorize.data.album import walk
from colorize.data.images import SENTENCES, CropConfig, Refused, crop_square
from colorize.files import InputError
from colorize.models import build_baseline, build_model, describe_block, load_description, save_model
from colorize.scoring.evaluation import EvaluateConfig
from pipeline.check import AllParams
from pipeline.params import checked

PARAMS = YAML(typ="safe").load(ROOT / "params.yaml")


def damaged(originals: list[bytes]) -> st.SearchStrategy[bytes]:
    """One of them with some bytes changed, cut off or put in."""
    places = st.floats(0, 1, exclude_max=True)
    edits = st.lists(
        st.tuples(st.sampled_from(["set", "cut", "insert"]), places, st.binary(min_size=1, max_size=8)),
        max_size=8,
    )

    def damage(original: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
        content = bytearray(original)
        for kind, place, new in changes:
            at = int(place * len(content))
            content[at : at + (0 if kind == "insert" else len(new))] = b"" if kind == "cut" else new
        return bytes(content)

    return st.builds(damage, st.sampled_from(originals), edits)


PLAIN = st.none() | st.booleans() | st.integers(-99, 2**40) | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


def places_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The keys that lead to each part of a nested value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in places_of(each, (*path, key)))]


def replaced(original: dict[str, Any], place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    content = deepcopy(original)
    inner: Any = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return content


KINDS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
IMAGES = [encoded(Image.fromarray(_photographs(1, 24)[0]), kind) for kind in KINDS]


@given(damaged(IMAGES) | st.binary(max_size=200))
def test_images(content: bytes) -> None:
    """A whole picture, or a reason that is explained, in crops and for `colorize apply`."""
    try:
        assert crop_square(content, CropConfig(size=16))[0].shape == (16, 16, 3)
    except Refused as refused:
        assert str(refused) in SENTENCES
    with suppress(Refused):
        assert read(content).rgb.mode == "RGB"


def write_and_list(source: str, folder: Path, contents: dict[str, bytes]) -> None:
    """Every item has a name of its own, or the source is refused."""
    folder = folder / "-".join(
        (source, *contents)
    )  # always the same names, so each case replaces the last one
    for name, content in contents.items():
        files.write_bytes(folder / name, content)
    path = folder / next(iter(contents)) if source == "urls" else folder
    try:
        photos = listed(source, path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert photos and len({photo.photo for photo in photos}) == len(photos)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


LIST = b'\xef\xbb\xbfurl,sha256\r\nhttp://x.test/1,ab\r\n# no\r\n"http://x.test/2,3",\r\nhttp://x.test/1,\r\n'
CIFAR, BINARY = cifar(), bytes(3073 * 2)


@given(damaged([LIST]) | st.text(max_size=200).map(str.encode))
def test_lists_of_addresses(folder: Path, content: bytes) -> None:
    write_and_list("urls", folder, {"list.csv": content})


@given(damaged([PHOTOS.encode()]), damaged([COLORS.format("").encode()]))
def test_unsplash_tables(folder: Path, photos: bytes, colors: bytes) -> None:
    write_and_list("unsplash", folder, {"photos.tsv000": photos, "colors.tsv000": colors})


@given(
    damaged([CIFAR["data_batch_1"], pickle.dumps([1])]), damaged([CIFAR["batches.meta"]]), damaged([BINARY])
)
def test_cifar_files(folder: Path, batch: bytes, meta: bytes, binary: bytes) -> None:
    """Pickles and the binary version; no global outside the allow-list is ever looked up."""
    write_and_list("cifar10", folder, {"data_batch_1": batch, "batches.meta": meta})
    write_and_list("cifar10", folder, {"data_batch_1.bin": binary})


@given(st.sampled_from(places_of(PARAMS)), VALUES)
def test_parameters(place: tuple[Any, ...], value: Any) -> None:
    """Taken, or refused with a sentence that names the file."""
    try:
        checked(AllParams, replaced(PARAMS, place, value))
    except InputError as error:
        assert "params.yaml" in str(error)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, small = tmp_path_factory.mktemp("trained"), ("models", "cae", "network")
    block = checked(AllParams, replaced(PARAMS, small, {"channels": [2, 4]})).models["cae"]
    model = build_model(block, 16, Statistics.measure(_photographs(4, 16), PriorConfig()))
    description = {"name": "cae", "block": describe_block(block), "seed": 1, "size": 16, "parameters": 9}
    description |= {"epochs": 1, "best_epoch": 1, "mean_ab": [0.0, 1.0], "notes": []}
    save_model(folder, model, description, "")
    return folder


@pytest.fixture(scope="module")
def jail(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder out of which some ways lead before they leave it."""
    folder = tmp_path_factory.mktemp("jail")
    files.write_bytes(folder / "a/b/photo.png", IMAGES[1])
    return folder


def asked(page: Any, method: str, path: str, content: bytes = b"") -> int:
    """The status with which the page answers."""
    answers: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        answers.append(message)

    scope = {"type": "http", "method": method, "path": path, "scheme": "http", "app": page}
    scope |= {"query_string": b"model=theirs", "headers": [(b"host", b"localhost")]}
    asyncio.run(page(scope, receive, send))
    return int(answers[0]["status"])


ODD = "|.|..|../escaped|../../escaped|a/b|a\\b|C:x|CON|aux.txt|-m|.x|x.|x\0"
ESCAPES = [*ODD.split("|"), "x" * 300]
ESCAPES += ["x\0", "x" * 300]
NAMES = st.text(max_size=8) | st.sampled_from(ESCAPES)


@given(st.data())
def test_models_of_others(trained: Path, jail: Path, data: st.DataObject) -> None:
    """A model that every command can use, or one sentence; nothing is written elsewhere."""
    description = json.loads((trained / "model.json").read_text())
    weights = (trained / "weights.safetensors").read_bytes()
    if data.draw(st.booleans(), "named"):
        place, value = ("name",), data.draw(NAMES | st.just(f"{jail}/escaped"), "name")
    else:
        place, value = data.draw(st.sampled_from(places_of(description)), "place"), data.draw(VALUES, "value")
    theirs, photo = jail / "a/b/theirs", jail / "a/b/photo.png"
    files.write_text(theirs / "model.json", json.dumps(replaced(description, place, value)))
    damage = st.just(weights) | damaged([weights])
    files.write_bytes(theirs / "weights.safetensors", data.draw(damage, "weights"))
    with pytest.MonkeyPatch.context() as patched, tempfile.TemporaryDirectory(dir=jail / "a/b") as out:
        patched.setattr(export, "to_onnx", lambda *_: b"")  # a matter of minutes
        before = sorted(path for path in jail.rglob("*") if Path(out) not in path.parents)
        try:
            systems = [System.load(theirs), replace(System.load(trained), name="ours")]
            rows = color_all(find([photo]), systems, Path(out, "colored"))
            assert all(row.status == "done" for row in rows)
            written = {path.name for path in Path(out, "colored").iterdir()}
            assert written == {"colorize.csv", "ours", systems[0].name}
            page = app.create_app({"theirs": theirs})
            assert asked(page, "GET", "/models") == asked(page, "POST", "/color", photo.read_bytes()) == 200
            export.export(theirs, Path(out, "exported"))
            if place in (("name",), ("size",), ("mean_ab",)):
                assert score.score([photo], systems[:1], EvaluateConfig(bootstrap=2)).images == 1
        except InputError as error:
            assert len(str(error)) < 500
        assert sorted(path for path in jail.rglob("*") if Path(out) not in path.parents) == before


@pytest.mark.parametrize("name", ESCAPES)
def test_a_name_that_leads_elsewhere_is_refused(trained: Path, jail: Path, name: str) -> None:
    description = json.loads((trained / "model.json").read_text())
    files.write_text(jail / "a/b/theirs/model.json", json.dumps(description | {"name": name}))
    with pytest.raises(InputError, match=r"does not describe a trained model \(name\)"):
        load_description(jail / "a/b/theirs")


def test_a_description_is_taken_as_it_was_checked(trained: Path, jail: Path) -> None:
    """Numbers that are texts, a block without what may be left out, no name in a folder with an odd one."""
    description = json.loads((trained / "model.json").read_text())
    del description["name"], description["block"]["head"]
    odd = jail / "a/b/odd one"
    files.write_text(odd / "model.json", json.dumps(description | {"size": "16", "mean_ab": ["1", "2"]}))
    found = load_description(odd)
    assert (found["name"], found["size"], found["mean_ab"]) == ("model", 16, (1, 2))
    assert found["block"]["head"]["kind"] == "regression"


@settings(max_examples=settings.default.max_examples // 3)
@given(st.data())
def test_accounts(jail: Path, data: st.DataObject) -> None:
    """Whatever stands in a log, the files beside it that we did not write stay, and no walk ends at it."""
    photo, theirs = jail / "a/b/photo.png", IMAGES[0]
    with tempfile.TemporaryDirectory(dir=jail / "a/b") as folder:
        out, others = Path(folder), [Path(folder, name) for name in ("photo.png", "other.png")]
        system = System("grey", build_baseline("grey", Statistics({})), 16, "1", None)
        list(color_all(find([photo]), [system], out))
        log = (out / "colorize.csv").read_bytes()
        for path in others:
            path.write_bytes(theirs)
        logs = damaged([log, log.replace(b"photo.png", b"../photo.png")])
        (out / "colorize.csv").write_bytes(data.draw(logs))
        assert len(walk(out)) >= 2
        with suppress(InputError):
            list(color_all(find([photo], out), [replace(system, sha256="2")], out))
        assert [path.read_bytes() for path in others] == [theirs, theirs]
    assert photo.read_bytes() == IMAGES[1]
