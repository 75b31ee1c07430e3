"""Real Dask clusters of several worker processes on this machine, and photographs that kill or hold them.

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
BIN = Path(sys.executable).parent
HOST = "127.0.0.1"
WORKERS = 3


class Store:
    """Stands in for colorize.sources.Reader. It notes in a folder who reads; of one photograph, each process that reads it
    dies, but for this one and for all after so many `deaths`; another one is not read within an hour."""

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
        if member == self.endless:
            time.sleep(3600)
        return self.contents[member]

    def dead(self) -> int:
        """How many processes died."""
        return len(list(self.notes.glob("died-*")))


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@contextmanager
def _running(port: int, *commands: list[str], **changes: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Commands in this project's environment, from when somebody listens on the port; ended with all that they started."""
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("src", "tests"))
    environment = {**os.environ, "PYTHONPATH": paths, **changes}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [subprocess.Popen(command, env=environment, **quiet) for command in commands]
    try:
        deadline = time.monotonic() + 60
        with socket.socket() as probe:
            while probe.connect_ex((HOST, port)):
                assert time.monotonic() < deadline, commands
                time.sleep(0.1)
        yield started
    finally:
        for process in started:
            with_children = (
                psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            )
            for each in (*with_children, process):
                each.kill()
            process.wait()


@contextmanager
def dask(workers: int = WORKERS, threads: int = 1) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """As docs/several-machines.md starts them: the scheduler's address, and its process."""
    port = free_port()
    address, command = f"tcp://{HOST}:{port}", [sys.executable, "-m", "dask"]
    scheduler = [*command, "scheduler", "--host", address, "--no-dashboard"]
    worker = [
        *command,
        "worker",
        address,
        "--nworkers",
        str(workers),
        "--nthreads",
        str(threads),
        "--no-dashboard",
    ]
    # Two deaths instead of four: new workers take a while to start.
    with _running(port, scheduler, worker, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="1") as (process, _):
        yield address, process
