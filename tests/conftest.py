"""What several tests share: small photographs with known content, parameters, small networks, a browser."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from ruamel.yaml import YAML

from colorize.models import ModelConfig, efficientnet, resnet
from colorize.models.architectures import deshpande, efficientnet_unet, koalarization, zhang
from colorize.scoring import plausibility
from colorize.training.device import _round_alike
from pipeline.check import AllParams
from pipeline.params import checked

ROOT = Path(__file__).parent.parent

# Before anything is computed: processes that tests start inherit it, and have to round as this one does.
_round_alike()
os.environ["OMP_NUM_THREADS"] = "1"
torch.use_deterministic_algorithms(True)
_SAME = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("short", max_examples=60, derandomize=True, **_SAME)
settings.register_profile("long", max_examples=20_000, **_SAME)  # pytest --hypothesis-profile=long
settings.load_profile("short")
# Files of tests need not survive a power cut; test_files.py has the one test of the real call.
os.fsync = lambda descriptor: None
# A test that itself runs inside `dvc repro` must not see the outer project's root.
os.environ.pop("DVC_ROOT", None)


LONGEST = ("test_pipeline", "test_distributed")
"""One group of tests each; whoever runs it is busy for minutes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: what is left at the end are many short tests, so that no core waits for another."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """One worker per core: two threads of each would wait for the other's. What a test sets ends with it."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def small_eyes() -> Iterator[None]:
    """Features of 32 pixels take a fiftieth of the time; few tests ask what they are."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plausibility, "SIDE", 32)
        yield


def _photographs(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Smooth color gradients over textured lightness: uint8 [count, size, size, 3]."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, size)
    across, down = np.meshgrid(ramp, ramp)
    tints = random.uniform(0, 255, (count, 3, 3))
    planes = np.stack((np.ones_like(across), across, down))
    colors = np.einsum("nkc,khw->nhwc", tints / np.array([1, 2, 2])[:, None], planes)
    texture = random.normal(0, 12, (count, size, size, 1))
    return (colors * 0.6 + 30 + texture).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def photographs() -> Callable[..., np.ndarray]:
    """A function of (count, size, seed) that gives uint8 [count, size, size, 3]."""
    return _photographs


@pytest.fixture(scope="session")
def make_params() -> Callable[..., AllParams]:
    """The project's params.yaml with changes, given as dotted names: make_params({"crop.size": 32})."""

    def make(changes: dict[str, object] | None = None) -> AllParams:
        content = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
        for name, value in (changes or {}).items():
            *path, last = name.split(".")
            block = content
            for part in path:
                block = block.setdefault(part, {})
            block[last] = deepcopy(value)
        return checked(AllParams, content)

    return make


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each shard of crops is opened: all of them for every batch would be quadratic."""
    counts, load = Counter[str](), np.load

    def counted(path: Path, **options: Any) -> Any:
        counts.update([name for name in [Path(path).name] if name.startswith("crops-")])
        return load(path, **options)

    monkeypatch.setattr(np, "load", counted)
    return counts


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModelConfig], ModelConfig]:
    """A function that gives a block with the same kinds of layers and far fewer channels."""
    monkeypatch.setattr(deshpande, "ENCODER", [(c // 8, *rest) for c, *rest in deshpande.ENCODER])
    monkeypatch.setattr(koalarization, "ENCODER", [(c // 8, stride) for c, stride in koalarization.ENCODER])
    blocks = {variant: [(c // 8, *rest) for c, *rest in table] for variant, table in zhang.BLOCKS.items()}
    monkeypatch.setattr(zhang, "BLOCKS", blocks)
    stages = tuple((*rest, channels // 8) for *rest, channels in efficientnet.STAGES)
    for module in (efficientnet, efficientnet_unet):
        monkeypatch.setattr(module, "STAGES", stages)
        monkeypatch.setattr(module, "FEATURES", 160)
    monkeypatch.setattr(efficientnet_unet, "SKIPPED", tuple(c // 8 for c in efficientnet_unet.SKIPPED))
    monkeypatch.setattr(koalarization, "Trunk", lambda stages, frozen: resnet.Trunk(2, frozen))
    monkeypatch.setattr(koalarization, "WIDTHS", resnet.WIDTHS[:2])

    def narrowed(block: ModelConfig) -> ModelConfig:
        network = dict(block.network)
        for key in ("channels", "hidden"):
            if key in network:
                network[key] = [max(8, width // 4) for width in network[key]]
        if "width" in network:
            network["width"] = 16
        for key in ("weights", "sha256"):  # of another width
            network.pop(key, None)
        return replace(block, network=network)

    return narrowed


@pytest.fixture
def browser() -> Iterator[object]:
    """Headless Chromium, where there is one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium here")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()
