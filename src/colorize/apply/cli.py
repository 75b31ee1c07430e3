"""The command `colorize`: color one's own photographs, score models on them, list and verify what a project holds.

Thin: arguments come in, the library works, a table or one sentence goes out. Exit status 0: all is done; 1:
something is wrong and said in one sentence, or a photograph failed; 2: the command was mistyped; 130, 143:
stopped. What belongs to a project (its models, its dvc.lock) is looked for from the current folder upwards; a
folder with a trained model needs none.
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

from colorize.apply.project import (
    find_model,
    list_models,
    other_versions,
    project,
    required_project,
    trained,
    verify_outs,
)
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
    help="A model of this project, a folder with a trained one, an experiment or Git revision that holds one, or the one "
    "that comes with the program, called shipped.",
    show_default="shipped",
)
Models = Annotated[list[str] | None, MODEL]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")]
Threads = Annotated[
    int,
    typer.Option(
        min=0, help="Threads that compute; 0: OMP_NUM_THREADS, else every core that this process may use."
    ),
]


def finite(value: float | None) -> float | None:
    """An option that is a number; nan lies within all limits, and inf is none."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no number")
    return value


Temperature = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, callback=finite, help="Classifiers: 0 paints the likeliest color, 1 the mean."
    ),
]
Saturation = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=4,
        callback=finite,
        help="Regressions: 1 is closest to the truth, more is bolder, less paler.",
    ),
]
MaxMegapixels = Annotated[
    float, typer.Option(min=1, callback=finite, help="Refuse larger photographs before they are decoded.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for a program instead of a table for a person.")]


def set_up(device: Literal["auto", "cpu", "cuda"], threads: int) -> "torch.device":
    """The device, with the whole process set up for it and so many threads; 0 takes those that it may use."""
    from colorize.training.device import TrainConfig, select_device, usable_threads

    return select_device(TrainConfig(device=device, threads=threads or usable_threads()))


def load_all(names: list[str] | None, device: "torch.device", **decoding: float | None) -> "list[System]":
    """Trained models by name, on a device, that decode as is asked (see `System.decode`).

    Raises:
        InputError: one is not there or cannot decode so, or two have one name.
    """
    from colorize.apply.coloring import System

    with tempfile.TemporaryDirectory() as temporary:
        folders = [
            find_model(name, Path(temporary) / str(number)) for number, name in enumerate(names or [SHIPPED])
        ]
        systems = [System.load(folder, device.type) for folder in folders]
    known = [system.name for system in systems]
    if len(set(known)) < len(known):
        raise InputError(f"two models are called {max(known, key=known.count)}; name each model once")
    for system in systems:
        system.decode(**decoding)
    return systems


def print_table(rows: list[dict[str, Any]], right: tuple[str, ...] = ()) -> None:
    """Rows of text as a table; the columns in `right` are numbers."""
    table = Table(box=None, pad_edge=False)
    for column in rows[0] if rows else ():
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(markup=False, emoji=False, highlight=False).print(table)


def failure(photo: str, reason: str) -> str:
    """A line that tells why a photograph failed."""
    from colorize.data.images import SENTENCES

    return f"{photo}: {SENTENCES.get(reason, reason)}"


def passed_over(reasons: "Counter[str]") -> str:
    """A clause that tells how much in folders was not taken for a photograph, and why."""
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
        int, typer.Option(min=1, max=1000, help="Colorings of each photograph, of models that have several.")
    ] = 1,
    compare: Annotated[
        bool, typer.Option(help="One sheet per photograph with all models side by side.")
    ] = False,
    max_megapixels: MaxMegapixels = CropConfig.max_megapixels,
    device: Device = "auto",
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Color photographs: any size and format in, the same size out.

    The lightness stays the photograph's own, at full resolution; only color is predicted. EXIF and ICC
    profile are kept. What is done is skipped when the command is repeated; `colorize.csv` in the output
    folder tells what became of every photograph. Nothing is overwritten but results that nobody changed.

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
        told = {
            "output": text_of(str(output)),
            **count,
            "passed_over": passed,
            "photographs": [*map(asdict, rows)],
        }
        print(json.dumps(told, indent=2))
    else:
        ended = f"{count['done']} colored, {count['kept']} were done before, {count['failed']} failed"
        print(f"{ended}{passed_over(passed)}; see {text_of(str(output / LOG))}")
    if count["failed"]:
        raise typer.Exit(1)


@app.command()
def score(
    photographs: Annotated[
        list[Path], typer.Argument(help="Color photographs, or folders of them.", show_default=False)
    ],
    model: Models = None,
    size: Annotated[
        int, typer.Option(min=0, max=4096, help="Side of the crops in pixels; 0: the largest of the models'.")
    ] = 0,
    temperature: Temperature = None,
    saturation: Saturation = None,
    max_megapixels: MaxMegapixels = CropConfig.max_megapixels,
    device: Device = "auto",
    threads: Threads = 0,
    as_json: AsJson = False,
) -> None:
    """Score models on color photographs: the pipeline's metrics, both baselines, 95 % intervals.

    Photographs are cropped to squares and scored as in the pipeline; `over` columns are paired differences.

    `colorize score holiday/`

    `colorize score holiday/ -m vae -m cgan --json > scores.json`
    """
    from colorize.apply import score
    from colorize.scoring.evaluation import EvaluateConfig
    from colorize.scoring.metrics import BASELINES, METRICS, TOO_FEW, with_interval

    chosen = set_up(device, threads)
    systems = load_all(model, chosen, temperature=temperature, saturation=saturation)
    found = score.score(photographs, systems, EvaluateConfig(), size, chosen, max_megapixels)
    if as_json:
        content = {key: value for key, value in asdict(found).items() if key != "table"}
        records = [{k: v for k, v in row.items() if v == v} for row in found.table.to_dict("records")]
        print(json.dumps(content | {"scores": records}, indent=2))
        return
    rows = []
    for row in found.table.to_dict("records"):
        metric = METRICS[row["metric"]]
        cells = {"metric": f"{row['metric']} {metric.unit}".strip(), "system": row["system"]}
        cells["mean"] = with_interval([row["mean"], row["low"], row["high"]], f".{metric.decimals}f")
        for base in BASELINES:
            gain = [row[f"over_{base}{end}"] for end in ("", "_low", "_high")]
            cells[f"over {base}"] = (
                "" if row["system"] == base else with_interval(gain, f"+.{metric.decimals}f")
            )
        rows.append(cells)
    print_table(rows, right=("mean", *(f"over {base}" for base in BASELINES)))
    grey = f", {found.grey_truths} of them grey in truth and left out of PSNR" if found.grey_truths else ""
    few = TOO_FEW if found.table["low"].isna().all() else ""
    print(
        f"{found.images} photographs at {found.size}x{found.size} pixels{grey}{few}{passed_over(found.passed_over)}"
    )
    for photo, reason in found.failed.items():
        print(failure(photo, reason), file=sys.stderr)
    if found.failed:
        raise typer.Exit(1)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List every model: document, size, folder if it is trained, scores, and why it cannot be built, if so.

    `colorize models`
    """
    rows = list_models(project())
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
    """Hash data, models and metrics again and name what differs from dvc.lock.

    Exit status 1 if something is missing, differs or is not in dvc.lock: `dvc repro` makes it again, `dvc
    checkout` brings it back. Models of the zoo that were never trained are only counted. Installed packages
    of other versions than those pinned are named too: with them the same bytes cannot be promised.

    `colorize verify`
    """
    root = required_project()
    rows = verify_outs(root)
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
        for clause in other_versions(root):
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
    """Write a trained model for other programs: safetensors with its description, and ONNX.

    The ONNX file is written only if ONNX Runtime gives what PyTorch gives. Needs `pip install
    'colorize[onnx]'`.

    `colorize export --model zhang_simplified --output exported`
    """
    from colorize.apply.export import export as write

    with tempfile.TemporaryDirectory() as temporary:
        for path in write(find_model(model, Path(temporary)), output):
            print(path)


@app.command("app")
def serve(
    model: Annotated[list[str] | None, MODEL] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Of an uploaded photograph.")] = 50,
    max_megapixels: MaxMegapixels = CropConfig.max_megapixels,
    show: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    device: Device = "auto",
    threads: Threads = 0,
) -> None:
    """Serve a local page on which one drops a photograph and compares models.

    Without --model it offers the one that comes with the program and every trained one of this project. It
    listens on this computer only and keeps nothing. Needs `pip install 'colorize[app]'`.

    `colorize app`

    `colorize app --model vae --model zhang_simplified --port 8000`
    """
    try:
        import uvicorn

        from colorize.apply.app import create_app
    except ImportError as error:
        raise InputError("the page needs two more packages; run pip install 'colorize[app]'") from error
    import socket

    from colorize.models import load_description

    with tempfile.TemporaryDirectory() as temporary:
        if model:
            found = [find_model(name, Path(temporary) / str(number)) for number, name in enumerate(model)]
            folders = {load_description(folder)["name"]: folder for folder in found}
        else:
            folders = trained(project())
        served = create_app(folders, max_megabytes, set_up(device, threads).type, max_megapixels)
        with socket.socket() as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listening.bind(("127.0.0.1", port))
            except OSError as error:
                raise InputError(f"port {port} is taken; give another --port") from error
            listening.listen()  # who comes before the server is up waits
            address = f"http://127.0.0.1:{listening.getsockname()[1]}"
            print(f"{address} (Ctrl-C stops)", flush=True)
            if show:
                typer.launch(address)
            uvicorn.Server(uvicorn.Config(served, log_level="warning")).run(sockets=[listening])


def stop(signum: int, _: object) -> None:
    """End as one who was told to: what is being done is undone or finished by the blocks that this passes through."""
    print("stopped; the same command continues", file=sys.stderr)
    sys.exit(128 + signum)


def main() -> None:
    """The entry point."""
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as a job in the background is started
        signal.signal(signal.SIGINT, stop)
    with one_sentence():
        app()


if __name__ == "__main__":
    main()
