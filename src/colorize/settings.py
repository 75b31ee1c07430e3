"""The settings of each part of the library: frozen dataclasses, one per block of params.yaml, and their check.

They live in one file so that the file that checks params.yaml need not import torch. Types and limits are
enforced by `checked`, for all of params.yaml in pipeline/params.py; the library trusts what it is given.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen

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
}
"""Parameters that params.yaml once had, `*` for any model's name, and what to write instead."""


def is_name(text: str) -> bool:
    """Whether this may be a model's name: letters, digits, _ . + and -, so that it is a folder's name on every system."""
    reserved = re.match(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", text, re.IGNORECASE)  # by Windows
    return not reserved and re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.+-]{0,98}[A-Za-z0-9_+-])?", text) is not None


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
            raise InputError(f"{where}: models.{name}.base: there is no model {base!r}; {suggest(str(base), list(models))}")
        if base in (name, *below):
            raise InputError(f"{where}: models.{name}.base leads back to {base}; name another model")
        found = whole(base, (name, *below))
        own = {key: value for key, value in block.items() if key != "base"}
        return _merged({k: v for k, v in found.items() if k != "arch"}, own) if isinstance(found, dict) else found

    return {name: whole(name) for name in models}


def _merged(base: dict, own: dict) -> dict:
    """Two nested dictionaries as one; where both hold a value, `own` wins."""
    both = {key: _merged(base[key], own[key]) for key in base.keys() & own.keys() if _are_dicts(base[key], own[key])}
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
                raise InputError(f"{where}: there is no parameter {name} any more; write {instead}") from error
            hint = suggest(str(first["loc"][-1]), _fields(kind, first["loc"]))
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


@dataclass(frozen=True)
class Source:
    """Where photographs come from and how they are fetched."""

    source: Literal["sample", "folder", "urls", "unsplash", "cifar10"] = "sample"
    path: str = "data/sample.csv"
    """What the source reads: a folder, a CSV or an archive."""
    seed: Seed = 1
    """Draws the items of `limit` and the split; training has another one."""
    limit: Count = 0
    """Keep only so many items, drawn with the seed; 0 keeps all."""
    url_column: str = "url"
    request_size: Positive = 256
    """Side in pixels that the Unsplash image service is asked for."""
    threads: Threads = 16
    attempts: Positive = 4
    timeout_seconds: Annotated[float, Gt(0)] = 60
    """Total deadline of one item, all its attempts' connections and bodies included, waiting for Retry-After not."""
    max_megabytes: Annotated[float, Gt(0)] = 50
    max_failed: Share = 0.1
    """Share of failed items at which the download counts as failed."""
    allow_private: bool = False
    """Whether addresses of this machine and of private networks may be fetched from."""


@dataclass(frozen=True)
class CropRule:
    """How a photograph becomes a square."""

    size: Annotated[int, Ge(8), Le(4096)] = 64
    """Side of the crop in pixels."""
    fit: Literal["crop", "pad"] = "crop"
    """crop: the centered square; pad: the whole photograph, centered between black bars (document 004)."""
    small: Literal["enlarge", "drop"] = "enlarge"
    """What happens to photographs that are too small: whose short side (pad: long side) is below `size`."""
    max_megapixels: Annotated[float, Gt(0)] = 200
    """A larger photograph is refused before it is decoded: a small file may unpack to more than the memory holds."""
    workers: Workers = 0
    """Processes of this machine; 0 takes every core."""
    cluster: str = ""
    """Address of a Dask scheduler whose workers crop instead; the results are the same bytes."""


@dataclass(frozen=True)
class Compute:
    """Where photographs are cropped; the results are the same bytes."""

    backend: Literal["loky", "dask", "ray"] = "loky"
    """loky: processes of this machine; dask, ray: all workers of such a cluster."""
    address: str = ""
    """dask, ray: of the cluster's scheduler."""


Rule = Literal["dark", "bright", "monotone", "grey", "duplicates"]


@dataclass(frozen=True)
class FilterRule:
    """What is removed, and how the rest is split (document 000, section 2.2.3)."""

    classes: tuple[str, ...] = ()
    """The source's classes that are kept; empty keeps all."""
    rules: tuple[Rule, ...] = ("dark", "bright", "monotone", "grey", "duplicates")
    dark: str | int | float = "1000/24996"
    """So many (or such a share) with the lowest weighted L* are removed."""
    bright: str | int | float = "500/24996"
    """So many (or such a share) with the highest weighted L* are removed."""
    monotone: Share = 0.9
    """Removed if one color covers more than this share."""
    grey_max: Annotated[float, Ge(0)] = 5
    """Grey if max(|a*|, |b*|) over all pixels is below this, in Lab units ..."""
    grey_mean: Annotated[float, Ge(0)] = 2
    """... or if the mean chroma is below this, in Lab units."""
    duplicates: Annotated[float, Ge(0)] = 6
    """RMS difference of 8x8 RGB thumbnails, in levels of 0..255, below which two photographs are near-duplicates."""
    palette: Literal["fastoctree", "mediancut"] = "fastoctree"
    """Pillow's quantizer for the ten main colors of photographs whose source does not list them."""
    stratify: bool = False
    """Split every class of the source in the same proportions (document 002)."""
    train: str | int | float = 0.8
    val: str | int | float = 0.1
    test: str | int | float = 0.1


@dataclass(frozen=True)
class PriorRule:
    """The prior over the color bins and the rebalancing weights (document 001, section 3.3)."""

    sigma: Annotated[float, Gt(0)] = 5
    """Width of the smoothing Gaussian, in ab units."""
    uniform_mix: Annotated[float, Gt(0), Le(1)] = 0.5
    """lambda: the share of the uniform distribution in the weights' denominator."""
    released: str = ""
    """Path or URL of the released ImageNet prior, prior_probs.npy; empty for none."""
    sha256: str = ""
    """Of the released prior: another file of that name is about, with its largest value elsewhere."""


@dataclass(frozen=True)
class TrainRule:
    """What holds for the training of every model."""

    max_epochs: Count = 4
    """Caps every model's own number of epochs; 0 leaves them alone."""
    max_minutes: Annotated[float, Ge(0)] = 0
    """Caps the training time, interruptions not counted; 0 is no cap."""
    lr_at_least: Annotated[float, Ge(0)] = 0.0003
    """A floor under every model's learning rate, for short runs; 0 keeps each model's own."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    deterministic: Literal["auto", True, False] = "auto"
    threads: Threads = 2
    keep: Literal["best", "last"] = "best"
    hold_gigabytes: Annotated[float, Ge(0)] = 0
    """Photographs up to this size are held in the device's memory, more are streamed from disk; 0 is half of that memory."""
    launcher: str = "python"
    """What stands before `-m pipeline.train`: python, or torchrun and its options for several processes."""
    checkpoint_seconds: Annotated[float, Ge(0)] = 30
    keep_gigabytes: Annotated[float, Ge(0)] = 8


@dataclass(frozen=True)
class Recipe:
    """How one model is trained: the numbers its document gives."""

    epochs: Count = 100
    batch: Positive = 32
    optimizer: Literal["adam", "adamw", "rmsprop", "sgd"] = "adam"
    lr: Annotated[float, Gt(0)] = 1e-3
    pretrained_lr: Share = 1
    """Share of the learning rate that holds for what came with pretrained weights."""
    schedule: Literal["constant", "cosine"] = "constant"
    """cosine: the learning rate falls to a hundredth along half a cosine, over all epochs that will be made."""
    warmup: Annotated[float, Ge(0), Lt(1)] = 0
    """Share of all steps in which the learning rate rises from zero."""
    average: Annotated[float, Ge(0), Lt(1)] = 0
    """Decay of the weights' exponential moving average, which is validated and kept in their place; 0 is no average."""
    betas: tuple[Annotated[float, Ge(0), Lt(1)], Annotated[float, Ge(0), Lt(1)]] = (0.9, 0.999)
    """Adam's two decay rates."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0
    """Of plain SGD."""
    weight_decay: Annotated[float, Ge(0)] = 0
    patience: Count = 0
    """Stop after so many epochs in a row of rising validation loss; 0 never stops early."""
    flip: bool = False
    """Mirror each photograph with probability one half."""
    share: Annotated[float, Gt(0), Le(1)] = 1
    """Share of the training photographs used, for every seed the same; a smaller share's are among a larger one's."""
    crop: Annotated[float, Gt(0), Le(1)] = 1
    """Side of the random training crops as a share of the size, rounded to 8 pixels; 1 is the whole photograph."""
    zoom: Annotated[float, Gt(0), Le(1)] = 1
    """Random windows of the photograph, with sides from this share of it to the whole, are scaled to the crops' side; 1 cuts
    the crops out unscaled."""
    degrade: bool = False
    """Train on poor copies of the lightness too, as old prints and scans are (colorize.degrade)."""
    scales: Annotated[tuple[Annotated[float, Gt(0), Le(1)], ...], MinLen(1)] = (1,)
    """Shares of the size at which photographs are trained on, rounded to 8 pixels: one after the other, each for an equal
    part of the epochs (document 004). Validation is always at the whole size."""


@dataclass(frozen=True)
class HeadRule:
    """What a model predicts, and so its loss and its decoding."""

    kind: Literal["regression", "euclidean", "classification", "rgb"] = "regression"
    scale: Annotated[float, Gt(0)] = 128
    """regression: the ab value that an output of 1 stands for, in Lab units."""
    loss: Literal["squared", "charbonnier", "psnr"] = "squared"
    """regression: squared error, or the distance in ab with a rounded tip (Charbonnier), which far-off colors pull less."""
    saturation: Annotated[float, Ge(0), Le(4)] = 1
    """regression: what is predicted times this is painted; 1 comes closest to the truth, above it colors are bolder."""
    bins: Bins = "gamut"
    """classification: the 313 bins around the gamut, or the cells of 10 x 10 that the training photographs occupy."""
    neighbors: Annotated[int, Ge(1), Le(313)] = 5
    """classification: bins of the soft encoding; 1 is one-hot."""
    sigma: Annotated[float, Gt(0)] = 5
    """classification: width of the soft encoding's Gaussian, in ab units."""
    weights: Prior = "none"
    """classification: the prior whose rebalancing weights enter the loss."""
    grey_below: Annotated[float, Ge(0)] = 0
    """classification: photographs in which no |a*| and no |b*| reaches this, in Lab units, give no loss."""
    temperature: Annotated[float, Ge(0), Le(1)] = 0.38
    """classification: of the annealed mean; 1 is the mean, 0 the mode."""


@dataclass(frozen=True)
class ModelBlock:
    """One model: an architecture file, its arguments, its head and its training."""

    arch: str
    """The file in src/colorize/models."""
    size: Count = 0
    """Side in pixels at which the model works, at most the crop's; 0 is the crop's."""
    network: dict[str, Argument | list[Argument]] = field(default_factory=dict)
    """Keyword arguments of the file's Model."""
    head: HeadRule = HeadRule()
    train: Recipe = Recipe()
    init_from: str = ""
    """What its weights start from: another model of params.yaml, a folder with a trained one, or `shipped`, the one that
    comes with the library; empty: from fresh or pretrained ones."""


@dataclass(frozen=True)
class EvaluateRule:
    """How models are scored and shown."""

    batch: Positive = 64
    samples: Positive = 8
    """Photographs on the sample sheet."""
    gallery: Positive = 100
    """Photographs that the report shows: evenly spread over the test split, and each system's best and worst."""
    bootstrap: Positive = 1000
    """Resamples for the 95 % intervals."""
    colorings: Annotated[int, Ge(2)] = 8
    """Colorings of each photograph from models that have several."""
