"""Arrays of many shards as one, by memory map: only the rows asked for are read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int


class Column:
    """The rows of .npy files, one file after the other, by memory map."""

    def __init__(self, paths: Sequence[Path]):
        """Opens the files; raises ValueError naming one that is damaged."""
        self._arrays = [open_array(path) for path in paths]
        self.first_rows = np.cumsum([0, *map(len, self._arrays)])

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row."""
        return self._arrays[0].shape[1:] if self._arrays else ()

    def take(self, rows: Int[np.ndarray, "..."]) -> np.ndarray:
        """Rows by number, in whatever order and shape they are asked for.

        Raises:
            IndexError: for a row outside 0 .. len - 1.
        """
        flat = np.asarray(rows, np.int64).reshape(-1)
        if flat.size and (flat.min() < 0 or flat.max() >= len(self)):
            raise IndexError(f"rows must lie in 0..{len(self) - 1}")
        dtype = self._arrays[0].dtype if self._arrays else np.int32
        taken = np.empty((len(flat), *self.row_shape), dtype)
        order = np.argsort(flat, kind="stable")
        ascending = flat[order]
        ends = np.searchsorted(ascending, self.first_rows)
        for shard in np.flatnonzero(np.diff(ends)):
            here = slice(ends[shard], ends[shard + 1])
            found = self._arrays[shard][ascending[here] - self.first_rows[shard]]
            taken[order[here]] = found
        return taken.reshape(*np.shape(rows), *self.row_shape)

    def whole(self) -> np.ndarray:
        """All rows, in memory."""
        if not self._arrays:
            return np.zeros(0, np.int64)
        return np.concatenate(self._arrays)


def open_array(path: Path) -> np.ndarray:
    """A .npy file as a memory map; ValueError naming it if it is damaged."""
    try:
        # As a plain array: numpy's own class of maps is slow to index.
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} can't be read ({error}); build it again") from error
