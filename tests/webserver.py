"""A web server on the loopback address that misbehaves on purpose and counts what it is asked.

For each path it has a function that gets the request and answers it however badly it likes.
"""

import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

import numpy as np
import pytest
from PIL import Image
from skimage import data

from colorize.data import fetch

Answer = Callable[["Request"], None]


def jpegs(count: int, side: int = 48) -> Iterator[bytes]:
    """Different real photographs: tiles of scikit-image's astronaut."""
    photograph = data.astronaut()
    for index in range(count):
        top, left = np.unravel_index(index, (512 // side, 512 // side))
        buffer = io.BytesIO()
        tile = photograph[top * side : (top + 1) * side, left * side : (left + 1) * side]
        Image.fromarray(tile).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again after milliseconds, and ask no proxy."""
    monkeypatch.setattr(fetch, "BACK_OFF_SECONDS", 0.002)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


class Request(BaseHTTPRequestHandler):
    """One request; `count` says the how many-th for its path it is, from 1."""

    protocol_version = "HTTP/1.1"
    count = 0

    def do_GET(self) -> None:
        server: Server = self.server  # type: ignore[assignment]
        path = self.path.partition("?")[0]
        with server.lock:
            server.asked[path] += 1
            server.queries.append(self.path)
            server.agents.add(self.headers["User-Agent"])
            server.times.append((path, time.monotonic()))
            self.count = server.asked[path]
        answer = server.answers.get(path, status(404))
        answer(self)

    def send(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Answers by path; `asked` counts requests by path, `queries` lists paths with their queries."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), Request)
        self.answers: dict[str, Answer] = {}
        self.asked: Counter[str] = Counter()
        self.queries: list[str] = []
        self.agents: set[str] = set()
        self.times: list[tuple[str, float]] = []
        self.connections = 0
        self.lock = threading.Lock()

    def url(self, path: str, host: str = "") -> str:
        return f"http://{host or self.server_address[0]}:{self.server_port}{path}"

    def process_request(self, *args: object) -> None:
        self.connections += 1
        super().process_request(*args)  # type: ignore[arg-type]

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is part of the game."""

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def content(body: bytes, **headers: str) -> Answer:
    """The body, as it should be."""
    return lambda request: request.send(200, body, **headers)


def status(code: int, body: bytes = b"", **headers: str) -> Answer:
    return lambda request: request.send(code, body, **headers)


def first(times: int, bad: Answer, good: Answer) -> Answer:
    """So many bad answers, then good ones."""
    return lambda request: (bad if request.count <= times else good)(request)


def redirect(target: str) -> Answer:
    return status(302, Location=target)


def cut(body: bytes) -> Answer:
    """Promises more than it sends."""
    return status(200, body[: len(body) // 2], Content_Length=str(len(body)), Connection="close")


def raw_chunks(raw: bytes) -> Answer:
    """A body in chunks, as given; then the connection ends."""

    def answer(request: Request) -> None:
        request.close_connection = True
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        request.wfile.write(raw)

    return answer


def cut_chunked(body: bytes) -> Answer:
    """Hangs up in the middle of a chunk."""
    return raw_chunks(b"%x\r\n" % len(body) + body[: len(body) // 2])


def chunked(body: bytes) -> Answer:
    """The whole body, one byte to a chunk at first."""
    parts = (body[:1], body[1:2], body[2:])
    return raw_chunks(b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n")


def endless(start: bytes) -> Answer:
    """A body without length or end."""

    def answer(request: Request) -> None:
        request.close_connection = True
        request.send_response(200)
        request.end_headers()
        while True:
            request.wfile.write(start + bytes(2**16))

    return answer


def drip(body: bytes, header_too: bool = False) -> Answer:
    """One byte every tenth of a second, from the body's first on or from the status line's; no length."""

    def answer(request: Request) -> None:
        request.close_connection = True
        header = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n"
        if not header_too:
            request.wfile.write(header)
        for byte in header + body if header_too else body:
            request.wfile.write(bytes([byte]))
            time.sleep(0.1)

    return answer


def hang_up(request: Request) -> None:
    """Ends the connection without a word."""
    request.close_connection = True


def silence(request: Request) -> None:
    """Accepts and says nothing."""
    request.close_connection = True
    time.sleep(30)
