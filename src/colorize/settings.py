"""Types and limits of settings, and their check.

Each settings class is a frozen dataclass beside the code that it configures. `checked` enforces its types and
limits; pipeline/params.py calls it for params.yaml. The library itself does not check settings again.
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
"""Threads of one machine; it cannot start more."""
Share = Annotated[float, Ge(0), Le(1)]
Argument = bool | int | float | str | None
Bins = Literal["gamut", "grid"]
SHIPPED = "shipped"
"""Name of the trained model that comes with the library."""
Prior = Literal["none", "empirical", "smoothed", "released", "released_smoothed"]
_MULTI_NODE = (
    "train.launcher: torchrun --nnodes N --rdzv-backend c10d --rdzv-endpoint HOST:29400 --nproc-per-node N"
)
RENAMED = {
    "train.nproc": "train.launcher: torchrun --nproc-per-node N",
    "train.nnodes": _MULTI_NODE,
    "train.rendezvous": _MULTI_NODE,
    "train.lr_at_least": "train.min_lr",
    "train.hold_gigabytes": "train.dataset_gigabytes",
    "train.keep_gigabytes": "train.runs_gigabytes",
    "evaluate.colorings": "evaluate.samples (and evaluate.sheet_size for the photographs on the sheet)",
    "models.*.train": "models.<model>.recipe",
    "fine_tuned": "init_from in a block of models",
    "compute": "crop.cluster",
}
"""Old parameters of params.yaml (`*` is any model's name), and what to write instead."""


def is_name(text: str) -> bool:
    """Check a model's name: letters, digits, _ . + and -, so that it can name a folder on every system."""
    reserved = re.match(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", text, re.IGNORECASE)  # by Windows
    plain = re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.+-]{0,98}[A-Za-z0-9_+-])?", text)
    return plain is not None and not reserved


def count_of(amount: str | int | float, total: int) -> int:
    """Convert an amount to a count of `total`: "1000/24996" and 0.04 are shares, 1000 is a count, 0 is none.

    Raises:
        ValueError: the amount is neither a share below 1 nor a whole number.
    """
    try:  # as a fraction, a text such as 1e999999999 would have as many digits
        exact = Fraction(amount if "/" in str(amount) else str(float(amount)))
    except (ValueError, ZeroDivisionError, OverflowError):
        exact = Fraction(-1)
    if exact < 0 or (exact > 1 and exact.denominator != 1):
        raise ValueError("give a whole number, a share below 1, or a fraction such as 1000/24996")
    return min(total, int(exact) if exact >= 1 else round(exact * total))


def suggest(name: str, known: Sequence[str]) -> str:
    """Return a clause for an unknown name: the nearest known name, and all known names."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listed = f"choose among {', '.join(known)}"
    return f"did you mean {near[0]!r}? Or {listed}" if near else listed


def inherited(models: object, where: object) -> object:
    """Complete the blocks of models, as YAML holds them, by what each inherits from its `base`.

    `arch` is not inherited: the stages of the zoo read it in each block.

    Raises:
        InputError: a base does not exist, or the bases form a loop; it names `where`, the file, and the
            model.
    """
    if not isinstance(models, dict):
        return models

    def complete(name: str, below: tuple[str, ...] = ()) -> object:
        block = models[name]
        if not isinstance(block, dict) or "base" not in block:
            return block
        base, place = block["base"], f"{where}: models.{name}.base"
        if not isinstance(base, str) or base not in models:
            raise InputError(f"{place}: there is no model {base!r}; {suggest(str(base), list(models))}")
        if base in (name, *below):
            raise InputError(f"{place} leads back to {base}; name another model")
        parent = complete(base, (name, *below))
        if not isinstance(parent, dict):
            return parent
        changes = {key: value for key, value in block.items() if key != "base"}
        return _merged({key: value for key, value in parent.items() if key != "arch"}, changes)

    return {name: complete(name) for name in models}


def _merged(base: dict, changes: dict) -> dict:
    """Merge two nested dictionaries; where both hold a value, `changes` wins."""
    merged = base | changes
    for key in base.keys() & changes.keys():
        if isinstance(base[key], dict) and isinstance(changes[key], dict):
            merged[key] = _merged(base[key], changes[key])
    return merged


def checked(kind: type[Kind], content: object, where: object) -> Kind:
    """Convert the content of a file to `kind`, a dataclass or a pydantic model.

    Raises:
        InputError: the content does not fit; the sentence names the file, `where`, and the parameter.
    """
    from pydantic import TypeAdapter, ValidationError  # slow to import, and workers that crop do not need it

    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        unknown = ("unexpected_keyword_argument", "extra_forbidden")
        # A misspelt name also leaves the right one missing: report the misspelling.
        errors = error.errors()
        first = min(errors, key=lambda each: (each["type"] not in unknown, each["type"] != "finite_number"))
        problem = first["msg"][0].lower() + first["msg"][1:]
        loc = first["loc"]
        same = [each for each in errors if each["loc"][:-1] == loc[:-1] and each["input"] is first["input"]]
        if len(same) > 1:  # one error for each type of a union
            loc = loc[:-1]
            if first["type"] != "finite_number":
                kinds = [str(each["loc"][-1]).partition("[")[0] for each in same]
                problem = f"input should be one of {', '.join(kinds)}"
        name = ".".join(str(part) for part in loc if not str(part).startswith("list[")) or "its content"
        if first["type"] in unknown:
            if new := next((new for old, new in RENAMED.items() if fnmatchcase(name, old)), ""):
                problem = f"there is no parameter {name} any more; write {new}"
            elif others := [place for place in _places(kind) if place.rpartition(".")[2] == loc[-1]]:
                problem = f"there is no parameter {name}; did you mean {' or '.join(others)}?"
            else:
                problem = f"there is no parameter {name}; {suggest(str(loc[-1]), _fields(kind, loc))}"
        elif first["type"] in ("missing", "missing_argument"):
            problem = f"{name} is missing; `git diff {where}` shows what was there"
        else:
            problem = f"{name}: {problem}, but it is {first['input']!r:.200}"
        raise InputError(f"{where}: {problem}") from error


def _fields(owner: Any, loc: Sequence[int | str]) -> list[str]:
    """List the parameters beside the one at `loc`."""
    for part in loc[:-1]:
        hints = get_type_hints(owner) if isinstance(owner, type) else {}
        owner = hints.get(str(part)) if hints else get_args(owner)[-1]  # a dict's value type
    return [name for name in get_type_hints(owner) if not name.endswith("_config")]


def _places(owner: Any, prefix: str = "") -> list[str]:
    """List all parameters of a settings class by their full names, with <model> for a model's name."""
    places = []
    for name, kind in get_type_hints(owner).items():
        values = get_args(kind)[1:] if get_origin(kind) is dict else ()
        inner, path = (values[0], f"{prefix}{name}.<model>") if values else (kind, f"{prefix}{name}")
        places += _places(inner, f"{path}.") if is_dataclass(inner) else [path]
    return places
