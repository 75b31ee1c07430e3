"""Answer a document: run what its study lists as DVC experiments, set our figures beside the printed ones.

`python -m studies.run studies/003.yaml --path cifar=PATH` queues every run that studies/003.json does not
hold yet, waits for them, and writes studies/003.json (everything measured), studies/003.md (the tables) and
figures. Stopped and started again it goes on; with nothing left to run it writes the tables from the .json.
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
    """A setting with the path that its "@NAME" stands for.

    Raises:
        InputError: that path was not given or is not there.
    """
    parameter, _, name = setting.partition("=@")
    if not name:
        return setting
    if name not in places or not places[name].exists():
        there = f"; {places[name]} does not exist" if name in places else ""
        raise InputError(f"give --path {name}=PATH: {study.paths[name]}{there}")
    return f"{parameter}={places[name].resolve()}"


def write(store: Path, records: Mapping[str, Record]) -> None:
    """The .json of a study: one line per run, so that a difference in Git names the runs that differ."""
    lines = [f"{json.dumps(each)}: {json.dumps(record, allow_nan=False)}" for each, record in records.items()]
    files.write_text(store, "{\n" + ",\n".join(lines) + "\n}\n")


def run_missing(
    study: Study, store: Path, device: Device, places: Mapping[str, Path], jobs: int, again: bool = False
) -> list[Record]:
    """Run what `store` does not hold yet, or all of it again, and add it there, one by one.

    Returns:
        the records of this study's runs on this device, in its order.

    Raises:
        InputError: a path that a run needs was not given, or a run failed.
    """
    records: dict[str, Record] = files.read_json(store, {}) if store.exists() else {}
    wanted = study.wanted(device)
    missing = {f"{store.stem}-{each}": each for each in wanted if again or each not in records}
    print(f"{store.stem}: {len(wanted)} runs on {device}, {len(wanted) - len(missing)} of them done")
    settings = {name: wanted[each]["settings"] for name, each in missing.items()}
    changes = {name: [resolve(each, study, places) for each in settings[name]] for name in missing}
    hardware = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores"
    about = {"device": device, "hardware": hardware, "torch": torch.__version__}
    failed = {}
    ended = experiments.run(changes, jobs, again)
    with tqdm(total=len(missing), unit="run", disable=None) as bar, closing(ended):
        for name, commit, reason in ended:
            each = missing[name]
            if commit:
                records[each] = wanted[each] | about | experiments.results(commit)
                write(store, records)
            else:
                failed[wanted[each]["run"]] = reason
            tqdm.write(f"{name}: {reason or 'done'}")
            bar.update()
    if failed:
        first, reason = next(iter(failed.items()))
        known = f"{len(failed)} of {len(missing)} runs failed"
        raise InputError(f"{known}, first {first}: {reason}; the same command tries again")
    return [records[each] for each in wanted]


def main(_: Params) -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.run", description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="one of studies/*.yaml")
    parser.add_argument("--path", metavar="NAME=PATH", action="append", default=[], help="its data")
    parser.add_argument("--jobs", type=int, help="runs at a time; default: one per GPU, else one per core")
    parser.add_argument("--again", action="store_true", help="run everything, also what is in the .json")
    arguments = parser.parse_args()
    places = {each.partition("=")[0]: Path(each.partition("=")[2]) for each in arguments.path}
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
        first = {each["run"]: key for key, each in reversed(study.wanted(device).items())}  # of several seeds
        commits = {run: experiments.find(f"{name}-{first[run]}") for run in figure.runs}
        if all(commits.values()):
            files.write_bytes(path, figures.paint(figure, commits, places))
        else:
            print(f"{path} is left as it is: its models were trained elsewhere; --again trains them here")
    print(f"{page} and {store}: {len(records)} runs, {len(study.figures)} figures")


if __name__ == "__main__":
    stage(Params, main)
