"""Crops on disk: uint8 arrays in shards, mapped and read row by row."""

from copy import copy
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from colorize.files import InputError

MAPPED_SHARDS = 256
"""Mapped at a time: each takes one of the files that a process may have open, often 1,024."""


class Crops:
    """Crops by their running number over all shards, in the order asked for: mapped, and read when rows are asked for.

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
            highest = self.indices.max()
            raise InputError(
                f"{folder} holds {self.ends[-1]} crops, but number {highest} is asked for; run the filter stage"
            )

    def _shard(self, path: Path) -> np.ndarray:
        try:
            return self._map(path)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path} is damaged; delete it and run the crop stage") from error

    @property
    def side(self) -> int:
        """Of each crop, in pixels."""
        return self._shard(self.paths[0]).shape[1]

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, rows: np.ndarray) -> "Crops":
        """Those at positions `rows`."""
        chosen = copy(self)
        chosen.indices = self.indices[rows]
        return chosen

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Read the crops at positions `rows`: uint8 [n, S, S, 3]."""
        wanted = self.indices[rows]
        crops = np.empty((len(wanted), *self._shard(self.paths[0]).shape[1:]), np.uint8)
        shard_of = np.searchsorted(self.ends, wanted, side="right")
        for number in np.unique(shard_of):
            places = np.flatnonzero(shard_of == number)
            shard = self._shard(self.paths[number])
            crops[places] = shard[wanted[places] - (self.ends[number] - len(shard))]
        return crops
