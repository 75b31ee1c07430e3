"""fetch.py against a server that misbehaves on purpose; what is expected is HTTP's and the file's own content."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from faults import fault
from filelock import FileLock
from webserver import (
    Server,
    chunked,
    content,
    cut,
    cut_chunked,
    drip,
    endless,
    first,
    hang_up,
    jpegs,
    redirect,
    silence,
    status,
)

from colorize.data import fetch
from colorize.data.fetch import Fetched, fetch_all, read_pinned, retry_after
from colorize.data.formats import why_no_image
from colorize.data.manifest import DataConfig
from colorize.files import InputError

SETTINGS = DataConfig(source="urls", allow_private=True, timeout_seconds=5, attempts=3, threads=4)
JPEG = next(jpegs(1))


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "BACK_OFF_SECONDS", 0.02)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def run(urls: list[str], folder: Path, settings: DataConfig = SETTINGS) -> dict[str, Fetched]:
    return {fetched.url: fetched for fetched in fetch_all(urls, folder, settings, why_no_image)}


def one(url: str, folder: Path, settings: DataConfig = SETTINGS) -> Fetched:
    return run([url], folder, settings)[url]


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name != ".lock"]


def test_a_photograph_arrives_byte_for_byte(server: Server, tmp_path: Path) -> None:
    """The file is what was served, and sha256 and size are its own; the agent says who asks."""
    server.answers["/a.jpg"] = content(JPEG)
    fetched = one(server.url("/a.jpg"), tmp_path)
    assert fetched.path.read_bytes() == JPEG
    assert (fetched.reason, fetched.sha256, fetched.bytes) == (
        "",
        hashlib.sha256(JPEG).hexdigest(),
        len(JPEG),
    )
    assert server.agents == {"colorize/0.1"}


@pytest.mark.parametrize(
    ("answer", "reason", "retryable", "asked"),
    [
        (status(404), "http_404", False, 1),
        (status(410), "http_410", False, 1),
        (status(403, b"no"), "http_403", False, 1),
        (status(204), "http_204", False, 1),
        (status(500), "http_500", True, 3),
        (cut(JPEG), "short_body", True, 3),
        (cut_chunked(JPEG), "short_body", True, 3),
        (content(b"<html>not found</html>", Content_Type="image/jpeg"), "not_image", False, 1),
        (content(b""), "empty_file", False, 1),
        (redirect("/again"), "redirects", False, 6),
        (redirect("file:///etc/passwd"), "forbidden_url", False, 1),
        (redirect("ftp://example.org/a.jpg"), "forbidden_url", False, 1),
    ],
)
def test_a_fault_ends_with_its_reason_and_leaves_no_file(
    server: Server, tmp_path: Path, answer: Any, reason: str, retryable: bool, asked: int
) -> None:
    """Each fault has one reason; what may heal is tried `attempts` times, what will not once."""
    server.answers["/again"] = answer
    fetched = one(server.url("/again"), tmp_path)
    assert (fetched.reason, fetched.retryable) == (reason, retryable)
    assert server.asked.total() == asked
    assert not fetched.path.exists()
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize("bad", [status(500), status(503, Retry_After="0"), cut(JPEG), cut_chunked(JPEG)])
def test_a_fault_that_heals_is_no_fault(server: Server, tmp_path: Path, bad: Any) -> None:
    """Two bad answers and a good one give the whole photograph."""
    server.answers["/a.jpg"] = first(2, bad, content(JPEG))
    assert one(server.url("/a.jpg"), tmp_path).path.read_bytes() == JPEG
    assert server.asked["/a.jpg"] == 3


def test_a_body_in_tiny_chunks_is_judged_by_more_than_its_first(server: Server, tmp_path: Path) -> None:
    """Chunked transfer may cut anywhere, within the magic bytes too."""
    server.answers["/a.jpg"] = chunked(JPEG)
    assert one(server.url("/a.jpg"), tmp_path).path.read_bytes() == JPEG


@pytest.mark.parametrize("answer", [drip(JPEG), drip(JPEG, header_too=True), silence])
def test_a_slow_server_ends_as_timeout_within_the_deadline(
    server: Server, tmp_path: Path, answer: Any
) -> None:
    """A byte every tenth of a second never trips a read timeout; the total deadline does, header or body."""
    server.answers["/slow"] = answer
    started = time.monotonic()
    fetched = one(server.url("/slow"), tmp_path, replace(SETTINGS, timeout_seconds=0.7))
    assert (fetched.reason, fetched.retryable) == ("timeout", True)
    assert time.monotonic() - started < 2
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "answer", [content(JPEG + bytes(20_000)), endless(JPEG), chunked(JPEG + bytes(20_000))]
)
def test_a_body_above_the_limit_is_too_large(server: Server, tmp_path: Path, answer: Any) -> None:
    """Declared or not, nothing above the limit is kept; a higher limit in a later run lets it in."""
    server.answers["/big"] = answer
    fetched = one(server.url("/big"), tmp_path, replace(SETTINGS, max_megabytes=0.02))
    assert (fetched.reason, fetched.retryable) == ("too_large", False)
    assert leftovers(tmp_path) == []


def test_retry_after_pauses_the_host_and_lets_others_flow(server: Server, tmp_path: Path) -> None:
    """After a 429 the host is left alone for the second it asks for; another host is served meanwhile."""
    served = content(JPEG)
    server.answers = {f"/{n}": served for n in range(8)}
    server.answers["/0"] = first(1, status(429, Retry_After="1"), served)
    with Server() as other:
        other.answers = {f"/{n}": served for n in range(8)}
        limited = [server.url(f"/{n}") for n in range(8)]
        free = [other.url(f"/{n}") for n in range(8)]
        results = run([*limited, *free], tmp_path, replace(SETTINGS, threads=1))
        answered = server.times[0][1]
        assert {fetched.reason for fetched in results.values()} == {""}
        assert all(moment - answered >= 0.99 for _, moment in server.times[1:])
        assert all(moment - answered < 0.9 for _, moment in other.times)
    assert server.asked["/0"] == 2


def test_waiting_for_retry_after_is_not_charged_to_the_deadline(server: Server, tmp_path: Path) -> None:
    """A deadline shorter than the pause that a server asks for does not end the item."""
    server.answers["/a"] = first(1, status(503, Retry_After="1"), content(JPEG))
    assert one(server.url("/a"), tmp_path, replace(SETTINGS, timeout_seconds=0.5)).reason == ""


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (status(429, Retry_After="60"), "http_429"),
        (status(429), "http_429"),
        (status(503, Retry_After="60"), "http_503"),
        (hang_up, "connection"),
    ],
)
def test_a_host_that_only_puts_off_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any, reason: str
) -> None:
    """After five pauses in a row, not after hours; other hosts are served; the next run asks again."""
    monkeypatch.setattr(fetch, "RETRY_AFTER_SECONDS", 0.02)
    monkeypatch.setattr(fetch, "BACK_OFF_SECONDS", 0.002)
    server.answers = {f"/{n}": answer for n in range(60)}
    urls = [server.url(f"/{n}") for n in range(60)]
    with Server() as other:
        other.answers = {f"/{n}": content(JPEG) for n in range(8)}
        free = [other.url(f"/{n}") for n in range(8)]
        results = run([*urls, *free], tmp_path)
    assert [results[url].reason for url in free] == [""] * 8
    assert {(results[url].reason, results[url].retryable) for url in urls} == {(reason, True)}
    assert 5 <= server.asked.total() <= 5 * SETTINGS.threads
    asked = server.asked.total()
    run(urls, tmp_path)
    assert server.asked.total() >= asked + 5


@pytest.mark.parametrize(
    ("threads", "puts_off"),
    [(1, lambda count: count % 2 == 1), (16, lambda count: count <= 16)],
    ids=["1", "16"],
)
def test_one_answer_is_enough_to_go_on_with_a_host(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, puts_off: Any
) -> None:
    """Any number of pauses that are each followed by a photograph; sixteen threads that are put off at once."""
    monkeypatch.setattr(fetch, "RETRY_AFTER_SECONDS", 0.02)

    def answer(request: Any) -> None:
        later = puts_off(server.asked.total())
        (status(429, Retry_After="9") if later else content(JPEG))(request)

    server.answers = {f"/{n}": answer for n in range(24)}
    patient = replace(SETTINGS, threads=threads, attempts=99)
    results = run([server.url(f"/{n}") for n in range(24)], tmp_path, patient)
    assert {fetched.reason for fetched in results.values()} == {""}
    assert server.asked.total() > 24


def test_an_unknown_name_is_looked_up_a_few_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each of thousands of addresses, when every look-up may take seconds."""
    looked = []

    def resolve(host: str, *_: Any, **__: Any) -> object:
        looked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(fetch, "BACK_OFF_SECONDS", 0.002)
    urls = [f"http://nobody.test/{n}" for n in range(500)]
    results = run(urls, tmp_path, replace(SETTINGS, allow_private=False))
    assert {(fetched.reason, fetched.retryable) for fetched in results.values()} == {("connection", True)}
    assert len(looked) <= 2 * 5 * SETTINGS.threads


def test_a_redirect_to_a_given_up_host_ends(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with one more request at most to the host that redirects."""
    monkeypatch.setattr(fetch, "RETRY_AFTER_SECONDS", 0.02)
    with Server() as limited:
        limited.answers = {f"/{n}": status(429, Retry_After="60") for n in range(40)}
        server.answers = {f"/{n}": redirect(limited.url(f"/{n}")) for n in range(40)}
        results = run([server.url(f"/{n}") for n in range(40)], tmp_path)
        assert {fetched.reason for fetched in results.values()} == {"http_429"}
        assert limited.asked.total() <= 5 * SETTINGS.threads


@pytest.mark.parametrize("target", ["http://[", "http://x.test:99999/", "//", "\xff\xfe", "http://a b/"])
def test_a_redirect_to_no_address_is_refused(server: Server, tmp_path: Path, target: str) -> None:
    """One row, and the others go on."""
    server.answers = {"/a": redirect(target), "/b": content(JPEG)}
    results = run([server.url("/a"), server.url("/b")], tmp_path)
    assert [fetched.reason for fetched in results.values()].count("") == 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("7", 7),
        (" 7 ", 7),
        ("-5", 0),
        ("86400", 60),
        ("9" * 400, 60),
        ("soon", 0),
        (formatdate(1_000_000_020, usegmt=True), 20),
        (formatdate(1_000_086_400, usegmt=True), 60),
        (formatdate(999_999_000, usegmt=True), 0),
        ("Fri, 99 Foo 99999 00:00:00 GMT", 0),
    ],
)
def test_retry_after_is_understood_and_bounded(header: str | None, seconds: float) -> None:
    """Seconds or a date, never below 0 nor above a minute, whatever a server writes."""
    assert retry_after(header, 1_000_000_000) == seconds


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/a",
        "http://localhost:{port}/a",
        "http://127.1:{port}/a",
        "http://2130706433:{port}/a",
        "http://[::1]:{port}/a",
        "http://[::ffff:127.0.0.1]:{port}/a",
        "http://0.0.0.0:{port}/a",
        "http://10.0.0.1/a",
        "http://192.168.1.1/a",
        "http://169.254.169.254/latest/meta-data",
        "http://user:secret@example.org/a",
        "file:///etc/passwd",
        "ftp://example.org/a",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "//example.org/a",
        "no address",
        "",
        "http://",
        "http://[",
        "http://example.org:99999/a",
        "http://" + "a" * 64 + ".example/",
    ],
)
def test_an_address_that_must_not_be_asked_is_refused(server: Server, tmp_path: Path, url: str) -> None:
    """Only http and https, without credentials, to public addresses however they are spelled."""
    server.answers["/a"] = content(JPEG)
    url = url.format(port=server.server_port)
    fetched = one(url, tmp_path, replace(SETTINGS, allow_private=False))
    assert (fetched.reason, fetched.retryable) == ("forbidden_url", False)
    assert server.connections == 0


def test_every_redirect_is_checked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A public host that redirects to a private one is refused at the second hop, and the target never asked."""
    monkeypatch.setattr(fetch, "is_public", lambda address: address == "127.0.0.1")
    with Server("127.0.0.2") as private:
        server.answers["/hop"] = redirect(private.url("/secret"))
        private.answers["/secret"] = content(JPEG)
        assert (
            one(server.url("/hop"), tmp_path, replace(SETTINGS, allow_private=False)).reason
            == "forbidden_url"
        )
        assert server.asked == {"/hop": 1} and private.connections == 0


@fault(10, "a name that is public when it is checked and private when it is connected to (DNS rebinding)")
def test_a_name_that_changes_its_address_is_caught(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`forbidden_url`; nothing is asked of the private host."""
    genuine = socket.getaddrinfo
    public = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", server.server_port))]
    answers = iter([public])

    def resolve(host: str, port: int, *args: Any, **kwargs: Any) -> object:
        return next(answers, None) or genuine("127.0.0.1", port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    server.answers["/a"] = content(JPEG)
    url = server.url("/a", "rebound.test")
    assert one(url, tmp_path, replace(SETTINGS, allow_private=False)).reason == "forbidden_url"
    deadline = time.monotonic() + 5
    while (
        not server.connections and time.monotonic() < deadline
    ):  # its thread may count after we have hung up
        time.sleep(0.01)
    assert server.connections == 1 and not server.asked


def test_relative_redirects_are_followed(server: Server, tmp_path: Path) -> None:
    """Five hops are allowed."""
    for hop in range(5):
        server.answers[f"/x/{hop}"] = redirect(f"{hop + 1}")
    server.answers["/x/5"] = content(JPEG)
    assert one(server.url("/x/0"), tmp_path).path.read_bytes() == JPEG


def test_a_closed_port_is_a_connection_failure(tmp_path: Path) -> None:
    """Nobody listens: retryable."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a"
        fetched = one(url, tmp_path)
    assert (fetched.reason, fetched.retryable) == ("connection", True)


def test_nothing_is_fetched_twice(server: Server, tmp_path: Path) -> None:
    """A second run asks only for what may have healed: not for what arrived, nor for what is gone."""
    bodies = dict(zip(["/a", "/b"], jpegs(2), strict=True))
    server.answers = {path: content(body) for path, body in bodies.items()}
    server.answers |= {"/html": content(b"<html>"), "/500": status(500)}
    urls = [server.url(path) for path in ("/a", "/b", "/gone", "/html", "/500")]
    before = run(urls, tmp_path)
    asked = server.asked.copy()
    assert run(urls, tmp_path) == before
    assert server.asked - asked == {"/500": 3}


def test_rotten_bytes_in_the_cache_are_fetched_again(server: Server, tmp_path: Path) -> None:
    """The cache is believed only as far as its sha256 holds; a broken note is no news either."""
    server.answers["/a"] = content(JPEG)
    path = one(server.url("/a"), tmp_path).path
    path.write_bytes(JPEG[:-1] + b"!")
    assert one(server.url("/a"), tmp_path).path.read_bytes() == JPEG
    path.with_suffix(".json").write_text("[1, ")
    assert one(server.url("/a"), tmp_path).reason == ""
    assert server.asked["/a"] == 3


def test_connections_are_used_again(server: Server, tmp_path: Path) -> None:
    """Forty photographs through four threads need few connections, not forty."""
    server.answers = {f"/{n}": content(JPEG) for n in range(40)}
    results = run([server.url(f"/{n}") for n in range(40)], tmp_path)
    assert {fetched.reason for fetched in results.values()} == {""}
    assert server.connections <= 8


def test_no_more_requests_at_a_time_than_threads(server: Server, tmp_path: Path) -> None:
    """The server never sees more than `threads` requests at once."""
    active, peak, lock = 0, 0, threading.Lock()

    def answer(request: Any) -> None:
        nonlocal active, peak
        with lock:
            active += 1
            peak = max(peak, active)
        time.sleep(0.02)
        with lock:
            active -= 1
        content(JPEG)(request)

    server.answers = {f"/{n}": answer for n in range(24)}
    run([server.url(f"/{n}") for n in range(24)], tmp_path, replace(SETTINGS, threads=3))
    assert peak == 3


def test_stopping_early_ends_soon(server: Server, tmp_path: Path) -> None:
    """Whoever has seen enough closes the iterator and is not kept waiting."""
    server.answers = {"/a": content(JPEG), "/slow": drip(JPEG)}
    started = time.monotonic()
    results = fetch_all([server.url("/a"), server.url("/slow")], tmp_path, SETTINGS, why_no_image)
    assert next(results).reason == ""
    results.close()
    assert time.monotonic() - started < 1


def test_a_folder_that_cannot_be_written_is_one_sentence(server: Server, tmp_path: Path) -> None:
    """The cache folder's place is taken by a file."""
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(InputError, match="cache"):
        one(server.url("/a"), tmp_path / "cache")


def test_who_waits_for_another_run_is_told(server: Server, tmp_path: Path, capsys) -> None:
    """It may fetch the same, and for long."""
    server.answers["/a"] = content(JPEG)
    with ThreadPoolExecutor(1) as other:
        with FileLock(tmp_path / ".lock"):
            fetched = other.submit(one, server.url("/a"), tmp_path)
            said, deadline = "", time.monotonic() + 30
            while "another run fetches into" not in said and time.monotonic() < deadline:
                said += capsys.readouterr().err
            assert said and not server.asked
        assert fetched.result().reason == ""


def test_killed_fetch_leaves_whole_files_only_and_goes_on(server: Server, tmp_path: Path) -> None:
    """After SIGKILL every file that has a note is whole, and the next run asks for the rest only."""
    bodies = list(jpegs(30))

    def slowly(body: bytes) -> Any:
        def answer(request: Any) -> None:
            time.sleep(0.05)
            content(body)(request)

        return answer

    server.answers = {f"/{n}": slowly(body) for n, body in enumerate(bodies)}
    urls = [server.url(f"/{n}") for n in range(30)]
    program = (
        "import sys; from pathlib import Path; from colorize.fetch import fetch_all;"
        "from colorize.data.fetch import DataConfig;"
        "settings = DataConfig(allow_private=True, threads=2);"
        "print(*fetch_all(sys.argv[2:], Path(sys.argv[1]), settings, lambda head: ''))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path), *urls], stdout=subprocess.DEVNULL
    )
    while server.asked.total() < 10 and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = len(list(tmp_path.glob("*.json")))
    asked = server.asked.total()
    assert 0 < kept < 30
    results = run(urls, tmp_path)
    assert [results[url].path.read_bytes() for url in urls] == bodies
    assert server.asked.total() - asked == 30 - kept
    assert not list(tmp_path.glob(".*.partial"))


# ---- one file, pinned ----


def test_a_pinned_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    """The second reading is from the folder, so the server may be gone; a path is read where it lies."""
    digits = hashlib.sha256(b"weights").hexdigest()
    server.answers["/w.pth"] = content(b"weights")
    for _ in range(2):
        assert read_pinned("prior.released", server.url("/w.pth"), digits, tmp_path / "kept") == b"weights"
    assert server.asked["/w.pth"] == 1
    (tmp_path / "w.pth").write_bytes(b"weights")
    assert read_pinned("prior.released", str(tmp_path / "w.pth"), digits, None) == b"weights"
    with pytest.raises(ValueError, match="needs a folder"):
        read_pinned("prior.released", server.url("/w.pth"), digits, None)


def test_a_pinned_file_that_is_another_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    """The sentence names the parameter, the file and both sums; once the server is mended, so is the next run."""
    digits = hashlib.sha256(b"weights").hexdigest()
    found = hashlib.sha256(b"others").hexdigest()
    server.answers["/w.pth"] = first(1, content(b"others"), content(b"weights"))
    with pytest.raises(InputError, match=f"prior.released: http.*/w.pth has sha256 {found}, not {digits}"):
        read_pinned("prior.released", server.url("/w.pth"), digits, tmp_path)
    assert leftovers(tmp_path) == []
    assert read_pinned("prior.released", server.url("/w.pth"), digits, tmp_path) == b"weights"


def test_a_pinned_file_that_cannot_be_had_is_refused_and_asked_for_again(
    server: Server, tmp_path: Path
) -> None:
    """A 404 is no verdict for ever here, as it is among many photographs."""
    digits = hashlib.sha256(b"weights").hexdigest()
    server.answers["/w.pth"] = first(1, status(404), content(b"weights"))
    with pytest.raises(
        InputError, match=r"network.weights: cannot read http.*/w.pth \(http_404\); give the path or URL"
    ):
        read_pinned("network.weights", server.url("/w.pth"), digits, tmp_path)
    assert read_pinned("network.weights", server.url("/w.pth"), digits, tmp_path) == b"weights"
    with pytest.raises(InputError, match="network.weights: cannot read .*nowhere; give the path or URL"):
        read_pinned("network.weights", str(tmp_path / "nowhere"), digits, tmp_path)
