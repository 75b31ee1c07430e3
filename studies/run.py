"""Run a study as DVC experiments and compare our results with those of its document.

`python -m studies.run studies/003.yaml --path cifar=PATH` runs what studies/003.json does not hold yet, and
writes studies/003.json (all results), studies/003.md (the tables) and figures. A restarted command continues;
if no run is missing, it only writes tables and figures again.
"""

import argparse
import json
import os
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import torch
from tqdm import tqdm

from colorize import files
from colorize.files import InputError
from pipeline.params import Params, stage
from studies import experiments, figures, tables
from studies.study import Device, Study, read
from studies.tables import Record


def resolve(setting: str, study: Study, places: Mapping[str, Path]) -> str:
    """Replace "@NAME" in a setting by its path.

    Raises:
        InputError: the path was not given or does not exist.
    """
    parameter, _, name = setting.partition("=@")
    if not name:
        return setting
    if name not in places or not places[name].exists():
        missing = f"; {places[name]} does not exist" if name in places else ""
        raise InputError(f"give --path {name}=PATH: {study.paths[name]}{missing}")
    return f"{parameter}={places[name].resolve()}"


def write(store: Path, records: Mapping[str, Record]) -> None:
    """Write the .json of a study with one line per run, so that a Git diff shows which runs differ."""
    lines = [f"{json.dumps(key)}: {json.dumps(record, allow_nan=False)}" for key, record in records.items()]
    files.write_text(store, "{\n" + ",\n".join(lines) + "\n}\n")


def run_missing(
    study: Study, store: Path, device: Device, places: Mapping[str, Path], jobs: int, again: bool = False
) -> list[Record]:
    """Run the missing runs, or all of them `again`, and add each result to `store`.

    Returns:
        The records of this study's runs on this device, in order.

    Raises:
        InputError: a path that a run needs was not given, or a run failed.
    """
    records: dict[str, Record] = files.read_json(store, {}) if store.exists() else {}
    wanted = study.wanted(device)
    missing = {f"{store.stem}-{key}": key for key in wanted if again or key not in records}
    print(f"{store.stem}: {len(wanted)} runs on {device}, {len(wanted) - len(missing)} of them done")
    changes = {
        name: [resolve(setting, study, places) for setting in wanted[key]["settings"]]
        for name, key in missing.items()
    }
    hardware = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores"
    about = {"device": device, "hardware": hardware, "torch": torch.__version__}
    failed = {}
    ended = experiments.run(changes, jobs, again)
    with tqdm(total=len(missing), unit="run", disable=None) as bar, closing(ended):
        for name, commit, reason in ended:
            key = missing[name]
            if commit:
                records[key] = wanted[key] | about | experiments.results(commit)
                write(store, records)
            else:
                failed[wanted[key]["run"]] = reason
            tqdm.write(f"{name}: {reason or 'done'}")
            bar.update()
    if failed:
        first, reason = next(iter(failed.items()))
        problem = f"{len(failed)} of {len(missing)} runs failed"
        raise InputError(f"{problem}, first {first}: {reason}; the same command tries again")
    return [records[key] for key in wanted]


def main(_: Params) -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.run", description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="one of studies/*.yaml")
    parser.add_argument("--path", metavar="NAME=PATH", action="append", default=[], help="data of the study")
    parser.add_argument("--jobs", type=int, help="runs at a time; default: one per GPU, else one per core")
    parser.add_argument("--again", action="store_true", help="run everything again")
    arguments = parser.parse_args()
    places = {name: Path(path) for name, _, path in (text.partition("=") for text in arguments.path)}
    study = read(arguments.study)
    name, store, page = arguments.study.stem, *(arguments.study.with_suffix(end) for end in (".json", ".md"))
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"
    jobs = arguments.jobs or (torch.cuda.device_count() if device == "cuda" else os.cpu_count()) or 1
    if unknown := sorted(set(places) - set(study.paths)):
        raise InputError(f"--path {unknown[0]}: {arguments.study} asks for {', '.join(study.paths)}")
    records = run_missing(study, store, device, places, jobs, arguments.again)
    values = tables.frame(records, study.hour.get(device, 3600))
    files.write_text(page, tables.page(study, name, device, records, values))
    for figure in study.figures:
        path = arguments.study.with_name(figure.file(name))
        if figure.kind in ("curves", "bars"):
            files.write_bytes(path, figures.draw(figure, records, values))
            continue
        first = {each["run"]: key for key, each in reversed(study.wanted(device).items())}  # first seed
        commits = {run: experiments.find(f"{name}-{first[run]}") for run in figure.runs}
        if all(commits.values()):
            files.write_bytes(path, figures.paint(figure, commits, places))
        else:
            print(f"{path} is left as it is: its models were trained elsewhere; --again trains them here")
    print(f"{page} and {store}: {len(records)} runs, {len(study.figures)} figures")


if __name__ == "__main__":
    stage(Params, main)
