"""Repair half-written lock files and stale locks of a killed DVC, before `make repro` and `make zoo`.

DVC rewrites its list of locks and its lock files in place. A kill can leave half a file, and DVC then refuses
to start (treeverse/dvc#7615). DVC also believes in a lock as long as any process has its holder's number,
which after a power cut may be any process. A damaged lock file is kept under another name. A lock file in the
middle of a merge is left to the user.
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
    """Numbers of the processes that hold a lock; empty if the list is damaged."""
    try:
        locks = json.loads(text)
        reading = [info for infos in locks.get("read", {}).values() for info in infos]
        return {int(info["pid"]) for info in [*reading, *locks.get("write", {}).values()]}
    except Exception:  # half a file can raise anything
        return set()


def runs_dvc(process: int) -> bool:
    """Tell whether a process number belongs to a running DVC."""
    try:
        holder = psutil.Process(process)
        is_dvc = any(part.rpartition("/")[2] == "dvc" for part in holder.cmdline())
        return holder.status() != psutil.STATUS_ZOMBIE and is_dvc
    except (psutil.NoSuchProcess, ValueError, OverflowError):  # the last two for impossible numbers
        return False
    except psutil.AccessDenied:  # another user's process may be DVC
        return True


def is_whole(content: bytes) -> bool:
    """Tell whether DVC can read a lock file with this content."""
    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(content.decode()))
    except Exception:  # half a file can raise anything
        return False
    return True


def git(*arguments: str) -> str | None:
    """Run Git and return its output; None if it fails, or there is no repository or no Git."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return None if done.returncode else done.stdout


def restore(lock: Path) -> None:
    """Restore a damaged lock file from Git, if Git has one; keep the damaged file under another name.

    Later runs are found again in DVC's run cache and in runs/.

    Raises:
        InputError: the lock file is in the middle of a merge.
    """
    content = lock.read_bytes()
    unmerged = git("ls-files", "--unmerged", "--", str(lock))
    if unmerged or CONFLICT.search(content):
        how = f"git checkout HEAD {lock}"
        if unmerged:
            how = f"git checkout --ours {lock} or --theirs, then git add {lock}"
        raise InputError(f"{lock} is in the middle of a merge; choose one side ({how}), then run this again")
    if is_whole(content):
        return
    names = (lock.with_name(f"{lock.name}.damaged-{number}") for number in count(1))
    kept = next(path for path in names if not path.exists())
    lock.rename(kept)
    restored = git("checkout", "--quiet", "--", str(lock)) is not None
    outcome = "went back to the last commit's" if restored else "DVC begins a new one"
    print(f"{lock} was cut short when DVC was killed; {outcome}, and it is kept as {kept.name}")


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
