"""The door: a stage reads its blocks of params.yaml through here, and nowhere else.

Types, units and limits stand in each settings class, beside the code that it configures. Whatever does not fit is refused
with one sentence that names the parameter. `stage` turns what a user can mend into one sentence and exit status 1.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from colorize import files, settings
from colorize.files import InputError
from colorize.settings import inherited
from pipeline import paths

TURN_SECONDS = 5
"""So long the other ranks leave it to the first to say what all of them refuse."""


class Params(BaseModel):
    """The blocks of params.yaml that a stage reads: each stage names its own in a subclass."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


P = TypeVar("P", bound=Params)


def load(kind: type[P], path: Path = paths.PARAMS) -> P:
    """Read and check the blocks that `kind` names.

    Raises:
        InputError: the file is missing, is not YAML, or holds what does not fit.
    """
    return checked(kind, files.read_yaml(path), path)


def checked(kind: type[P], content: Any, path: Path = paths.PARAMS) -> P:
    """The blocks that `kind` names, from what YAML holds.

    Raises:
        InputError: something does not fit; the sentence names `path` and the parameter.
    """
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no parameters; restore it with `git checkout {path}`")
    return settings.checked(kind, content | {"models": inherited(content.get("models"), path)}, path)


def _follow(parent: int) -> None:
    """End with the process that started this one: a training that nobody waits for would go on for hours."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def stage(kind: type[P], function: Callable[[P], None]) -> None:
    """Run one stage with its checked parameters; what a user can mend ends in one sentence and exit status 1.

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
                function(load(kind))
        except SystemExit:
            time.sleep(0 if first else TURN_SECONDS)  # torchrun ends the others when the first ends
            raise
    except KeyboardInterrupt:
        if first:
            print("stopped; the same command continues", file=sys.stderr)
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(130)  # other threads may wait for what never comes
