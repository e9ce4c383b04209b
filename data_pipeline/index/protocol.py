"""The protocol of an index: what can be searched, and what can be saved."""

import os
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64


@runtime_checkable
class Searchable(Protocol):
    """Finds the nearest of T vectors of width W."""

    @property
    def size(self) -> int: ...

    @property
    def width(self) -> int: ...

    def search(
        self, queries_QW: Float[np.ndarray, "Q W"], k: int
    ) -> tuple[Int64[np.ndarray, "Q N"], Float[np.ndarray, "Q N"]]:
        """Gives rows and squared distances of the `k` nearest, best first.

        Equal distances are ordered by row. When fewer than `k` exist the tail is row -1
        at distance infinity; no queries give (0, k).

        Raises:
          ValueError: when k < 1, or for queries of another rank or width, zero or not
            finite.
        """
        ...


@runtime_checkable
class Index(Searchable, Protocol):
    """Vectors of one shard, which can be written to disk."""

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the index to `folder`, whole or not at all, over what was there."""
        ...
