"""Measure on a GPU, in slices of less than ten minutes: `make gpu`, or `python -m benchmarks.gpu [SLICE...]`.

To keep the PyTorch of a GPU machine: `python -m venv --system-site-packages .venv`, then `.venv/bin/pip
install -r requirements.txt` without its line of torch. Every slice writes its own JSON and does not run again
while that exists, so the same command continues after a time limit.

- `zhang`: photographs a second of the full network at 256 and 176 pixels, and the share of the floor -
`epochs`: an epoch of each kind of model against the documents' training loop - `kernels`: Lab and soft loss
against scikit-image and dense targets - `deterministic`: the cost of determinism, and a check of it -
`resume`: a training that is stopped in every epoch against an uninterrupted one - `streamed`: photographs
from disk against photographs in memory - `document_000`, `_001`, `_002`, `_004`: the document's models at
their own sizes for equal times on the photographs of
  `--photos`, scored beside grey and mean_color
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.machine import ROOT, machine

sys.path.insert(0, str(ROOT / "src"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from skimage.color import rgb2lab  # noqa: E402

from benchmarks.race import Row, crops, jpeg, losses, race, seconds, train_ours, train_theirs  # noqa: E402
from colorize import files  # noqa: E402
from colorize.bins import PriorConfig, Statistics  # noqa: E402
from colorize.color import bytes_to_lab  # noqa: E402
from colorize.data.dataset import Photos, Streamed  # noqa: E402
from colorize.data.images import CropConfig, Refused, crop_square  # noqa: E402
from colorize.data.shards import Crops  # noqa: E402
from colorize.models import ModelConfig, build_baseline, build_model  # noqa: E402
from colorize.models.base import Colorizer  # noqa: E402
from colorize.scoring import evaluation, metrics, plausibility  # noqa: E402
from colorize.training.device import TrainConfig, select_device  # noqa: E402
from pipeline.check import AllParams  # noqa: E402
from pipeline.params import load  # noqa: E402

FLOOR = {256: 3153, 176: 6671}
"""Side of the input to images a second of the full network's training at 790 TFLOP/s."""
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
    """The options of the command line and the blocks of params.yaml."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.params = load(AllParams, ROOT / "params.yaml")
        self.config = replace(FAST, device=options.device)
        self.device = select_device(self.config)
        self.statistics = Statistics.measure(crops(64, 64), PriorConfig())

    def block(self, name: str) -> ModelConfig:
        """A block with our own prior instead of the released one."""
        block = self.params.models[name]
        ours = {"released": "empirical", "released_smoothed": "smoothed"}
        weights = ours.get(block.head.weights, block.head.weights)
        return replace(block, head=replace(block.head, weights=weights))

    def names(self, *names: str) -> Sequence[str]:
        """The models of a slice, or those of --models."""
        return self.options.models or names

    def side(self, block: ModelConfig) -> int:
        return min(block.size, self.options.largest)

    def model(self, block: ModelConfig, statistics: Statistics | None = None) -> Colorizer:
        torch.manual_seed(1)
        return build_model(block, self.side(block), statistics or self.statistics).to(self.device)

    def speed(self, block: ModelConfig, photos: Photos, config: TrainConfig) -> float:
        """Photographs a second in the fastest epoch after the first."""
        select_device(config)
        return round(len(photos) / min(train_ours(self.model(block), photos, block, config).seconds[1:]), 1)

    def photos(self, block: ModelConfig, most: int = sys.maxsize) -> Photos:
        """Crops of a block's size on the device."""
        return Photos(crops(min(most, self.options.count), self.side(block)), self.side(block), self.device)


def zhang(run: Run) -> Row:
    """The full network at 256 and at 176 pixels: photographs a second, and the share of the floor."""
    block, rows = run.block(*run.names("zhang_soft")), {}
    photos = run.photos(block)
    for (side, share), batch, precision in product(((256, 1.0), (176, 0.6875)), (32, 128), ("bf16", "fp32")):
        cropped = replace(block, recipe=replace(block.recipe, batch=batch, crop=share))
        rate = run.speed(cropped, photos, replace(run.config, precision=precision))
        row = {"photographs a second": rate, "share of the floor": round(rate / FLOOR[side], 3)}
        rows[f"{side} pixels, batch {batch}, {precision}"] = row
    return rows


def epochs(run: Run) -> Row:
    """One epoch of each kind of model against the documents' loop, the best of two that take turns."""
    rows = {}
    for name in run.names(*KINDS):
        block = run.block(name)
        block = replace(block, recipe=replace(block.recipe, scales=(1,), crop=1))
        photos = run.photos(block)
        rates: dict[str, list[float]] = {"ours": [], "ours in fp32": [], "theirs": []}
        with TemporaryDirectory() as folder:
            for number, pixels in enumerate(crops(len(photos), photos.size)):
                (Path(folder) / f"{number:05}.jpg").write_bytes(jpeg(pixels, 95))
            for _ in range(2):
                rates["ours"].append(run.speed(block, photos, run.config))
                rates["ours in fp32"].append(run.speed(block, photos, replace(run.config, precision="fp32")))
                work = partial(train_theirs, run.model(block), Path(folder), block, run.options.workers)
                rates["theirs"].append(round(len(photos) / seconds(work), 1))
        best = {side: max(values) for side, values in rates.items()}
        row = {f"{side}, photographs a second": rate for side, rate in best.items()}
        rows[name] = {"size": photos.size} | row | {"ratio": round(best["ours"] / best["theirs"], 2)}
    return rows


def kernels(run: Run) -> Row:
    """Lab against scikit-image on the CPU; soft loss against dense targets on the device."""
    select_device(run.config)
    images = crops(min(256, run.options.count), min(256, run.options.largest))
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).to(run.device)
    lab = race(len(images), "photographs", lambda: bytes_to_lab(batch), lambda: rgb2lab(images), rounds=3)
    difference = np.abs(bytes_to_lab(batch).permute(0, 2, 3, 1).cpu().numpy() - rgb2lab(images)).max()
    lab["largest difference, Lab units"] = float(f"{difference:.2g}")
    ours, theirs = losses(32, 64, run.device)
    loss = race(32, "photographs, 313 bins at 64x64", ours, theirs)
    loss["largest difference of the gradients"] = float(f"{(ours() - theirs()).abs().max():.2g}")
    if run.device.type == "cuda":
        peaks = []
        for side in (ours, theirs):
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            side()
            peaks.append(torch.cuda.max_memory_allocated() - before)
        loss["share of their memory"] = round(peaks[0] / peaks[1], 2)
    return {"lab": lab, "soft loss": loss}


def _sha256(model: Colorizer) -> str:
    return files.sha256_bytes(b"".join(t.cpu().numpy().tobytes() for t in model.state_dict().values()))


def deterministic(run: Run) -> Row:
    """The cost of determinism in both precisions, and whether two trainings give the same bytes."""
    rows: Row = {}
    for name in run.names("zhang_simplified", "cgan", "cae"):
        block = run.block(name)
        photos = run.photos(block)
        for precision in ("bf16", "fp32"):
            free_config = replace(run.config, precision=precision, deterministic=False)
            exact_config = replace(free_config, deterministic=True)
            exact, free = (run.speed(block, photos, config) for config in (exact_config, free_config))
            digests = []
            for _ in range(2):
                select_device(exact_config)
                model = run.model(block)
                train_ours(model, photos, block, exact_config)
                digests.append(_sha256(model))
            rows[f"{name}, {precision}"] = {
                "photographs a second, deterministic": exact,
                "and free": free,
                "cost": round(free / exact - 1, 3),
                "two trainings, the same bytes": digests[0] == digests[1],
            }
    return rows


def resume(run: Run) -> Row:
    """Compare a deterministic training that is stopped in every epoch with an uninterrupted one."""

    class Stopped(Exception):
        pass

    def stop(at: int, row: dict[str, float]) -> None:
        if row["epoch"] == at:
            raise Stopped

    rows = {}
    for name in run.names("zhang_simplified", "cgan"):
        block = run.block(name)
        photos = run.photos(block, most=512)
        config = replace(run.config, max_epochs=4, deterministic=True, checkpoint_seconds=0)
        select_device(config)
        whole = run.model(block)
        train_ours(whole, photos, block, config)
        with TemporaryDirectory() as folder:
            state = Path(folder) / "s.pt"
            for at in (2, 3, 4, 0):
                resumed = run.model(block)
                with suppress(Stopped):
                    train_ours(resumed, photos, block, config, state=state, on_epoch=partial(stop, at))
        rows[name] = {"the same bytes": _sha256(whole) == _sha256(resumed)}
    return rows


def streamed(run: Run) -> Row:
    """An epoch over photographs on disk against photographs in memory."""
    rows = {}
    for name in run.names("zhang_simplified", "cae"):
        block = run.block(name)
        images = crops(run.options.count, run.side(block))
        with TemporaryDirectory() as folder:
            for number, shard in enumerate(np.array_split(images, 4)):
                files.write_array(Path(folder) / f"crops-{number:05}.npy", shard)
            photos = Photos(Streamed(Crops(Path(folder)), run.device), run.side(block))
            disk, memory = (run.speed(block, each, run.config) for each in (photos, photos.held()))
        rows[name] = {
            "streamed, photographs a second": disk,
            "held": memory,
            "share": round(disk / memory, 2),
        }
    return rows


def document(run: Run, number: str) -> Row:
    """Train a document's models at their own sizes for equal times; score them beside grey and mean_color."""
    names = run.names(*DOCUMENTS[number])
    minutes = run.options.budget / len(names)
    rows: Row = {"minutes each": round(minutes, 2)}
    for name in names:
        block = run.block(name)
        side = run.side(block)
        images = photographs(run.options, side)
        order = np.random.default_rng(1).permutation(len(images))  # the same split for every seed
        parts = np.split(order, [len(images) * 8 // 10, len(images) * 9 // 10])
        train, val, test = (images[part] for part in parts)
        config = replace(run.config, max_epochs=0, max_minutes=minutes, keep="best")
        select_device(config)
        statistics = Statistics.measure(train, PriorConfig())
        model = run.model(block, statistics)
        learn, validate = (Photos(part, side, run.device) for part in (train, val))
        progress = train_ours(model, learn, block, config, val=validate, seed=run.options.seed)
        systems = {"model": model} | {key: build_baseline(key, statistics) for key in metrics.BASELINES}
        photos = [str(index) for index in range(len(test))]
        critic = plausibility.critic(test, 16, run.device, THREADS)
        tables = {}
        for system, scored in systems.items():
            scores = evaluation.score(system, scored, side, photos, test, 16, 1, run.device, THREADS, critic)
            tables[system] = scores.assign(group=photos)
        means = metrics.compare(tables, 1).pivot(index="metric", columns="system", values="mean").round(4)
        rows[name] = {
            "size": side,
            "photographs": [len(train), len(val), len(test)],
            "epochs": progress.epoch,
        }
        rows[name] |= {system: means[system].dropna().to_dict() for system in tables}
    return rows


def photographs(options: argparse.Namespace, side: int) -> np.ndarray:
    """Crop the photographs of --photos, or of scikit-image, to uint8 [n, side, side, 3]."""
    if options.photos is None:
        return crops(options.count, side)
    squares = []
    for path in sorted(options.photos.rglob("*")):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp") and len(squares) < options.count:
            try:
                squares.append(crop_square(path.read_bytes(), CropConfig(size=side))[0])
            except Refused as reason:
                print(f"{path.name} is left out: {reason}", file=sys.stderr)
    if len(squares) < 20:
        readable = f"{options.photos} holds {len(squares)} photographs that can be read"
        raise files.InputError(f"{readable}; give a folder with at least 20")
    return np.stack(squares)


SLICES: dict[str, Callable[[Run], Row]] = {
    each.__name__: each for each in (zhang, epochs, kernels, deterministic, resume, streamed)
} | {f"document_{number}": partial(document, number=number) for number in DOCUMENTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add, out = parser.add_argument, ROOT / "benchmarks/results/gpu"
    add("slice", nargs="*", help=f"any of {', '.join(SLICES)}; by default those without a JSON")
    add("--models", nargs="+", help="blocks of params.yaml, instead of those of the slices")
    add("--photos", type=Path, help="folder of photographs for the documents' models")
    add("--out", type=Path, default=out, help="folder for the JSON files")
    add("--minutes", type=float, default=9, help="time of one call; no slice starts after half of it")
    add("--budget", type=float, default=4, help="training minutes of all models of a document")
    add("--count", type=int, default=2048, help="photographs of a measurement")
    add("--largest", type=int, default=608, help="upper limit of the models' sizes, in pixels")
    add("--workers", type=int, default=8, help="workers of the documents' loader")
    add("--seed", type=int, default=1)
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only tests the slices")
    options = parser.parse_args()
    if unknown := set(options.slice) - set(SLICES):
        parser.error(f"there is no slice {min(unknown)!r}; choose among {', '.join(SLICES)}")
    run, started, measured = Run(options), time.monotonic(), 0
    place: dict[str, Any] = machine() | {"device": "cpu"}
    if run.device.type == "cuda":
        place |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    for name in options.slice or SLICES:
        path = options.out / f"{name}.json"
        if path.exists() and not options.slice:
            continue
        if measured and time.monotonic() - started > 60 * options.minutes / 2:
            print(f"{name} and what follows are left for the next time; the same command goes on")
            break
        began = time.monotonic()
        content = {"slice": name, "found": SLICES[name](run)}
        content |= {"seconds": round(time.monotonic() - began), "machine": place}
        files.write_json(path, content)
        measured += 1
        print(json.dumps(content, indent=2))


if __name__ == "__main__":
    with files.one_sentence():
        main()
