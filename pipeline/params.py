"""The door: params.yaml is read and checked here, and nowhere else.

Types, units and limits are those of colorize.settings; whatever does not fit is refused with one sentence that
names the parameter. `stage` runs a stage's function behind this door and turns what a user can mend into one
sentence and exit status 1.
"""

import difflib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from colorize.files import InputError
from colorize.settings import (
    Compute,
    Count,
    CropRule,
    EvaluateRule,
    FilterRule,
    ModelBlock,
    PriorRule,
    Source,
    TrainRule,
    count_of,
)
from pipeline import paths


class Params(BaseModel):
    """params.yaml, checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: Count
    model: str
    data: Source
    crop: CropRule
    compute: Compute
    filter: FilterRule
    prior: PriorRule
    train: TrainRule
    evaluate: EvaluateRule
    fine_tuned: dict[str, ModelBlock]
    models: dict[str, ModelBlock]

    @property
    def blocks(self) -> dict[str, ModelBlock]:
        """Every model, those that start from another's weights last."""
        return self.models | self.fine_tuned

    def block(self, name: str) -> ModelBlock:
        """The block of a model.

        Raises:
            InputError: there is none of that name; the sentence suggests the nearest.
        """
        if name in self.blocks:
            return self.blocks[name]
        raise InputError(f"there is no model {name!r} in {paths.PARAMS}; {suggest(name, list(self.blocks))}")

    def working_size(self, name: str) -> int:
        """The side in pixels at which a model works: its own, at most the crops'."""
        return min(self.block(name).size or self.crop.size, self.crop.size)


def suggest(name: str, known: list[str]) -> str:
    """A clause that points from a name nobody knows to the nearest known ones."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listed = f"choose among {', '.join(known)}"
    return f"did you mean {near[0]!r}? Or {listed}" if near else listed


def _fields(loc: Sequence[int | str]) -> list[str]:
    """The parameters that exist beside the one at `loc`, by walking the types down to it."""
    owner: Any = Params
    for part in loc[:-1]:
        hints = get_type_hints(owner) if isinstance(owner, type) else {}
        owner = hints.get(str(part)) if hints else get_args(owner)[-1]  # a dict's value type
    return [name for name in get_type_hints(owner) if name != "model_config"]


def _sentence(error: ValidationError) -> str:
    unknown = ("unexpected_keyword_argument", "extra_forbidden")
    # A misspelt name also leaves the right one missing; the misspelling is the one to tell.
    first = min(error.errors(), key=lambda each: each["type"] not in unknown)
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] in unknown:
        hint = suggest(str(first["loc"][-1]), _fields(first["loc"]))
        return f"{paths.PARAMS}: there is no parameter {where}; {hint}"
    if first["type"] in ("missing", "missing_argument"):
        return f"{paths.PARAMS}: {where} is missing; `git diff {paths.PARAMS}` shows what was there"
    what = first["msg"][0].lower() + first["msg"][1:]
    return f"{paths.PARAMS}: {where}: {what}, but it is {first['input']!r}"


def load(path: Path = paths.PARAMS) -> Params:
    """Read and check params.yaml.

    Raises:
        InputError: the file is missing, is not YAML, or holds what does not fit.
    """
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; run this from the project's folder") from error
    except (YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not valid YAML: {reason}") from error
    return checked(content, path)


def checked(content: Any, path: Path = paths.PARAMS) -> Params:
    """Parameters from what YAML holds.

    Raises:
        InputError: something does not fit; the sentence names `path` and the parameter.
    """
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no parameters; restore it with `git checkout {path}`")
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        raise InputError(_sentence(error)) from error
    for name in ("dark", "bright", "train", "val", "test"):
        amount = getattr(params.filter, name)
        try:
            count_of(amount, 1)
        except ValueError as error:
            raise InputError(f"{path}: filter.{name}: {error}, but it is {amount!r}") from error
    for name, block in params.models.items():
        if name in params.fine_tuned:
            raise InputError(f"{path}: {name} stands under models and under fine_tuned; rename one")
        if block.start:
            raise InputError(f"{path}: models.{name}.start: only blocks of fine_tuned have one; move the block there")
    for name, block in params.fine_tuned.items():
        if block.start not in params.models:
            hint = suggest(block.start, list(params.models))
            raise InputError(f"{path}: fine_tuned.{name}.start: there is no model {block.start!r} under models; {hint}")
    return params


def _follow(parent: int) -> None:
    """End with the process that started this one: a training that nobody waits for would go on for hours."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def stage(function: Callable[[Params], None]) -> None:
    """Run one stage with the checked parameters; what a user can mend ends in one sentence and exit status 1.

    Ctrl-C, SIGTERM and the death of the DVC or torchrun that started it end it with status 130; what is written stays valid.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if "DVC_ROOT" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_follow, args=[os.getppid()], daemon=True).start()
    try:
        function(load())
    except InputError as error:
        sys.exit(f"error: {error}")
    except FileNotFoundError as error:
        sys.exit(f"error: {error.filename} is missing; `dvc repro` makes it")
    except OSError as error:
        sys.exit(f"error: {error.filename or 'the disk'}: {error.strerror or error}; make it writable or free some space")
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        os._exit(130)
