"""The whole pipeline killed at random moments and started again: `python tests/kills.py 50` prints JSON.

SIGKILL goes to every process of the run at once, as a power cut would. A run that gets through before its
moment is compared with one that nobody disturbed, and the next one starts from nothing again.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

REPRO = ["make", f"BIN={Path(sys.executable).parent}", "-o", ".venv/ready", "repro"]
"""With the packages of this environment."""
COMPARED = ("dvc.lock", "metrics", "data/model")


def snapshot(project: Path) -> dict[str, str]:
    from colorize import files

    hashes = files.sha256_of([project / path for path in COMPARED])
    return {Path(path).relative_to(project).as_posix(): digits for path, digits in hashes.items()}


def torture(project: Path, whole: Path, seconds: float, kills: int, seed: int) -> dict[str, Any]:
    """Kill `make repro` so often in `project`, a fresh clone, and let it get through at the end.

    Args:
        whole: another clone with the same photographs, in which the pipeline ran in one go.
        seconds: how long it ran there.

    Returns:
        What happened: kills, runs compared, whether all were identical, seconds of a run in one go.
    """
    from test_pipeline import environment, run

    expected, log = snapshot(whole), project.parent / "log"
    moments, struck, compared, identical = random.Random(seed), 0, 0, True

    def judge() -> None:
        nonlocal compared, identical
        left = [path for path in project.rglob("*.partial") if ".dvc" not in path.parts]
        compared, identical = compared + 1, identical and snapshot(project) == expected and not left

    while struck < kills:
        with log.open("wb") as said:
            options = {
                "cwd": project,
                "env": environment(project),
                "stdout": said,
                "stderr": subprocess.STDOUT,
            }
            process = subprocess.Popen(REPRO, start_new_session=True, **options)
        try:
            if process.wait(moments.uniform(0, seconds)):
                raise RuntimeError(f"make repro failed by itself after {struck} kills:\n{log.read_text()}")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            struck += 1
        else:
            judge()
            run(project, "git", "checkout", "-q", ".")
            run(project, "git", "clean", "-qfdx", "-e", ".dvc/tmp")
    run(project, *REPRO)
    judge()
    return {
        "kills": struck,
        "runs that got through and were compared": compared,
        "identical lock, weights and metrics, nothing left over": identical,
        "seconds of a run in one go": round(seconds, 1),
        "seed": seed,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int)
    kills = parser.parse_args().kills
    root = Path(__file__).parent.parent
    sys.path[:0] = [str(root), str(root / "src")]
    from benchmarks.machine import machine

    with tempfile.TemporaryDirectory() as temporary:
        from conftest import _photographs
        from test_pipeline import clone, run

        photos = Path(temporary) / "photos"
        photos.mkdir()
        for number, pixels in enumerate(_photographs(30, 40)):
            Image.fromarray(pixels).save(photos / f"{number:02}.png")
        whole, project = (clone(Path(temporary) / name / "project", photos) for name in ("whole", "killed"))
        started = time.monotonic()
        run(whole, *REPRO)
        found = torture(project, whole, time.monotonic() - started, kills, seed=1)
    print(json.dumps(found | {"machine": machine()}, indent=2))
    sys.exit(not found["identical lock, weights and metrics, nothing left over"])
