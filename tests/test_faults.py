"""Faulty photographs and addresses among good ones, through the stages download and crop."""

import io
import struct
import zipfile
import zlib
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from faults import fault, rows
from imagefiles import png_header
from PIL import Image
from ruamel.yaml import YAML
from skimage import data
from webserver import Server, content, cut, endless, jpegs, redirect, soon, status

from colorize import files
from colorize.data.shards import Crops
from pipeline import crop, download, paths
from pipeline.check import AllParams
from pipeline.params import checked

ROOT = Path(__file__).parent.parent
*GOOD, SPARE = jpegs(5)
PHOTO = Image.fromarray(data.astronaut()[:128, :128])


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def zipped() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.jpg", SPARE)
    return packed.getvalue()


def with_text(png: bytes, size: int) -> bytes:
    """A PNG with so many bytes of deflated text."""
    text = b"zTXt" + b"a\0\0" + zlib.compress(bytes(size))
    return png[:33] + struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text)) + png[33:]


def run(folder: Path, addresses: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both stages in a folder of their own; photos.csv and crops.csv by photo."""
    block = YAML(typ="safe").load(ROOT / "params.yaml")
    block["data"] |= {
        "source": "urls",
        "path": "list.csv",
        "allow_private": True,
        "threads": 4,
        "attempts": 2,
    }
    block["data"] |= {"max_failed": 1.0, "timeout_seconds": 60, "max_megabytes": 0.2}
    block["crop"] |= {"size": 16, "workers": 1}
    params = checked(AllParams, block)
    folder.mkdir(exist_ok=True)
    with chdir(folder):
        files.write_text(
            Path("list.csv"), "\n".join(["url", *(f'"{address}"' for address in addresses)]) + "\n"
        )
        download.main(params)
        crop.main(params)
        tables = [
            pd.read_csv(path, dtype=str, keep_default_na=False)
            for path in (paths.PHOTOS_CSV, paths.CROPS_CSV)
        ]
    assert all(table["photo"].is_unique for table in tables)
    return tables[0].set_index("photo"), tables[1].set_index("photo")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in (folder / "data").rglob("*") if path.is_file()}


JPEG, PNG = encoded(PHOTO, "JPEG"), encoded(PHOTO, "PNG")
ROTTEN = PNG[: len(PNG) // 2] + bytes(64) + PNG[len(PNG) // 2 + 64 :]
ODD = {kind: encoded(PHOTO, kind) for kind in ("EPS", "PPM", "ICO", "TGA")}
FAULTS: dict[str, tuple[str, Any]] = {
    "/404": ("http_404", status(404)),
    "/500": ("http_500", status(500)),
    "/cut": ("short_body", cut(JPEG)),
    "/large": ("too_large", content(JPEG + bytes(300_000))),
    "/endless": ("too_large", endless(JPEG[:100])),
    "/loop": ("redirects", redirect("/loop")),
    "/file": ("forbidden_url", redirect("file:///etc/passwd")),
    "ftp://example.org/a": ("forbidden_url", None),
    "http://me:hush-hush@127.0.0.1/a": ("forbidden_url", None),
    "/page": ("not_image", content(b"<html>sorry</html>", Content_Type="image/jpeg")),
    "/plain": ("", content(SPARE, Content_Type="text/plain")),
    "/header": ("truncated", JPEG[:200]),
    "/middle": ("truncated", JPEG[: len(JPEG) // 2]),
    "/end": ("truncated", JPEG[:-2]),
    "/png": ("truncated", PNG[: len(PNG) // 2]),
    "/rotten": ("corrupt", ROTTEN),
    **{f"/half-{kind}": ("truncated", encoded(PHOTO, kind)[:5000]) for kind in ("GIF", "BMP", "TIFF")},
    "/half-WEBP": ("corrupt", encoded(PHOTO, "WEBP")[:900]),
    "/empty": ("empty_file", b""),
    "/noise": ("not_image", np.random.default_rng(1).bytes(4000)),
    "/zip": ("not_image", zipped()),
    "/polyglot": ("", SPARE + zipped()),
    "/201": ("too_many_pixels", png_header(20_100, 10_000)),
    "/900": ("too_many_pixels", png_header(30_000, 30_000)),
    "/line": ("", encoded(PHOTO.resize((1, 6000)), "PNG")),
    "/dot": ("", encoded(PHOTO.resize((1, 1)), "PNG")),
    **{f"/{kind}": ("not_image", body) for kind, body in ODD.items()},
    "/HEIC": ("heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)),
    "/PDF": ("pdf", encoded(PHOTO, "PDF")),
    "/scans": ("too_many_scans", JPEG + b"\xff\xda" * 1000),
    "/text": ("corrupt", with_text(PNG, 100_000_000)),
}
HEAL = ("http_500", "short_body")


@fault(
    4, "500, 502, 504, connection reset", "`data.attempts` tries, then `failed`; the next run tries again."
)
@fault(6, "a body that is shorter than its Content-Length", "`short_body`, tried again, never decoded.")
@fault(
    13,
    "a page instead of a photograph, with status 200",
    "`not_image`: the first bytes decide, not the header.",
)
@fault(
    17,
    "a photograph cut short: in the header, in the middle, by its last two bytes",
    "`truncated`: no part of a picture is ever used, not even one that lacks nothing but its end mark.",
)
@fault(
    19,
    "no bytes, random bytes, a photograph within a zip, a photograph with a zip behind it",
    "`empty_file` or `not_image`, no crash; what follows the end of a photograph is not looked at.",
)
@fault(
    20,
    "a small file that unpacks to 201 or 900 megapixels",
    "`too_many_pixels` above `crop.max_megapixels`, 200, before a pixel is decoded.",
)
@fault(
    30,
    "formats in which nobody stores photographs: EPS, PPM, ICO, TGA; those of cameras that are not read",
    "`not_image`, or the format's name (`heic`, `raw`, `pdf` ...): seven formats are tried and no other.",
)
@fault(
    31,
    "a progressive JPEG of 1,000 scans; 100 MB of text in a PNG of 100 KB",
    "`too_many_scans` above 500, before decoding; text above Pillow's limit is `corrupt`.",
)
def test_all_faults_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every item is a row with one reason, the good ones are untouched, and a second run changes no byte."""
    soon(monkeypatch)
    monkeypatch.setattr(paths, "DOWNLOADS", Path("downloads"))
    with Server() as server:
        for place, (_, answer) in FAULTS.items():
            server.answers[place] = content(answer) if isinstance(answer, bytes) else answer
        server.answers |= {f"/good{number}": content(body) for number, body in enumerate(GOOD)}
        good = [server.url(f"/good{number}") for number in range(len(GOOD))]
        faulty = [server.url(place) if place.startswith("/") else place for place in FAULTS]
        run(tmp_path / "clean", good)
        expected = Crops(tmp_path / "clean" / paths.CROPS)[:]

        folder, order = tmp_path / "faulty", [good[0], *faulty[:9], *good[1:], *faulty[9:]]
        photos, crops = run(folder, order)
        assert list(crops.index) == list(photos.index[photos["status"] == "ok"])
        ends = photos.assign(reason=crops["reason"].reindex(photos.index).fillna(photos["reason"]))
        found = dict(zip(order, ends["reason"], strict=True))
        assert found == dict.fromkeys(good, "") | dict(
            zip(faulty, (reason for reason, _ in FAULTS.values()), strict=True)
        )
        healing = photos["reason"].isin(HEAL)
        assert (photos["retryable"] == "true").tolist() == healing.tolist()
        assert ((photos["reason"] == "") == (photos["status"] == "ok")).all()
        assert ((crops["reason"] == "") == (crops["status"] == "ok")).all()
        places = crops["index"].reindex(photos.index[[order.index(address) for address in good]]).astype(int)
        assert np.array_equal(Crops(folder / paths.CROPS)[places.to_numpy()], expected)
        assert not list(folder.rglob("*.partial"))

        before, asked = snapshot(folder), server.asked.copy()
        run(folder, order)
        assert snapshot(folder) == before
        again = server.asked - asked
        assert set(again) == {
            "/500",
            "/cut",
            "/large",
            "/endless",
            "/loop",
            "/file",
        }  # what a changed limit may let in
        assert asked["/500"] == again["/500"] == 2
    kept = [path for path in folder.rglob("*") if path.is_file() and path.name != "list.csv"]
    assert not any(b"hush-hush" in path.read_bytes() for path in kept)


@pytest.mark.slow
def test_every_row_of_the_table_has_a_test() -> None:
    assert {number for number, *_ in rows()} == set(range(1, 49))
