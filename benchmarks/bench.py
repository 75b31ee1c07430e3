"""Race our code against the usual code: `python -m benchmarks.bench [ROW...]`; `make bench` runs all rows.

Both sides of a row take turns in one process and must give the same answer. A row prints units a second of
both sides (the median of the rounds), the median ratio and its range, the difference of the answers and, if a
physical floor can be measured, the share of it that we reach. `results/bench.json` keeps the rows with
machine, versions and commit, and the end of `README.md` shows them; other rows stay as they are. Photographs
are mosaics of scikit-image's.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.spatial import cKDTree
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks.machine import ROOT, machine
from benchmarks.race import ROUNDS, Row, crops, jpeg, losses, race, seconds, tiles, train_ours, train_theirs
from colorize import bins, files
from colorize.color import bytes_to_lab
from colorize.data.crops import crop_shards
from colorize.data.dataset import Photos, Streamed
from colorize.data.images import CropConfig, crop_square
from colorize.data.palette import main_colors, weighted_lightness
from colorize.data.shards import Crops
from colorize.files import InputError
from colorize.models import build_model
from colorize.models.heads import Classification
from colorize.scoring.metrics import per_image, psnr
from colorize.training.device import TrainConfig
from pipeline.check import AllParams
from pipeline.params import load

RESULTS = ROOT / "benchmarks/results/bench.json"
SHOWN = ROOT / "benchmarks/README.md"
HEADING = "## Ours against what one would otherwise write"
"""Everything below this heading is rewritten."""


def mosaic(width: int, height: int) -> bytes:
    """A JPEG of this size made of tiles of 128 pixels."""
    base, picture = tiles(128), Image.new("RGB", (width, height))
    columns = -(-width // 128)
    for place in range(columns * -(-height // 128)):
        row, column = divmod(place, columns)
        picture.paste(Image.fromarray(base[place % len(base)]), (column * 128, row * 128))
    return jpeg(picture)


def lanczos(content: bytes) -> np.ndarray:
    """Crop like the documents: decode all pixels and scale the central square with Lanczos's filter."""
    with Image.open(io.BytesIO(content)) as image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.convert("RGB").crop((left, top, left + side, top + side))
        return np.asarray(square.resize((256, 256), Image.Resampling.LANCZOS))


def _crop(width: int, height: int, count: int) -> Row:
    content, config = mosaic(width, height), CropConfig(size=256)

    def ours() -> np.ndarray:
        return [crop_square(content, config)[0] for _ in range(count)][0]

    def theirs() -> np.ndarray:
        return [lanczos(content) for _ in range(count)][0]

    row = race(count, "photographs, one core", ours, theirs)
    floor = statistics.median(seconds(lambda: [_draft(content) for _ in range(count)]) for _ in range(ROUNDS))
    share = round(row["ours a second"] * floor / count, 2)
    row["share of the floor (decoding at the scale that is enough)"] = share
    return row | {"PSNR between the answers, dB": round(float(psnr(theirs()[None], ours()[None])[0]), 1)}


def _draft(content: bytes) -> None:
    with Image.open(io.BytesIO(content)) as image:
        image.draft("RGB", (512, 512))
        image.load()


def crop_12mp() -> Row:
    """JPEG of 12 megapixels to 256x256 | Pillow: full decode, Lanczos"""
    return _crop(4000, 3000, 3)


def crop_1mp() -> Row:
    """JPEG of 1 megapixel to 256x256 | Pillow: full decode, Lanczos"""
    return _crop(1200, 850, 20)


def _same(content: bytes, shard: str, member: str) -> bytes:
    return content


def cores() -> Row:
    """crops of 1 megapixel on all cores | on one core"""
    content, count, cpus = mosaic(1200, 850), 600, os.cpu_count() or 1
    read, digits = partial(_same, content), files.sha256_bytes(content)
    rows = [{"photo": f"{i:04}", "shard": "", "member": str(i), "sha256": digits} for i in range(count)]

    def crop(workers: int) -> list[bytes]:
        with tempfile.TemporaryDirectory() as folder:
            config = CropConfig(size=256, workers=workers)
            assert all(
                r.status == "ok" for part in crop_shards(rows, read, Path(folder), config) for r in part
            )
            return [path.read_bytes() for path in sorted(Path(folder).glob("*.npy"))]

    same = crop(cpus) == crop(1)
    row = race(count, f"photographs, {cpus} cores and 1", lambda: crop(cpus), lambda: crop(1), rounds=3)
    return row | {"share of the cores": round(row["ratio"] / cpus, 2), "the same bytes": same}


def lab() -> Row:
    """sRGB to Lab, 32 photographs of 256x256 | scikit-image's rgb2lab"""
    images = crops(32, 256)
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)

    def ours() -> torch.Tensor:
        return bytes_to_lab(batch)

    row = race(len(images), "photographs", ours, lambda: rgb2lab(images))
    each = race(len(images), "photographs", ours, lambda: [rgb2lab(image) for image in images])
    difference = np.abs(ours().permute(0, 2, 3, 1).numpy() - rgb2lab(images)).max()
    return row | {
        "ratio to rgb2lab of one photograph after the other": each["ratio"],
        "largest difference, Lab units": float(f"{difference:.2g}"),
    }


def prior() -> Row:
    """counts of the 313 bins over 400 photographs of 256x256 | scikit-image's rgb2lab and SciPy's k-d tree"""
    images, tree = crops(400, 256), cKDTree(bins.centers())

    def ours() -> np.ndarray:
        return bins.count_bins(bins.color_counts(images))[0]

    def theirs() -> np.ndarray:
        counts = np.zeros(bins.Q, np.int64)
        for image in images:
            counts += np.bincount(tree.query(rgb2lab(image)[..., 1:].reshape(-1, 2))[1], minlength=bins.Q)
        return counts

    row = race(len(images), "photographs", ours, theirs, rounds=2)
    return row | {"pixels that are counted elsewhere": int(np.abs(ours() - theirs()).sum() // 2)}


def palette() -> Row:
    """ten main colors of 128 photographs of 256x256 | Pillow's median cut"""
    images = crops(128, 256)
    whole = rgb2lab(images)[..., 0].mean(axis=(1, 2))

    def error(method: str) -> float:
        return float(np.sqrt(np.square(weighted_lightness(*main_colors(images, method)) - whole).mean()))

    sides = (partial(main_colors, images, method) for method in ("fastoctree", "mediancut"))
    row = race(len(images), "photographs", *sides)
    return row | {
        "error of the weighted L*, ours": round(error("fastoctree"), 2),
        "theirs": round(error("mediancut"), 2),
    }


def encode() -> Row:
    """five nearest of the 313 bins and their weights at 56x56, 8 photographs | distances to all bins, topk"""
    head = Classification(5, 5, 0.38, torch.ones(bins.Q))
    ab = (torch.rand(8, 2, 56, 56, generator=torch.Generator().manual_seed(1)) - 0.5) * 150

    def ours() -> torch.Tensor:
        return head.encode(ab)[1]

    def theirs() -> torch.Tensor:
        points = ab.permute(0, 2, 3, 1).reshape(-1, 2)
        distance, _ = torch.cdist(points, head.centers).topk(5, largest=False)
        return F.softmax(-(distance**2) / 50, dim=1).view(8, 56, 56, 5).permute(0, 3, 1, 2)

    row = race(8, "photographs", ours, theirs, rounds=50)
    return row | {"largest difference of the weights": float(f"{(ours() - theirs()).abs().max():.2g}")}


def _peak() -> int:
    """Peak memory of this process in kB; `ru_maxrss` would include the parent's."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


def _held(side: int) -> int:
    """Memory of one side without its inputs and without libraries that load at first use."""
    losses(1, 8)[side]()
    work = losses(8, 56)[side]
    before = _peak()
    work()
    return _peak() - before


def soft_loss() -> Row:
    """soft cross-entropy over 313 bins at 56x56, 8 photographs, forward and backward | with dense targets"""
    ours, theirs = losses(8, 56)
    row = race(8, "photographs", ours, theirs, rounds=50)
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        held = list(pool.map(_held, (0, 1)))
    return row | {
        "share of their memory": round(held[0] / held[1], 2),
        "largest difference of the gradients": float(f"{(ours() - theirs()).abs().max():.2g}"),
    }


def _epochs(name: str, epochs: int = 1, rounds: int = 3) -> Row:
    params = load(AllParams, ROOT / "params.yaml")
    block, side, count = params.models[name], 64, 300
    images = crops(count, side)
    size = min(block.size or side, side)
    statistics_ = bins.Statistics.measure(images, params.prior)
    small = Photos(images, size)
    config = TrainConfig(max_epochs=epochs, min_lr=1e-5, threads=os.cpu_count() or 1)
    torch.set_num_threads(config.threads)

    def ours(config: TrainConfig = config) -> None:
        train_ours(build_model(block, size, statistics_), small, block, config)

    with tempfile.TemporaryDirectory() as folder:
        for number, pixels in enumerate(small.images.numpy()):
            (Path(folder) / f"{number:04}.jpg").write_bytes(jpeg(pixels, 95))

        def theirs() -> None:
            train_theirs(build_model(block, size, statistics_), Path(folder), block, 2, epochs)

        row = race(epochs * count, f"photographs of {size}x{size}", ours, theirs, rounds)
    half = statistics.median(seconds(lambda: ours(replace(config, precision="bf16"))) for _ in range(rounds))
    return row | {"ratio with train.precision=bf16": round(epochs * count / half / row["theirs a second"], 2)}


def epoch_cae() -> Row:
    """one epoch of `cae` | a Dataset that opens and converts each photograph, two workers"""
    return _epochs("cae")


def epoch_fcae2() -> Row:
    """one epoch of `fcae2` | the same"""
    return _epochs("fcae2")


def epoch_mlp1() -> Row:
    """one epoch of `mlp1` | the same"""
    return _epochs("mlp1")


def epochs_80_mlp1() -> Row:
    """80 epochs of `mlp1` over 300 photographs | the same"""
    return _epochs("mlp1", epochs=80, rounds=1)


def epoch_zhang_simplified() -> Row:
    """one epoch of `zhang_simplified` | the same"""
    return _epochs("zhang_simplified")


def streamed() -> Row:
    """an epoch's batches of 2,000 photographs of 256x256, read from mapped shards | held in memory"""
    images = crops(2000, 256)
    with tempfile.TemporaryDirectory() as folder:
        for number, shard in enumerate(np.array_split(images, 2)):
            files.write_array(Path(folder) / f"crops-{number:05}.npy", shard)
        disk, memory = Photos(Streamed(Crops(Path(folder))), 256), Photos(images, 256)

        def epoch(photos: Photos) -> float:
            return sum(float(light[0, 0, 0, 0]) for light, _ in photos.epoch(1, 32, flip=True, crop=0.6875))

        same = epoch(disk) == epoch(memory)
        row = race(len(images), "photographs", lambda: epoch(disk), lambda: epoch(memory), rounds=3)
    return row | {"the same batches": same}


def scikit_scores(truth: np.ndarray, prediction: np.ndarray, ab: np.ndarray) -> dict[str, float]:
    """Compute the metrics of one photograph with scikit-image."""
    lab, error = rgb2lab(truth), (prediction.astype(float) - truth) / 255

    def colorfulness(image: np.ndarray) -> float:
        red, green, blue = np.moveaxis(image.astype(float), -1, 0)
        first, second = red - green, (red + green) / 2 - blue
        return np.hypot(first.std(), second.std()) + 0.3 * np.hypot(first.mean(), second.mean())

    options = {
        "gaussian_weights": True,
        "use_sample_covariance": False,
        "data_range": 255,
        "channel_axis": -1,
    }
    return {
        "psnr": peak_signal_noise_ratio(truth, prediction),
        "ssim": structural_similarity(truth, prediction, **options),
        "rmse": np.sqrt(np.square(error).mean()),
        "rmse_ab": np.sqrt(np.square(lab[..., 1:] - ab).mean()),
        "mae": np.abs(error).mean(),
        "colorfulness": colorfulness(prediction),
        "colorfulness_difference": abs(colorfulness(prediction) - colorfulness(truth)),
        "ciede2000": deltaE_ciede2000(lab, rgb2lab(prediction)).mean(),
    }


def evaluate() -> Row:
    """every metric of 1,000 predictions of 256x256, all cores | scikit-image, one after the other"""
    truth, random = crops(1000, 256), np.random.default_rng(1)
    prediction = np.clip(truth + random.normal(0, 12, truth.shape), 0, 255).astype(np.uint8)
    ab = rgb2lab(prediction)[..., 1:].astype(np.float32)
    ours: list[pd.DataFrame] = []
    theirs: list[pd.DataFrame] = []
    row = race(
        len(truth),
        "photographs",
        lambda: ours.append(per_image(truth, prediction, ab, os.cpu_count() or 1)),
        lambda: theirs.append(pd.DataFrame(list(map(scikit_scores, truth, prediction, ab)))),
        rounds=2,
    )
    for name, value in (ours[-1][theirs[-1].columns] - theirs[-1]).abs().max().items():
        row[f"largest difference of {name}"] = float(f"{value:.1g}")
    return row


def repro() -> Row:
    """`dvc repro` in a clone that is up to date | `dvc --version`, the cost of DVC's start"""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        search = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = os.environ | {"PATH": search, "PYTHONPATH": f"{clone}/src"}

        def run(*command: str) -> None:
            place = clone if clone.exists() else ROOT
            result = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
            if result.returncode:
                reason = (result.stderr.strip() or result.stdout.strip())[-300:]
                raise InputError(f"`{' '.join(command)}` failed: {reason}")

        run("git", "clone", "--quiet", str(ROOT), str(clone))
        run("dvc", "repro")
        row = race(1, "runs", lambda: run("dvc", "repro"), lambda: run("dvc", "--version"))
    return row | {"seconds": round(1 / row["ours a second"], 1)}


KERNELS = (crop_12mp, crop_1mp, cores, lab, prior, palette, encode, soft_loss)
EPOCHS = (epoch_cae, epoch_fcae2, epoch_mlp1, epochs_80_mlp1, epoch_zhang_simplified)
ROWS: Mapping[str, Callable[[], Row]] = {
    row.__name__: row for row in (*KERNELS, *EPOCHS, streamed, evaluate, repro)
}

GPU_SLICES = {
    "zhang": "the full network at 256 and 176 pixels, share of the floor at 790 TFLOP/s",
    "epochs": "one epoch of each kind of model, `mlp1` too",
    "kernels": "Lab, soft loss and its memory",
    "deterministic": "what bit for bit costs",
    "resume": "stopped in every epoch, the same bytes",
    "streamed": "photographs from disk",
    "document_000": "document 000 at 256 pixels",
    "document_001": "document 001 at 256 pixels",
    "document_002": "document 002 at 144 pixels",
    "document_004": "document 004 at 608 pixels",
}
"""The slices of benchmarks/gpu.py."""


def table(kept: Mapping[str, Row]) -> str:
    """Format the rows as Markdown."""
    rows = []
    shown = ("what", "against", "unit", "ours a second", "theirs a second", "ratio", "ratios", "machine")
    for name, row in kept.items():
        rows.append(
            {
                "`python -m benchmarks.bench`": f"`{name}`",
                "what": row["what"],
                "against": row["against"],
                "ours": f"{row['ours a second']:g}",
                "theirs": f"{row['theirs a second']:g}",
                "ratio": "{} ({} to {})".format(row["ratio"], *row["ratios"]),
                "": "; ".join(f"{key}: {value}" for key, value in row.items() if key not in shown),
            }
        )
    for name, what in GPU_SLICES.items():
        exists = (RESULTS.parent / f"gpu/{name}.json").exists()
        measured = f"gpu/{name}.json" if exists else "empty: no GPU was at hand"
        rows.append({"`python -m benchmarks.bench`": f"`make gpu`: `{name}`", "what": what, "": measured})
    sides = ["global"] * 3 + ["right"] * 3  # long texts are not padded
    board = pd.DataFrame(rows).fillna("")
    lines = board.to_markdown(index=False, disable_numparse=True, stralign=None, colalign=sides)
    return f"Made by `make bench`; units a second, the median of the rounds.\n\n{lines}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("row", nargs="*", help=f"of {', '.join(ROWS)}; all, if none is given")
    names = parser.parse_args().row or list(ROWS)
    if unknown := set(names) - set(ROWS):
        parser.error(f"there is no row {min(unknown)!r}; choose among {', '.join(ROWS)}")
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in tqdm(names, unit="row", file=sys.stderr):
        what, _, against = (ROWS[name].__doc__ or "").partition(" | ")
        kept[name] = {"what": what, "against": against} | ROWS[name]() | {"machine": machine()}
        print(name, *(f"{key}: {value}" for key, value in kept[name].items() if key != "machine"), sep="\n  ")
        kept = {row: kept[row] for row in ROWS if row in kept}
        files.write_json(RESULTS, kept)
        before, _, _ = SHOWN.read_text(encoding="utf-8").partition(HEADING)
        files.write_text(SHOWN, before + HEADING + "\n\n" + table(kept))


if __name__ == "__main__":
    with files.one_sentence():
        main()
