"""Remove DVC's list of locks if no DVC is left that holds one: what `make repro` and `make zoo` do before they start.

DVC rewrites the list in place, so that a kill can leave half of it, with which DVC refuses to start (treeverse/dvc#7615);
and it takes a lock for held as long as any process has its holder's number, which after a power cut may be anybody's.
"""

import json

import psutil

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


def main() -> None:
    if paths.LOCKS.exists() and not any(map(runs_dvc, holders(paths.LOCKS.read_text(encoding="utf-8", errors="replace")))):
        paths.LOCKS.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
