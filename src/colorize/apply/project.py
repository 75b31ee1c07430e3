"""List a project's models; verify its outs against dvc.lock.

Only the models and the crop size of params.yaml are read here; pipeline/params.py reads the rest.
"""

import os
import re
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, get_type_hints

from colorize import files
from colorize.data.images import CropConfig
from colorize.files import InputError
from colorize.models import ModelConfig
from colorize.settings import SHIPPED, checked, inherited

SHOWN = ("psnr", "ssim", "rmse")
"""Metrics in the list of models."""
DECISIVE = ("numpy", "pandas", "pillow", "scikit-image", "scipy", "torch")
"""Packages whose version may change the last digits of a result."""


@dataclass(frozen=True)
class Listed:
    """The part of params.yaml that `list_models` needs."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # as pipeline/params.py has it
    crop: CropConfig
    models: dict[str, ModelConfig]


def project() -> Path | None:
    """Find the project: the nearest folder upwards with a params.yaml and a dvc.yaml."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "params.yaml").exists() and (folder / "dvc.yaml").exists():
            return folder
    return None


def required_project() -> Path:
    """Find the project like `project`, but raise InputError if there is none."""
    if (root := project()) is None:
        missing = "there is no params.yaml beside a dvc.yaml here or above"
        raise InputError(f"{missing}; change into a project of colorize")
    return root


def trained(root: Path | None) -> dict[str, Path]:
    """Find the shipped model and every trained model of a project: name to folder.

    data/model takes precedence over data/zoo.

    Raises:
        InputError: a model.json does not describe a trained model.
    """
    from colorize.models import SHIPPED_FOLDER, load_description

    folders = {SHIPPED: SHIPPED_FOLDER}
    for folder in (root / "data/model", *sorted((root / "data/zoo").glob("*"))) if root else ():
        if (folder / "model.json").exists():
            folders.setdefault(load_description(folder)["name"], folder)
    return folders


def find_model(name: str, temporary: Path) -> Path:
    """Find the folder of a trained model.

    Args:
        temporary: folder that gets a copy of a model from an experiment or Git revision.

    Raises:
        InputError: there is no such model.
    """
    from colorize.models import SHIPPED_FOLDER, load_description

    if name == SHIPPED:
        return SHIPPED_FOLDER

    def holds_model(folder: str) -> bool:  # Path.exists fails on names that are too long
        return os.path.exists(os.path.join(folder, "model.json"))

    if holds_model(name):
        return Path(name)
    root = project()
    for folder in (f"{root}/data/model", f"{root}/data/zoo/{name}") if root else ():
        if holds_model(folder) and load_description(Path(folder))["name"] == name:
            return Path(folder)
    known = f"there are {', '.join(trained(root))}"
    if root:
        try:
            from dvc.api import DVCFileSystem

            DVCFileSystem(str(root), rev=name).get("data/model", str(temporary / "model"), recursive=True)
            return temporary / "model"
        except ImportError:
            known += "; those of experiments and revisions need DVC: pip install dvc"
        except Exception:  # DVC raises many types if the revision or its cache is unusable: there is no model
            pass
    raise InputError(f"there is no trained model {name!r}, neither a folder nor in this project; {known}")


def document_of(arch: str) -> str:
    """The number of the document that an architecture's docstring names first; "" if none."""
    numbers = re.findall(
        r"document (\d{3})", import_module(f"colorize.models.architectures.{arch}").__doc__ or ""
    )
    return numbers[0] if numbers else ""


def parameters_of(block: ModelConfig, crop: int) -> int | None:
    """Number of parameters of a block's model; None if it depends on the data's occupied cells.

    Raises:
        InputError: the model cannot be built.
    """
    import torch

    from colorize.models import build_model
    from colorize.models.base import parameter_count

    if block.head.bins == "grid":
        return None
    network = {key: value for key, value in block.network.items() if key not in ("weights", "sha256")}
    with torch.device("meta"):
        return parameter_count(build_model(replace(block, network=network), min(block.size or crop, crop)))


def list_models(root: Path | None) -> list[dict[str, Any]]:
    """List the shipped model, then every block of params.yaml.

    Returns:
        Rows with model, document, parameters, trained (the folder), psnr, ssim, rmse and problem (why the
        model cannot be built); None where unknown.

    Raises:
        InputError: params.yaml, a trained model or its scores are damaged.
    """
    from colorize.models import architecture_names, load_description

    folders = trained(root)
    empty = dict.fromkeys(("model", "document", "parameters", "trained", *SHOWN, "problem"))
    parameters = load_description(folders[SHIPPED])["parameters"]
    rows: list[dict[str, Any]] = [
        empty | {"model": SHIPPED, "parameters": parameters, "trained": "with the library"}
    ]
    if root is None:
        return rows
    path = root / "params.yaml"
    content = files.read_yaml(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no parameters; restore it with `git checkout {path}`")
    part = {name: content[name] for name in get_type_hints(Listed) if name in content}
    params = checked(Listed, part | {"models": inherited(part.get("models"), path)}, path)
    for name, block in params.models.items():
        document = document_of(block.arch) if block.arch in architecture_names() else ""
        row: dict[str, Any] = empty | {"model": name, "document": document}
        if folder := folders.get(name):
            row["parameters"] = load_description(folder).get("parameters")
            row["trained"] = folder.relative_to(root).as_posix()
            scores = (root / "metrics" if folder == root / "data/model" else folder) / "metrics.json"
            if scores.exists():
                means = files.read_json(scores, dict.fromkeys(SHOWN, float))
                row |= {metric: means[metric] for metric in SHOWN}
        else:
            try:
                row["parameters"] = parameters_of(block, params.crop.size)
            except InputError as error:
                row["problem"] = str(error)
        rows.append(row)
    return rows


def verify_outs(root: Path) -> list[dict[str, str]]:
    """Hash every out of the project's stages with DVC, ignoring DVC's stored hashes.

    Returns:
        Rows with path, stage and status: ok, missing, differs, not in dvc.lock, not in dvc.yaml, or never ran
        (a stage of the zoo without results, which is no error).

    Raises:
        InputError: there is no dvc.lock, DVC is not installed, or DVC cannot read the project's files.
    """
    try:
        from dvc.dvcfile import load_file
        from dvc.repo import Repo
        from dvc_data.hashfile.state import StateNoop
    except ImportError as error:
        raise InputError("`colorize verify` asks DVC; run pip install dvc") from error
    if not (root / "dvc.lock").exists():
        raise InputError(f"{root / 'dvc.lock'} is missing; run `dvc repro` first")
    try:
        with Repo(str(root)) as repo:
            repo.cache.local.state = repo.cache.legacy.state = StateNoop()
            rows = []
            for out in sorted(repo.index.outs, key=lambda out: out.stage.addressing):
                if not out.exists:
                    in_repro = out.hash_info or out.stage.path_in_repo == "dvc.yaml"
                    status = "missing" if in_repro else "never ran"
                elif not out.hash_info:
                    status = "not in dvc.lock"
                else:
                    status = "differs" if out.changed_checksum() else "ok"
                path = Path(os.path.relpath(out.fs_path, root)).as_posix()
                rows.append({"path": path, "stage": out.stage.addressing, "status": status})
            listed = {row["path"] for row in rows}
            locked = load_file(repo, str(root / "dvc.yaml")).lockfile_contents.get("stages", {})
            for name, entry in locked.items():
                for path in (out["path"] for out in entry.get("outs", []) if out["path"] not in listed):
                    rows.append({"path": path, "stage": name, "status": "not in dvc.yaml"})
    except Exception as error:  # DVC and its parsers raise many types for damaged files
        reason = " ".join(str(error).split())
        remedy = "mend it, or restore it with `git checkout`"
        raise InputError(f"DVC cannot read {root}: {reason}; {remedy}") from error
    if not rows:
        raise InputError(f"{root / 'dvc.yaml'} and dvc.lock list no outs; restore them with `git checkout`")
    return rows


def other_versions(root: Path) -> list[str]:
    """Name the packages of `DECISIVE` whose installed version is not the pinned one, one clause each."""
    pinned: dict[str, str] = {}
    for path in (root / "requirements/torch.txt", root / "requirements/pipeline.txt"):
        with files.reading(path, "restore it with `git checkout requirements`"):
            pins = re.findall(r"^([\w.-]+)==([^\s;]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
            pinned |= {name: version for name, version in pins if name in DECISIVE}
    clauses = []
    for name, version in pinned.items():
        try:
            installed = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            installed = "none"
        if installed != version:
            clauses.append(f"{name} {version} is pinned, {installed} is installed")
    return clauses
