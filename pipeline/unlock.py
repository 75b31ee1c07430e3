"""Clear what a killed DVC left half-written, and its locks: what `make repro` and `make zoo` do before they start.

DVC rewrites its list of locks and its lock files in place, so that a kill can leave half of one, with which it refuses
to start (treeverse/dvc#7615); and it takes a lock for held as long as any process has its holder's number, which after a
power cut may be anybody's.
"""

import json
import subprocess
from pathlib import Path

import psutil
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from ruamel.yaml import YAML, YAMLError
from voluptuous import Invalid

from pipeline import paths


def holders(text: str) -> set[int]:
    """The numbers of the processes that hold a lock; none if the list is no list."""
    try:
        locks = json.loads(text)
        reading = [info for infos in locks.get("read", {}).values() for info in infos]
        return {int(info["pid"]) for info in [*reading, *locks.get("write", {}).values()]}
    except (ValueError, TypeError, AttributeError, KeyError):
        return set()


def runs_dvc(process: int) -> bool:
    """Whether the process of that number is alive and DVC."""
    try:
        found = psutil.Process(process)
        return found.status() != psutil.STATUS_ZOMBIE and any(part.rpartition("/")[2] == "dvc" for part in found.cmdline())
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # another user's: it may well be
        return True


def is_whole(lock: Path) -> bool:
    """Whether DVC will read a lock file."""
    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(lock))
    except (YAMLError, UnicodeDecodeError, Invalid):
        return False
    return True


def restore(lock: Path) -> None:
    """A lock file as it was committed, or none. What has run since is found again in DVC's run cache and in runs/."""
    print(f"{lock} was cut short when DVC was killed; going back to the last commit's")
    if subprocess.run(["git", "checkout", "--quiet", "--", lock], capture_output=True).returncode:
        lock.unlink()


def main() -> None:
    if paths.RWLOCK.exists():
        held = holders(paths.RWLOCK.read_text(encoding="utf-8", errors="replace"))
        if any(map(runs_dvc, held)):
            return
        paths.RWLOCK.unlink(missing_ok=True)
    for lock in paths.LOCKS:
        if lock.exists() and not is_whole(lock):
            restore(lock)


if __name__ == "__main__":
    main()
