"""pipeline/download.py: whole runs of the stage, by what it leaves in data/photos and what the server was asked."""

import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image
from ruamel.yaml import YAML
from webserver import Server, content, cut, first, jpegs, redirect, status

from colorize.data import fetch
from colorize.data.manifest import Reader
from colorize.files import InputError
from pipeline import download, paths
from pipeline.check import AllParams
from pipeline.params import checked

ROOT = Path(__file__).parent.parent
Run = Callable[..., pd.DataFrame]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the stage in an empty folder, with changes to the data block; gives photos.csv."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "DOWNLOADS", Path("downloads"))
    monkeypatch.setattr(fetch, "BACK_OFF_SECONDS", 0.02)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def stage(**changes: Any) -> pd.DataFrame:
        block = YAML(typ="safe").load(ROOT / "params.yaml")
        block["data"] |= {"allow_private": True, "threads": 4, "attempts": 2} | changes
        download.main(checked(AllParams, block))
        return pd.read_csv("data/photos/photos.csv", dtype=str, keep_default_na=False)

    return stage


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        running.answers = {f"/{n}.jpg": content(body) for n, body in enumerate(jpegs(12))}
        yield running


def everything(folder: str = "data/photos") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def write_list(server: Server, names: list[str]) -> None:
    Path("list.csv").write_text("url\n" + "".join(f"{server.url(name)}\n" for name in names))


def test_the_embedded_sample_needs_no_network_and_gives_the_same_bytes_twice(run: Run) -> None:
    """The default of a fresh clone: windows of scikit-image's photographs, grouped by photograph."""
    table = run(path=str(ROOT / "data/sample.csv"))
    assert list(table.columns) == [
        *["photo", "group", "class", "split", "status", "reason", "retryable", "sha256", "bytes"],
        *["shard", "member", "url"],
    ]
    assert set(table["status"]) == {"ok"}
    assert list(table["photo"]) == sorted(table["photo"])
    assert set(table["group"]) == {Path(name).stem for name in pd.read_csv(ROOT / "data/sample.csv")["photo"]}
    reader = Reader(Path("data/photos"), Path("nowhere"))
    image = Image.open(io.BytesIO(reader.read(table["shard"][0], table["member"][0])))
    assert image.size == (256, 256)
    before = everything()
    run(path=str(ROOT / "data/sample.csv"))
    assert everything() == before
    assert not Path("downloads").exists()


def test_every_address_ends_in_one_row(run: Run, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """Order of the list, a status and a reason each, duplicates fetched once; the summary counts them."""
    server.answers |= {
        "/heals": first(1, cut(next(jpegs(1))), server.answers["/5.jpg"]),
        "/html": content(b"<html>"),
        "/away": redirect("file:///etc/passwd"),
        "/500": status(500),
    }
    write_list(server, ["/3.jpg", "/gone", "/0.jpg", "/3.jpg", "/heals", "/html", "/away", "/500"])
    table = run(source="urls", path="list.csv", max_failed=0.6)
    assert list(zip(table["status"], table["reason"], table["retryable"], strict=True)) == [
        ("ok", "", ""),
        ("failed", "http_404", "false"),
        ("ok", "", ""),
        ("skipped", "duplicate_url", ""),
        ("ok", "", ""),
        ("failed", "not_image", "false"),
        ("failed", "forbidden_url", "false"),
        ("failed", "http_500", "true"),
    ]
    assert server.asked["/3.jpg"] == 1
    assert table["photo"].is_unique and (table["group"] == table["photo"]).all()
    reader = Reader(Path("data/photos"), Path("list.csv"))
    bodies = list(jpegs(12))
    arrived = table[table["status"] == "ok"]
    got = [reader.read(*place) for place in zip(arrived["shard"], arrived["member"], strict=True)]
    assert got == [bodies[3], bodies[0], bodies[5]]
    assert capsys.readouterr().out == (
        "download: 3 ok, 4 failed (forbidden_url 1, http_404 1, http_500 1, not_image 1), 1 skipped (duplicate_url 1)\n"
    )


def test_threads_and_reruns_change_no_byte(run: Run, server: Server, tmp_path: Path) -> None:
    """One thread or eight, fetched or from the cache: identical files, and the rerun asks for nothing."""
    server.answers["/7.jpg"] = first(1, status(500), server.answers["/7.jpg"])
    write_list(server, [f"/{n}.jpg" for n in range(12)] + ["/gone"])
    run(source="urls", path="list.csv", threads=8)
    before, asked = everything(), server.asked.total()
    run(source="urls", path="list.csv", threads=3)
    assert (everything(), server.asked.total()) == (before, asked)
    Path("downloads").rename("elsewhere")
    run(source="urls", path="list.csv", threads=1)
    assert everything() == before
    assert server.asked.total() > asked


def test_too_many_failures_stop_the_stage_and_keep_what_arrived(run: Run, server: Server) -> None:
    """The sentence names the counts and the most common reason; nothing final is written; the rerun completes it."""
    bad = [f"/{n}.jpg" for n in (2, 5, 8)]
    good = {path: server.answers[path] for path in bad}
    server.answers |= {path: status(503) for path in bad}
    write_list(server, [f"/{n}.jpg" for n in range(12)])
    with pytest.raises(InputError, match=r"3 of 12 items of list\.csv failed.*max_failed.*http_503 \(3\)"):
        run(source="urls", path="list.csv", max_failed=0.24, threads=1)
    assert not Path("data").exists()
    server.answers |= good
    asked = server.asked.copy()
    assert set(run(source="urls", path="list.csv", max_failed=0.24)["status"]) == {"ok"}
    assert set(bad) <= set(server.asked - asked)
    assert server.asked["/0.jpg"] == 1


def test_hopeless_lists_are_given_up_early(run: Run, server: Server) -> None:
    """Once the share of failures is above the limit, the rest of the list is not asked for."""
    write_list(server, [f"/gone{n}" for n in range(200)])
    with pytest.raises(InputError, match="http_404"):
        run(source="urls", path="list.csv", max_failed=0.05, threads=2)
    assert server.asked.total() < 30


def test_not_one_photograph_is_an_error_whatever_the_limit(run: Run, server: Server) -> None:
    """All failed, with every failure allowed."""
    write_list(server, ["/gone"])
    with pytest.raises(InputError, match=r"not one photograph of list\.csv.*http_404 1"):
        run(source="urls", path="list.csv", max_failed=1)
    Path("pictures").mkdir()
    Path("pictures/a.jpg").write_text("no image")
    with pytest.raises(InputError, match="not_image 1"):
        run(source="folder", path="pictures", max_failed=1, limit=5)


def test_a_changed_file_behind_an_address_is_told_by_its_sha256(run: Run, server: Server) -> None:
    """Where the list gives a sha256, other bytes are a failure."""
    Path("list.csv").write_text(f"url,sha256\n{server.url('/0.jpg')},{'0' * 64}\n{server.url('/1.jpg')},\n")
    table = run(source="urls", path="list.csv", max_failed=0.5)
    assert list(table["reason"]) == ["hash_mismatch", ""]
    assert table["sha256"][0] == ""


def test_private_addresses_are_refused_by_default(run: Run, server: Server) -> None:
    """The server on the loopback address is not even connected to."""
    write_list(server, ["/0.jpg"])
    with pytest.raises(InputError, match="forbidden_url"):
        run(source="urls", path="list.csv", allow_private=False)
    assert server.connections == 0


def test_unsplash_photographs_are_asked_for_in_the_right_size(run: Run, server: Server) -> None:
    """The image service is asked to crop and scale; colors are listed for what arrived only."""
    rows = [("aaaaaaaaaaa", "/0.jpg?ixid=abc"), ("bbbbbbbbbbb", "/gone"), ("ccccccccccc", "/1.jpg")]
    photos = "photo_id\tphoto_image_url\n" + "".join(f"{name}\t{server.url(path)}\n" for name, path in rows)
    colors = "photo_id\thex\tred\tgreen\tblue\tkeyword\tai_coverage\tai_score\n"
    colors += "".join(
        f"{name}\tFF0000\t255\t{n}\t0\tred\t0.{n}\t0.9\n" for name, _ in rows for n in (1, 3, 2)
    )
    with zipfile.ZipFile("lite.zip", "w") as archive:
        archive.writestr("unsplash-lite/photos.tsv000", photos)
        archive.writestr("unsplash-lite/colors.tsv000", colors)
    table = run(source="unsplash", path="lite.zip", request_size=128, max_failed=0.5)
    assert sorted(server.queries) == [
        "/0.jpg?ixid=abc&w=128&h=128&fit=crop",
        "/1.jpg?w=128&h=128&fit=crop",
        "/gone?w=128&h=128&fit=crop",
    ]
    assert list(table["status"]) == ["ok", "failed", "ok"]
    listed = pd.read_csv("data/photos/colors.csv")
    assert list(listed["photo"]) == ["aaaaaaaaaaa"] * 3 + ["ccccccccccc"] * 3
    assert list(listed["coverage"]) == [0.3, 0.2, 0.1] * 2
    run(path=str(ROOT / "data/sample.csv"))
    assert not Path("data/photos/colors.csv").exists()


def test_a_folder_is_read_in_place(run: Run) -> None:
    """No shard is written, and the reader gives the files' own bytes."""
    bodies = dict(zip(["a.jpg", "sky/b.jpg"], jpegs(2), strict=True))
    for name, body in bodies.items():
        path = Path("pictures", name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(body)
    table = run(source="folder", path="pictures")
    assert list(everything()) == ["photos.csv"]
    assert list(table["class"]) == ["", "sky"]
    reader = Reader(Path("data/photos"), Path("pictures"))
    assert {name: reader.read("", name) for name in table["member"]} == bodies
