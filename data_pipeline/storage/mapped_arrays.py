"""Arrays of many shards as one: of large ones only the rows asked for are read."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from data_pipeline.storage.system_errors import explanation, is_damage

_READ_BYTES = 2**16  # of a file that is read, not mapped: a process has so many maps
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Column:
    """The rows of .npy files, one file after the other, as `open_array` opens them."""

    def __init__(self, paths: Sequence[Path]):
        """Opens the files; raises ValueError naming one that is damaged."""
        self._paths = tuple(paths)
        self._arrays = [open_array(path) for path in paths]
        self.first_rows = np.cumsum([0, *map(len, self._arrays)])

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row."""
        return self._arrays[0].shape[1:] if self._arrays else ()

    def check(self, row_shape: tuple[int, ...], most: int | None = None) -> None:
        """Looks whether all rows are whole numbers of a shape, and from 0 to `most`.

        Raises:
            ValueError: naming a file that has others.
        """
        for path, array in zip(self._paths, self._arrays, strict=True):
            fits = array.dtype.kind in "iu" and array.shape[1:] == row_shape
            if fits and most is not None and array.size:
                fits = array.min() >= 0 and array.max() <= most
            if not fits:
                raise ValueError(f"{path} holds what is not possible; build it again")

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
    """A .npy file, read-only: a small one in memory, a large one as a memory map.

    No descriptor stays open, so that the number of files is not limited by theirs.

    Raises:
        ValueError: naming the file if it is missing, or not what its header says.
        OSError: if the system can't read it.
    """
    try:
        return _opened(path)
    except OSError as error:
        if not is_damage(error):
            raise explanation(error, path) from error
        raise ValueError(f"{path} is missing: restore it, or build again") from error
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} can't be read ({error}); build it again") from error


def _opened(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"format {version}")
        shape, is_fortran, dtype = _HEADERS[version](file)
        start, end = file.tell(), file.seek(0, io.SEEK_END)
        size_bytes = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or min(shape, default=-1) < 0 or size_bytes != end - start:
            raise ValueError(f"{end} bytes for {dtype} {shape}")
        if end <= _READ_BYTES:
            file.seek(0)
            content = file.read()
        else:
            # Arrow's map outlives its file, which keeps a descriptor; numpy's does not.
            with pa.memory_map(str(path)) as mapped:
                content = mapped.read_buffer()
    flat = np.frombuffer(content, dtype, offset=start)
    return flat.reshape(shape, order="F" if is_fortran else "C")
