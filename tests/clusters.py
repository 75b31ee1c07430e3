"""Dask clusters of several worker processes on this machine, and photographs that kill or hold them.

Workers import this file, so it imports little.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
HOST = "127.0.0.1"


class Store:
    """Stands in for colorize's Reader and notes in a folder which processes read.

    A process that reads `deadly` dies, but for this one, and for all after `deaths`. `endless` takes an hour.
    """

    def __init__(
        self, contents: Mapping[str, bytes], notes: Path, deadly: str = "", deaths: int = 1, endless: str = ""
    ) -> None:
        self.contents, self.notes, self.parent = contents, notes, os.getpid()
        self.deadly, self.deaths, self.endless = deadly, deaths, endless
        notes.mkdir()

    def read(self, shard: str, member: str) -> bytes:
        (self.notes / f"asked-{os.getpid()}").touch()
        if member == self.deadly and os.getpid() != self.parent and self.dead() < self.deaths:
            (self.notes / f"died-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if member == self.endless and os.getpid() != self.parent:
            time.sleep(3600)
        return self.contents[member]

    def dead(self) -> int:
        """How many processes died."""
        return len(list(self.notes.glob("died-*")))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@contextmanager
def dask(workers: int = 3, threads: int = 1) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """As docs/several-machines.md starts one: its scheduler's address and process; it ends with the block."""
    port = free_port()
    address, command = f"tcp://{HOST}:{port}", [sys.executable, "-m", "dask"]
    counts = ["--nworkers", str(workers), "--nthreads", str(threads)]
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("src", "tests"))
    # Two deaths instead of four: new workers take a while to start.
    changes = {"PYTHONPATH": paths, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
    started = [
        subprocess.Popen(
            [*command, *arguments, "--no-dashboard"],
            env=os.environ | changes,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for arguments in (["scheduler", "--host", address], ["worker", address, *counts])
    ]
    try:
        deadline = time.monotonic() + 60
        with socket.socket() as probe:
            while probe.connect_ex((HOST, port)):
                assert time.monotonic() < deadline, "the scheduler does not start"
                time.sleep(0.1)
        yield address, started[0]
    finally:
        for process in started:
            running = process.poll() is None
            children = psutil.Process(process.pid).children(recursive=True) if running else []
            for each in (*children, process):
                each.kill()
            process.wait()
