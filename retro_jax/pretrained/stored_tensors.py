"""Tensors where they lie in a file, read by blocks of rows into an array that is kept.

A block is read, not mapped: pages of a map would count as memory beside the arrays that are
made of them, and a file that is cut meanwhile would end the process.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

# Numbers that are stored as they are; any other form is one of GGUF's quantisations.
PLAIN_FORMS: dict[str, np.dtype] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
_BLOCK_NUMBERS = 2**20  # of a block, once decoded


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """A tensor in a file: where it begins and how its numbers are written."""

    path: Path
    offset: int  # of its first byte in the file
    shape: tuple[int, ...]
    form: str  # F32, F16, BF16 or a quantisation
    row_bytes: int  # of the numbers of its last axis

    @property
    def num_rows(self) -> int:
        """How many rows of the last axis there are; one, if it is the only axis."""
        return math.prod(self.shape[:-1])

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return self.num_rows * self.row_bytes

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Bytes of some rows after the other, with the number of the first row.

        Raises:
            ValueError: if the file ends before the tensor does.
        """
        step = max(1, _BLOCK_NUMBERS // max(1, self.shape[-1]))
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.offset)
            for first in range(0, self.num_rows, step):
                count = min(step, self.num_rows - first)
                block = np.empty((count, self.row_bytes), np.uint8)
                _fill(file, block, self.path)
                yield first, block


def read_into(
    kept: np.ndarray,
    stored: StoredTensor,
    *,
    transposed: bool,
    places: np.ndarray | None = None,
    update: Callable[[Any], None] | None = None,
) -> None:
    """Reads a tensor into rows, or columns, of a matrix of float32 or bfloat16.

    Args:
        places: row of `kept` (column, where transposed) for each stored row; in order if
            not given.
        update: takes in all bytes that are read, as that of a hash does.
    Raises:
        ValueError: for numbers that are not finite, or a file that ends too soon.
    """
    target = kept.T if transposed else kept
    for first, block in stored.blocks():
        if update is not None:
            update(block.data)
        numbers = _decoded(block, stored.form, kept.dtype)
        if not _all_finite(numbers):
            raise ValueError("has numbers that are not finite")
        rows = slice(first, first + len(block))
        target[rows if places is None else places[rows]] = numbers


def _fill(file, block: np.ndarray, path: Path) -> None:
    """Reads as many bytes as the block holds; a system may give fewer at a time."""
    rest = block.data.cast("B")
    while rest:
        if not (count := file.readinto(rest)):
            raise ValueError(f"{path} ends in the middle of a tensor: fetch it again")
        rest = rest[count:]


def _decoded(block: np.ndarray, form: str, dtype: np.dtype) -> np.ndarray:
    """The numbers of rows of bytes, as float32 or bfloat16."""
    if form == "BF16":
        bits = block.view(PLAIN_FORMS[form])
        if dtype == jnp.bfloat16:
            return bits.view(jnp.bfloat16)
        return np.left_shift(bits, 16, dtype=np.uint32).view(np.float32)
    if form in PLAIN_FORMS:
        numbers = block.view(PLAIN_FORMS[form])
    else:
        import gguf  # which takes a third of a second, for quantised files alone

        numbers = gguf.dequantize(block, gguf.GGMLQuantizationType[form])
    with np.errstate(over="ignore"):
        return numbers.astype(dtype, copy=False)


def _all_finite(numbers: np.ndarray) -> bool:
    if numbers.dtype == jnp.bfloat16:  # whose exponent has eight bits, all set if not
        return int((numbers.view(np.uint16) & 0x7FFF).max(initial=0)) < 0x7F80
    with np.errstate(over="ignore", invalid="ignore"):
        # A sum is quick and never finite by chance; it may overflow though all are.
        if np.isfinite(numbers.sum()):
            return True
    return bool(np.isfinite(numbers).all())
