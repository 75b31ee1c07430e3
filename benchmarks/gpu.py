"""What only a GPU can show, in slices of less than ten minutes: `make gpu`, or `python -m benchmarks.gpu [SLICE...]`.

A machine that has PyTorch for its GPU already keeps it: `python -m venv --system-site-packages .venv`, then
`.venv/bin/pip install -r requirements.txt` without its line of torch. Each slice writes a JSON of its own; one whose
JSON is there is not run again, so the same command goes on where a time limit stopped it. Slices: `zhang` (photographs a
second of the full network at 256 and 176 pixels, and their share of the floor), `epochs` (an epoch of each kind of model
against the documents' way), `kernels` (Lab and soft loss against scikit-image and dense targets), `deterministic` (what bit
for bit costs, and whether it is), `resume` (a training that is stopped in every epoch against one in one go), `streamed`
(photographs from disk against held ones), and one for each of documents 000, 001, 002 and 004: their models at their own
sizes for equal times on the photographs of `--photos`, scored beside grey and mean_color.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.machine import ROOT, machine

sys.path.insert(0, str(ROOT / "src"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from skimage.color import rgb2lab  # noqa: E402

from benchmarks.race import Row, crops, jpeg, losses, race, seconds, train_ours, train_theirs  # noqa: E402
from colorize import files
from colorize.bins import (
    PriorConfig,
    Statistics,  # noqa: E402
)
from colorize.color import bytes_to_lab  # noqa: E402
from colorize.data.dataset import Photos, Streamed  # noqa: E402
from colorize.data.images import CropConfig, Refused, crop_square
from colorize.data.shards import Crops
from colorize.models import ModelConfig, build_baseline, build_model
from colorize.models.base import Colorizer
from colorize.scoring import evaluation, metrics, plausibility  # noqa: E402
from colorize.training.device import (
    TrainConfig,
    select_device,  # noqa: E402
)
from pipeline.check import AllParams
from pipeline.params import load  # noqa: E402

FLOOR = {256: 3153, 176: 6671}
"""Images a second of the full network's training at 790 TFLOP/s, by the side of its input."""
DOCUMENTS = {
    "000": ("cae", "cae_no_l1", "cae_transposed", "koalarization", "deshpande", "vae"),
    "001": ("zhang_euclidean", "zhang_onehot", "zhang_soft", "zhang_rebalanced_ours", "zhang_simplified"),
    "002": ("cgan", "autoencoder_rgb"),
    "004": ("resnet18",),
}
KINDS = ("cae", "deshpande", "koalarization", "zhang_simplified", "cgan", "resnet18", "mlp1", "fcae2")
THREADS = os.cpu_count() or 1
FAST = TrainConfig(
    max_epochs=3, min_lr=0, threads=THREADS, precision="bf16", deterministic=False, keep="last"
)


class Run:
    """What was asked for on the command line, and the blocks of params.yaml."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.params = load(AllParams, ROOT / "params.yaml")
        self.rule = replace(FAST, device=options.device)
        self.device = select_device(self.rule)
        self.statistics = Statistics.measure(crops(64, 64), PriorConfig())

    def block(self, name: str) -> ModelConfig:
        block = self.params.models[name]
        own = {"released": "empirical", "released_smoothed": "smoothed"}
        return replace(
            block, head=replace(block.head, weights=own.get(block.head.weights, block.head.weights))
        )

    def names(self, *names: str) -> Sequence[str]:
        """The models of a slice, or those asked for instead."""
        return self.options.models or names

    def side(self, block: ModelConfig) -> int:
        return min(block.size, self.options.largest)

    def model(self, block: ModelConfig, statistics: Statistics | None = None) -> Colorizer:
        torch.manual_seed(1)
        return build_model(block, self.side(block), statistics or self.statistics).to(self.device)

    def speed(self, block: ModelConfig, photos: Photos, rule: TrainConfig) -> float:
        """Photographs a second of the quickest epoch after the first."""
        select_device(rule)
        return round(len(photos) / min(train_ours(self.model(block), photos, block, rule).seconds[1:]), 1)

    def photos(self, block: ModelConfig, most: int = sys.maxsize) -> Photos:
        """Crops at the size of a block, on the device."""
        return Photos(crops(min(most, self.options.count), self.side(block)), self.side(block), self.device)


def zhang(run: Run) -> Row:
    """The full network at 256 and at 176 pixels: photographs a second, and their share of the floor."""
    block, found = run.block(*run.names("zhang_soft")), {}
    photos = run.photos(block)
    for side, share in ((256, 1.0), (176, 0.6875)):
        for batch in (32, 128):
            for precision in ("bf16", "fp32"):
                recipe = replace(block.recipe, batch=batch, crop=share)
                rate = run.speed(
                    replace(block, recipe=recipe), photos, replace(run.rule, precision=precision)
                )
                key = f"{side} pixels, batch {batch}, {precision}"
                found[key] = {
                    "photographs a second": rate,
                    "share of the floor": round(rate / FLOOR[side], 3),
                }
    return found


def epochs(run: Run) -> Row:
    """One epoch of each kind of model against the documents' way, the best of two that take turns."""
    found = {}
    for name in run.names(*KINDS):
        block = run.block(name)
        block = replace(block, recipe=replace(block.recipe, scales=(1,), crop=1))
        photos = run.photos(block)
        rates: dict[str, list[float]] = {"ours": [], "ours in fp32": [], "theirs": []}
        with TemporaryDirectory() as folder:
            for number, pixels in enumerate(crops(len(photos), photos.size)):
                (Path(folder) / f"{number:05}.jpg").write_bytes(jpeg(pixels, 95))
            for _ in range(2):
                rates["ours"].append(run.speed(block, photos, run.rule))
                rates["ours in fp32"].append(run.speed(block, photos, replace(run.rule, precision="fp32")))
                work = partial(train_theirs, run.model(block), Path(folder), block, run.options.workers)
                rates["theirs"].append(round(len(photos) / seconds(work), 1))
        best = {side: max(each) for side, each in rates.items()}
        ratio = round(best["ours"] / best["theirs"], 2)
        found[name] = (
            {"size": photos.size}
            | {f"{side}, photographs a second": best[side] for side in best}
            | {"ratio": ratio}
        )
    return found


def kernels(run: Run) -> Row:
    """Lab, soft encoding and soft loss on the device against scikit-image on the CPU and dense targets on the device."""
    select_device(run.rule)
    images = crops(min(256, run.options.count), min(256, run.options.largest))
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).to(run.device)
    found = {
        "lab": race(
            len(images), "photographs", lambda: bytes_to_lab(batch), lambda: rgb2lab(images), rounds=3
        )
    }
    difference = np.abs(bytes_to_lab(batch).permute(0, 2, 3, 1).cpu().numpy() - rgb2lab(images)).max()
    found["lab"]["largest difference, Lab units"] = float(f"{difference:.2g}")
    ours, theirs = losses(32, 64, run.device)
    found["soft loss"] = race(32, "photographs, 313 bins at 64x64", ours, theirs)
    found["soft loss"]["largest difference of the gradients"] = float(
        f"{(ours() - theirs()).abs().max():.2g}"
    )
    if run.device.type == "cuda":
        peaks = []
        for way in (ours, theirs):
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            way()
            peaks.append(torch.cuda.max_memory_allocated() - held)
        found["soft loss"]["share of their memory"] = round(peaks[0] / peaks[1], 2)
    return found


def _bytes(model: Colorizer) -> str:
    return files.sha256_bytes(b"".join(t.cpu().numpy().tobytes() for t in model.state_dict().values()))


def deterministic(run: Run) -> Row:
    """What deterministic algorithms cost, in both precisions, and whether two trainings then give the same bytes."""
    found: Row = {}
    for name in run.names("zhang_simplified", "cgan", "cae"):
        block = run.block(name)
        photos = run.photos(block)
        for precision in ("bf16", "fp32"):
            rules = [replace(run.rule, precision=precision, deterministic=exact) for exact in (True, False)]
            exact, free = (run.speed(block, photos, rule) for rule in rules)
            digests = []
            for _ in range(2):
                select_device(rules[0])
                model = run.model(block)
                train_ours(model, photos, block, rules[0])
                digests.append(_bytes(model))
            found[f"{name}, {precision}"] = {
                "photographs a second, deterministic": exact,
                "and free": free,
                "cost": round(free / exact - 1, 3),
                "two trainings, the same bytes": digests[0] == digests[1],
            }
    return found


def resume(run: Run) -> Row:
    """A deterministic training that is stopped in every epoch and continued, against one in one go."""

    class Stopped(Exception):
        pass

    def stop(at: int, row: dict[str, float]) -> None:
        if row["epoch"] == at:
            raise Stopped

    found = {}
    for name in run.names("zhang_simplified", "cgan"):
        block = run.block(name)
        photos = run.photos(block, most=512)
        rule = replace(run.rule, max_epochs=4, deterministic=True, checkpoint_seconds=0)
        select_device(rule)
        whole = run.model(block)
        train_ours(whole, photos, block, rule)
        with TemporaryDirectory() as folder:
            for at in (2, 3, 4, 0):
                resumed = run.model(block)
                try:
                    train_ours(
                        resumed, photos, block, rule, state=Path(folder) / "s.pt", on_epoch=partial(stop, at)
                    )
                except Stopped:
                    continue
        found[name] = {"the same bytes": _bytes(whole) == _bytes(resumed)}
    return found


def streamed(run: Run) -> Row:
    """An epoch over photographs that are read from disk for each batch, against held ones."""
    found = {}
    for name in run.names("zhang_simplified", "cae"):
        block = run.block(name)
        images = crops(run.options.count, run.side(block))
        with TemporaryDirectory() as folder:
            for number, shard in enumerate(np.array_split(images, 4)):
                files.write_array(Path(folder) / f"crops-{number:05}.npy", shard)
            photos = Photos(Streamed(Crops(Path(folder)), run.device), run.side(block))
            there, here = run.speed(block, photos, run.rule), run.speed(block, photos.held(), run.rule)
        found[name] = {"streamed, photographs a second": there, "held": here, "share": round(there / here, 2)}
    return found


def document(run: Run, number: str) -> Row:
    """The models of a document at their own sizes, for equal times, scored beside grey and mean_color."""
    names = run.names(*DOCUMENTS[number])
    minutes = run.options.budget / len(names)
    found: Row = {"minutes each": round(minutes, 2)}
    for name in names:
        block = run.block(name)
        side = run.side(block)
        images = photographs(run.options, side)
        order = np.random.default_rng(1).permutation(len(images))  # one split, whatever the seed
        train, val, test = (
            images[part] for part in np.split(order, [len(images) * 8 // 10, len(images) * 9 // 10])
        )
        rule = replace(run.rule, max_epochs=0, max_minutes=minutes, keep="best")
        select_device(rule)
        statistics = Statistics.measure(train, PriorConfig())
        model = run.model(block, statistics)
        with TemporaryDirectory() as folder:
            sets = [Photos(part, side, run.device) for part in (train, val)]
            progress = train_ours(
                model, sets[0], block, rule, val=sets[1], seed=run.options.seed, state=Path(folder) / "s"
            )
        baselines = {key: build_baseline(key, statistics) for key in metrics.BASELINES}
        found[name] = {
            "size": side,
            "photographs": [len(train), len(val), len(test)],
            "epochs": progress.epoch,
        }
        photos = [str(number) for number in range(len(test))]
        critic = plausibility.critic(test, 16, run.device, THREADS)
        tables = {
            system: evaluation.score(
                system, each, side, photos, test, 16, device=run.device, threads=THREADS, critic=critic
            ).assign(group=photos)
            for system, each in ({"model": model} | baselines).items()
        }
        means = metrics.compare(tables, 1).pivot(index="metric", columns="system", values="mean").round(4)
        found[name] |= {system: means[system].dropna().to_dict() for system in tables}
    return found


def photographs(options: argparse.Namespace, side: int) -> np.ndarray:
    """Center crops of the photographs of a folder, uint8 [n, side, side, 3]; without one, of those inside scikit-image."""
    if options.photos is None:
        return crops(options.count, side)
    found = []
    for path in sorted(options.photos.rglob("*")):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp") and len(found) < options.count:
            try:
                found.append(crop_square(path.read_bytes(), CropConfig(size=side))[0])
            except Refused as reason:
                print(f"{path.name} is left out: {reason}", file=sys.stderr)
    if len(found) < 20:
        sys.exit(
            f"error: {options.photos} holds {len(found)} photographs that can be read; give a folder with at least 20"
        )
    return np.stack(found)


SLICES: dict[str, Callable[[Run], Row]] = {
    each.__name__: each for each in (zhang, epochs, kernels, deterministic, resume, streamed)
} | {f"document_{number}": partial(document, number=number) for number in DOCUMENTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "slice", nargs="*", help=f"of {', '.join(SLICES)}; those that are missing, if none is given"
    )
    parser.add_argument("--models", nargs="+", help="blocks of params.yaml, instead of those of the slices")
    parser.add_argument("--photos", type=Path, help="a folder of photographs for the documents' models")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks/results/gpu", help="where the JSON goes"
    )
    parser.add_argument(
        "--minutes", type=float, default=9, help="of one call: after half of them no slice is begun"
    )
    parser.add_argument(
        "--budget", type=float, default=4, help="minutes that the models of a document train together"
    )
    parser.add_argument("--count", type=int, default=2048, help="photographs of a measurement")
    parser.add_argument("--largest", type=int, default=608, help="cap of the models' sizes, in pixels")
    parser.add_argument("--workers", type=int, default=8, help="of the documents' loader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the slices themselves"
    )
    options = parser.parse_args()
    if unknown := set(options.slice) - set(SLICES):
        parser.error(f"there is no slice {min(unknown)!r}; choose among {', '.join(SLICES)}")
    run, started, measured = Run(options), time.monotonic(), 0
    there: dict[str, Any] = machine() | {"device": "cpu"}
    if run.device.type == "cuda":
        there |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    for name in options.slice or SLICES:
        path = options.out / f"{name}.json"
        if path.exists() and not options.slice:
            continue
        if measured and time.monotonic() - started > 60 * options.minutes / 2:
            print(f"{name} and what follows are left for the next time; the same command goes on")
            break
        began = time.monotonic()
        content = {
            "slice": name,
            "found": SLICES[name](run),
            "seconds": round(time.monotonic() - began),
            "machine": there,
        }
        files.write_json(path, content)
        measured += 1
        print(json.dumps(content, indent=2))


if __name__ == "__main__":
    try:
        main()
    except files.InputError as error:
        sys.exit(f"error: {error}")
