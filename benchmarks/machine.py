"""Describe the machine and the versions of a measurement."""

import os
import platform
import subprocess
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "numpy": "numpy",
    "pillow": "PIL",
    "requests": "requests",
    "scikit-image": "skimage",
    "scipy": "scipy",
    "torch": "torch",
}


def machine() -> dict[str, Any]:
    """Return processor, cores, versions and the commit, with a + if the tree has changes."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    describe = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True)
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name, module in PACKAGES.items() if find_spec(module)},
        "commit": commit.stdout.strip(),
    }
