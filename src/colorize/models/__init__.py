"""Build, save and load colorization models by their blocks of params.yaml."""

import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen, Predicate
from torch import Tensor

from colorize import files
from colorize.bins import Statistics
from colorize.files import InputError
from colorize.models.base import Colorizer, Setup
from colorize.models.heads import HeadConfig, build_head
from colorize.settings import SHIPPED, Argument, Count, Positive, Share, is_name, suggest

ARCHITECTURES = Path(__file__).parent / "architectures"
WEIGHTS = "weights.safetensors"
DESCRIPTION = "model.json"
SHIPPED_FOLDER = Path(__file__).parents[1] / SHIPPED
"""Folder of the trained model that comes with the library."""
HISTORY = "history.csv"


@dataclass(frozen=True)
class Recipe:
    """How one model is trained, by the numbers of its document."""

    epochs: Count = 100
    batch: Positive = 32
    optimizer: Literal["adam", "adamw", "rmsprop", "sgd"] = "adam"
    lr: Annotated[float, Gt(0)] = 1e-3
    pretrained_lr: Share = 1
    """Share of the learning rate for modules with pretrained weights."""
    schedule: Literal["constant", "cosine"] = "constant"
    """cosine: the learning rate falls to a hundredth along half a cosine, over all epochs."""
    warmup: Annotated[float, Ge(0), Lt(1)] = 0
    """Share of all steps during which the learning rate rises from zero."""
    average: Annotated[float, Ge(0), Lt(1)] = 0
    """Decay of the weights' exponential moving average, which is validated and saved; 0 for no average."""
    betas: tuple[Annotated[float, Ge(0), Lt(1)], Annotated[float, Ge(0), Lt(1)]] = (0.9, 0.999)
    """Decay rates of Adam."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0
    """Momentum of SGD."""
    weight_decay: Annotated[float, Ge(0)] = 0
    patience: Count = 0
    """Stop after this many epochs in a row of rising validation loss; 0 never stops early."""
    flip: bool = False
    """Mirror each photograph with probability one half."""
    share: Annotated[float, Gt(0), Le(1)] = 1
    """Share of the training photographs; a larger share contains a smaller one, for any seed."""
    crop: Annotated[float, Gt(0), Le(1)] = 1
    """Side of the random training crops as a share of the size, rounded to 8 pixels; 1 is the whole
    photograph."""
    zoom: Annotated[float, Gt(0), Le(1)] = 1
    """Scale random windows, with sides from this share of the photograph to all of it, to the crops' side; 1
    for unscaled crops."""
    degrade: bool = False
    """Also train on lightness degraded like old prints and scans (colorize.data.degrade)."""
    scales: Annotated[tuple[Annotated[float, Gt(0), Le(1)], ...], MinLen(1)] = (1,)
    """Shares of the size, rounded to 8 pixels, to train at one after the other, each for an equal part of the
    epochs (document 004). Validation always uses the whole size."""


@dataclass(frozen=True)
class ModelConfig:
    """One model: an architecture file, its arguments, its head and its training."""

    arch: str
    """Name of a file in src/colorize/models/architectures."""
    size: Count = 0
    """Working side in pixels, at most the crop's; 0 for the crop's side."""
    network: dict[str, Argument | list[Argument]] = field(default_factory=dict)
    """Keyword arguments of the file's Model."""
    head: HeadConfig = HeadConfig()
    recipe: Recipe = Recipe()
    init_from: str = ""
    """Start of the weights: another model of params.yaml, the folder of a trained one, or `shipped`, the
    model of the library; empty for fresh or pretrained weights."""

    def working_size(self, crop: int) -> int:
        """Return the working side for crops of side `crop`, in pixels."""
        return min(self.size or crop, crop)


def architecture_names() -> list[str]:
    """List the names of all architecture files."""
    return sorted(module.name for module in pkgutil.iter_modules([str(ARCHITECTURES)]))


def block_of(models: Mapping[str, ModelConfig], name: str) -> ModelConfig:
    """Return the block of a model of params.yaml; InputError: there is no such model."""
    if name in models:
        return models[name]
    raise InputError(f"there is no model {name!r} in params.yaml; {suggest(name, list(models))}")


def ancestry(models: Mapping[str, ModelConfig], name: str) -> dict[str, ModelConfig]:
    """Return a model's block, and the blocks of the models that its weights start from, in this order."""
    blocks: dict[str, ModelConfig] = {}
    while name in models and name not in blocks:
        blocks[name] = models[name]
        name = blocks[name].init_from
    return blocks


def model_class(block: ModelConfig) -> type[Colorizer]:
    """Return the class of a block's architecture.

    Raises:
        InputError: there is no such architecture, or it does not take the arguments of the block.
    """
    name = f"architecture {block.arch!r}"
    if block.arch not in architecture_names():
        raise InputError(f"there is no {name}; choose among {', '.join(architecture_names())}")
    model: type[Colorizer] = import_module(f"{__name__}.architectures.{block.arch}").Model
    takes = {n: p for n, p in inspect.signature(model).parameters.items() if n not in ("head", "setup")}
    unknown = [n for n in block.network if n not in takes]
    missing = [n for n, p in takes.items() if p.default is p.empty and n not in block.network]
    if unknown or missing:
        what = f"does not take {', '.join(unknown)}" if unknown else f"needs {', '.join(missing)}"
        raise InputError(f"{name} {what}; its network takes {', '.join(takes) or 'nothing'}")
    if not model.any_size and any(share != 1 for share in (block.recipe.crop, *block.recipe.scales)):
        raise InputError(f"{name} works at one size only; leave recipe.crop and recipe.scales at 1")
    weights, digits = pretrained_file(block)
    if weights and not digits:
        hint = f"; that of {weights} is {files.sha256(Path(weights))}" if Path(weights).is_file() else ""
        raise InputError(f"network.weights needs network.sha256 beside it, the sha256 of that file{hint}")
    return model


def pretrained_file(block: ModelConfig) -> tuple[str, str]:
    """Return path or URL and sha256 of a block's pretrained weights; empty for none."""
    return str(block.network.get("weights") or ""), str(block.network.get("sha256") or "")


def build_model(
    block: ModelConfig,
    size: int,
    statistics: Statistics | None = None,
    centers: Tensor | None = None,
    downloads: Path | None = None,
) -> Colorizer:
    """Build the model of a block, with fresh or pretrained weights.

    If the block starts from a trained model, pretrained weights are not read: `start_from` replaces all
        weights.

    Args:
        size: working side in pixels.
        statistics: the training split's colors; None if saved weights will be loaded, and then pretrained
            ones are not read.
        centers: bins [Q, 2] of the saved weights of a classification.
        downloads: folder that keeps downloaded weights.

    Raises:
        InputError: the arguments, the head, the size or the pretrained weights do not fit.
    """
    model = model_class(block)
    pretrained = None
    weights, digits = pretrained_file(block)
    if weights and statistics is not None and not block.init_from:
        from colorize.data import fetch  # slow to import, and coloring does not need it

        content = fetch.read_pinned("network.weights", weights, digits, downloads)
        pretrained = files.parse_tensors(f"network.weights: {weights}", content)
    try:
        head = build_head(block.head, statistics, centers)
        return model(head, Setup(size, statistics, pretrained), **block.network)
    except InputError:
        raise
    except Exception as error:  # networks raise all kinds of errors for arguments of other types or sizes
        arguments = ", ".join(f"{name} {value}" for name, value in block.network.items())
        raise InputError(f"architecture {block.arch!r} cannot be built with {arguments}: {error}") from error


def build_baseline(name: str, statistics: Statistics) -> Colorizer:
    """Build a baseline of every table: `grey` (ab = 0) or `mean_color` (the training split's mean ab)."""
    color = {"grey": "zero", "mean_color": "mean"}[name]
    return build_model(ModelConfig("constant", network={"color": color}), 0, statistics).eval()


def save_model(folder: Path, model: Colorizer, description: dict, history: str) -> None:
    """Write a trained model: its weights, its description as JSON and its training history as CSV."""
    from safetensors.torch import save

    tensors = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    files.write_bytes(folder / WEIGHTS, save(tensors))
    files.write_json(folder / DESCRIPTION, description)
    files.write_text(folder / HISTORY, history)


def load_description(folder: Path) -> dict:
    """Read a model's description; InputError: there is no trained model in the folder, or it is damaged."""
    return _describe(folder)[0]


def _describe(folder: Path) -> tuple[dict, "_Described"]:
    import json

    from pydantic import TypeAdapter, ValidationError

    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if isinstance(description, dict):
            name = folder.resolve().name
            description = {"name": name if is_name(name) else "model"} | description
        checked = TypeAdapter(_Described).validate_python(description)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"there is no trained model in {folder}; run `dvc repro` first") from error
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"])) or "it"
        problem = f"{folder / DESCRIPTION} does not describe a trained model ({field})"
        raise InputError(f"{problem}; train it again") from error
    return description | asdict(checked), checked


@dataclass(frozen=True)
class _Described:
    """Required content of a description."""

    block: ModelConfig
    size: Annotated[int, Gt(0), Le(4096)]
    name: Annotated[str, Predicate(is_name)]
    """Names the folder of the model's results."""
    parameters: Count = 0
    mean_ab: tuple[Annotated[float, Ge(-200), Le(200)], Annotated[float, Ge(-200), Le(200)]] | None = None


def load_model(folder: Path, device: str = "cpu") -> Colorizer:
    """Load a trained model in evaluation mode.

    Raises:
        InputError: there is no trained model in the folder, or its weights do not fit its description.
    """
    from safetensors.torch import load_file

    _, described = _describe(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
        model = build_model(described.block, described.size, centers=tensors.get("head.centers"))
        model.load_state_dict(tensors)
    except InputError:
        raise
    except Exception as error:  # networks raise all kinds of errors for wrong arguments
        raise InputError(f"{folder / WEIGHTS} does not hold this model's weights; train it again") from error
    return model.to(device).eval()


def initial_folder(init_from: str) -> Path:
    """Return the folder of `init_from` when it is not a model of params.yaml."""
    return SHIPPED_FOLDER if init_from == SHIPPED else Path(init_from)


def start_from(model: Colorizer, trained: Colorizer) -> None:
    """Copy the weights of a trained model, but keep the head's buffers (bins and class weights).

    Raises:
        InputError: the models differ in shape.
    """
    buffers = {f"head.{name}": buffer for name, buffer in model.head.named_buffers()}
    try:
        model.load_state_dict(trained.state_dict() | buffers)
    except RuntimeError as error:
        remedy = "give both blocks the same arch, network and head"
        raise InputError(f"a model and the one of its init_from differ in shape; {remedy}") from error


def describe_block(block: ModelConfig) -> dict:
    """Convert a block to plain values, for JSON."""
    return asdict(block)
