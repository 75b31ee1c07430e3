"""Where the preparation's jobs run: processes of this machine, or the workers of a Dask or Ray cluster.

Both clusters give futures, and one joblib backend over futures serves both. The backends that exist do not: Dask's never
hears of a job that killed its workers, and Ray's gives no result before it has all of them.
"""

import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from joblib import ParallelBackendBase

from colorize.files import InputError
from colorize.settings import Compute

CONNECT_SECONDS = 10
"""Longest wait for a scheduler, and then for its first worker."""
PACKAGES = {"dask": "distributed", "ray": "ray"}
ADDRESSES = {"dask": r"(tcp|tls)://.+:\d+", "ray": r"ray://.+:\d+"}
EXAMPLES = {"dask": "tcp://host:8786", "ray": "ray://host:10001"}


class Cluster(ParallelBackendBase):
    """A joblib backend over futures. The cluster itself repeats the jobs of a worker that died; of a job whose workers
    die whenever it runs, the result is None.

    Args:
        submit: starts a function without arguments on the cluster.
        cores: of the whole cluster; so many jobs run at a time.
        died: what the future raises of a job that the cluster has given up.
    """

    supports_retrieve_callback = True

    def __init__(self, submit: Callable[[Any], Future], cores: int, died: tuple[type[Exception], ...]) -> None:
        super().__init__()
        self._start, self._cores, self._died = submit, cores, died

    def effective_n_jobs(self, n_jobs: int) -> int:
        return max(2, self._cores)  # joblib would run the jobs of a single core here

    def submit(self, func: Any, callback: Any = None) -> Future:
        future = self._start(func)
        future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future) -> list[Any]:
        try:
            return out.result()
        except self._died:
            return [None]
        except Exception as error:
            raise getattr(error, "cause", error) from None  # Ray hides what a job raised behind a traceback


def check(compute: Compute) -> None:
    """Look, without connecting, whether a backend could work.

    Raises:
        InputError: it is not installed, or its scheduler's address is missing or none.
    """
    if compute.backend == "loky":
        return
    if find_spec(PACKAGES[compute.backend]) is None:
        raise InputError(
            f"compute.backend: {compute.backend} is not installed; pip install -e '.[{compute.backend}]', or set it to loky"
        )
    if not re.fullmatch(ADDRESSES[compute.backend], compute.address):
        raise InputError(
            f"compute.address: {compute.backend} needs the address of its scheduler, say {EXAMPLES[compute.backend]}, "
            f"but it is {compute.address!r}"
        )


@contextmanager
def connected(compute: Compute) -> Iterator[str | ParallelBackendBase]:
    """What joblib's `Parallel` takes as its backend; a cluster is left as it was found.

    Raises:
        InputError: what `check` raises; the scheduler cannot be reached, has no worker or one of several threads, or goes
            away meanwhile.
    """
    check(compute)
    if compute.backend == "loky":
        yield "loky"
        return
    where = f"compute.address: {compute.backend}'s scheduler at {compute.address}"
    remedy = "start it and its workers (see README), or set compute.backend to loky"
    with ExitStack() as stack:
        try:
            place = urlsplit(compute.address)  # first, because Ray would ask for minutes and Dask print tracebacks
            socket.create_connection((place.hostname or "", place.port or 0), CONNECT_SECONDS).close()
            cluster = stack.enter_context({"dask": _dask, "ray": _ray}[compute.backend](compute.address))
        except (OSError, ValueError) as error:
            raise InputError(f"{where} cannot be used ({error}); {remedy}") from error
        try:
            yield cluster
        except (CancelledError, ConnectionError) as error:
            raise InputError(f"{where} went away; {remedy}, and repeat the command") from error


@contextmanager
def _dask(address: str) -> Iterator[Cluster]:
    from distributed import Client, KilledWorker

    with Client(address, timeout=CONNECT_SECONDS, set_as_default=False) as client:
        client.wait_for_workers(1, CONNECT_SECONDS)
        threads = client.nthreads().values()
        if max(threads) > 1:  # how Pillow's warnings are taken is a matter of the whole process
            raise ValueError("a worker has several threads, start all with --nthreads 1")
        yield Cluster(client.get_executor(pure=False).submit, len(threads), (KilledWorker,))


@contextmanager
def _ray(address: str) -> Iterator[Cluster]:
    import ray
    from ray.exceptions import OutOfMemoryError, WorkerCrashedError

    with ray.init(address, log_to_driver=False):
        run = ray.remote(lambda batch: batch())
        cores = int(ray.cluster_resources().get("CPU", 0))
        # Ray's own futures call back in the one thread that could start the next job.
        threads = ThreadPoolExecutor(2 * max(2, cores))
        yield Cluster(
            lambda batch: threads.submit(lambda: ray.get(run.remote(batch))), cores, (OutOfMemoryError, WorkerCrashedError)
        )
