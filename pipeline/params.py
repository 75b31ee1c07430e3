"""Read params.yaml and run a stage with it.

Each settings class gives types, units and limits beside the code that it configures. An invalid parameter is
refused with one sentence that names it.
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
"""Time for which other ranks wait for rank 0 to report a common error."""


class Params(BaseModel):
    """The blocks of params.yaml that a stage reads, as named by its subclass."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


P = TypeVar("P", bound=Params)


def load(kind: type[P], path: Path = paths.PARAMS) -> P:
    """Read and check the blocks that `kind` names.

    Raises:
        InputError: the file is missing, is not YAML, or has an invalid parameter.
    """
    return checked(kind, files.read_yaml(path), path)


def checked(kind: type[P], content: Any, path: Path = paths.PARAMS) -> P:
    """Check the blocks that `kind` names in parsed YAML.

    Raises:
        InputError: a parameter is invalid; the sentence names `path` and the parameter.
    """
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no parameters; restore it with `git checkout {path}`")
    return settings.checked(kind, content | {"models": inherited(content.get("models"), path)}, path)


def _follow(parent: int) -> None:
    """End this process when its parent ends; otherwise an orphaned training would run for hours."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def stage(kind: type[P], function: Callable[[P], None]) -> None:
    """Run one stage with its checked parameters; an InputError becomes one sentence and exit status 1.

    Ctrl-C, SIGTERM and the end of the parent DVC or torchrun end it with status 130; written files stay
    valid. Only rank 0 of torchrun's ranks reports errors.
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
            time.sleep(0 if first else TURN_SECONDS)  # torchrun stops the others when rank 0 ends
            raise
    except KeyboardInterrupt:
        if first:
            print("stopped; the same command continues", file=sys.stderr)
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(130)  # other threads may block forever
