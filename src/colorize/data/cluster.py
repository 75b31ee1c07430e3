"""Run jobs on a Dask cluster instead of the cores of this machine, with the same results.

If a worker dies, the cluster gives its job to another worker, a few times at most.
"""

import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from colorize.files import InputError

if TYPE_CHECKING:
    from distributed import Client

CONNECT_SECONDS = 10
"""Longest wait for a scheduler, and then for its first worker."""


def check(address: str) -> None:
    """Check, without connecting, that a cluster could be used; an empty address means none.

    Raises:
        InputError: Dask is not installed, or the address is malformed.
    """
    if not address:
        return
    if find_spec("distributed") is None:
        raise InputError("crop.cluster: Dask is not installed; pip install -e '.[dask]', or leave it empty")
    if not re.fullmatch(r"(tcp|tls)://.+:\d+", address):
        hint = "give the address of a Dask scheduler, say tcp://host:8786, or leave it empty"
        raise InputError(f"crop.cluster: {hint}; it is {address!r}")


@contextmanager
def connected(address: str) -> Iterator[Callable[..., Iterator[Any]] | None]:
    """Yield `results` for the cluster at this address; None without an address.

    Raises:
        InputError: as in `check`; the scheduler is unreachable, has no worker, has one of several threads, or
            goes away.
    """
    check(address)
    if not address:
        yield None
        return
    from distributed import CancelledError, Client
    from distributed.comm import CommClosedError

    where = f"crop.cluster: Dask's scheduler at {address}"
    remedy = "start it and its workers, or leave crop.cluster empty"
    try:
        parts = urlsplit(address)  # try a plain connection first, because Dask would print tracebacks
        socket.create_connection((parts.hostname or "", parts.port or 0), CONNECT_SECONDS).close()
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{where} cannot be used ({error}); {remedy}") from error
    with client:
        try:
            client.wait_for_workers(1, CONNECT_SECONDS)
        except OSError as error:
            raise InputError(f"{where} cannot be used ({error}); {remedy}") from error
        if max(client.nthreads().values()) > 1:  # threads share one setting for Pillow's warnings
            raise InputError(f"{where} has a worker of several threads; start all with --nthreads 1")
        try:
            yield partial(results, client)
        except (CancelledError, CommClosedError, ConnectionError) as error:
            raise InputError(f"{where} went away; {remedy}, and repeat the command") from error


def results(
    client: "Client", function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], seconds: float
) -> Iterator[Any]:
    """Call a function with the arguments of each job on the cluster.

    Yields:
        The results in the order of the jobs; None for a job that kills its workers.

    Raises:
        TimeoutError: the next result takes longer than `seconds`.
    """
    from distributed import CancelledError, KilledWorker

    futures = client.map(lambda job: function(*job), jobs, pure=False)
    try:
        for future in futures:
            try:
                yield future.result(seconds)
            except KilledWorker:
                yield None
    finally:
        with suppress(CancelledError, OSError):  # the scheduler may be gone
            client.cancel(futures)
