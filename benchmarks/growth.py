"""How the stages grow with the photographs: `python -m benchmarks.growth [COUNT...]` (1,000, 10,000 and 100,000).

So many different JPEGs of 48x48 pixels, tiles of the photographs inside scikit-image under colored clouds (so that
no two are near-duplicates), go through the stages download (from a folder), crop to 32x32, filter, prior, train and
evaluate, each a process of its own as under DVC. The model is `mean_color`: train only reads, and evaluate scores
three systems that cost nothing, on a tenth of the photographs. Prints JSON: seconds, CPU seconds and peak memory of
each stage, and the growth of the CPU seconds from one count to the next, divided by that of the photographs: 1 is
linear.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image
from ruamel.yaml import YAML
from tqdm import tqdm

from benchmarks.machine import ROOT, machine
from benchmarks.race import jpeg, tiles
from pipeline.check import AllParams

STAGES = ("download", "crop", "filter", "prior", "train", "evaluate")
SIDE = 48


def make(folder: Path, count: int) -> None:
    """`count` JPEGs, 1,000 to a subfolder."""
    base, random = tiles(SIDE), np.random.default_rng(1)
    for number in tqdm(range(count), desc="photographs", unit="", leave=False):
        cloud = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).resize(
            (SIDE, SIDE), Image.Resampling.BICUBIC
        )
        path = folder / f"{number // 1000:03}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(Image.blend(Image.fromarray(base[number % len(base)]), cloud, 0.4)))


def cpu_seconds() -> float:
    """Of all processes that this one has started and that ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def watched(stage: str, folder: Path) -> dict[str, float]:
    """Seconds of a stage, and the most memory that its process and its workers held together, in MB."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    started, before, most = time.monotonic(), cpu_seconds(), 0
    with subprocess.Popen(
        [sys.executable, "-m", f"pipeline.{stage}"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=(folder / "said").open("wb"),
    ) as process:
        first = psutil.Process(process.pid)
        while process.poll() is None:
            held = 0
            for each in (first, *first.children(recursive=True)):
                try:
                    held += each.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            most = max(most, held)
            time.sleep(0.05)
    if process.returncode:
        sys.exit((folder / "said").read_text(errors="replace").strip().splitlines()[-1])
    return {
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(cpu_seconds() - before, 1),
        "megabytes": round(most / 1e6),
    }


def measure(count: int) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder / "photos", count)
        yaml = YAML()
        params = yaml.load(AllParams, ROOT / "params.yaml")
        params["data"].update(source="folder", path=str(folder / "photos"))
        params["crop"].update(size=32)
        params["model"] = "mean_color"
        with (folder / "params.yaml").open("w") as file:
            yaml.dump(params, file)
        return {stage: watched(stage, folder) for stage in STAGES}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", nargs="*", type=int, help="1000 10000 100000, if none is given")
    counts = sorted(parser.parse_args().count or [1_000, 10_000, 100_000])
    found: dict[str, Any] = {str(count): measure(count) for count in counts}
    used = {count: {stage: found[str(count)][stage]["cpu_seconds"] for stage in STAGES} for count in counts}
    growth = {
        f"{few} to {many}": {
            stage: round(used[many][stage] / used[few][stage] / (many / few), 2) for stage in STAGES
        }
        for few, many in zip(counts, counts[1:], strict=False)
    }
    print(json.dumps({"photographs": found, "growth beyond linear": growth, "machine": machine()}, indent=2))
