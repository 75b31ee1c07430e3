"""Types and limits of settings, and their check.

Each settings class is a frozen dataclass beside the code that it configures. `checked` enforces its types and limits,
for params.yaml in pipeline/params.py; the library trusts what it is given.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import is_dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from colorize.files import InputError

Kind = TypeVar("Kind")
Seed = Annotated[int, Ge(0), Lt(2**32)]
Count = Annotated[int, Ge(0), Lt(2**31)]
Positive = Annotated[int, Gt(0), Lt(2**31)]
Workers = Annotated[int, Ge(0), Le(4096)]
Threads = Annotated[int, Gt(0), Le(4096)]
"""Of one machine; more of them only fail to start."""
Share = Annotated[float, Ge(0), Le(1)]
Argument = bool | int | float | str | None
Bins = Literal["gamut", "grid"]
SHIPPED = "shipped"
"""The name of the trained model that comes with the library."""
Prior = Literal["none", "empirical", "smoothed", "released", "released_smoothed"]
_LAUNCHER = "train.launcher: torchrun --nproc-per-node N"
_LAUNCHER_OF_MACHINES = (
    "train.launcher: torchrun --nnodes N --rdzv-backend c10d --rdzv-endpoint HOST:29400 --nproc-per-node N"
)
RENAMED = {
    "train.nproc": _LAUNCHER,
    "train.nnodes": _LAUNCHER_OF_MACHINES,
    "train.rendezvous": _LAUNCHER_OF_MACHINES,
    "train.lr_at_least": "train.min_lr",
    "train.hold_gigabytes": "train.dataset_gigabytes",
    "train.keep_gigabytes": "train.runs_gigabytes",
    "evaluate.colorings": "evaluate.samples (and evaluate.sheet_size for the photographs on the sheet)",
    "models.*.train": "models.<model>.recipe",
    "fine_tuned": "init_from in a block of models",
    "compute": "crop.cluster",
}
"""Parameters that params.yaml once had, `*` for any model's name, and what to write instead."""


def is_name(text: str) -> bool:
    """Whether this may be a model's name: letters, digits, _ . + and -, so that it is a folder's name on every system."""
    reserved = re.match(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", text, re.IGNORECASE)  # by Windows
    return (
        not reserved and re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.+-]{0,98}[A-Za-z0-9_+-])?", text) is not None
    )


def count_of(amount: str | int | float, total: int) -> int:
    """How many of `total` an amount means: "1000/24996" or 0.04 is a share, 1000 a count (0 is none, never all).

    Raises:
        ValueError: it is neither a share below 1 nor a whole number.
    """
    try:  # a text such as 1e999999999 would become a number of as many digits
        exact = Fraction(amount if "/" in str(amount) else str(float(amount)))
    except (ValueError, ZeroDivisionError, OverflowError):
        exact = Fraction(-1)
    if exact < 0 or (exact > 1 and exact.denominator != 1):
        raise ValueError("give a whole number, a share below 1, or a fraction such as 1000/24996")
    return min(total, int(exact) if exact >= 1 else round(exact * total))


def suggest(name: str, known: Sequence[str]) -> str:
    """A clause that points from a name nobody knows to the nearest known ones."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listed = f"choose among {', '.join(known)}"
    return f"did you mean {near[0]!r}? Or {listed}" if near else listed


def inherited(models: object, where: object) -> object:
    """The blocks of models as YAML holds them, each with what it inherits from its `base`, of which it states what differs.

    `arch` is not inherited: the zoo's stages read it in each block.

    Raises:
        InputError: a base is not there, or a model is its own; the sentence names `where`, the file, and the model.
    """
    if not isinstance(models, dict):
        return models

    def whole(name: str, below: tuple[str, ...] = ()) -> object:
        block = models[name]
        if not isinstance(block, dict) or "base" not in block:
            return block
        base = block["base"]
        if not isinstance(base, str) or base not in models:
            raise InputError(
                f"{where}: models.{name}.base: there is no model {base!r}; {suggest(str(base), list(models))}"
            )
        if base in (name, *below):
            raise InputError(f"{where}: models.{name}.base leads back to {base}; name another model")
        found = whole(base, (name, *below))
        own = {key: value for key, value in block.items() if key != "base"}
        return (
            _merged({k: v for k, v in found.items() if k != "arch"}, own)
            if isinstance(found, dict)
            else found
        )

    return {name: whole(name) for name in models}


def _merged(base: dict, own: dict) -> dict:
    """Two nested dictionaries as one; where both hold a value, `own` wins."""
    both = {
        key: _merged(base[key], own[key])
        for key in base.keys() & own.keys()
        if _are_dicts(base[key], own[key])
    }
    return base | own | both


def _are_dicts(*values: object) -> bool:
    return all(isinstance(value, dict) for value in values)


def checked(kind: type[Kind], content: object, where: object) -> Kind:
    """What a file holds as an instance of `kind`, a dataclass or a pydantic model.

    Raises:
        InputError: something does not fit; the sentence names `where`, the file, and the parameter.
    """
    from pydantic import TypeAdapter, ValidationError  # late: workers that crop have no use for it

    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        unknown = ("unexpected_keyword_argument", "extra_forbidden")
        # A misspelt name also leaves the right one missing; the misspelling is the one to tell.
        errors = error.errors()
        first = min(errors, key=lambda each: (each["type"] not in unknown, each["type"] != "finite_number"))
        said = first["msg"][0].lower() + first["msg"][1:]
        loc = first["loc"]
        same = [each for each in errors if each["loc"][:-1] == loc[:-1] and each["input"] is first["input"]]
        if len(same) > 1:  # one for each kind that it may have
            loc = loc[:-1]
            kinds = [str(each["loc"][-1]).partition("[")[0] for each in same]
            said = said if first["type"] == "finite_number" else f"input should be one of {', '.join(kinds)}"
        name = ".".join(str(part) for part in loc if not str(part).startswith("list[")) or "its content"
        if first["type"] in unknown:
            if instead := next((new for old, new in RENAMED.items() if fnmatchcase(name, old)), ""):
                raise InputError(
                    f"{where}: there is no parameter {name} any more; write {instead}"
                ) from error
            hint = suggest(str(loc[-1]), _fields(kind, loc))
            if others := [place for place in _places(kind) if place.rpartition(".")[2] == loc[-1]]:
                hint = f"did you mean {' or '.join(others)}?"
            raise InputError(f"{where}: there is no parameter {name}; {hint}") from error
        if first["type"] in ("missing", "missing_argument"):
            shown = f"`git diff {where}` shows what was there"
            raise InputError(f"{where}: {name} is missing; {shown}") from error
        raise InputError(f"{where}: {name}: {said}, but it is {first['input']!r:.200}") from error


def _fields(owner: Any, loc: Sequence[int | str]) -> list[str]:
    """The parameters that exist beside the one at `loc`, by walking the types down to it."""
    for part in loc[:-1]:
        hints = get_type_hints(owner) if isinstance(owner, type) else {}
        owner = hints.get(str(part)) if hints else get_args(owner)[-1]  # a dict's value type
    return [name for name in get_type_hints(owner) if not name.endswith("_config")]


def _places(owner: Any, prefix: str = "") -> list[str]:
    """The names of all parameters below a settings class; a model's own name is written <model>."""
    found = []
    for name, kind in get_type_hints(owner).items():
        values = get_args(kind)[1:] if get_origin(kind) is dict else ()
        inner, path = (values[0], f"{prefix}{name}.<model>") if values else (kind, f"{prefix}{name}")
        found += _places(inner, f"{path}.") if is_dataclass(inner) else [path]
    return found
