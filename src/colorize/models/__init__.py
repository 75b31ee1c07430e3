"""Lightness in, color out: build, save and load a model by its block of params.yaml."""

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
"""Holds the trained model that comes with the library."""
HISTORY = "history.csv"


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
    """Train on poor copies of the lightness too, as old prints and scans are (colorize.data.degrade)."""
    scales: Annotated[tuple[Annotated[float, Gt(0), Le(1)], ...], MinLen(1)] = (1,)
    """Shares of the size at which photographs are trained on, rounded to 8 pixels: one after the other, each for an equal
    part of the epochs (document 004). Validation is always at the whole size."""


@dataclass(frozen=True)
class ModelConfig:
    """One model: an architecture file, its arguments, its head and its training."""

    arch: str
    """The file in src/colorize/models."""
    size: Count = 0
    """Side in pixels at which the model works, at most the crop's; 0 is the crop's."""
    network: dict[str, Argument | list[Argument]] = field(default_factory=dict)
    """Keyword arguments of the file's Model."""
    head: HeadConfig = HeadConfig()
    recipe: Recipe = Recipe()
    init_from: str = ""
    """What its weights start from: another model of params.yaml, a folder with a trained one, or `shipped`, the one that
    comes with the library; empty: from fresh or pretrained ones."""

    def working_size(self, crop: int) -> int:
        """The side in pixels at which the model works on crops of `crop` pixels: its own, at most the crops'."""
        return min(self.size or crop, crop)


def architecture_names() -> list[str]:
    """The names of all architecture files."""
    return sorted(module.name for module in pkgutil.iter_modules([str(ARCHITECTURES)]))


def block_of(models: Mapping[str, ModelConfig], name: str) -> ModelConfig:
    """The block of a model among those of params.yaml.

    Raises:
        InputError: there is none of that name; the sentence suggests the nearest.
    """
    if name in models:
        return models[name]
    raise InputError(f"there is no model {name!r} in params.yaml; {suggest(name, list(models))}")


def ancestry(models: Mapping[str, ModelConfig], name: str) -> dict[str, ModelConfig]:
    """A model's block, and those of the models that its weights start from, one after the other."""
    found: dict[str, ModelConfig] = {}
    while name in models and name not in found:
        found[name] = models[name]
        name = found[name].init_from
    return found


def model_class(block: ModelConfig) -> type[Colorizer]:
    """The class that a params block names.

    Raises:
        InputError: there is no such architecture, or its network does not take these arguments.
    """
    if block.arch not in architecture_names():
        raise InputError(
            f"there is no architecture {block.arch!r}; choose among {', '.join(architecture_names())}"
        )
    model: type[Colorizer] = import_module(f"{__name__}.architectures.{block.arch}").Model
    takes = {n: p for n, p in inspect.signature(model).parameters.items() if n not in ("head", "setup")}
    unknown = [name for name in block.network if name not in takes]
    missing = [n for n, p in takes.items() if p.default is p.empty and n not in block.network]
    if unknown or missing:
        what = f"does not take {', '.join(unknown)}" if unknown else f"needs {', '.join(missing)}"
        raise InputError(
            f"architecture {block.arch!r} {what}; its network takes {', '.join(takes) or 'nothing'}"
        )
    if not model.any_size and (block.recipe.crop != 1 or any(scale != 1 for scale in block.recipe.scales)):
        raise InputError(
            f"architecture {block.arch!r} works at one size only; leave train.crop and train.scales at 1"
        )
    weights, digits = pretrained_file(block)
    if weights and not digits:
        found = f"; that of {weights} is {files.sha256(Path(weights))}" if Path(weights).is_file() else ""
        raise InputError(f"network.weights needs network.sha256 beside it, the sha256 of that file{found}")
    return model


def pretrained_file(block: ModelConfig) -> tuple[str, str]:
    """Path or URL of the pretrained weights that a block asks for, and their sha256; empty where it asks for none."""
    return str(block.network.get("weights") or ""), str(block.network.get("sha256") or "")


def build_model(
    block: ModelConfig,
    size: int,
    statistics: Statistics | None = None,
    centers: Tensor | None = None,
    downloads: Path | None = None,
) -> Colorizer:
    """Build the model that a params block describes, with fresh or pretrained weights.

    Where the block starts from a trained model, the pretrained weights are not read: `start_from` replaces them.

    Args:
        size: side in pixels at which it will work.
        statistics: the training split's colors; None where saved weights will be loaded over them, and then no
            pretrained ones are read.
        centers: of a classification, the bins [Q, 2] of those saved weights.
        downloads: folder that keeps pretrained weights of a URL.

    Raises:
        InputError: it cannot be built, because of its arguments, its head, the size or its pretrained weights.
    """
    model = model_class(block)
    pretrained = None
    weights, digits = pretrained_file(block)
    if weights and statistics is not None and not block.init_from:
        from colorize.data import fetch  # late: it takes a while, and who colors has no use for it

        content = fetch.read_pinned("network.weights", weights, digits, downloads)
        pretrained = files.parse_tensors(f"network.weights: {weights}", content)
    try:
        head = build_head(block.head, statistics, centers)
        return model(head, Setup(size, statistics, pretrained), **block.network)
    except InputError:
        raise
    except Exception as error:  # networks fail with whatever they like on arguments of other types or sizes
        given = ", ".join(f"{name} {value}" for name, value in block.network.items())
        raise InputError(f"architecture {block.arch!r} cannot be built with {given}: {error}") from error


def build_baseline(name: str, statistics: Statistics) -> Colorizer:
    """The rows that stand in every table: `grey` (ab = 0) and `mean_color` (the training split's mean ab)."""
    color = {"grey": "zero", "mean_color": "mean"}[name]
    return build_model(ModelConfig("constant", network={"color": color}), 0, statistics).eval()


def save_model(folder: Path, model: Colorizer, description: dict, history: str) -> None:
    """Write a trained model: weights, what it is (JSON) and its training history (CSV text)."""
    from safetensors.torch import save

    tensors = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    files.write_bytes(folder / WEIGHTS, save(tensors))
    files.write_json(folder / DESCRIPTION, description)
    files.write_text(folder / HISTORY, history)


def load_description(folder: Path) -> dict:
    """What `save_model` wrote about a model.

    Raises:
        InputError: there is no trained model in the folder, or its description is not one.
    """
    return _describe(folder)[0]


def _describe(folder: Path) -> tuple[dict, "_Described"]:
    import json

    from pydantic import TypeAdapter, ValidationError

    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if isinstance(description, dict):
            own = folder.resolve().name
            description = {"name": own if is_name(own) else "model"} | description
        checked = TypeAdapter(_Described).validate_python(description)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"there is no trained model in {folder}; run `dvc repro` first") from error
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "it"
        raise InputError(
            f"{folder / DESCRIPTION} does not describe a trained model ({where}); train it again"
        ) from error
    return description | asdict(checked), checked


Lab = Annotated[float, Ge(-200), Le(200)]
"""A color's a or b."""


@dataclass(frozen=True)
class _Described:
    """What a description must hold, whoever wrote it."""

    block: ModelConfig
    size: Annotated[int, Gt(0), Le(4096)]
    name: Annotated[str, Predicate(is_name)]
    """Results of several models lie in folders of their names."""
    parameters: Count = 0
    mean_ab: tuple[Lab, Lab] | None = None


def load_model(folder: Path, device: str = "cpu") -> Colorizer:
    """Load a trained model, ready to color.

    Raises:
        InputError: there is no trained model in the folder, or its parts do not fit each other.
    """
    from safetensors.torch import load_file

    _, described = _describe(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
        model = build_model(described.block, described.size, centers=tensors.get("head.centers"))
        model.load_state_dict(tensors)
    except InputError:
        raise
    except (
        Exception
    ) as error:  # networks fail with whatever they like on arguments that nobody trained them with
        raise InputError(f"{folder / WEIGHTS} does not hold this model's weights; train it again") from error
    return model.to(device).eval()


def initial_folder(init_from: str) -> Path:
    """The folder of the trained model that a block's `init_from` names, where it names none of params.yaml."""
    return SHIPPED_FOLDER if init_from == SHIPPED else Path(init_from)


def start_from(model: Colorizer, trained: Colorizer) -> None:
    """Take over the weights of a trained model; what the head knows of colors and of their weights stays the model's own.

    Raises:
        InputError: the two are not of one shape.
    """
    own = {f"head.{name}": buffer for name, buffer in model.head.named_buffers()}
    try:
        model.load_state_dict(trained.state_dict() | own)
    except RuntimeError as error:
        raise InputError(
            "a model and the one of its init_from differ in shape; give both blocks the same arch, network and head"
        ) from error


def describe_block(block: ModelConfig) -> dict:
    """A block as plain values, for JSON."""
    return asdict(block)
