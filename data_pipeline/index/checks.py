"""The guards of all indexes: what makes a distance meaningless is refused by name."""

import numpy as np

_ROWS = 32_768  # looked at in one go


def check_vectors(vectors_TW: np.ndarray, name: str = "vectors") -> None:
    """Refuses what makes a distance meaningless, reading one block at a time.

    Raises:
      ValueError: for another rank, no float dtype, or a row that is zero, not finite, or
        so large or small that its square is.
    """
    if vectors_TW.ndim != 2:
        raise ValueError(f"{name} must be (rows, width), not {vectors_TW.shape}")
    if not np.issubdtype(vectors_TW.dtype, np.floating):
        raise ValueError(f"{name} must be floats, not {vectors_TW.dtype}")
    if not vectors_TW.shape[1]:
        raise ValueError(f"{name} have width 0")
    for start in range(0, len(vectors_TW), _ROWS):
        norms_T = squared_norms(as_float32(vectors_TW[start : start + _ROWS]))
        bad_T = np.flatnonzero(~np.isfinite(norms_T) | (norms_T == 0))
        if bad_T.size:
            raise ValueError(
                f"row {start + bad_T[0]} of {name} is zero, not finite or out of range "
                f"(squared norm {norms_T[bad_T[0]]})"
            )


def check_queries(queries_QW: np.ndarray, k: int, width: int) -> None:
    """Checks queries as `check_vectors` does, and that k and their width fit.

    Raises:
      ValueError: naming what is wrong.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    check_vectors(queries_QW, "queries")
    if queries_QW.shape[1] != width:
        raise ValueError(
            f"queries have width {queries_QW.shape[1]}, the index has {width}"
        )


def squared_norms(vectors_TW: np.ndarray) -> np.ndarray:
    """The squared length of each vector, without warnings for what is out of range."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return np.einsum("TW,TW->T", vectors_TW, vectors_TW)


def as_float32(vectors_TW: np.ndarray) -> np.ndarray:
    """The vectors in memory as float32; what is out of range becomes infinite."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(vectors_TW, np.float32)
