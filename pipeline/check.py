"""First stage: everything that can be refused is refused here, before any later stage deletes what it will replace.

params.yaml is read through its types, the arguments of every block are held against its architecture, the chosen model is
built, the source, the device and the package of compute.backend are looked for. checked.txt never changes, so that it makes
no later stage run; block.json holds the chosen model's block, whichever map it stands in, and that of the model it starts
from, so that training depends on these and no others.
"""

from pathlib import Path

import torch

from colorize import compute, files
from colorize.device import processes, select_device
from colorize.files import InputError
from colorize.models import build_model, describe_block, model_class, start_from
from pipeline import paths
from pipeline.params import Params, stage


def main(params: Params) -> None:
    chosen = params.block(params.model)
    select_device(params.train)
    processes(params.train)
    compute.check(params.compute)
    if not Path(params.data.path).exists():
        raise InputError(f"data.path: {params.data.path} does not exist; give the {params.data.source} source's path")
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


if __name__ == "__main__":
    stage(main)
