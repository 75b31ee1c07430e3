"""Whole runs of the download, by what they leave in data/photos and what the server was asked."""

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from faults import fault
from PIL import Image
from ruamel.yaml import YAML
from webserver import Server, content, cut, first, jpegs, soon, status

from colorize.data.manifest import Reader
from colorize.files import InputError
from pipeline import download, paths
from pipeline.check import AllParams
from pipeline.params import checked

ROOT = Path(__file__).parent.parent
Run = Callable[..., pd.DataFrame]
BODIES = list(jpegs(12))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the stage in an empty folder, with changes to the data block; gives photos.csv."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "DOWNLOADS", Path("downloads"))
    soon(monkeypatch)

    def stage(**changes: Any) -> pd.DataFrame:
        block = YAML(typ="safe").load(ROOT / "params.yaml")
        block["data"] |= {"allow_private": True, "threads": 4, "attempts": 2} | changes
        download.main(checked(AllParams, block))
        return pd.read_csv("data/photos/photos.csv", dtype=str, keep_default_na=False)

    return stage


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        running.answers = {f"/{n}.jpg": content(body) for n, body in enumerate(BODIES)}
        yield running


def everything() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("data/photos").iterdir()}


def bytes_of(table: pd.DataFrame, folder: str = "nowhere") -> list[bytes]:
    reader, arrived = Reader(Path("data/photos"), Path(folder)), table[table["status"] == "ok"]
    return [reader.read(*place) for place in zip(arrived["shard"], arrived["member"], strict=True)]


def write_list(server: Server, names: list[str]) -> None:
    Path("list.csv").write_text("url\n" + "".join(f"{server.url(name)}\n" for name in names))


def test_the_embedded_sample_needs_no_network_and_gives_the_same_bytes_twice(run: Run) -> None:
    """The default of a fresh clone: windows of scikit-image's photographs, grouped by photograph."""
    table = run(path=str(ROOT / "data/sample.csv"), limit=5)
    assert list(table.columns) == [
        *["photo", "group", "class", "split", "status", "reason", "retryable", "sha256", "bytes"],
        *["shard", "member", "url"],
    ]
    assert set(table["status"]) == {"ok"} and list(table["photo"]) == sorted(table["photo"])
    assert set(table["group"]) <= {Path(name).stem for name in pd.read_csv(ROOT / "data/sample.csv")["photo"]}
    assert Image.open(io.BytesIO(bytes_of(table)[0])).size == (256, 256)
    before = everything()
    run(path=str(ROOT / "data/sample.csv"), limit=5)
    assert everything() == before and not Path("downloads").exists()


@fault(
    14,
    "an address twice; one photograph under two addresses",
    "An address is asked once, its second row is `skipped`, `duplicate_url`; the filter finds equal pixels.",
)
@fault(
    16,
    "another photograph behind an address than the list's sha256 says",
    "`hash_mismatch`; without a sha256 in the list there is nothing to compare.",
)
def test_every_address_ends_in_one_row(run: Run, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of the list; the summary counts them."""
    server.answers |= {
        "/heals": first(1, cut(BODIES[1]), content(BODIES[5])),
        "/twin": content(BODIES[0]),
        "/500": status(500),
    }
    names = ["/3.jpg", "/gone", "/0.jpg", "/3.jpg", "/heals", "/twin", "/500"]
    sums = {"/0.jpg": hashlib.sha256(BODIES[0]).hexdigest(), "/1.jpg": "0" * 64}
    rows = [f"{server.url(name)},{sums.get(name, '')}\n" for name in [*names, "/1.jpg"]]
    Path("list.csv").write_text("url,sha256\n" + "".join(rows))
    table = run(source="urls", path="list.csv", max_failed=0.6)
    assert list(zip(table["status"], table["reason"], table["retryable"], strict=True)) == [
        ("ok", "", ""),
        ("failed", "http_404", "false"),
        ("ok", "", ""),
        ("skipped", "duplicate_url", ""),
        ("ok", "", ""),
        ("ok", "", ""),
        ("failed", "http_500", "true"),
        ("failed", "hash_mismatch", "false"),
    ]
    assert server.asked["/3.jpg"] == 1
    assert table["photo"].is_unique and (table["group"] == table["photo"]).all()
    assert bytes_of(table) == [BODIES[3], BODIES[0], BODIES[5], BODIES[0]]
    assert capsys.readouterr().out == (
        "download: 4 ok, 3 failed (hash_mismatch 1, http_404 1, http_500 1), 1 skipped (duplicate_url 1)\n"
    )


def test_threads_and_reruns_change_no_byte(run: Run, server: Server) -> None:
    """One thread or eight, fetched or from the cache, which asks for nothing."""
    server.answers["/7.jpg"] = first(1, status(500), server.answers["/7.jpg"])
    write_list(server, [f"/{n}.jpg" for n in range(12)] + ["/gone"])
    run(source="urls", path="list.csv", threads=8)
    before, asked = everything(), server.asked.total()
    run(source="urls", path="list.csv", threads=3)
    assert (everything(), server.asked.total()) == (before, asked)
    Path("downloads").rename("elsewhere")
    run(source="urls", path="list.csv", threads=1)
    assert everything() == before and server.asked.total() > asked


def test_too_many_failures_stop_the_stage_and_keep_what_arrived(run: Run, server: Server) -> None:
    """The sentence counts them and names the commonest reason; a second run completes it."""
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


@pytest.mark.parametrize(
    ("count", "changes", "words"),
    [
        (200, {"max_failed": 0.05, "threads": 2}, "http_404"),  # the rest of the list is not asked for
        (1, {"max_failed": 1}, r"not one photograph of list\.csv.*http_404 1"),
        (1, {"allow_private": False}, "forbidden_url"),  # the default
    ],
)
def test_a_list_without_hope_is_given_up(run, server, count, changes, words) -> None:
    write_list(server, [f"/gone{n}" for n in range(count)])
    with pytest.raises(InputError, match=words):
        run(source="urls", path="list.csv", **changes)
    assert server.asked.total() < 30 and ("allow_private" not in changes or server.connections == 0)


def test_colors_are_listed_for_what_arrived_only(run: Run, server: Server) -> None:
    """Unsplash's photographs are asked for in the right size."""
    rows = {"aaaaaaaaaaa": "/0.jpg?ixid=abc", "bbbbbbbbbbb": "/gone", "ccccccccccc": "/1.jpg"}
    photos = "photo_id\tphoto_image_url\n" + "".join(f"{name}\t{server.url(rows[name])}\n" for name in rows)
    colors = "".join(f"{name}\t255\t{n}\t0\t0.{n}\n" for name in rows for n in (1, 3, 2))
    with zipfile.ZipFile("lite.zip", "w") as archive:
        archive.writestr("photos.tsv000", photos)
        archive.writestr("colors.tsv000", "photo_id\tred\tgreen\tblue\tai_coverage\n" + colors)
    table = run(source="unsplash", path="lite.zip", request_size=128, max_failed=0.5)
    size = "w=128&h=128&fit=crop"
    assert sorted(server.queries) == [f"/0.jpg?ixid=abc&{size}", f"/1.jpg?{size}", f"/gone?{size}"]
    assert list(table["status"]) == ["ok", "failed", "ok"]
    listed = pd.read_csv("data/photos/colors.csv")
    assert list(listed["photo"]) == ["aaaaaaaaaaa"] * 3 + ["ccccccccccc"] * 3
    assert list(listed["coverage"]) == [0.3, 0.2, 0.1] * 2
    run(path=str(ROOT / "data/sample.csv"), limit=5)
    assert not Path("data/photos/colors.csv").exists()


def test_a_folder_is_read_in_place(run: Run) -> None:
    """No shard is written; a folder without one photograph is refused."""
    for name, body in (("a.jpg", b"no image"), ("sky/b.jpg", BODIES[1])):
        Path("pictures", name).parent.mkdir(exist_ok=True, parents=True)
        Path("pictures", name).write_bytes(body)
    table = run(source="folder", path="pictures", max_failed=0.5)
    assert list(everything()) == ["photos.csv"]
    assert list(table["class"]) == ["", "sky"] and bytes_of(table, "pictures") == BODIES[1:2]
    Path("pictures/sky/b.jpg").unlink()
    with pytest.raises(InputError, match="not_image 1"):
        run(source="folder", path="pictures", max_failed=1, limit=1)
