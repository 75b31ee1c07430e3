"""The command `colorize`: color photographs, score models, list and verify a project.

Exit status 0: success; 1: an error, told in one sentence, or a photograph failed; 2: wrong arguments; 130 and
143: stopped by a signal. The project (its models, its dvc.lock) is the nearest one from the current folder
upwards; a folder with a trained model needs no project.
"""

import json
import math
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from colorize.apply import project
from colorize.data.images import CropConfig
from colorize.files import InputError, one_sentence, text_of
from colorize.settings import SHIPPED

if TYPE_CHECKING:  # torch takes a second to import, which `colorize --help` should not
    import torch

    from colorize.apply.coloring import System

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Color grey photographs with models that you trained, and measure how well they do it.",
)
MODEL = typer.Option(
    "--model",
    "-m",
    help="A model of this project, a folder with a trained model, an experiment or Git revision with one, or "
    "shipped: the model that comes with the program.",
    show_default="shipped",
)
Models = Annotated[list[str] | None, MODEL]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")]
Threads = Annotated[
    int, typer.Option(min=0, help="Number of threads; 0: OMP_NUM_THREADS, else all cores of this process.")
]


def finite(value: float | None) -> float | None:
    """Refuse nan and inf, which pass typer's limits."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no number")
    return value


Temperature = Annotated[
    float | None,
    typer.Option(min=0, max=1, callback=finite, help="Classifiers: 0 is the likeliest color, 1 the mean."),
]
Saturation = Annotated[
    float | None,
    typer.Option(
        min=0, max=4, callback=finite, help="Regressions: 1 is closest to the truth, more is bolder."
    ),
]
MaxMegapixels = Annotated[
    float, typer.Option(min=1, callback=finite, help="Refuse larger photographs before decoding them.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def set_up(device: Literal["auto", "cpu", "cuda"], threads: int) -> "torch.device":
    """Set up the process for a device and a number of threads; 0 takes `usable_threads`."""
    from colorize.training.device import TrainConfig, select_device, usable_threads

    return select_device(TrainConfig(device=device, threads=threads or usable_threads()))


def load_all(names: list[str] | None, device: "torch.device", **decoding: float | None) -> "list[System]":
    """Load trained models and set their decoding (see `System.decode`).

    Raises:
        InputError: a model is missing or lacks a decoding option, or two have one name.
    """
    from colorize.apply.coloring import System

    with tempfile.TemporaryDirectory() as temporary:
        places = enumerate(names or [SHIPPED])
        folders = [project.find_model(name, Path(temporary) / str(number)) for number, name in places]
        systems = [System.load(folder, device.type) for folder in folders]
    loaded = [system.name for system in systems]
    if len(set(loaded)) < len(loaded):
        raise InputError(f"two models are called {max(loaded, key=loaded.count)}; name each model once")
    for system in systems:
        system.decode(**decoding)
    return systems


def print_table(rows: list[dict[str, Any]], right: tuple[str, ...] = ()) -> None:
    """Print rows of text as a table; align the columns in `right` to the right."""
    table = Table(box=None, pad_edge=False)
    for column in rows[0] if rows else ():
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(markup=False, emoji=False, highlight=False).print(table)


def failure(photo: str, reason: str) -> str:
    """Tell in one line why a photograph failed."""
    from colorize.data.images import SENTENCES

    return f"{photo}: {SENTENCES.get(reason, reason)}"


def passed_over(reasons: "Counter[str]") -> str:
    """Tell in a clause how many files were passed over, and why."""
    from colorize.data.album import counts

    return f", {reasons.total()} passed over ({counts(reasons.elements())})" if reasons else ""


@app.command()
def apply(
    photographs: Annotated[
        list[Path], typer.Argument(help="Photographs, or folders of them.", show_default=False)
    ],
    model: Models = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("colored"),
    temperature: Temperature = None,
    saturation: Saturation = None,
    samples: Annotated[
        int, typer.Option(min=1, max=1000, help="Samples per photograph, for models that can draw samples.")
    ] = 1,
    compare: Annotated[
        bool, typer.Option(help="One sheet per photograph with all models side by side.")
    ] = False,
    max_megapixels: MaxMegapixels = CropConfig.max_megapixels,
    device: Device = "auto",
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Color photographs of any size and format.

    The result has the same size and keeps the photograph's own lightness, its EXIF data and ICC profile. A
    repeated command skips finished photographs. `colorize.csv` in the output folder lists the result of every
    photograph. Only unchanged results of earlier runs are overwritten.

    `colorize apply grandma.jpg`

    `colorize apply album/ --saturation 1.6 --output vivid`

    `colorize apply album/ -m vae -m zhang_simplified --compare -o compared`

    `colorize apply album/ -m zhang_simplified --temperature 0.2 -o vivid`
    """
    from colorize.apply import coloring
    from colorize.data.album import LOG

    items = coloring.find(photographs, output)
    systems = load_all(model, set_up(device, threads), temperature=temperature, saturation=saturation)
    rows = []
    work = coloring.color_all(items, systems, output, samples, compare, max_megapixels)
    for row in tqdm(work, total=sum(item.status != "ignored" for item in items), unit="photo", disable=None):
        rows.append(row)
        if row.status == "failed":
            tqdm.write(failure(row.photo, row.reason), file=sys.stderr)
    count = {status: sum(row.status == status for row in rows) for status in ("done", "kept", "failed")}
    passed = Counter(item.reason for item in items if item.status in ("skipped", "ignored"))
    if as_json:
        content = {"output": text_of(str(output)), **count, "passed_over": passed}
        print(json.dumps(content | {"photographs": [*map(asdict, rows)]}, indent=2))
    else:
        summary = f"{count['done']} colored, {count['kept']} were done before, {count['failed']} failed"
        print(f"{summary}{passed_over(passed)}; see {text_of(str(output / LOG))}")
    if count["failed"]:
        raise typer.Exit(1)


@app.command()
def score(
    photographs: Annotated[
        list[Path], typer.Argument(help="Color photographs, or folders of them.", show_default=False)
    ],
    model: Models = None,
    size: Annotated[
        int, typer.Option(min=0, max=4096, help="Side of the crops in pixels; 0: the models' largest size.")
    ] = 0,
    temperature: Temperature = None,
    saturation: Saturation = None,
    max_megapixels: MaxMegapixels = CropConfig.max_megapixels,
    device: Device = "auto",
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Score models on color photographs, with the pipeline's metrics, both baselines and 95 % intervals.

    Photographs are cropped to squares as in the pipeline; the columns `over` are paired differences.

    `colorize score holiday/`

    `colorize score holiday/ -m vae -m cgan --json > scores.json`
    """
    from colorize.apply import score
    from colorize.scoring.evaluation import EvaluateConfig
    from colorize.scoring.metrics import BASELINES, METRICS, TOO_FEW, with_interval

    chosen = set_up(device, threads)
    systems = load_all(model, chosen, temperature=temperature, saturation=saturation)
    result = score.score(photographs, systems, EvaluateConfig(), size, chosen, max_megapixels)
    records = result.table.to_dict("records")
    if as_json:
        content = {key: value for key, value in asdict(result).items() if key != "table"}
        known = [{k: v for k, v in row.items() if v == v} for row in records]  # JSON has no NaN
        print(json.dumps(content | {"scores": known}, indent=2))
        return
    rows = []
    for row in records:
        metric = METRICS[row["metric"]]
        cells = {"metric": f"{row['metric']} {metric.unit}".strip(), "system": row["system"]}
        cells["mean"] = with_interval([row["mean"], row["low"], row["high"]], f".{metric.decimals}f")
        for base in BASELINES:
            gain = [row[f"over_{base}{end}"] for end in ("", "_low", "_high")]
            other = row["system"] != base
            cells[f"over {base}"] = with_interval(gain, f"+.{metric.decimals}f") if other else ""
        rows.append(cells)
    print_table(rows, right=("mean", *(f"over {base}" for base in BASELINES)))
    grey = f", {result.grey_truths} of them grey in truth and left out of PSNR" if result.grey_truths else ""
    few = TOO_FEW if result.table["low"].isna().all() else ""
    summary = f"{result.images} photographs at {result.size}x{result.size} pixels"
    print(f"{summary}{grey}{few}{passed_over(result.passed_over)}")
    for photo, reason in result.failed.items():
        print(failure(photo, reason), file=sys.stderr)
    if result.failed:
        raise typer.Exit(1)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List every model: document, parameters, folder if trained, scores, problem if it cannot be built.

    `colorize models`
    """
    rows = project.list_models(project.project())
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    shown, problems = [], any(row["problem"] for row in rows)
    for row in rows:
        texts = {key: "" if row[key] is None else row[key] for key in row if key != "problem" or problems}
        if row["parameters"] is not None:
            texts["parameters"] = f"{row['parameters']:,}"
        shown.append(texts)
    print_table(shown, right=("parameters", "psnr", "ssim", "rmse"))


@app.command()
def verify(as_json: AsJson = False) -> None:
    """Hash data, models and metrics and name those that differ from dvc.lock.

    The exit status is 1 if something is missing, differs or is not in dvc.lock: `dvc repro` makes it again,
    `dvc checkout` restores it. Models of the zoo that were never trained are only counted. Installed packages
    whose versions differ from the pinned ones are named too, because results may then differ.

    `colorize verify`
    """
    root = project.required_project()
    rows = project.verify_outs(root)
    ran = [row for row in rows if row["status"] != "never ran"]
    wrong = [row for row in ran if row["status"] != "ok"]
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        for row in wrong:
            print(f"{row['path']}: {row['status']}")
        print(f"{len(ran) - len(wrong)} of {len(ran)} outs are what dvc.lock says")
        if len(ran) < len(rows):
            more = len(rows) - len(ran)
            print(f"{more} more are of stages that never ran; `make zoo` runs them", file=sys.stderr)
        for clause in project.other_versions(root):
            print(f"{clause}: a new run may differ in the last digits", file=sys.stderr)
    if wrong:
        raise typer.Exit(1)


@app.command()
def export(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the three files.", show_default=False)
    ],
    model: Annotated[str, MODEL] = SHIPPED,
) -> None:
    """Export a trained model: safetensors with its description, and ONNX.

    The ONNX file is written only if ONNX Runtime and PyTorch agree. Needs the packages onnx, onnxruntime and
    onnxscript.

    `colorize export --model zhang_simplified --output exported`
    """
    from colorize.apply.export import export as write

    with tempfile.TemporaryDirectory() as temporary:
        for path in write(project.find_model(model, Path(temporary)), output):
            print(path)


@app.command("app")
def serve(
    model: Annotated[list[str] | None, MODEL] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free port.")] = 7860,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Largest upload.")] = 50,
    max_megapixels: MaxMegapixels = CropConfig.max_megapixels,
    show: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Serve a local page that colors a photograph and compares models.

    Without --model it offers the shipped model and every trained model of this project. It listens on this
    computer only and stores nothing.

    `colorize app`

    `colorize app --model vae --model zhang_simplified --port 8000`
    """
    import socket

    import uvicorn

    from colorize.apply.app import create_app
    from colorize.models import load_description

    with tempfile.TemporaryDirectory() as temporary:
        if model:
            places = [project.find_model(name, Path(temporary) / str(n)) for n, name in enumerate(model)]
            folders = {load_description(folder)["name"]: folder for folder in places}
        else:
            folders = project.trained(project.project())
        served = create_app(folders, max_megabytes, set_up(device, threads).type, max_megapixels)
        with socket.socket() as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listening.bind(("127.0.0.1", port))
            except OSError as error:
                raise InputError(f"port {port} is taken; give another --port") from error
            listening.listen()  # requests wait until the server is up
            address = f"http://127.0.0.1:{listening.getsockname()[1]}"
            print(f"{address} (Ctrl-C stops)", flush=True)
            if show:
                typer.launch(address)
            uvicorn.Server(uvicorn.Config(served, log_level="warning")).run(sockets=[listening])


def stop(signum: int, _: object) -> None:
    """Exit with 128 + signum; `with` and `finally` blocks clean up on the way."""
    print("stopped; the same command continues", file=sys.stderr)
    sys.exit(128 + signum)


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # background jobs ignore SIGINT
        signal.signal(signal.SIGINT, stop)
    with one_sentence():
        app()


if __name__ == "__main__":
    main()
