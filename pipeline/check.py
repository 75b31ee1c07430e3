"""First stage: everything that can be refused is refused here, before any later stage deletes what it will replace.

params.yaml is read through its types, the arguments of every block are held against its architecture, the chosen model is
built, the source, the device and the package of crop.cluster are looked for. checked.txt never changes, so that it makes
no later stage run; blocks/NAME.json holds each model's block and those of the models that it starts from, so that its
training depends on these and no others.
"""

import os
from pathlib import Path
from typing import Self

import torch
from pydantic import ConfigDict, model_validator

from colorize import files
from colorize.bins import PriorConfig
from colorize.data import cluster
from colorize.data.filtering import FilterConfig
from colorize.data.images import CropConfig
from colorize.data.manifest import DataConfig
from colorize.files import InputError
from colorize.models import (
    WEIGHTS,
    ModelConfig,
    ancestry,
    block_of,
    build_model,
    describe_block,
    initial_folder,
    load_model,
    model_class,
    start_from,
)
from colorize.scoring.evaluation import EvaluateConfig
from colorize.settings import SHIPPED, Seed, count_of, is_name, suggest
from colorize.training.device import TrainConfig, select_device
from pipeline import paths
from pipeline.params import Params, stage


class AllParams(Params):
    """params.yaml, all of it."""

    model_config = ConfigDict(extra="forbid")

    seed: Seed
    model: str
    data: DataConfig
    crop: CropConfig
    filter: FilterConfig
    prior: PriorConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    models: dict[str, ModelConfig]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in ("dark", "bright", "train", "val", "test"):
            amount = getattr(self.filter, name)
            try:
                count_of(amount, 1)
            except ValueError as error:
                raise InputError(f"{paths.PARAMS}: filter.{name}: {error}, but it is {amount!r}") from error
        if not (launcher := self.train.launcher).startswith(("python", "torchrun")):
            known = "write python, or torchrun with its options"
            raise InputError(f"{paths.PARAMS}: train.launcher: {known}, but it is {launcher!r:.200}")
        for name in self.models:
            where, starts = f"{paths.PARAMS}: models.{name}", ancestry(self.models, name)
            if not is_name(name):
                raise InputError(
                    f"{paths.PARAMS}: models: {name!r} cannot be a folder's name everywhere; use letters, digits, _ . + -"
                )
            if name == SHIPPED:
                raise InputError(
                    f"{where}: the model that comes with the library has that name; choose another"
                )
            if (last := list(starts.values())[-1]).init_from in starts:
                raise InputError(f"{where}.init_from leads back to {last.init_from}; name another model")
        return self


def main(params: AllParams) -> None:
    block_of(params.models, params.model)
    select_device(params.train)
    cluster.check(params.crop.cluster)
    check_path(params.data)
    for name, block in params.models.items():
        try:
            model_class(block)
            starts = block.init_from
            if starts and starts not in params.models and not (initial_folder(starts) / WEIGHTS).exists():
                names = [SHIPPED, *params.models]
                raise InputError(
                    f"init_from: {starts} is no folder with a trained model; {suggest(starts, names)}"
                )
            trained = starts and starts not in params.models and load_model(initial_folder(starts), "meta")
            if name == params.model:
                with torch.device("meta"):  # no memory for its weights
                    model = build_model(block, block.working_size(params.crop.size))
                    if starts:
                        origin = params.models.get(starts, block)
                        start_from(
                            model, trained or build_model(origin, origin.working_size(params.crop.size))
                        )
        except InputError as error:
            raise InputError(f"{paths.PARAMS}: models.{name}: {error}") from error
    for name in params.models:
        files.write_json(paths.BLOCKS / f"{name}.json", resolved(params, name))
    files.write_text(paths.CHECKED, "params.yaml, the source and the device were found in order.\n")


def resolved(params: AllParams, name: str) -> dict[str, object]:
    """All that params.yaml says of a model: its block, those of the models that it starts from, the weights that they do."""
    blocks = ancestry(params.models, name)
    content: dict[str, object] = {each: describe_block(block) for each, block in blocks.items()}
    if origin := list(blocks.values())[-1].init_from:
        content["weights"] = files.sha256(initial_folder(origin) / WEIGHTS)
    return content


def check_path(data: DataConfig) -> None:
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
                raise InputError(
                    f"data.path: {inner} has a name that is not UTF-8, which DVC cannot take; rename it"
                )
            if not os.path.isfile(inner):
                raise InputError(
                    f"data.path: {inner} is a broken link, a pipe or the like, which DVC cannot take; remove it"
                )


if __name__ == "__main__":
    stage(AllParams, main)
