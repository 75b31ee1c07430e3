"""Measure the environment variables that the library sets: `python -m benchmarks.switches [ROW...]`.

Libraries read such a switch only once, so every run is a new process; ours and theirs (without the switch)
take turns. A row prints the medians of wall and CPU seconds, theirs over ours, and whether both give the same
bytes. `results/switches.json` keeps the rows. Some rows simulate a shared machine with busy processes.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any, NamedTuple

from benchmarks.machine import ROOT, machine

RESULTS = ROOT / "benchmarks/results/switches.json"
ROUNDS = 5
SPIN = {"GOMP_SPINCOUNT": "300000"}  # libgomp's own default
FASTEST = {"MKL_CBWR": "AUTO", "ONEDNN_MAX_CPU_ISA": "ALL", "ATEN_CPU_CAPABILITY": ""}
BUSY = "while True: pass"


class Switch(NamedTuple):
    what: str
    theirs: dict[str, str]
    work: str
    """paint, or a model of params.yaml to train for some steps."""
    threads: int = 2
    busy: int = 0


ROWS = {
    "large_pages": Switch(
        "20 steps of `mlp1` | with 4 KB pages", {"THP_MEM_ALLOC_ENABLE": "0"}, "mlp1", threads=1
    ),
    "waiting_paint": Switch("color spread over 0.55 megapixels | spinning threads", SPIN, "paint"),
    "waiting_paint_busy": Switch(
        "the same beside one busy process | spinning threads", SPIN, "paint", busy=1
    ),
    "waiting_train": Switch("20 steps of `cae` | spinning threads", SPIN, "cae"),
    "waiting_train_busy": Switch("the same beside one busy process | spinning threads", SPIN, "cae", busy=1),
    "processors_cae": Switch(
        "20 steps of `cae`, rounded alike everywhere | the processor's own", FASTEST, "cae", 1
    ),
    "processors_mlp1": Switch("20 steps of `mlp1` | the same", FASTEST, "mlp1", 1),
    "processors_zhang": Switch("20 steps of `zhang_simplified` | the same", FASTEST, "zhang_simplified", 1),
}


def work(name: str, threads: int) -> tuple[float, float, str]:
    """Wall and CPU seconds of the work, and the sha256 of its result."""
    import torch
    from PIL import Image

    from benchmarks.race import crops
    from colorize.apply import fullsize
    from colorize.bins import Statistics
    from colorize.data.dataset import Photos
    from colorize.models import build_model
    from colorize.training.device import TrainConfig, select_device
    from colorize.training.loop import make_optimizer
    from pipeline.check import AllParams
    from pipeline.params import load

    select_device(TrainConfig(device="cpu", threads=threads))
    torch.manual_seed(1)
    images = crops(32, 64)
    if name == "paint":
        rgb = Image.fromarray(images[0]).resize((858, 644))
        photograph = fullsize.Photograph(rgb, None, 1, ".jpg", b"", b"", None, ())
        light, ab = torch.rand(1, 1, 64, 88) * 100, (torch.rand(2, 64, 88) - 0.5) * 120

        def run() -> bytes:
            return fullsize.paint(photograph, light, ab).tobytes()
    else:
        params = load(AllParams, ROOT / "params.yaml")
        block = params.models[name]
        batch = next(Photos(images, 32).epoch(1, 32))
        model = build_model(block, 32, Statistics.measure(images, params.prior))
        optimizer = make_optimizer(model.parameters(), block.recipe, 3e-4)

        def run() -> bytes:
            for _ in range(20):
                optimizer.zero_grad(set_to_none=True)
                model.losses("net", *batch)["loss"].backward()
                optimizer.step()
            return b"".join(p.detach().numpy().tobytes() for p in model.parameters())

    run()
    wall, processor = time.perf_counter(), time.process_time()
    result = run()
    return time.perf_counter() - wall, time.process_time() - processor, hashlib.sha256(result).hexdigest()


def measure(switch: Switch, rounds: int) -> dict[str, Any]:
    """Run both sides in turns."""
    command = [sys.executable, "-m", "benchmarks.switches", "--work", switch.work, str(switch.threads)]
    sides: tuple[list[Any], list[Any]] = [], []
    with ExitStack() as stack:
        for _ in range(switch.busy):
            stack.callback(subprocess.Popen([sys.executable, "-c", BUSY]).kill)
        for _ in range(rounds):
            for runs, variables in zip(sides, ({}, switch.theirs), strict=True):
                environment = os.environ | variables
                output = subprocess.check_output(
                    command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
                )
                runs.append(json.loads(output))
    row: dict[str, Any] = {"without": switch.theirs, "threads": switch.threads}
    row["busy processes beside"] = switch.busy
    for number, unit in enumerate(("seconds", "CPU seconds")):
        ours, theirs = (statistics.median(run[number] for run in runs) for runs in sides)
        ratios = [slow[number] / fast[number] for fast, slow in zip(*sides, strict=True)]
        row[unit] = {
            "ours": round(ours, 3),
            "theirs": round(theirs, 3),
            "ratio": round(statistics.median(ratios), 2),
            "ratios": [round(min(ratios), 2), round(max(ratios), 2)],
        }
    return row | {"the same bytes": len({run[2] for runs in sides for run in runs}) == 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("row", nargs="*", choices=[*ROWS, []], help="all, if none is given")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(work(arguments.work[0], int(arguments.work[1]))))
        return
    from colorize import files

    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in arguments.row or ROWS:
        what, against = ROWS[name].what.split(" | ")
        row = {"what": what, "against": against} | measure(ROWS[name], arguments.rounds)
        print(name, *(f"{key}: {value}" for key, value in row.items()), sep="\n  ", flush=True)
        kept[name] = row | {"machine": machine()}
        files.write_json(RESULTS, {row: kept[row] for row in ROWS if row in kept})


if __name__ == "__main__":
    main()
