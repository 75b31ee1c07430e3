"""Download many photographs with faults among them: `python -m benchmarks.downloads [ITEMS] [--kilobytes N]`.

A local web server in its own process serves one photograph of N (20) KB under ITEMS (20,000) addresses and
answers after 50 ms, like a distant one. Every twentieth address has a fault: 404, 410, 500, a body cut short,
a page, an empty body, a redirect loop, a pause; two kinds heal at the second request. We download everything
with 16 threads, then once more. For comparison, a loop of `requests.get` over one connection downloads the
first sound addresses. Prints JSON: photographs a second of both and their ratio, the count of every outcome,
the requests of the second run, and the memory after a tenth and at the end.
"""

import argparse
import hashlib
import json
import multiprocessing
import resource
import tempfile
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import requests

from benchmarks.machine import machine
from colorize.data.fetch import fetch_all
from colorize.data.formats import why_no_image
from colorize.data.manifest import DataConfig

FAULTS = ("404", "410", "500", "cut", "page", "empty", "loop", "heals", "cut_heals", "slow")
LOOPED = 400
SECONDS = 0.05


def fault_of(number: int) -> str:
    """Fault of an address; every twentieth has one, all kinds equally often."""
    return FAULTS[number // 20 % len(FAULTS)] if number % 20 == 19 else ""


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise every body waits 40 ms for the acknowledgment of the header
    asked: Counter[int] = Counter()
    photograph: bytes

    def send(self, status: int, body: bytes = b"", length: int | None = None, location: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/asked":
            return self.send(200, str(self.asked.total()).encode())
        time.sleep(SECONDS)
        number = int(self.path[1:])
        self.asked[number] += 1
        fault = fault_of(number)
        if self.asked[number] > 1 and fault in ("heals", "cut_heals"):
            fault = ""
        if fault.isdigit() or fault == "heals":
            self.send(int(fault) if fault.isdigit() else 500)
        elif fault in ("cut", "cut_heals"):
            self.send(200, self.photograph[:5000], len(self.photograph))
            self.close_connection = True
        elif fault == "slow":
            time.sleep(0.3)
            self.send(200, self.photograph)
        elif fault == "loop":
            self.send(302, location=self.path)
        else:
            self.send(200, {"page": b"<html>sorry</html>", "empty": b""}.get(fault, self.photograph))

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        pass


def serve(pipe, photograph: bytes) -> None:
    Answer.photograph = photograph
    server = Server(("127.0.0.1", 0), Answer)
    pipe.send(server.server_port)
    server.serve_forever()


def megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("items", nargs="?", type=int, default=20_000)
    parser.add_argument("--kilobytes", type=int, default=20)
    arguments = parser.parse_args()
    items = arguments.items
    random = hashlib.shake_256(b"a photograph").digest(1000 * arguments.kilobytes)
    photograph = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + random
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=[theirs, photograph], daemon=True)
    process.start()
    base = f"http://127.0.0.1:{ours.recv()}/"
    urls = [f"{base}{number}" for number in range(items)]
    settings = DataConfig(threads=16, attempts=3, timeout_seconds=30, allow_private=True)

    def fetch(folder: Path) -> tuple[float, Counter[str], int]:
        reasons, early, started = Counter[str](), 0, time.perf_counter()
        for position, fetched in enumerate(fetch_all(urls, folder, settings, why_no_image)):
            reasons[fetched.reason or "ok"] += 1
            if position == items // 10:
                early = megabytes()
        return time.perf_counter() - started, reasons, early

    sound = [url for number, url in enumerate(urls) if not fault_of(number)][:LOOPED]
    with tempfile.TemporaryDirectory() as temporary, requests.Session() as session:
        started = time.perf_counter()
        for number, url in enumerate(sound):
            (Path(temporary) / f"{number}.jpg").write_bytes(session.get(url, timeout=30).content)
        looped = len(sound) / (time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as temporary:
        seconds, reasons, early = fetch(Path(temporary))
        before, late = int(requests.get(f"{base}asked", timeout=30).text), megabytes()
        again, reasons_again, _ = fetch(Path(temporary))
        asked_again = int(requests.get(f"{base}asked", timeout=30).text) - before
    process.terminate()
    result = {
        "items": items,
        "photographs a second": round(items / seconds),
        "a loop of requests.get": round(looped),
        "ratio": round(items / seconds / looped, 2),
        "gigabits a second": round(items / seconds * len(photograph) * 8 / 1e9, 3),
        "accounted for": reasons.total(),
        "outcomes": dict(sorted(reasons.items())),
        "megabytes after a tenth": early,
        "megabytes at the end": late,
        "second run: seconds": round(again, 1),
        "second run: requests": asked_again,
        "second run: the same outcomes": reasons_again == reasons,
        "machine": machine(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
