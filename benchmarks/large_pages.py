"""A training step of mlp1 on one CPU thread, with 4 KB pages and with large ones: `python benchmarks/large_pages.py`.

Each side runs in a process of its own, because torch reads the switch once; they take turns. Prints the median seconds
of a step of either and their ratio, and whether both end with the same weights.
"""

import hashlib
import os
import statistics
import subprocess
import sys
import time

ROUNDS, STEPS = 5, 60


def steps() -> str:
    """Milliseconds of the median step, and the sha256 of the weights after all of them."""
    import torch

    from colorize.models import build_model
    from colorize.settings import HeadRule, ModelBlock, Recipe
    from colorize.training import make_optimizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model(ModelBlock("mlp", 32, {"hidden": [3072]}, HeadRule("rgb")), 32)
    optimizer = make_optimizer(model.parameters(), Recipe(), 2e-4)
    light, ab = torch.rand(16, 1, 32, 32) * 100, torch.zeros(16, 2, 32, 32)
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        loss = model.losses("net", light, ab)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    digits = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
    return f"{1000 * statistics.median(seconds):.3f} {digits}"


def main() -> None:
    found: dict[str, list[tuple[float, str]]] = {"0": [], "1": []}
    for _ in range(ROUNDS):
        for switch, results in found.items():
            environment = os.environ | {"THP_MEM_ALLOC_ENABLE": switch}
            line = subprocess.check_output([sys.executable, __file__, "steps"], env=environment, text=True)
            milliseconds, digits = line.split()
            results.append((float(milliseconds), digits))
    small, large = (statistics.median(ms for ms, _ in results) for results in found.values())
    same = len({digits for results in found.values() for _, digits in results}) == 1
    print(f"4 KB pages {small:.1f} ms, large pages {large:.1f} ms a step: {small / large:.2f} times as fast")
    print(f"weights after {STEPS} steps: {'the same bytes' if same else 'DIFFERENT'}")


if __name__ == "__main__":
    print(steps()) if sys.argv[1:] == ["steps"] else main()
