"""The door: params.yaml is read and checked here, and nowhere else.

Types, units and limits are those of colorize.settings; whatever does not fit is refused with one sentence that
names the parameter. `stage` runs a stage's function behind this door and turns what a user can mend into one
sentence and exit status 1.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from colorize import files, settings
from colorize.files import InputError
from colorize.settings import (
    SHIPPED,
    CropRule,
    EvaluateRule,
    FilterRule,
    ModelBlock,
    PriorRule,
    Seed,
    Source,
    TrainRule,
    count_of,
    inherited,
    is_name,
    suggest,
)
from pipeline import paths

TURN_SECONDS = 5
"""So long the other ranks leave it to the first to say what all of them refuse."""


class Params(BaseModel):
    """params.yaml, checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    seed: Seed
    model: str
    data: Source
    crop: CropRule
    filter: FilterRule
    prior: PriorRule
    train: TrainRule
    evaluate: EvaluateRule
    models: dict[str, ModelBlock]

    def block(self, name: str) -> ModelBlock:
        """The block of a model.

        Raises:
            InputError: there is none of that name; the sentence suggests the nearest.
        """
        if name in self.models:
            return self.models[name]
        raise InputError(f"there is no model {name!r} in {paths.PARAMS}; {suggest(name, list(self.models))}")

    def ancestry(self, name: str) -> dict[str, ModelBlock]:
        """A model's block, and those of the models that its weights start from, one after the other."""
        found: dict[str, ModelBlock] = {}
        while name in self.models and name not in found:
            found[name] = self.models[name]
            name = found[name].init_from
        return found

    def working_size(self, name: str) -> int:
        """The side in pixels at which a model works: its own, at most the crops'."""
        return min(self.block(name).size or self.crop.size, self.crop.size)


def load(path: Path = paths.PARAMS) -> Params:
    """Read and check params.yaml.

    Raises:
        InputError: the file is missing, is not YAML, or holds what does not fit.
    """
    return checked(files.read_yaml(path), path)


def checked(content: Any, path: Path = paths.PARAMS) -> Params:
    """Parameters from what YAML holds.

    Raises:
        InputError: something does not fit; the sentence names `path` and the parameter.
    """
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no parameters; restore it with `git checkout {path}`")
    params = settings.checked(Params, content | {"models": inherited(content.get("models"), path)}, path)
    for name in ("dark", "bright", "train", "val", "test"):
        amount = getattr(params.filter, name)
        try:
            count_of(amount, 1)
        except ValueError as error:
            raise InputError(f"{path}: filter.{name}: {error}, but it is {amount!r}") from error
    if not (launcher := params.train.launcher).startswith(("python", "torchrun")):
        known = "write python, or torchrun with its options"
        raise InputError(f"{path}: train.launcher: {known}, but it is {launcher!r:.200}")
    for name in params.models:
        if not is_name(name):
            raise InputError(f"{path}: models: {name!r} cannot be a folder's name everywhere; use letters, digits, _ . + -")
        if name == SHIPPED:
            raise InputError(f"{path}: models.{name}: the model that comes with the library has that name; choose another")
        if (last := list(params.ancestry(name).values())[-1]).init_from in params.ancestry(name):
            raise InputError(f"{path}: models.{name}.init_from leads back to {last.init_from}; name another model")
    return params


def _follow(parent: int) -> None:
    """End with the process that started this one: a training that nobody waits for would go on for hours."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def stage(function: Callable[[Params], None]) -> None:
    """Run one stage with the checked parameters; what a user can mend ends in one sentence and exit status 1.

    Ctrl-C, SIGTERM and the death of the DVC or torchrun that started it end it with status 130; what is written stays valid.
    Of torchrun's ranks the first speaks for all.
    """
    first = os.environ.get("RANK", "0") == "0"
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if "DVC_ROOT" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_follow, args=[os.getppid()], daemon=True).start()
    try:
        try:
            with files.one_sentence():
                function(load())
        except SystemExit:
            time.sleep(0 if first else TURN_SECONDS)  # torchrun ends the others when the first ends
            raise
    except KeyboardInterrupt:
        if first:
            print("stopped; the same command continues", file=sys.stderr)
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(130)  # other threads may wait for what never comes
