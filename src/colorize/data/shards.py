"""Crops on disk: uint8 arrays in shards, memory-mapped and read row by row."""

from copy import copy
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from colorize.files import InputError

MAPPED_SHARDS = 256
"""Shards mapped at a time: each is an open file, and a process may often open only 1,024."""


class Crops:
    """Crops by their running numbers over all shards; they are read only when rows are requested.

    Args:
        indices: running numbers [n]; None takes all.

    Raises:
        InputError: there are no shards, one is damaged, or a number is beyond the last crop.
    """

    def __init__(self, folder: Path, indices: np.ndarray | None = None) -> None:
        self.paths = sorted(folder.glob("crops-*.npy"))
        if not self.paths:
            raise InputError(f"{folder} holds no crops; run the crop stage")
        self._map = lru_cache(MAPPED_SHARDS)(partial(np.load, mmap_mode="r", allow_pickle=False))
        self.ends = np.cumsum([len(self._shard(path)) for path in self.paths])
        self.indices = np.arange(self.ends[-1]) if indices is None else np.asarray(indices)
        if len(self) and not 0 <= self.indices.min() <= self.indices.max() < self.ends[-1]:
            problem = f"{self.ends[-1]} crops, but number {self.indices.max()} is asked for"
            raise InputError(f"{folder} holds {problem}; run the filter stage")

    def _shard(self, path: Path) -> np.ndarray:
        try:
            return self._map(path)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path} is damaged; delete it and run the crop stage") from error

    @property
    def side(self) -> int:
        """Side of the crops in pixels."""
        return self._shard(self.paths[0]).shape[1]

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, rows: np.ndarray) -> "Crops":
        """Select the crops at positions `rows`."""
        chosen = copy(self)
        chosen.indices = self.indices[rows]
        return chosen

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Read the crops at positions `rows`: uint8 [n, S, S, 3]."""
        numbers = self.indices[rows]
        crops = np.empty((len(numbers), self.side, self.side, 3), np.uint8)
        shard_of = np.searchsorted(self.ends, numbers, side="right")
        for index in np.unique(shard_of):
            places = np.flatnonzero(shard_of == index)
            shard = self._shard(self.paths[index])
            crops[places] = shard[numbers[places] - (self.ends[index] - len(shard))]
        return crops
