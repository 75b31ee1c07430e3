"""The folders of trainings, each with a state and its lock: who may train in one, and which are deleted.

A folder is named after all that the weights depend on (see pipeline/fingerprint.py). So a state is only ever
continued by the run that it belongs to, and a finished one is handed out instead of trained again.
"""

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout
from tqdm import tqdm

STATE = "state.pt"
"""The file of a run's training state, in its folder."""


def lock(folder: Path, name: str) -> AcquireReturnProxy:
    """Take the sole right to train in a run's folder, as a context manager.

    If another process has it, say so and wait.
    """
    file = FileLock(folder / "lock")
    try:
        return file.acquire(timeout=0)
    except Timeout:
        waiting = f"{name}: another process is training it in {folder}; waiting for its weights"
        tqdm.write(waiting, file=sys.stderr)
        return file.acquire()


def prune(keep: Path, gigabytes: float) -> None:
    """Delete the oldest run folders beside `keep` until all together are below `gigabytes`.

    Running ones stay, and so does what has no state: that is the user's.
    """
    runs = [folder for folder in keep.parent.iterdir() if (folder / STATE).exists() and folder != keep]
    total = 0
    for folder in [keep, *sorted(runs, key=lambda folder: folder.stat().st_mtime, reverse=True)]:
        # Another process may train in it, rename a file in it or just have deleted it.
        with suppress(Timeout, FileNotFoundError):
            total += sum(file.stat().st_size for file in folder.iterdir())
            if folder != keep and total > gigabytes * 1e9:
                with FileLock(folder / "lock", timeout=0):
                    shutil.rmtree(folder)


@contextmanager
def claim_gpu(runs: Path, gpus: Sequence[int]) -> Iterator[int]:
    """Take the first of these GPUs that no other training of this project has; if all are taken, the first.

    Args:
        runs: the folder of all runs.
        gpus: their numbers; none gives 0.
    """
    runs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as taken:
        for number in gpus:
            with suppress(Timeout):
                taken.enter_context(FileLock(runs / f"gpu-{number}.lock", timeout=0))
                yield number
                return
        yield gpus[0] if gpus else 0
