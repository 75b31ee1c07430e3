"""The command `colorize`: color one's own photographs, score models on them, list and verify what a project holds.

Thin: arguments come in, the library works, a table or one sentence goes out. Exit status 0: all is done; 1: something
is wrong and said in one sentence, or a photograph failed; 2: the command was mistyped; 130: stopped. What belongs to a
project (its models, its dvc.lock) is looked for from the current folder upwards; a folder with a trained model needs none.
"""

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from colorize.files import InputError

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
    help="A model of this project, a folder with a trained one, or an experiment or Git revision that holds one.",
    show_default=False,
)
Models = Annotated[list[str], MODEL]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for a program instead of a table for a person.")]


def project() -> Path | None:
    """The project's folder: the nearest one upwards with a params.yaml and a dvc.yaml."""
    here = Path.cwd()
    return next((f for f in (here, *here.parents) if (f / "params.yaml").exists() and (f / "dvc.yaml").exists()), None)


def required_project() -> Path:
    """Raises InputError: there is no project around the current folder."""
    root = project()
    if root is None:
        raise InputError("there is no params.yaml beside a dvc.yaml here or above; change into a project of colorize")
    return root


def trained(root: Path) -> dict[str, Path]:
    """Every trained model of a project: name to folder; the chosen one's own folder before the zoo's."""
    found: dict[str, Path] = {}
    for folder in (root / "data/model", *sorted((root / "data/zoo").glob("*"))):
        if (folder / "model.json").exists():
            found.setdefault(json.loads((folder / "model.json").read_text(encoding="utf-8"))["name"], folder)
    return found


def find_model(name: str, temporary: Path) -> Path:
    """The folder of a trained model.

    Args:
        temporary: where one that lies in an experiment or revision is copied to.

    Raises:
        InputError: there is none of that name.
    """
    if (Path(name) / "model.json").exists():
        return Path(name)
    root = project()
    here = trained(root) if root else {}
    if name in here:
        return here[name]
    if root:
        from dvc.api import DVCFileSystem
        from dvc.exceptions import DvcException

        try:
            DVCFileSystem(str(root), rev=name).get("data/model", str(temporary / "model"), recursive=True)
            return temporary / "model"
        except (DvcException, OSError):
            pass
    known = f"trained here: {', '.join(here)}" if here else "no model is trained here; `dvc repro` trains one"
    raise InputError(f"there is no trained model {name!r}, neither a folder nor in this project; {known}")


def print_table(rows: list[dict[str, Any]], right: tuple[str, ...] = ()) -> None:
    """Rows of text as a table; the columns in `right` are numbers."""
    table = Table(box=None, pad_edge=False)
    for column in rows[0]:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)


@app.command()
def apply(
    photographs: Annotated[list[Path], typer.Argument(help="Photographs, or folders of them.", show_default=False)],
    model: Models,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.", show_default=False)],
    temperature: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of classifiers: 0 paints the likeliest color, 1 the mean.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Colorings of each photograph, of models that have several.")] = 1,
    compare: Annotated[bool, typer.Option(help="One sheet per photograph with all models side by side.")] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Color photographs: any size and format in, the same size out.

    The lightness stays the photograph's own, at full resolution; only color is predicted. EXIF and ICC profile are
    kept. What is done is skipped when the command is repeated; `colorize.csv` in the output folder tells what became of
    every photograph.

    `colorize apply grandma.jpg --model vae --output colored`

    `colorize apply album/ -m vae -m zhang_simplified --compare -o compared`

    `colorize apply album/ -m zhang_simplified --temperature 0.2 -o vivid`
    """
    from colorize import coloring
    from colorize.device import select_device
    from colorize.settings import TrainRule

    chosen = select_device(TrainRule(device=device))
    with tempfile.TemporaryDirectory() as temporary:
        folders = [find_model(name, Path(temporary) / str(number)) for number, name in enumerate(model)]
        systems = [coloring.System.load(folder, chosen.type) for folder in folders]
    items = coloring.find(photographs)
    rows = []
    work = coloring.color_all(items, systems, output, samples, temperature, compare)
    for row in tqdm(work, total=len(items), unit="photo", disable=None):
        rows.append(row)
        if row.status == "failed":
            tqdm.write(f"{row.photo}: {row.reason}", file=sys.stderr)
    count = {status: sum(row.status == status for row in rows) for status in ("done", "kept", "failed")}
    if as_json:
        print(json.dumps({"output": str(output), **count, "photographs": [asdict(row) for row in rows]}, indent=2))
    else:
        told = f"{count['done']} colored, {count['kept']} were done before, {count['failed']} failed"
        print(f"{told}; see {output / coloring.ACCOUNT}")
    if count["failed"]:
        raise typer.Exit(1)


def main() -> None:
    """The entry point."""
    try:
        app()
    except InputError as error:
        sys.exit(f"error: {error}")
