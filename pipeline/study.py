"""Answer a document: run what its study lists as DVC experiments, set our figures beside the printed ones.

`python -m pipeline.study studies/003.yaml --path cifar=PATH` queues every run that studies/003.json does not hold yet,
waits for them, and writes studies/003.json (everything measured), studies/003.md (the tables) and its figures beside them.
Stopped and started again it goes on; with nothing left to run it writes the tables from the .json alone.
"""

import argparse
import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from colorize import files
from colorize.files import InputError
from colorize.settings import checked
from pipeline import experiments, study_page, study_pictures
from pipeline.params import Params, stage
from pipeline.study_page import Figure, Record, Table, page

Device = Literal["cpu", "cuda"]


class Study(BaseModel):
    """What a studies/*.yaml holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    """The document's number, title and authors, or the question that is answered."""
    paths: dict[str, str]
    """What each --path NAME=PATH has to be; a setting's value "@NAME" becomes that path, figures name folders by it."""
    used: dict[Device, str]
    """How data and effort differ from the document's, by device."""
    seeds: dict[Device, tuple[int, ...]]
    """Of training. The photographs and their split are the same for all: they follow data.seed."""
    settings: dict[Device, tuple[str, ...]]
    """Parameters of every run, "name=value"."""
    runs: dict[str, tuple[str, ...]]
    """Parameters of each run beside them."""
    hour: dict[Device, float] = {}
    """Seconds of training at which `@hour` in a selector looks: 3,600 where the document's own effort is possible."""
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...] = ()
    remarks: str = ""
    """What a reader of the tables has to know; markdown."""


def read(path: Path) -> Study:
    """Read and check a study.

    Raises:
        InputError: the file is missing or holds what does not fit.
    """
    if not path.exists():
        known = ", ".join(str(each) for each in sorted(Path("studies").glob("*.yaml")))
        raise InputError(f"there is no study {path}; choose among {known}")
    study = checked(Study, files.read_yaml(path), path)
    named = {row.run for table in study.tables for row in table.rows} | {r for f in study.figures for r in f.runs}
    if unknown := sorted(named - set(study.runs)):
        raise InputError(f"{path}: tables or figures name the run {unknown[0]!r}, which is not under runs; add it there")
    return study


def key(run: str, seed: int, settings: Sequence[str]) -> str:
    """The name of an experiment: what it is, and six digits over its settings, so that none passes for another."""
    digits = hashlib.sha256("\n".join(sorted(settings)).encode()).hexdigest()[:6]
    return f"{run}-{seed}-{digits}"


def settings_of(study: Study, run: str, seed: int, device: Device) -> list[str]:
    """All the settings of a run, the last of a name winning, paths still by name."""
    given = [*study.settings[device], *study.runs[run], f"seed={seed}"]
    return list({setting.split("=", 1)[0]: setting for setting in given}.values())


def resolve(setting: str, study: Study, places: Mapping[str, Path]) -> str:
    """A setting with the path that its "@NAME" stands for.

    Raises:
        InputError: that path was not given or is not there.
    """
    parameter, _, value = setting.partition("=")
    if not value.startswith("@"):
        return setting
    name = value[1:]
    if name not in places:
        raise InputError(f"give --path {name}=PATH: {study.paths.get(name, 'a path')}")
    if not places[name].exists():
        raise InputError(f"--path {name}={places[name]} does not exist; give {study.paths.get(name, 'a path')}")
    return f"{parameter}={places[name].resolve()}"


def hardware(device: Device) -> str:
    """What the runs run on, without names of machines."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores"


def write(store: Path, records: Mapping[str, Record]) -> None:
    """The .json of a study: one line per run, so that a difference in Git names the runs that differ."""
    lines = [f"{json.dumps(each)}: {json.dumps(record, allow_nan=False)}" for each, record in records.items()]
    files.write_text(store, "{\n" + ",\n".join(lines) + "\n}\n")


def run_missing(
    study: Study,
    name: str,
    store: Path,
    device: Device,
    places: Mapping[str, Path],
    jobs: int,
    again: bool = False,
) -> list[Record]:
    """Run what `store` does not hold yet, or all of it again, and add it there, one by one.

    Returns:
        the records of this study's runs on this device, in its order.

    Raises:
        InputError: a path that a run needs was not given, or a run failed.
    """
    records: dict[str, Record] = files.read_json(store, {}) if store.exists() else {}
    wanted = {}
    for seed, run in itertools.product(study.seeds[device], study.runs):  # a whole seed before the next
        settings = settings_of(study, run, seed, device)
        wanted[key(run, seed, settings)] = (run, seed, settings)
    missing = {f"{name}-{each}": each for each in wanted if again or each not in records}
    print(f"{name}: {len(wanted)} runs on {device}, {len(wanted) - len(missing)} of them done")
    resolved = {each: [resolve(setting, study, places) for setting in wanted[each][2]] for each in missing.values()}
    known = experiments.tasks() if missing else {}
    experiments.forget([each for each in missing if known.get(each) == "Failed"])
    for experiment, each in missing.items():
        started = known.get(experiment) in ("Queued", "Running")
        if not started and (again or experiments.revision(experiment) is None):
            experiments.submit(experiment, resolved[each])
    failed = {}
    with (
        tqdm(total=len(missing), unit="run", disable=None) as bar,
        closing(experiments.finish(list(missing), jobs)) as ended,
    ):
        for experiment, reason in ended:
            run, seed, settings = wanted[missing[experiment]]
            if reason:
                failed[run] = reason
            else:
                found = experiments.results(str(experiments.revision(experiment)))
                about = {"run": run, "seed": seed, "settings": settings, "device": device, "hardware": hardware(device)}
                records[missing[experiment]] = about | {"torch": torch.__version__} | found
                write(store, records)
            tqdm.write(f"{experiment}: {reason or 'done'}")
            bar.update()
    experiments.forget(list(missing))
    if failed:
        run, reason = next(iter(failed.items()))
        raise InputError(f"{len(failed)} of {len(missing)} runs failed, first {run}: {reason}; the same command tries again")
    return [records[each] for each in wanted]


def main(_: Params) -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.study", description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="one of studies/*.yaml")
    parser.add_argument("--path", metavar="NAME=PATH", action="append", default=[], help="where the study's data lies")
    parser.add_argument("--jobs", type=int, help="runs at a time; default: one per GPU, else one per core")
    parser.add_argument("--again", action="store_true", help="run everything, also what is in the .json")
    arguments = parser.parse_args()
    places = {each.partition("=")[0]: Path(each.partition("=")[2]) for each in arguments.path}
    study = read(arguments.study)
    name, store = arguments.study.stem, arguments.study.with_suffix(".json")
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"
    jobs = arguments.jobs or (torch.cuda.device_count() if device == "cuda" else os.cpu_count()) or 1
    if unknown := sorted(set(places) - set(study.paths)):
        raise InputError(f"--path {unknown[0]}: {arguments.study} asks for {', '.join(study.paths)}")
    records = run_missing(study, name, store, device, places, jobs, arguments.again)
    for figure in study.figures:
        path = arguments.study.with_name(figure.file(name))
        if figure.kind in ("curves", "bars"):
            files.write_bytes(path, study_page.draw(figure, records))
        else:
            seed = study.seeds[device][0]
            names = {run: f"{name}-{key(run, seed, settings_of(study, run, seed, device))}" for run in figure.runs}
            commits = {run: commit for run, each in names.items() if (commit := experiments.revision(each))}
            if len(commits) == len(names):
                files.write_bytes(path, study_pictures.draw(figure, commits, places))
            else:
                print(f"{path} is left as it is: its models were trained elsewhere; --again trains them here")
    text = page(study, name, device, records)
    files.write_text(arguments.study.with_suffix(".md"), text)
    print(f"{arguments.study.with_suffix('.md')} and {store}: {len(records)} runs, {len(study.figures)} figures")


if __name__ == "__main__":
    stage(Params, main)
