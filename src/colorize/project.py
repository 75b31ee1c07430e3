"""What a project folder holds: its models, trained or not, and whether its outs are those of dvc.lock.

Of params.yaml only names and blocks are read here; what they mean is pipeline/params.py's business.
"""

import hashlib
import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from colorize.files import InputError

SHOWN = ("psnr", "ssim", "rmse")
"""Metrics in the list of models."""
DECISIVE = ("numpy", "pandas", "pillow", "scikit-image", "scipy", "torch")
"""Packages whose version may change the last digits of a result."""


def project() -> Path | None:
    """The project's folder: the nearest one upwards with a params.yaml and a dvc.yaml."""
    here = Path.cwd()
    return next((f for f in (here, *here.parents) if (f / "params.yaml").exists() and (f / "dvc.yaml").exists()), None)


def required_project() -> Path:
    """Raises InputError: there is no project around the current folder."""
    root = project()
    if root is None:
        raise InputError("there is no params.yaml beside a dvc.yaml here or above; change into a project of colorize")
    return root


def trained(root: Path) -> dict[str, Path]:
    """Every trained model of a project: name to folder; the chosen one's own folder before the zoo's."""
    found: dict[str, Path] = {}
    for folder in (root / "data/model", *sorted((root / "data/zoo").glob("*"))):
        if (folder / "model.json").exists():
            found.setdefault(json.loads((folder / "model.json").read_text(encoding="utf-8"))["name"], folder)
    return found


def find_model(name: str, temporary: Path) -> Path:
    """The folder of a trained model.

    Args:
        temporary: where one that lies in an experiment or revision is copied to.

    Raises:
        InputError: there is none of that name.
    """
    if (Path(name) / "model.json").exists():
        return Path(name)
    root = project()
    here = trained(root) if root else {}
    if name in here:
        return here[name]
    if root:
        from dvc.api import DVCFileSystem
        from dvc.exceptions import DvcException

        try:
            DVCFileSystem(str(root), rev=name).get("data/model", str(temporary / "model"), recursive=True)
            return temporary / "model"
        except (DvcException, OSError):
            pass
    known = f"trained here: {', '.join(here)}" if here else "no model is trained here; `dvc repro` trains one"
    raise InputError(f"there is no trained model {name!r}, neither a folder nor in this project; {known}")


def document_of(arch: str) -> str:
    """The document, or the paper, that an architecture's file names first."""
    text = (Path(__file__).parent / "models" / f"{arch}.py").read_text(encoding="utf-8").split('"""')[1]
    numbers = re.findall(r"document (\d{3})", text)
    return numbers[0] if numbers else ""


def parameters_of(block: dict[str, Any], crop: int) -> int | None:
    """How many parameters a block's model will have; None if that depends on the data: the grid's occupied cells."""
    import torch

    from colorize.models import build_model
    from colorize.models._base import parameter_count
    from colorize.settings import HeadRule, ModelBlock

    head = HeadRule(**block.get("head", {}))
    if head.bins == "grid":
        return None
    network = {key: value for key, value in block.get("network", {}).items() if key not in ("weights", "sha256")}
    with torch.device("meta"):
        model = build_model(ModelBlock(block["arch"], network=network, head=head), min(block.get("size") or crop, crop))
    return parameter_count(model)


def list_models(root: Path) -> list[dict[str, Any]]:
    """Every block of params.yaml: model, document, parameters, trained (the folder), psnr, ssim and rmse; None if unknown.

    Raises:
        InputError: params.yaml cannot be read.
    """
    try:
        content = YAML(typ="safe").load((root / "params.yaml").read_text(encoding="utf-8"))
        blocks = content["models"] | content["fine_tuned"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{root / 'params.yaml'} holds no models; restore it") from error
    folders, rows = trained(root), []
    for name, block in blocks.items():
        folder = folders.get(name)
        row: dict[str, Any] = {"model": name, "document": document_of(block["arch"]), "parameters": None, "trained": None}
        row |= dict.fromkeys(SHOWN)
        if not folder:
            row["parameters"] = parameters_of(block, content["crop"]["size"])
        else:
            row["parameters"] = json.loads((folder / "model.json").read_text(encoding="utf-8"))["parameters"]
            row["trained"] = folder.relative_to(root).as_posix()
            scores = root / "metrics/metrics.json" if folder == root / "data/model" else folder / "metrics.json"
            if scores.exists():
                found = json.loads(scores.read_text(encoding="utf-8"))
                row |= {metric: found[metric] for metric in SHOWN}
        rows.append(row)
    return rows


def verify_outs(root: Path) -> list[dict[str, str]]:
    """Every out of every dvc.lock: path, stage and status, which is ok, missing or differs.

    Raises:
        InputError: there is no dvc.lock.
    """
    locks = sorted({*root.glob("dvc.lock"), *root.glob("pipeline/**/dvc.lock")})
    if not locks:
        raise InputError(f"{root / 'dvc.lock'} is missing; run `dvc repro` first")
    rows = []
    for lock in locks:
        stages = YAML(typ="safe").load(lock.read_text(encoding="utf-8"))["stages"]
        for name, stage in stages.items():
            for out in stage.get("outs", []):
                path = root / out["path"]
                status = "missing" if not path.exists() else "ok" if md5(path) == out["md5"] else "differs"
                rows.append({"path": out["path"], "stage": name, "status": status})
    return rows


def other_versions(root: Path) -> list[str]:
    """The packages on which results depend that are not installed as requirements.txt pins them, one clause each."""
    pins = (line.partition("==") for line in (root / "requirements.txt").read_text(encoding="utf-8").splitlines())
    pinned = {name: version.strip() for name, _, version in pins if name in DECISIVE}
    there = {name: metadata.version(name).partition("+")[0] for name in pinned}
    return [f"{name} {pinned[name]} is pinned, {there[name]} is installed" for name in pinned if there[name] != pinned[name]]


def md5(path: Path) -> str:
    """DVC's hash of a file, or of a folder: that of the sorted list of its files' hashes, and .dir."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    entries = [{"md5": md5(f), "relpath": f.relative_to(path).as_posix()} for f in path.rglob("*") if f.is_file()]
    entries.sort(key=lambda entry: Path(entry["relpath"]).parts)
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"
