"""First stage: everything that can be refused is refused here, before any later stage deletes what it will replace.

params.yaml is read through its types, the arguments of every block are held against its architecture, the chosen model is
built, the source, the device and the package of crop.cluster are looked for. checked.txt never changes, so that it makes
no later stage run; blocks/NAME.json holds each model's block and those of the models that it starts from, so that its
training depends on these and no others.
"""

import os
from pathlib import Path

import torch

from colorize import cluster, files
from colorize.device import select_device
from colorize.files import InputError
from colorize.models import WEIGHTS, build_model, describe_block, initial_folder, load_model, model_class, start_from
from colorize.settings import SHIPPED, Source, suggest
from pipeline import paths
from pipeline.params import Params, stage


def main(params: Params) -> None:
    params.block(params.model)
    select_device(params.train)
    cluster.check(params.crop.cluster)
    check_path(params.data)
    for name, block in params.models.items():
        try:
            model_class(block)
            starts = block.init_from
            if starts and starts not in params.models and not (initial_folder(starts) / WEIGHTS).exists():
                names = [SHIPPED, *params.models]
                raise InputError(f"init_from: {starts} is no folder with a trained model; {suggest(starts, names)}")
            trained = starts and starts not in params.models and load_model(initial_folder(starts), "meta")
            if name == params.model:
                with torch.device("meta"):  # no memory for its weights
                    model = build_model(block, params.working_size(name))
                    if starts:
                        start_from(model, trained or build_model(params.block(starts), params.working_size(starts)))
        except InputError as error:
            raise InputError(f"{paths.PARAMS}: models.{name}: {error}") from error
    for name in params.models:
        files.write_json(paths.BLOCKS / f"{name}.json", resolved(params, name))
    files.write_text(paths.CHECKED, "params.yaml, the source and the device were found in order.\n")


def resolved(params: Params, name: str) -> dict[str, object]:
    """All that params.yaml says of a model: its block, those of the models that it starts from, the weights that they do."""
    ancestry = params.ancestry(name)
    content: dict[str, object] = {each: describe_block(block) for each, block in ancestry.items()}
    if origin := list(ancestry.values())[-1].init_from:
        content["weights"] = files.sha256(initial_folder(origin) / WEIGHTS)
    return content


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
