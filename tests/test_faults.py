"""What goes wrong with photographs and addresses: a test for each row of docs/faults.md up to 31."""

import hashlib
import io
import shutil
import socket
import ssl
import struct
import subprocess
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from faults import TABLE, Album, fault, table
from PIL import Image
from skimage import data
from test_images import encoded, png_header
from webserver import (
    Server,
    content,
    cut,
    cut_chunked,
    drip,
    endless,
    first,
    jpegs,
    redirect,
    silence,
    status,
)

from colorize.data import fetch
from colorize.data.manifest import DataConfig
from colorize.data.sources import list_items
from colorize.files import InputError
from pipeline import crop, filter, paths

GOOD = list(jpegs(6))[5]
PHOTO = Image.fromarray(data.astronaut())
JPEG = encoded(PHOTO, "JPEG")


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Album]:
    monkeypatch.setattr(fetch, "BACK_OFF_SECONDS", 0.02)
    monkeypatch.setattr(paths, "DOWNLOADS", Path("downloads"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as server:
        yield Album(tmp_path, server)


def test_the_table_is_that_of_the_tests() -> None:
    """docs/faults.md is what `python tests/faults.py` writes, and no row of the matrix is without a test."""
    assert TABLE.read_text(encoding="utf-8") == table(), "run python tests/faults.py"
    numbers = [
        int(line.split("|")[1])
        for line in table().splitlines()
        if line.startswith("| ") and line[2].isdigit()
    ]
    assert set(numbers) == set(range(1, 49))


# ---- addresses ----


@fault(1, "404, 410")
def test_what_is_gone_is_not_asked_for_again(album: Album) -> None:
    """`failed`, `http_404`, tried once and remembered."""
    assert album.reasons({"/a": status(404), "/b": status(410)}) == {"/a": "http_404", "/b": "http_410"}
    assert album.server.asked["/a"] == 1


@fault(2, "429 with Retry-After in seconds")
def test_a_host_that_asks_for_a_pause_gets_it(album: Album) -> None:
    """The host is left alone for that long, other hosts keep flowing, and the photograph arrives."""
    album.server.answers["/good0.jpg"] = first(
        1, status(429, Retry_After="1"), content(album.good["/good0.jpg"])
    )
    with Server() as other:
        other.answers["/a"] = content(GOOD)
        rows = ["url", *map(album.server.url, album.good), other.url("/a")]
        photos, crops = album.run(album.folder / "paused", rows, album.params({"threads": 1}, {}))
        assert set(photos["status"]) == set(crops["status"]) == {"ok"} and len(crops) == 5
        paused = album.server.times[0][1]
        assert all(moment - paused > 0.95 for _, moment in album.server.times[1:])
        assert other.times[0][1] - paused < 0.9


@fault(3, "429 or 503 with an absurd Retry-After: a day, a date, a negative number")
def test_an_absurd_pause_is_bounded(album: Album, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waited for at most `RETRY_AFTER_SECONDS`, a minute; then `failed` and to be tried again by the next run."""
    monkeypatch.setattr(fetch, "RETRY_AFTER_SECONDS", 0.3)
    headers = {"/day": "86400", "/date": formatdate(time.time() + 86400, usegmt=True), "/past": "-5"}
    started = time.monotonic()
    fates = album.fates({path: status(429, Retry_After=value) for path, value in headers.items()})
    assert {(fate.reason, fate.retryable) for fate in fates.values()} == {("http_429", True)}
    assert time.monotonic() - started < 15


@fault(4, "500, 502, 504, connection reset, a name that does not resolve")
def test_a_server_that_is_down_is_tried_so_often_and_no_more(
    album: Album, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`data.attempts` tries with growing pauses, then `failed`; the next run tries again."""
    genuine = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "nowhere.test":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return genuine(host, *args, **kwargs)

    def reset(request: Any) -> None:
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.connection.close()
        request.close_connection = True

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    faulty = {f"/{code}": status(code) for code in (500, 502, 504)} | {"/reset": reset}
    fates = album.fates(faulty | {"http://nowhere.test/a": b""})
    assert [fate.reason for fate in fates.values()] == [
        "http_500",
        "http_502",
        "http_504",
        "connection",
        "connection",
    ]
    assert all(fate.retryable for fate in fates.values())
    assert album.server.asked["/500"] == 4, "two attempts in each of two runs"


@fault(5, "a server that accepts and says nothing, or one byte at a time")
def test_a_server_that_never_ends_is_ended(album: Album) -> None:
    """One deadline, `data.timeout_seconds`, covers connection, header and body of all attempts: `timeout`."""
    started = time.monotonic()
    faulty = {"/mute": silence, "/drip": drip(JPEG), "/slow": drip(JPEG, header_too=True)}
    fates = album.fates(faulty, timeout_seconds=1)
    assert {(fate.reason, fate.retryable) for fate in fates.values()} == {("timeout", True)}
    assert time.monotonic() - started < 15


@fault(6, "a body that is shorter than its Content-Length")
def test_half_a_body_is_none(album: Album) -> None:
    """`short_body`, tried again, never decoded."""
    fate = album.fates({"/a": cut(GOOD)})["/a"]
    assert (fate.status, fate.reason, fate.retryable) == ("failed", "short_body", True)


@fault(7, "a connection cut within a chunk")
def test_half_a_chunk_is_none(album: Album) -> None:
    """`short_body`, tried again; the part is never seen under a final name."""
    assert album.fates({"/a": cut_chunked(GOOD)})["/a"].reason == "short_body"
    healed = album.fates({"/b": first(1, cut_chunked(GOOD), content(GOOD))})["/b"]
    assert healed.status == "ok"


@fault(8, "a body above `data.max_megabytes`, or without end")
def test_an_endless_body_is_cut_off(album: Album) -> None:
    """`too_large`: what arrives is counted while it streams."""
    faulty = {"/large": content(GOOD + bytes(200_000)), "/endless": endless(GOOD[:100])}
    assert set(album.reasons(faulty, max_megabytes=0.1).values()) == {"too_large"}


@fault(9, "a redirect loop, or more than 5 redirects")
def test_redirects_are_counted(album: Album) -> None:
    """`redirects`."""
    chain = {f"/hop{number}": redirect(f"/hop{number + 1}") for number in range(7)}
    album.server.answers |= chain
    assert set(album.reasons({"/loop": redirect("/loop"), "/far": redirect("/hop0")}).values()) == {
        "redirects"
    }


@fault(10, "a redirect to a file, to FTP, to this machine or a private network")
def test_every_hop_is_checked_as_the_first_one_was(album: Album, monkeypatch: pytest.MonkeyPatch) -> None:
    """`forbidden_url`, and the target is never asked; `data.allow_private` permits private ones."""
    genuine = fetch.is_public
    monkeypatch.setattr(fetch, "is_public", lambda address: address == "127.0.0.1" or genuine(address))
    with Server("127.0.0.2") as private:
        targets = {
            "/file": "file:///etc/passwd",
            "/ftp": "ftp://example.org/a.jpg",
            "/self": private.url("/secret"),
            "/cloud": "http://169.254.169.254/latest",
            "/home": "http://192.168.1.1/a.jpg",
        }
        faulty = {path: redirect(target) for path, target in targets.items()}
        assert set(album.reasons(faulty, allow_private=False).values()) == {"forbidden_url"}
        assert private.connections == 0


@fault(11, "file, ftp, data and javascript addresses, no host, credentials in the address")
def test_only_plain_web_addresses_are_asked(album: Album) -> None:
    """`forbidden_url`; a password is written to no file."""
    addresses = [
        "file:///etc/passwd",
        "ftp://example.org/a",
        "data:image/png;base64;AAAA",
        "javascript:alert(1)",
        "http://",
    ]
    addresses += ["http://me:hush-hush@127.0.0.1/a", "http://[", "http://" + "ä" * 70 + ".test/"]
    assert set(album.reasons(dict.fromkeys(addresses, b"")).values()) == {"forbidden_url"}
    kept = [p for p in (album.folder / "faulty").rglob("*") if p.is_file() and p.name != "list.csv"]
    assert kept and not any(b"hush-hush" in p.read_bytes() for p in kept)


@fault(12, "a certificate that nobody vouches for")
@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_a_certificate_of_nobody_is_refused(album: Album, tmp_path: Path) -> None:
    """`tls`; there is no switch that turns the check off."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=127.0.0.1"
    subprocess.run([*make.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Server() as secure:
        secure.socket = context.wrap_socket(secure.socket, server_side=True)
        address = secure.url("/a").replace("http:", "https:")
        fate = album.fates({address: b""})[address]
        assert (fate.reason, fate.retryable) == ("tls", False)


@fault(13, "a page instead of a photograph, with status 200")
def test_a_page_is_no_photograph(album: Album) -> None:
    """`not_image`: the first bytes decide, not the header; and a wrong header costs a photograph nothing."""
    fates = album.fates({"/page": content(b"<html>sorry</html>", Content_Type="image/jpeg")})
    assert fates["/page"].reason == "not_image"
    assert album.fates({"/plain": content(GOOD, Content_Type="text/plain")})["/plain"].status == "ok"


@fault(14, "an address twice; one photograph under two addresses")
def test_twins_are_told(album: Album) -> None:
    """An address is asked once, its second row is `skipped`, `duplicate_url`; equal pixels are the filter's business."""
    params = album.params({}, {})
    rows = ["url", *[album.server.url(path) for path in ("/good0.jpg", "/good1.jpg", "/good0.jpg")]]
    photos, crops = album.run(album.folder / "twice", rows, params)
    assert list(photos["reason"]) == ["", "", "duplicate_url"] and len(crops) == 2
    assert album.server.asked["/good0.jpg"] == 1
    fates = album.fates({"/copy": album.good["/good1.jpg"]})
    assert fates["/copy"].status == "ok" and len(album.good) == 4


@fault(
    15,
    "a list with a byte order mark, CRLF, blank lines, comments, spaces; 100,000 rows; bytes that are no text",
)
def test_a_list_is_read_whatever_wrote_it(tmp_path: Path) -> None:
    """Read, or refused with the file's name; every row is an item."""
    many = "".join(f"http://example.org/{number} \r\n\r\n" for number in range(100_000))
    (tmp_path / "list.csv").write_bytes(b"\xef\xbb\xbf# mine\r\nurl\r\n" + many.encode())
    photos, _ = list_items(DataConfig(source="urls", path=str(tmp_path / "list.csv")), 1)
    assert len({photo.photo for photo in photos}) == 100_000
    (tmp_path / "list.csv").write_bytes(b"url\n\xff\xfe\x00\n")
    with pytest.raises(InputError, match=r"list\.csv"):
        list_items(DataConfig(source="urls", path=str(tmp_path / "list.csv")), 1)


@fault(16, "another photograph behind an address than the list's sha256 says")
def test_a_changed_photograph_is_not_taken(album: Album) -> None:
    """`hash_mismatch`; without a sha256 in the list there is nothing to compare."""
    assert album.fates({"/a": GOOD}, sha256=hashlib.sha256(JPEG).hexdigest())["/a"].reason == "hash_mismatch"
    assert album.fates({"/a": GOOD}, sha256=hashlib.sha256(GOOD).hexdigest())["/a"].status == "ok"


# ---- bytes that are no photograph, or no ordinary one ----


@fault(17, "a photograph cut short: in the header, in the middle, by its last two bytes")
def test_a_cut_photograph_is_refused(album: Album) -> None:
    """`truncated` (or `corrupt`): no partial picture is ever used, not even one that lacks nothing but its end mark."""
    png = encoded(PHOTO, "PNG")
    faulty = {
        "/header": JPEG[:200],
        "/middle": JPEG[: len(JPEG) // 2],
        "/end": JPEG[:-2],
        "/png": png[: len(png) // 2],
    }
    reasons = album.reasons(faulty)
    assert reasons["/middle"] == reasons["/end"] == reasons["/png"] == "truncated"
    assert reasons["/header"] in ("truncated", "corrupt")


@fault(18, "bytes that change within a photograph")
def test_rot_is_found(album: Album) -> None:
    """`corrupt` where the decoder notices; what rots after it was fetched is `hash_mismatch`."""
    png = bytearray(encoded(PHOTO, "PNG"))
    png[len(png) // 2 : len(png) // 2 + 64] = bytes(64)
    assert album.reasons({"/png": bytes(png)})["/png"] in ("corrupt", "truncated")
    folder = album.folder / "rot"
    rows = ["url", *map(album.server.url, album.good)]
    photos, _ = album.run(folder, rows, album.params({}, {}))
    shard = next((folder / "data/photos").glob("*.tar"))
    packed = shard.read_bytes()
    place = packed.index(album.good["/good2.jpg"]) + 300
    shard.write_bytes(packed[:place] + bytes([packed[place] ^ 1]) + packed[place + 1 :])
    with chdir(folder):
        crop.main(album.params({}, {}))
        crops = pd.read_csv(paths.CROPS_CSV, keep_default_na=False)
    assert list(crops["reason"]) == ["", "", "hash_mismatch", ""]


@fault(19, "no bytes, random bytes, a photograph within a zip, a photograph with a zip behind it")
def test_what_is_no_photograph_is_said_to_be_none(album: Album) -> None:
    """`empty_file` or `not_image`, no crash; what follows the end of a photograph is not looked at."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.jpg", GOOD)
    noise = np.random.default_rng(1).bytes(4000)
    fates = album.fates(
        {"/empty": b"", "/noise": noise, "/zip": packed.getvalue(), "/polyglot": GOOD + packed.getvalue()}
    )
    assert [fate.reason for fate in fates.values()] == ["empty_file", "not_image", "not_image", ""]


@fault(20, "a small file that unpacks to 201 or 900 megapixels")
def test_a_bomb_is_refused_by_its_header(album: Album) -> None:
    """`too_many_pixels` above `crop.max_megapixels`, 200, before a pixel is decoded."""
    faulty = {f"/{w}": png_header(w, h) for w, h in ((20100, 10000), (30000, 30000))}
    assert set(album.reasons(faulty).values()) == {"too_many_pixels"}


@fault(21, "photographs of 1x6000 pixels, of one pixel, below the crops' size")
def test_odd_shapes_are_enlarged_or_dropped(album: Album) -> None:
    """Enlarged and marked `small`, or `skipped`, `too_small`, as `crop.small` says."""
    faulty = {"/line": encoded(PHOTO.resize((1, 6000)), "PNG"), "/dot": encoded(PHOTO.resize((1, 1)), "PNG")}
    for fate in album.fates(faulty).values():
        assert fate.status == "ok" and fate.pixels is not None and fate.pixels.shape == (16, 16, 3)
    fates = album.fates(faulty, rule={"small": "drop"})
    assert {(fate.status, fate.reason) for fate in fates.values()} == {("skipped", "too_small")}


@fault(24, "grey photographs: one channel, or three equal ones")
def test_grey_photographs_teach_no_color(album: Album) -> None:
    """Cropped like any other, then removed by the filter: `grey`."""
    grey = PHOTO.convert("L")
    faulty = {"/one": encoded(grey, "JPEG"), "/three": encoded(grey.convert("RGB"), "PNG")}
    assert all(fate.status == "ok" for fate in album.fates(faulty).values())
    params = album.params({}, {})
    with chdir(album.folder / "faulty"):
        rule = replace(params.filter, rules=("grey",), train=2, val=1, test=1)
        filter.main(params.model_copy(update={"filter": rule}))
        splits = pd.read_csv(paths.SPLITS_CSV, keep_default_na=False)
    # good0, one, good1, three, good2, good3
    assert list(splits["reason"]) == ["", "grey", "", "grey", "", ""]


@fault(
    30, "formats that nobody shoots in: EPS, PPM, ICO, TGA; those that cameras write and that are not read"
)
def test_odd_formats_never_reach_a_decoder(album: Album) -> None:
    """`not_image`, or the format's name (`heic`, `raw`, `jpeg_xl`, `pdf` ...): seven formats are tried and no other."""
    faulty = {
        f"/{kind}": encoded(PHOTO.resize((32, 32)), kind) for kind in ("EPS", "PPM", "ICO", "TGA", "PDF")
    }
    faulty["/HEIC"] = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)
    reasons = album.reasons(faulty)
    assert (reasons.pop("/PDF"), reasons.pop("/HEIC")) == ("pdf", "heic") and set(reasons.values()) == {
        "not_image"
    }


@fault(31, "a progressive JPEG of 1,000 scans; 200 MB of text in a PNG of 200 KB")
def test_crafted_files_cost_little(album: Album) -> None:
    """`too_many_scans` above 500, before decoding; text above Pillow's limit is `corrupt`."""
    text = b"zTXt" + b"a\0\0" + zlib.compress(bytes(200_000_000), 9)
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    png = encoded(PHOTO.resize((32, 32)), "PNG")
    started = time.monotonic()
    reasons = album.reasons({"/scans": JPEG + b"\xff\xda" * 1000, "/text": png[:33] + chunk + png[33:]})
    assert reasons == {"/scans": "too_many_scans", "/text": "corrupt"}
    assert time.monotonic() - started < 15
