"""Measure how the stages scale with the photographs: `python -m benchmarks.growth [COUNT...]`.

COUNT different JPEGs of 48x48 pixels (tiles of scikit-image's photographs below random colored clouds, so
that no two are near-duplicates) go through download (from a folder), crop to 32x32, filter, prior, train and
evaluate, each in its own process as under DVC. The model is `mean_color`: train only reads, and evaluate
scores three cheap systems on a tenth of the photographs. Prints JSON: seconds, CPU seconds and peak memory of
each stage, and the growth of CPU seconds from one count to the next divided by that of the photographs: 1 is
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
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from ruamel.yaml import YAML
from tqdm import tqdm

from benchmarks.machine import ROOT, machine
from benchmarks.race import jpeg, tiles

STAGES = ("download", "crop", "filter", "prior", "train", "evaluate")
SIDE = 48


def make(folder: Path, count: int) -> None:
    """Write `count` JPEGs, 1,000 per subfolder."""
    base, random = tiles(SIDE), np.random.default_rng(1)
    for number in tqdm(range(count), desc="photographs", unit="", leave=False):
        cloud = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
        cloud = cloud.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        path = folder / f"{number // 1000:03}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(Image.blend(Image.fromarray(base[number % len(base)]), cloud, 0.4)))


def cpu_seconds() -> float:
    """CPU seconds of all ended child processes and their children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def watched(stage: str, folder: Path) -> dict[str, float]:
    """Run a stage; measure its seconds and the peak memory of its process and workers together, in MB."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    command, errors = [sys.executable, "-m", f"pipeline.{stage}"], folder / "errors"
    started, before, peak = time.monotonic(), cpu_seconds(), 0
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=errors.open("wb")
    ) as process:
        parent = psutil.Process(process.pid)
        while process.poll() is None:
            total = 0
            for each in (parent, *parent.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    total += each.memory_info().rss
            peak = max(peak, total)
            time.sleep(0.05)
    if process.returncode:
        sys.exit(errors.read_text(errors="replace").strip().splitlines()[-1])
    return {
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(cpu_seconds() - before, 1),
        "megabytes": round(peak / 1e6),
    }


def measure(count: int) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder / "photos", count)
        yaml = YAML()
        params = yaml.load(ROOT / "params.yaml")
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
    results = {count: measure(count) for count in counts}
    growth: dict[str, dict[str, float]] = {}
    for few, many in zip(counts, counts[1:], strict=False):
        growth[f"{few} to {many}"] = {}
        for stage in STAGES:
            ratio = results[many][stage]["cpu_seconds"] / results[few][stage]["cpu_seconds"]
            growth[f"{few} to {many}"][stage] = round(ratio / (many / few), 2)
    print(
        json.dumps({"photographs": results, "growth beyond linear": growth, "machine": machine()}, indent=2)
    )
