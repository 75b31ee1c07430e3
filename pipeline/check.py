"""First stage: everything that can be refused is refused here, before any later stage deletes what it will replace.

params.yaml is read through its types, the arguments of every block are held against its architecture, the chosen model is
built, the source and the device are looked for. What it writes never changes, so that it makes no later stage run.
"""

from pathlib import Path

import torch

from colorize import files
from colorize.device import select_device
from colorize.files import InputError
from colorize.models import build_model, model_class
from pipeline import paths
from pipeline.params import Params, stage


def main(params: Params) -> None:
    params.block(params.model)
    select_device(params.train)
    if not Path(params.data.path).exists():
        raise InputError(f"data.path: {params.data.path} does not exist; give the {params.data.source} source's path")
    for name, block in params.models.items():
        try:
            model_class(block)
            if name == params.model:
                with torch.device("meta"):  # no memory for its weights
                    build_model(block, params.working_size(name))
        except InputError as error:
            raise InputError(f"{paths.PARAMS}: models.{name}: {error}") from error
    files.write_text(paths.CHECKED, "params.yaml, the source and the device were found in order.\n")


if __name__ == "__main__":
    stage(main)
