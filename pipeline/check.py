"""First stage: everything that can be refused is refused here, before any later stage deletes what it will replace.

params.yaml is read through its types, the arguments of every block are held against its architecture, the chosen model is
built, the source, the device and the package of compute.backend are looked for. checked.txt never changes, so that it makes
no later stage run; block.json holds the chosen model's block, whichever map it stands in, and that of the model it starts
from, so that training depends on these and no others.
"""

import os
from pathlib import Path

import torch

from colorize import compute, files
from colorize.device import processes, select_device
from colorize.files import InputError
from colorize.models import build_model, describe_block, model_class, start_from
from colorize.settings import Source
from pipeline import paths
from pipeline.params import Params, stage


def main(params: Params) -> None:
    chosen = params.block(params.model)
    select_device(params.train)
    processes(params.train)
    compute.check(params.compute)
    check_path(params.data)
    for name, block in params.blocks.items():
        try:
            model_class(block)
            if name == params.model:
                with torch.device("meta"):  # no memory for its weights
                    model = build_model(block, params.working_size(name))
                    if block.start:
                        start_from(model, build_model(params.block(block.start), params.working_size(block.start)))
        except InputError as error:
            group = "fine_tuned" if block.start else "models"
            raise InputError(f"{paths.PARAMS}: {group}.{name}: {error}") from error
    names = (chosen.start, params.model) if chosen.start else (params.model,)
    files.write_json(paths.BLOCK, {name: describe_block(params.block(name)) for name in names})
    files.write_text(paths.CHECKED, "params.yaml, the source and the device were found in order.\n")


def check_path(data: Source) -> None:
    """Look at what the source reads before DVC hashes it, which waits for pipes and does not name the file it fails at.

    Raises:
        InputError: there is nothing, or a file that DVC cannot hash.
    """
    if not os.path.exists(data.path):
        raise InputError(
            f"data.path: {data.path} does not exist in {Path.cwd()}; give the whole path of what the {data.source} source "
            "reads, without ~ (a queued experiment runs in a copy of the project that lacks what git does not know)"
        )
    for parent, _, names in os.walk(data.path):
        for inner in (os.path.join(parent, name) for name in names):
            if inner != os.fsencode(inner).decode("utf-8", "replace"):
                raise InputError(f"data.path: {inner} has a name that is not UTF-8, which DVC cannot take; rename it")
            if not os.path.isfile(inner):
                raise InputError(
                    f"data.path: {inner} is a broken link, a pipe or the like, which DVC cannot take; remove it"
                )


if __name__ == "__main__":
    stage(main)
