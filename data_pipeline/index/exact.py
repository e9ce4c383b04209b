"""Exact nearest neighbours: every query is compared with every row.

The vectors may be a memory map: memory is bounded by the block, whatever Q and T are. An
accelerator, where there is one, proposes the rows (`exact_jax.py`); their distances are
computed here, so the result is the same to the bit.

Letters here: P pairs of a query and a row, G groups of rows, M proposed rows.
"""

import concurrent.futures
import os
import pathlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float32, Int64

from data_pipeline.index import exact_jax
from data_pipeline.index.checks import (
    as_float32,
    check_queries,
    check_vectors,
    squared_norms,
)
from data_pipeline.index.index_files import save_folder
from data_pipeline.storage.mapped_arrays import open_array

# Says of queries (Q,) and rows (Q, T) or (1, T) which may be found, (Q, T).
Allowed = Callable[[np.ndarray, np.ndarray], np.ndarray]
_QUERIES = 1024
_ROWS = 32_768  # a block of scores is 128 MB
_PAIRS = 256  # so that their differences stay in a cache
_BLOCKS_OF_THREAD = 32  # of pairs; what fewer take is no longer than it takes to start
_SLACK = 1e-5  # relative rounding of the fast distances, generously


class ExactIndex:
    """Compares every query with every row; satisfies `Index`."""

    def __init__(self, vectors_TW: Float[np.ndarray, "T W"]):
        """Takes float16 or float32 vectors as they are, checked before (`build_index`).

        Other floats become float32.
        """
        if vectors_TW.dtype not in (np.float16, np.float32):
            vectors_TW = vectors_TW.astype(np.float32)
        self._vectors_TW = vectors_TW
        self._proposer = exact_jax.Proposer(vectors_TW)

    @property
    def size(self) -> int:
        """T, the number of rows."""
        return len(self._vectors_TW)

    @property
    def width(self) -> int:
        """W, the width of a vector."""
        return self._vectors_TW.shape[1]

    def search(
        self, queries_QW: Float[np.ndarray, "Q W"], k: int
    ) -> tuple[Int64[np.ndarray, "Q N"], Float32[np.ndarray, "Q N"]]:
        """Finds the nearest rows (`Index.search`).

        A matrix product gives distances fast and roughly; rows that may be among the k
        nearest are computed again without cancellation, so ties are found exactly.
        """
        check_queries(queries_QW, k, self.width)
        queries_QW = as_float32(queries_QW)
        proposed = self._proposer.nearest(queries_QW, k)
        if proposed is None:
            return self._compared(queries_QW, k)
        *found, is_sure_Q = self._nearest_proposed(queries_QW, k, *proposed)
        if not is_sure_Q.all():
            again = self._compared(queries_QW[~is_sure_Q], k)
            for found_QN, again_QN in zip(found, again, strict=True):
                found_QN[~is_sure_Q] = again_QN
        return found[0], found[1]

    def _nearest_proposed(
        self,
        queries_QW: np.ndarray,
        k: int,
        scores_QM: np.ndarray,
        rows_QM: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids and distances of the nearest of some rows, and whether no other can be.

        That is sure unless the farthest proposed is nearly as near as the k-th: then others
        may be equally near.
        """
        norms_Q = squared_norms(queries_QW)
        limit_Q = scores_QM[:, min(k, self.size) - 1]
        limit_Q = limit_Q + 2 * _SLACK * (norms_Q + self._proposer.largest_norm)
        is_near_QM = (scores_QM <= limit_Q[:, None]) & (rows_QM >= 0)
        is_sure_Q = ~is_near_QM[:, -1] | (scores_QM.shape[1] >= self.size)
        query_P, place_P = np.nonzero(is_near_QM & is_sure_Q[:, None])
        row_P = rows_QM[query_P, place_P].astype(np.int64)
        distance_P = pair_distances(self._vectors_TW, queries_QW, query_P, row_P)
        shape = (len(queries_QW), k)
        return *_nearest_pairs(query_P, row_P, distance_P, shape), is_sure_Q

    def _compared(self, queries_QW: np.ndarray, k: int):
        return nearest_rows(self._vectors_TW.__getitem__, self.size, queries_QW, k)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Saves vectors.npy in the dtype it has, and meta.json."""

        def write(folder: pathlib.Path) -> None:
            np.save(folder / "vectors.npy", self._vectors_TW, allow_pickle=False)

        facts = {"kind": "exact", "size": self.size, "width": self.width}
        save_folder(folder, write, facts)

    @classmethod
    def load(cls, folder: pathlib.Path) -> "ExactIndex":
        """Opens the vectors in a folder that `load_index` has checked."""
        path = folder / "vectors.npy"
        vectors_TW = open_array(path)
        check_vectors(vectors_TW, str(path))
        return cls(vectors_TW)


def nearest_rows(
    vectors_of: Callable[[slice], np.ndarray],
    num_rows: int,
    queries_QW: Float32[np.ndarray, "Q W"],
    k: int,
    allowed: Allowed | None = None,
) -> tuple[Int64[np.ndarray, "Q N"], Float32[np.ndarray, "Q N"]]:
    """Compares every query with every row in numpy, block by block.

    Args:
        vectors_of: gives the vectors of a slice of the rows.
        allowed: says which pairs count; all, if not given. Where none does, nothing is
            read or compared.
    Returns:
        Rows and squared distances as `Index.search` gives them.
    """
    ids_QN = np.full((len(queries_QW), k), -1, np.int64)
    distances_QN = np.full((len(queries_QW), k), np.inf, np.float32)
    for first in range(0, num_rows, _ROWS):
        rows = slice(first, min(first + _ROWS, num_rows))
        rows_TW = None
        for start in range(0, len(queries_QW), _QUERIES):
            block = slice(start, min(start + _QUERIES, len(queries_QW)))
            mask_QT = None
            if allowed is not None:
                mask_QT = allowed(
                    np.arange(block.start, block.stop),
                    np.arange(first, rows.stop)[None],
                )
                if not mask_QT.any():
                    continue
            if rows_TW is None:
                rows_TW = as_float32(vectors_of(rows))
            best = ids_QN[block], distances_QN[block]
            ids_QN[block], distances_QN[block] = _merge(
                rows_TW, queries_QW[block], best, first, mask_QT
            )
    return ids_QN, distances_QN


def _merge(
    rows_TW: np.ndarray,
    queries_QW: np.ndarray,
    best: tuple[np.ndarray, np.ndarray],
    first_row: int,
    mask_QT: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of what is known and of one block of rows."""
    ids_QN, distances_QN = best
    query_P, row_P = _candidates(rows_TW, queries_QW, distances_QN, mask_QT)
    distance_P = pair_distances(rows_TW, queries_QW, query_P, row_P)
    known_P, place_P = np.nonzero(ids_QN >= 0)
    query_P = np.concatenate([known_P, query_P])
    id_P = np.concatenate([ids_QN[known_P, place_P], row_P + first_row])
    distance_P = np.concatenate([distances_QN[known_P, place_P], distance_P])
    return _nearest_pairs(query_P, id_P, distance_P, ids_QN.shape)


def _nearest_pairs(
    query_P: np.ndarray, id_P: np.ndarray, distance_P: np.ndarray, shape: tuple
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and distances of each query's nearest of some pairs; -1 at infinity beyond."""
    order_P = np.lexsort((id_P, distance_P, query_P))
    query_P = query_P[order_P]
    counts_Q = np.bincount(query_P, minlength=shape[0])
    starts_Q = np.cumsum(counts_Q) - counts_Q
    rank_P = np.arange(len(query_P)) - starts_Q[query_P]
    keep_P = rank_P < shape[1]
    ids_QN = np.full(shape, -1, np.int64)
    distances_QN = np.full(shape, np.inf, np.float32)
    place = (query_P[keep_P], rank_P[keep_P])
    ids_QN[place] = id_P[order_P][keep_P]
    distances_QN[place] = distance_P[order_P][keep_P]
    return ids_QN, distances_QN


def _candidates(
    rows_TW: np.ndarray,
    queries_QW: np.ndarray,
    distances_QN: np.ndarray,
    mask_QT: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that may be among the k nearest: all that are, and few that are not.

    The k-th smallest of the minima of groups of rows bounds the k-th smallest distance
    from above. It costs two passes over the scores, far less than a partition of them.
    """
    k, num_rows = distances_QN.shape[1], len(rows_TW)
    query_norms_Q, norms_T = squared_norms(queries_QW), squared_norms(rows_TW)
    scores_QT = queries_QW @ rows_TW.T
    scores_QT *= -2
    scores_QT += norms_T
    if mask_QT is not None:
        scores_QT = np.where(mask_QT, scores_QT, np.inf)
    limit_Q = distances_QN[:, -1] - query_norms_Q
    if k <= num_rows:
        group = min(32, num_rows // k)
        groups = num_rows // group
        grouped_QGT = scores_QT[:, : group * groups].reshape(-1, group, groups)
        minima_QT = grouped_QGT.min(axis=1)
        kth_Q = np.partition(minima_QT, k - 1, axis=1)[:, k - 1]
        limit_Q = np.minimum(limit_Q, kth_Q)
    limit_Q += 2 * _SLACK * (query_norms_Q + norms_T.max())
    is_near_QT = scores_QT <= limit_Q[:, None]
    if mask_QT is not None:  # where fewer than k are allowed the limit is infinite, too
        is_near_QT &= mask_QT
    query_P, row_P = np.nonzero(is_near_QT)
    return query_P, row_P


def pair_distances(
    vectors_TW: np.ndarray,
    queries_QW: np.ndarray,
    query_P: Int64[np.ndarray, " P"],
    row_P: Int64[np.ndarray, " P"],
) -> Float32[np.ndarray, " P"]:
    """Gives squared distances of pairs (query, row), rounded once from float64.

    So a distance depends on its two vectors alone, not on where they stand.
    """
    distances_P = np.empty(len(query_P), np.float32)
    queries_QW = queries_QW.astype(np.float64)

    def fill(starts: range) -> None:
        for start in starts:
            pairs = slice(start, start + _PAIRS)
            difference_PW = vectors_TW[row_P[pairs]].astype(np.float64)
            difference_PW -= queries_QW[query_P[pairs]]
            distances_P[pairs] = np.square(difference_PW, out=difference_PW).sum(axis=1)

    starts = range(0, len(query_P), _PAIRS)
    threads = min(os.cpu_count() or 1, len(starts) // _BLOCKS_OF_THREAD)
    if threads < 2:
        fill(starts)
        return distances_P
    # Of its own: a pool that is kept does not outlive a fork.
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, (starts[first::threads] for first in range(threads))))
    return distances_P
