"""First stage: refuse invalid parameters before any later stage deletes its outs.

Check the types of params.yaml, the arguments of every block, the chosen model (by building it), the source,
the device and the package of crop.cluster. checked.txt never changes, so it does not rerun later stages.
blocks/NAME.json holds the model's block and the blocks of the models that it starts from, so its training
depends only on these.
"""

import os
from pathlib import Path
from typing import Self

import torch
from pydantic import ConfigDict, model_validator

from colorize import files, models
from colorize.bins import PriorConfig
from colorize.data import cluster
from colorize.data.filtering import FilterConfig
from colorize.data.images import CropConfig
from colorize.data.manifest import DataConfig
from colorize.files import InputError
from colorize.models import ModelConfig
from colorize.scoring.evaluation import EvaluateConfig
from colorize.settings import SHIPPED, Seed, count_of, is_name, suggest
from colorize.training.device import TrainConfig, select_device
from pipeline import paths
from pipeline.params import Params, stage


class AllParams(Params):
    """The whole params.yaml."""

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
            remedy = "write python, or torchrun with its options"
            raise InputError(f"{paths.PARAMS}: train.launcher: {remedy}, but it is {launcher!r:.200}")
        for name in self.models:
            where, starts = f"{paths.PARAMS}: models.{name}", models.ancestry(self.models, name)
            if not is_name(name):
                problem = f"{paths.PARAMS}: models: {name!r} cannot be a folder's name everywhere"
                raise InputError(f"{problem}; use letters, digits, _ . + -")
            if name == SHIPPED:
                raise InputError(
                    f"{where}: the model that comes with the library has that name; choose another"
                )
            if (last := list(starts.values())[-1]).init_from in starts:
                raise InputError(f"{where}.init_from leads back to {last.init_from}; name another model")
        return self


def main(params: AllParams) -> None:
    models.block_of(params.models, params.model)
    select_device(params.train)
    cluster.check(params.crop.cluster)
    check_path(params.data)
    for name, block in params.models.items():
        try:
            models.model_class(block)
            origin, trained = block.init_from, None
            if origin and origin not in params.models:
                if not (models.initial_folder(origin) / models.WEIGHTS).exists():
                    remedy = suggest(origin, [SHIPPED, *params.models])
                    raise InputError(f"init_from: {origin} is no folder with a trained model; {remedy}")
                trained = models.load_model(models.initial_folder(origin), "meta")
            if name == params.model:
                with torch.device("meta"):  # allocates no memory
                    model = models.build_model(block, block.working_size(params.crop.size))
                    if origin in params.models:
                        first = params.models[origin]
                        trained = models.build_model(first, first.working_size(params.crop.size))
                    if trained is not None:
                        models.start_from(model, trained)
        except InputError as error:
            raise InputError(f"{paths.PARAMS}: models.{name}: {error}") from error
    for name in params.models:
        files.write_json(paths.BLOCKS / f"{name}.json", resolved(params, name))
    files.write_text(paths.CHECKED, "params.yaml, the source and the device were found in order.\n")


def resolved(params: AllParams, name: str) -> dict[str, object]:
    """Collect what a model depends on: its block, the blocks it starts from, the hash of initial weights."""
    blocks = models.ancestry(params.models, name)
    content: dict[str, object] = {
        ancestor: models.describe_block(block) for ancestor, block in blocks.items()
    }
    if origin := list(blocks.values())[-1].init_from:
        content["weights"] = files.sha256(models.initial_folder(origin) / models.WEIGHTS)
    return content


def check_path(data: DataConfig) -> None:
    """Check the source's files before DVC does: DVC waits for pipes, and its errors name no file.

    Raises:
        InputError: the path does not exist, or holds a file that DVC cannot hash.
    """
    if not os.path.exists(data.path):
        raise InputError(
            f"data.path: {data.path} does not exist in {Path.cwd()}; give the whole path of what the "
            f"{data.source} source reads, without ~ (a queued experiment runs in a copy of the project with "
            "only the files in Git)"
        )
    for parent, _, names in os.walk(data.path):
        for inner in (os.path.join(parent, name) for name in names):
            if inner != os.fsencode(inner).decode("utf-8", "replace"):
                problem, remedy = "has a name that is not UTF-8", "rename it"
            elif not os.path.isfile(inner):
                problem, remedy = "is a broken link, a pipe or the like", "remove it"
            else:
                continue
            raise InputError(f"data.path: {inner} {problem}, which DVC cannot take; {remedy}")


if __name__ == "__main__":
    stage(AllParams, main)
