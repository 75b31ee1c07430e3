"""fetch.py against a server that misbehaves on purpose."""

import hashlib
import shutil
import socket
import ssl
import subprocess
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
    soon,
    status,
)

from colorize.data import fetch
from colorize.data.fetch import Fetched, fetch_all, read_pinned, retry_after
from colorize.data.formats import why_no_image
from colorize.data.manifest import DataConfig
from colorize.files import InputError

SETTINGS = DataConfig(source="urls", allow_private=True, timeout_seconds=30, attempts=3, threads=4)
PUBLIC = replace(SETTINGS, allow_private=False)
JPEG = next(jpegs(1))


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    soon(monkeypatch)


def run(urls: list[str], folder: Path, settings: DataConfig = SETTINGS) -> dict[str, Fetched]:
    return {fetched.url: fetched for fetched in fetch_all(urls, folder, settings, why_no_image)}


def one(url: str, folder: Path, settings: DataConfig = SETTINGS) -> Fetched:
    return run([url], folder, settings)[url]


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name != ".lock"]


@pytest.mark.parametrize("answer", [content(JPEG), chunked(JPEG)])
def test_a_photograph_arrives_byte_for_byte(server: Server, tmp_path: Path, answer: Any) -> None:
    """Also in tiny chunks, of which the first one is too short to tell a photograph."""
    server.answers["/a.jpg"] = answer
    fetched = one(server.url("/a.jpg"), tmp_path)
    assert fetched.path.read_bytes() == JPEG
    assert (fetched.reason, fetched.sha256) == ("", hashlib.sha256(JPEG).hexdigest())
    assert fetched.bytes == len(JPEG) and server.agents == {"colorize/0.1"}


def reset(request: Any) -> None:
    linger = b"\1\0\0\0\0\0\0\0"  # close without the bytes that are still to be sent
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    request.connection.close()
    request.close_connection = True


@fault(1, "404, 410", "`failed`, `http_404`, tried once and remembered.")
@fault(
    7,
    "a connection cut within a chunk",
    "`short_body`, tried again; the part is never seen under a final name.",
)
@fault(
    8, "a body above `data.max_megabytes`, or without end", "`too_large`: what arrives is counted on its way."
)
@fault(9, "a redirect loop, or more than 5 redirects", "`redirects`.")
@pytest.mark.parametrize(
    ("answer", "reason", "retryable", "asked"),
    [
        (status(404), "http_404", False, 1),
        (status(410), "http_410", False, 1),
        (status(403, b"no"), "http_403", False, 1),
        (status(204), "http_204", False, 1),
        (status(502), "http_502", True, 3),
        (reset, "connection", True, 3),
        (cut(JPEG), "short_body", True, 3),
        (cut_chunked(JPEG), "short_body", True, 3),
        (content(b"<html>not found</html>", Content_Type="image/jpeg"), "not_image", False, 1),
        (content(b""), "empty_file", False, 1),
        (content(JPEG + bytes(20_000)), "too_large", False, 1),
        (chunked(JPEG + bytes(20_000)), "too_large", False, 1),
        (endless(JPEG), "too_large", False, 1),
        (redirect("/a"), "redirects", False, 6),
        (redirect("ftp://example.org/a.jpg"), "forbidden_url", False, 1),
    ],
)
def test_a_fault_ends_with_its_reason_and_leaves_no_file(
    server: Server, tmp_path: Path, answer: Any, reason: str, retryable: bool, asked: int
) -> None:
    """What may heal is tried `attempts` times, and again by the next run; what will not is tried once."""
    server.answers["/a"] = answer
    settings = replace(SETTINGS, max_megabytes=0.02)
    fetched = one(server.url("/a"), tmp_path, settings)
    assert (fetched.reason, fetched.retryable) == (reason, retryable)
    assert server.asked["/a"] == asked
    assert not fetched.path.exists() and not list(tmp_path.glob(".*.partial"))
    one(server.url("/a"), tmp_path, settings)
    forgotten = retryable or reason in (
        "too_large",
        "redirects",
        "forbidden_url",
    )  # another limit may let it in
    assert server.asked["/a"] == asked * (2 if forgotten else 1)


@pytest.mark.parametrize("bad", [status(500), status(503, Retry_After="0"), cut(JPEG), cut_chunked(JPEG)])
def test_a_fault_that_heals_is_no_fault(server: Server, tmp_path: Path, bad: Any) -> None:
    server.answers["/a.jpg"] = first(2, bad, content(JPEG))
    assert one(server.url("/a.jpg"), tmp_path).path.read_bytes() == JPEG
    assert server.asked["/a.jpg"] == 3


@fault(5, "a server that accepts and says nothing, or one byte at a time")
def test_a_server_that_never_ends_is_ended(server: Server, tmp_path: Path) -> None:
    """One deadline, `data.timeout_seconds`, covers connection, header and body of all attempts: `timeout`."""
    server.answers = {"/mute": silence, "/drip": drip(JPEG), "/slow": drip(JPEG, header_too=True)}
    urls = [server.url(path) for path in server.answers]
    results = run(urls, tmp_path, replace(SETTINGS, timeout_seconds=0.7))
    assert {(fetched.reason, fetched.retryable) for fetched in results.values()} == {("timeout", True)}
    assert leftovers(tmp_path) == []


@fault(2, "429 with Retry-After in seconds")
def test_a_host_that_asks_for_a_pause_gets_it(server: Server, tmp_path: Path) -> None:
    """The host is left alone for that long, other hosts are served meanwhile, and the photograph arrives."""
    server.answers = {f"/{n}": content(JPEG) for n in range(4)}
    server.answers["/0"] = first(1, status(429, Retry_After="1"), content(JPEG))
    with Server() as other:
        other.answers = server.answers | {"/0": content(JPEG)}
        urls = [host.url(f"/{n}") for host in (server, other) for n in range(4)]
        # A deadline below the pause: waiting is not charged to it.
        results = run(urls, tmp_path, replace(SETTINGS, threads=1, timeout_seconds=0.9))
        assert {fetched.reason for fetched in results.values()} == {""}
        assert max(moment for _, moment in other.times) < server.times[1][1]
    assert server.asked["/0"] == 2


@fault(
    3,
    "429 or 503 with an absurd Retry-After: a day, a date, a negative number",
    "Waited for at most a minute, five times at most; then `failed`, and the next run tries again.",
)
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (status(429, Retry_After="86400"), "http_429"),
        (status(429), "http_429"),
        (status(503, Retry_After="60"), "http_503"),
        (hang_up, "connection"),
    ],
)
def test_a_host_that_only_puts_off_is_given_up(server, tmp_path, monkeypatch, answer, reason) -> None:
    """After five pauses in a row, also for a redirect to it; others are served; the next run asks again."""
    monkeypatch.setattr(fetch, "RETRY_AFTER_SECONDS", 0.02)
    server.answers = {f"/{n}": answer for n in range(40)}
    urls = [server.url(f"/{n}") for n in range(40)]
    with Server() as other:
        other.answers = {f"/{n}": content(JPEG) for n in range(8)}
        other.answers |= {f"/away{n}": redirect(url) for n, url in enumerate(urls)}
        free, away = (
            [other.url(path) for path in other.answers if ("away" in path) == led] for led in (False, True)
        )
        results = run([*urls, *free, *away], tmp_path)
    assert [results[url].reason for url in free] == [""] * 8
    assert {(results[url].reason, results[url].retryable) for url in (*urls, *away)} == {(reason, True)}
    assert 5 <= server.asked.total() <= 5 * SETTINGS.threads
    asked = server.asked.total()
    run(urls, tmp_path)
    assert server.asked.total() >= asked + 5


@pytest.mark.parametrize(
    ("threads", "puts_off"),
    [(1, lambda count: count % 2 == 1), (16, lambda count: count <= 16)],
    ids=["1", "16"],
)
def test_one_answer_is_enough_to_go_on_with_a_host(server, tmp_path, monkeypatch, threads, puts_off) -> None:
    """A pause before every other photograph; sixteen threads that are put off at once."""
    monkeypatch.setattr(fetch, "RETRY_AFTER_SECONDS", 0.02)

    def answer(request: Any) -> None:
        later = puts_off(server.asked.total())
        (status(429, Retry_After="9") if later else content(JPEG))(request)

    server.answers = {f"/{n}": answer for n in range(24)}
    urls = [server.url(f"/{n}") for n in range(24)]
    results = run(urls, tmp_path, replace(SETTINGS, threads=threads, attempts=99))
    assert {fetched.reason for fetched in results.values()} == {""}
    assert server.asked.total() > 24


@fault(4, "a name that does not resolve", "`connection`, and to be tried again by the next run.")
def test_an_unknown_name_is_looked_up_a_few_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each of hundreds of addresses, when every look-up may take seconds."""
    looked = []

    def resolve(host: str, *_: Any, **__: Any) -> object:
        looked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    results = run([f"http://nobody.test/{n}" for n in range(200)], tmp_path, PUBLIC)
    assert {(fetched.reason, fetched.retryable) for fetched in results.values()} == {("connection", True)}
    assert len(looked) <= 2 * 5 * SETTINGS.threads


@pytest.mark.parametrize("target", ["http://[", "http://x.test:99999/", "//", "\xff\xfe", "http://a b/"])
def test_a_redirect_to_no_address_is_refused(server: Server, tmp_path: Path, target: str) -> None:
    """It costs its own row only."""
    server.answers = {"/a": redirect(target), "/b": content(JPEG)}
    results = run([server.url("/a"), server.url("/b")], tmp_path)
    assert [fetched.reason for fetched in results.values()].count("") == 1


DATES = [formatdate(1_000_000_000 + seconds, usegmt=True) for seconds in (20, 86_400, -1_000)]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([" 7 "], 7),
        (["86400", "9" * 400, DATES[1]], 60),
        ([DATES[0]], 20),
        ([None, "", "-5", "soon", DATES[2], "Fri, 99 Foo 99999 00:00:00 GMT"], 0),
    ],
)
def test_retry_after_is_understood_and_bounded(headers: list[str | None], seconds: float) -> None:
    """Seconds or a date, never below 0 nor above a minute."""
    assert {retry_after(header, 1_000_000_000) for header in headers} == {seconds}


FORBIDDEN = """http://127.0.0.1:{port}/a http://localhost:{port}/a http://127.1:{port}/a http://2130706433:{port}/a
    http://[::1]:{port}/a http://[::ffff:127.0.0.1]:{port}/a http://0.0.0.0:{port}/a
    http://10.0.0.1/a http://192.168.1.1/a http://169.254.169.254/latest/meta-data
    http://user:secret@example.org/a file:///etc/passwd data:image/png;base64,AAAA javascript:alert(1)
    //example.org/a address http:// http://[ http://example.org:99999/a"""


@fault(
    11,
    "file, ftp, data and javascript addresses, no host, credentials in the address",
    "`forbidden_url`; a password is written to no file.",
)
@pytest.mark.parametrize(
    "url",
    FORBIDDEN.split() + ["", "no address", "http://" + "a" * 64 + ".example/"],
)
def test_an_address_that_must_not_be_asked_is_refused(server: Server, tmp_path: Path, url: str) -> None:
    """Only http and https, without credentials, to public addresses however they are spelled."""
    server.answers["/a"] = content(JPEG)
    fetched = one(url.format(port=server.server_port), tmp_path, PUBLIC)
    assert (fetched.reason, fetched.retryable) == ("forbidden_url", False)
    assert server.connections == 0


@fault(
    10,
    "a redirect to a file, to FTP, to this machine or a private network",
    "`forbidden_url`, and the target is never asked; `data.allow_private` permits private ones.",
)
def test_every_redirect_is_checked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A public host that redirects to a private one is refused at the second hop."""
    monkeypatch.setattr(fetch, "is_public", lambda address: address == "127.0.0.1")
    with Server("127.0.0.2") as private:
        server.answers["/hop"] = redirect(private.url("/secret"))
        private.answers["/secret"] = content(JPEG)
        assert one(server.url("/hop"), tmp_path, PUBLIC).reason == "forbidden_url"
        assert server.asked == {"/hop": 1} and private.connections == 0


@fault(10, "a name that is public when it is checked and private when it is connected to (DNS rebinding)")
def test_a_name_that_changes_its_address_is_caught(server, tmp_path, monkeypatch) -> None:
    """`forbidden_url`; nothing is asked of the private host."""
    genuine = socket.getaddrinfo
    public = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", server.server_port))]
    answers = iter([public])

    def resolve(host: str, port: int, *args: Any, **kwargs: Any) -> object:
        return next(answers, None) or genuine("127.0.0.1", port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    server.answers["/a"] = content(JPEG)
    assert one(server.url("/a", "rebound.test"), tmp_path, PUBLIC).reason == "forbidden_url"
    assert not server.asked and next(answers, None) is None


@fault(12, "a certificate that nobody vouches for", "`tls`; there is no switch that turns the check off.")
@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_a_certificate_of_nobody_is_refused(server: Server, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=127.0.0.1"
    subprocess.run([*make.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    fetched = one(server.url("/a").replace("http:", "https:"), tmp_path / "cache")
    assert (fetched.reason, fetched.retryable) == ("tls", False)


def test_relative_redirects_are_followed(server: Server, tmp_path: Path) -> None:
    """Five hops are allowed."""
    server.answers = {f"/x/{hop}": redirect(f"{hop + 1}") for hop in range(5)} | {"/x/5": content(JPEG)}
    assert one(server.url("/x/0"), tmp_path).path.read_bytes() == JPEG


def test_nothing_is_fetched_twice(server: Server, tmp_path: Path) -> None:
    """A second run asks only for what may have healed: not for what arrived, nor for what is gone."""
    server.answers = {"/a": content(JPEG), "/html": content(b"<html>"), "/500": status(500)}
    urls = [server.url(path) for path in ("/a", "/gone", "/html", "/500")]
    before = run(urls, tmp_path)
    asked = server.asked.copy()
    assert run(urls, tmp_path) == before
    assert server.asked - asked == {"/500": 3}


def test_rotten_bytes_in_the_cache_are_fetched_again(server: Server, tmp_path: Path) -> None:
    """The cache is believed as far as its sha256 holds; a broken note is not believed at all."""
    server.answers["/a"] = content(JPEG)
    path = one(server.url("/a"), tmp_path).path
    path.write_bytes(JPEG[:-1] + b"!")
    assert one(server.url("/a"), tmp_path).path.read_bytes() == JPEG
    path.with_suffix(".json").write_text("[1, ")
    assert one(server.url("/a"), tmp_path).reason == ""
    assert server.asked["/a"] == 3


def test_threads_share_connections_and_ask_no_more_at_a_time(server: Server, tmp_path: Path) -> None:
    """Three threads ask three at a time, over a few connections."""
    active, peak, together = 0, 0, threading.Barrier(3, timeout=30)

    def answer(request: Any) -> None:
        nonlocal active, peak
        with server.lock:
            active += 1
            peak = max(peak, active)
        together.wait()
        with server.lock:
            active -= 1
        content(JPEG)(request)

    server.answers = {f"/{n}": answer for n in range(24)}
    results = run([server.url(f"/{n}") for n in range(24)], tmp_path, replace(SETTINGS, threads=3))
    assert {fetched.reason for fetched in results.values()} == {""}
    assert peak == 3 and server.connections <= 6


def test_stopping_early_waits_for_nobody(server: Server, tmp_path: Path) -> None:
    """Whoever has seen enough closes the iterator."""
    go_on, ended = threading.Event(), threading.Event()

    def slow(request: Any) -> None:
        go_on.wait(20)
        ended.set()
        hang_up(request)

    server.answers = {"/a": content(JPEG), "/slow": slow}
    results = fetch_all([server.url("/a"), server.url("/slow")], tmp_path, SETTINGS, why_no_image)
    assert next(results).reason == ""
    results.close()
    assert not ended.is_set()
    go_on.set()


def test_a_folder_that_cannot_be_written_is_one_sentence(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(InputError, match="cache"):
        one(server.url("/a"), tmp_path / "cache")


def test_who_waits_for_another_run_is_told(server: Server, tmp_path: Path, capsys) -> None:
    """And asks for nothing meanwhile."""
    server.answers["/a"] = content(JPEG)
    with ThreadPoolExecutor(1) as other:
        with FileLock(tmp_path / ".lock"):
            fetched = other.submit(one, server.url("/a"), tmp_path)
            said, deadline = "", time.monotonic() + 30
            while "another run fetches into" not in said and time.monotonic() < deadline:
                said += capsys.readouterr().err
            assert said and not server.asked
        assert fetched.result().reason == ""


# ---- one file, pinned ----

DIGITS = hashlib.sha256(b"weights").hexdigest()


def test_a_pinned_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    """The second reading is from the folder, so the server may be gone; a path is read where it lies."""
    server.answers["/w.pth"] = content(b"weights")
    for _ in range(2):
        assert read_pinned("prior.released", server.url("/w.pth"), DIGITS, tmp_path / "kept") == b"weights"
    assert server.asked["/w.pth"] == 1
    (tmp_path / "w.pth").write_bytes(b"weights")
    assert read_pinned("prior.released", str(tmp_path / "w.pth"), DIGITS, None) == b"weights"
    with pytest.raises(ValueError, match="needs a folder"):
        read_pinned("prior.released", server.url("/w.pth"), DIGITS, None)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (content(b"others"), rf"w.pth has sha256 {hashlib.sha256(b'others').hexdigest()}, not {DIGITS}"),
        (status(404), r"cannot read http.*/w.pth \(http_404\); give the path or URL"),
    ],
)
def test_a_pinned_file_that_is_not_there_is_asked_for_again(server, tmp_path, bad, words) -> None:
    """The sentence names the parameter; nothing is kept, so a mended server is enough."""
    server.answers["/w.pth"] = first(1, bad, content(b"weights"))
    with pytest.raises(InputError, match=f"prior.released: .*{words}"):
        read_pinned("prior.released", server.url("/w.pth"), DIGITS, tmp_path)
    assert not list(tmp_path.glob("*.pth"))
    assert read_pinned("prior.released", server.url("/w.pth"), DIGITS, tmp_path) == b"weights"
    with pytest.raises(InputError, match="network.weights: cannot read .*nowhere; give the path or URL"):
        read_pinned("network.weights", str(tmp_path / "nowhere"), DIGITS, tmp_path)
