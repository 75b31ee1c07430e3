"""The same color for every pixel: the baselines `grey` and `mean_color`.

No document has them, but other models need something to beat. Nothing is trained.
"""

from typing import Literal

import torch
from torch import Tensor

from colorize.models.base import Colorizer, Colors, Setup
from colorize.models.heads import Head


class Model(Colorizer):
    phases = ()
    ab: Tensor

    def __init__(self, head: Head, setup: Setup, color: Literal["zero", "mean"]) -> None:
        super().__init__(head, setup)
        mean = setup.statistics.arrays["mean_ab"] if color == "mean" and setup.statistics else (0.0, 0.0)
        self.register_buffer("ab", torch.tensor(mean, dtype=torch.float32))

    def predict(self, light: Tensor, samples: int = 1) -> Colors:
        return Colors(self.ab[:, None, None].expand(len(light), 2, *light.shape[-2:]))
