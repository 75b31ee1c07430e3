"""What a project folder holds: its models, trained or not, and whether its outs are those of dvc.lock.

Of params.yaml only the blocks of models are read here; what else it holds is pipeline/params.py's business.
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
    """The part of params.yaml that tells which models there are."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # as pipeline/params.py has it
    crop: CropConfig
    models: dict[str, ModelConfig]


def project() -> Path | None:
    """The project's folder: the nearest one upwards with a params.yaml and a dvc.yaml."""
    here = Path.cwd()
    return next(
        (f for f in (here, *here.parents) if (f / "params.yaml").exists() and (f / "dvc.yaml").exists()), None
    )


def required_project() -> Path:
    """Raises InputError: there is no project around the current folder."""
    root = project()
    if root is None:
        raise InputError(
            "there is no params.yaml beside a dvc.yaml here or above; change into a project of colorize"
        )
    return root


def trained(root: Path | None) -> dict[str, Path]:
    """The trained model that comes with the library, and every one of a project: name to folder.

    The chosen model's own folder comes before the zoo's.

    Raises:
        InputError: a model.json does not describe a trained model.
    """
    from colorize.models import SHIPPED_FOLDER, load_description

    found = {SHIPPED: SHIPPED_FOLDER}
    for folder in (root / "data/model", *sorted((root / "data/zoo").glob("*"))) if root else ():
        if (folder / "model.json").exists():
            found.setdefault(load_description(folder)["name"], folder)
    return found


def find_model(name: str, temporary: Path) -> Path:
    """The folder of a trained model.

    Args:
        temporary: where one that lies in an experiment or revision is copied to.

    Raises:
        InputError: there is none of that name.
    """
    from colorize.models import SHIPPED_FOLDER, load_description

    if name == SHIPPED:
        return SHIPPED_FOLDER

    def holds_model(folder: str) -> bool:  # unlike Path.exists, of names that are too long as well
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
        except Exception:  # whatever is wrong with the revision or with DVC's cache: there is no model
            pass
    raise InputError(f"there is no trained model {name!r}, neither a folder nor in this project; {known}")


def document_of(arch: str) -> str:
    """The document, or the paper, that an architecture's file names first."""
    numbers = re.findall(r"document (\d{3})", import_module(f"colorize.models.{arch}").__doc__ or "")
    return numbers[0] if numbers else ""


def parameters_of(block: ModelConfig, crop: int) -> int | None:
    """How many parameters a block's model will have; None if that depends on the data's occupied cells.

    Raises:
        InputError: it cannot be built.
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
    """The model that comes with the library, then every block of params.yaml.

    Returns:
        Rows of model, document, parameters, trained (the folder), psnr, ssim, rmse, None where unknown; and
        the problem, if it cannot be built.

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
            scores = (
                root / "metrics/metrics.json" if folder == root / "data/model" else folder / "metrics.json"
            )
            if scores.exists():
                found = files.read_json(scores, dict.fromkeys(SHOWN, float))
                row |= {metric: found[metric] for metric in SHOWN}
        else:
            try:
                row["parameters"] = parameters_of(block, params.crop.size)
            except InputError as error:
                row["problem"] = str(error)
        rows.append(row)
    return rows


def verify_outs(root: Path) -> list[dict[str, str]]:
    """Hash every out of the project's stages as DVC does, but anew: DVC remembers the hash of what keeps its time.

    Returns:
        Rows of path, stage and status: ok, missing, differs, not in dvc.lock, not in dvc.yaml; or never ran,
        which is no difference, for stages that `dvc repro` does not run: the zoo's.

    Raises:
        InputError: there is no dvc.lock, DVC is not installed, or it cannot read the project's files.
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
                    status = (
                        "missing" if out.hash_info or out.stage.path_in_repo == "dvc.yaml" else "never ran"
                    )
                elif not out.hash_info:
                    status = "not in dvc.lock"
                else:
                    status = "differs" if out.changed_checksum() else "ok"
                path = Path(os.path.relpath(out.fs_path, root)).as_posix()
                rows.append({"path": path, "stage": out.stage.addressing, "status": status})
            listed = {row["path"] for row in rows}
            for name, entry in (
                load_file(repo, str(root / "dvc.yaml")).lockfile_contents.get("stages", {}).items()
            ):
                for path in (out["path"] for out in entry.get("outs", []) if out["path"] not in listed):
                    rows.append({"path": path, "stage": name, "status": "not in dvc.yaml"})
    except Exception as error:  # DVC's own, and what its readers of damaged files raise
        reason = " ".join(str(error).split())
        remedy = "mend it, or restore it with `git checkout`"
        raise InputError(f"DVC cannot read {root}: {reason}; {remedy}") from error
    if not rows:
        raise InputError(f"{root / 'dvc.yaml'} and dvc.lock list no outs; restore them with `git checkout`")
    return rows


def other_versions(root: Path) -> list[str]:
    """The packages on which results depend that are not installed as requirements.txt pins them, one clause each."""
    path = root / "requirements.txt"
    with files.reading(path, "restore it with `git checkout requirements.txt`"):
        pins = (line.partition("==") for line in path.read_text(encoding="utf-8").splitlines())
        pinned = {name: version.strip() for name, _, version in pins if name in DECISIVE}
    clauses = []
    for name, version in pinned.items():
        try:
            there = f"{metadata.version(name).partition('+')[0]} is"
        except metadata.PackageNotFoundError:
            there = "none is"
        if there != f"{version} is":
            clauses.append(f"{name} {version} is pinned, {there} installed")
    return clauses
