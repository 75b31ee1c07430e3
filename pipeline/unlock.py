"""Clear what a killed DVC left half-written, and its locks: what `make repro` and `make zoo` do before they start.

DVC rewrites its list of locks and its lock files in place, so that a kill can leave half of one, with which it refuses
to start (treeverse/dvc#7615); and it takes a lock for held as long as any process has its holder's number, which after a
power cut may be anybody's. What a lock file held is kept beside it. One in the middle of a merge is the
user's to resolve.
"""

import json
import re
import subprocess
from itertools import count
from pathlib import Path

import psutil
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from ruamel.yaml import YAML

from colorize.files import InputError, one_sentence
from pipeline import paths

CONFLICT = re.compile(rb"^(<<<<<<<|>>>>>>>) ", re.MULTILINE)


def holders(text: str) -> set[int]:
    """The numbers of the processes that hold a lock; none if the list is no list."""
    try:
        locks = json.loads(text)
        reading = [info for infos in locks.get("read", {}).values() for info in infos]
        return {int(info["pid"]) for info in [*reading, *locks.get("write", {}).values()]}
    except Exception:  # half of one may be anything
        return set()


def runs_dvc(process: int) -> bool:
    """Whether the process of that number is alive and DVC."""
    try:
        found = psutil.Process(process)
        return found.status() != psutil.STATUS_ZOMBIE and any(
            part.rpartition("/")[2] == "dvc" for part in found.cmdline()
        )
    except (psutil.NoSuchProcess, ValueError, OverflowError):  # or no number that a process can have
        return False
    except psutil.AccessDenied:  # another user's: it may well be
        return True


def is_whole(content: bytes) -> bool:
    """Whether DVC will read a lock file of that content."""
    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(content.decode()))
    except Exception:  # whatever half a file makes a reader raise
        return False
    return True


def git(*arguments: str) -> str | None:
    """What git prints; None where it fails, there is no repository, or no git."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return None if done.returncode else done.stdout


def restore(lock: Path) -> None:
    """Bring a damaged lock file back as it was committed or staged, or none; keep what it held under another name.

    What has run since that commit is found again in DVC's run cache and in runs/.

    Raises:
        InputError: it is in the middle of a merge, whose two sides only a person can choose between.
    """
    content = lock.read_bytes()
    unmerged = git("ls-files", "--unmerged", "--", str(lock))
    if unmerged or CONFLICT.search(content):
        how = f"git checkout --ours {lock} or --theirs, then git add {lock}"
        how = how if unmerged else f"git checkout HEAD {lock}"
        raise InputError(f"{lock} is in the middle of a merge; choose one side ({how}), then run this again")
    if is_whole(content):
        return
    names = (lock.with_name(f"{lock.name}.damaged-{number}") for number in count(1))
    kept = next(path for path in names if not path.exists())
    lock.rename(kept)
    done = git("checkout", "--quiet", "--", str(lock)) is not None
    whence = "went back to the last commit's" if done else "DVC begins a new one"
    print(f"{lock} was cut short when DVC was killed; {whence}, and it is kept as {kept.name}")


def main() -> None:
    if paths.RWLOCK.exists():
        held = holders(paths.RWLOCK.read_text(encoding="utf-8", errors="replace"))
        if any(map(runs_dvc, held)):
            return
        paths.RWLOCK.unlink(missing_ok=True)
    for lock in paths.LOCKS:
        if lock.exists():
            restore(lock)


if __name__ == "__main__":
    with one_sentence():
        main()
