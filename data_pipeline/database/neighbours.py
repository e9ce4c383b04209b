"""Neighbours of chunks: the search under a filter, and the table of those found once.

The table is computed before training, keyed by chunk id, and knows no sequences: every
packing, split and ablation shares it. It therefore keeps more candidates for a chunk than
a model reads, so that a sequence can pass over those from its own documents.

    ids.npy        (T, N) int64 chunk ids of the database, nearest first; -1 = absent
    distances.npy  (T, N) float32 squared L2 distances; inf where absent
    rows.npy       (X,) int64 chunks of these, where a version's differ from the build's

Letters here: P pairs of query and row, X changed rows, K candidates, D documents, B queries.
"""

import concurrent.futures
import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from data_pipeline.index import exact
from data_pipeline.index.sharded import ShardedIndex
from data_pipeline.storage.mapped_arrays import Column, open_array

VectorsOf = Callable[[np.ndarray], np.ndarray]
_QUERIES_AT_ONCE = 2048
_ROWS_AT_ONCE = 65_536
# Candidates that are looked at for each neighbour, at first and then: four are enough for
# most chunks of a long document. In a small database comparing all takes no longer than the
# second search would.
_CANDIDATES_OF_NEIGHBOUR = (4, 16)
_SMALL = 2**16
_CHANGES = ("rows", "ids", "distances")


def find_neighbours(
    index: ShardedIndex,
    queries_QW: Float[np.ndarray, "Q W"],
    num_neighbours: int,
    allowed: exact.Allowed,
    vectors_of: VectorsOf,
) -> tuple[Int[np.ndarray, "Q N"], Float[np.ndarray, "Q N"]]:
    """The nearest allowed entries of each query.

    A query whose nearest entries are mostly forbidden is asked again, once, with four times
    the candidates. What still has too few is compared with all that it may find: the chunks
    of a long document that are all alike would otherwise ask for more and more of themselves.

    Args:
        allowed: called with query rows (Q,) and candidate ids (Q, K), or (1, K) for the same
            of all; False forbids.
        vectors_of: gives the (P, W) stored vectors of ids (P,).
    Returns:
        Ids and squared distances; -1 and inf where the database holds no more.
    """
    ids_QN = np.full((len(queries_QW), num_neighbours), -1, np.int64)
    distances_QN = np.full(ids_QN.shape, np.inf, np.float32)
    open_rows = np.arange(len(queries_QW))
    num_searches = 1 if index.size <= _SMALL else 2
    for multiple in _CANDIDATES_OF_NEIGHBOUR[:num_searches]:
        num_candidates = min(multiple * num_neighbours, index.size)
        lacking = [np.zeros(0, np.int64)]
        for start in range(0, len(open_rows) if index.size else 0, _QUERIES_AT_ONCE):
            rows = open_rows[start : start + _QUERIES_AT_ONCE]
            ids, distances = index.search(
                np.asarray(queries_QW[rows], np.float32), num_candidates
            )
            keep = (ids >= 0) & allowed(rows, np.maximum(ids, 0))
            ids_QN[rows], distances_QN[rows], counts = _first_kept(
                ids, distances, keep, num_neighbours
            )
            lacking.append(rows[counts < num_neighbours])
        open_rows = np.concatenate(lacking)
        if num_candidates == index.size:
            return ids_QN, distances_QN
    if len(open_rows):
        ids_T = np.sort(index.ids)  # equal distances are ordered by id
        places_QN, distances_QN[open_rows] = exact.nearest_rows(
            lambda places: vectors_of(ids_T[places]),
            len(ids_T),
            np.asarray(queries_QW[open_rows], np.float32),
            num_neighbours,
            lambda rows, places: allowed(open_rows[rows], ids_T[places]),
        )
        ids_QN[open_rows] = np.where(places_QN < 0, -1, ids_T[places_QN])
    return ids_QN, distances_QN


def exact_neighbours(
    index: ShardedIndex,
    queries_QW: Float[np.ndarray, "Q W"],
    num_neighbours: int,
    allowed: exact.Allowed,
    vectors_of: VectorsOf,
) -> tuple[Int[np.ndarray, "Q N"], Float[np.ndarray, "Q N"]]:
    """The neighbours that a table holds: `find_neighbours`, `with_exact_distances`.

    Found by two threads, a half of the queries each: what one has found is sorted out while the
    other searches, for only searches use all cores (`docs/benchmarks/`).

    Args:
        index, queries_QW, num_neighbours, allowed, vectors_of: as `find_neighbours`.
    Returns:
        Ids and squared distances, nearest first; -1 and inf where there are no more.
    """

    def find(part: slice):
        ids_QN, _ = find_neighbours(
            index,
            queries_QW[part],
            num_neighbours,
            lambda rows, ids: allowed(part.start + rows, ids),
            vectors_of,
        )
        return with_exact_distances(ids_QN, queries_QW[part], vectors_of)

    middle = len(queries_QW) // 2
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        parts = pool.map(find, (slice(0, middle), slice(middle, len(queries_QW))))
        ids, distances = zip(*parts, strict=True)
    return np.concatenate(ids), np.concatenate(distances)


def with_exact_distances(
    ids_QN: Int[np.ndarray, "Q N"],
    queries_QW: Float[np.ndarray, "Q W"],
    vectors_of: VectorsOf,
) -> tuple[Int[np.ndarray, "Q N"], Float[np.ndarray, "Q N"]]:
    """The same neighbours at `ExactIndex`'s distances, in the order that these give.

    For tables, which must be the same whoever makes them: an approximate index's own
    distances may differ in the last digit from one process to the next.

    Args:
        ids_QN: -1 = absent.
        vectors_of: as `find_neighbours`.
    Returns:
        Ids and squared distances, nearest first, equal distances by id; -1 and inf where
        absent.
    """
    distances_QN = np.full(ids_QN.shape, np.inf, np.float32)
    for start in range(0, len(ids_QN), _QUERIES_AT_ONCE):
        block = slice(start, start + _QUERIES_AT_ONCE)
        query_P, place_P = np.nonzero(ids_QN[block] >= 0)
        vectors_PW = vectors_of(ids_QN[block][query_P, place_P])
        queries_BW = np.asarray(queries_QW[block], np.float32)
        distances_QN[block][query_P, place_P] = exact.pair_distances(
            vectors_PW, queries_BW, query_P, np.arange(len(query_P))
        )
    order_QN = np.lexsort((ids_QN, distances_QN))
    return (
        np.take_along_axis(ids_QN, order_QN, axis=1),
        np.take_along_axis(distances_QN, order_QN, axis=1),
    )


def _first_kept(ids, distances, keep, num_neighbours: int):
    """The first `num_neighbours` kept entries of each row, in order, and how many."""
    order = np.argsort(~keep, axis=1, kind="stable")[:, :num_neighbours]
    kept = np.take_along_axis(keep, order, axis=1)
    found = np.where(kept, np.take_along_axis(ids, order, axis=1), -1)
    distance = np.where(kept, np.take_along_axis(distances, order, axis=1), np.inf)
    padding = ((0, 0), (0, num_neighbours - order.shape[1]))
    return (
        np.pad(found, padding, constant_values=-1),
        np.pad(distance.astype(np.float32), padding, constant_values=np.inf),
        np.count_nonzero(kept, axis=1),
    )


def write_shard(folder: Path, ids_TN, distances_TN) -> None:
    """Writes the neighbours of a shard of chunks."""
    np.save(folder / "ids.npy", ids_TN, allow_pickle=False)
    np.save(folder / "distances.npy", distances_TN, allow_pickle=False)


def write_changes(changed: tuple[np.ndarray, ...], folder: Path) -> None:
    """Writes the rows of a table that differ from the build's, as `_CHANGES` names them."""
    for name, array in zip(_CHANGES, changed, strict=True):
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


def read_changes(folder: Path) -> list[np.ndarray]:
    """What `write_changes` wrote: the arguments of `NeighbourTable.patched`."""
    return [open_array(folder / f"{name}.npy") for name in _CHANGES]


class NeighbourTable:
    """The neighbours of all chunks of a split, on disk."""

    def __init__(self, shards: list[Path]):
        """Opens the shards, in the order of the chunk table's."""
        self._ids = Column([shard / "ids.npy" for shard in shards])
        self._distances = Column([shard / "distances.npy" for shard in shards])
        self.num_candidates = self._ids.row_shape[0] if shards else 0
        self._size = len(self._ids)
        # Rows that differ from the shards', ascending, and what is in their place.
        self._changed_X = np.zeros(0, np.int64)
        self._new_ids_XN = np.zeros((0, self.num_candidates), np.int64)
        self._new_distances_XN = np.zeros((0, self.num_candidates), np.float32)

    def __len__(self) -> int:
        return self._size

    def rows(
        self, ids_T: Int[np.ndarray, " T"]
    ) -> tuple[Int[np.ndarray, "T N"], Float[np.ndarray, "T N"]]:
        """Ids and distances of chunks; -1 at inf of those beyond the table."""
        ids_TN = np.full((len(ids_T), self.num_candidates), -1, np.int64)
        distances_TN = np.full(ids_TN.shape, np.inf, np.float32)
        built = ids_T < len(self._ids)
        ids_TN[built] = self._ids.take(ids_T[built])
        distances_TN[built] = self._distances.take(ids_T[built])
        if len(self._changed_X):
            places = np.searchsorted(self._changed_X, ids_T)
            places = np.minimum(places, len(self._changed_X) - 1)
            changed = self._changed_X[places] == ids_T
            ids_TN[changed] = self._new_ids_XN[places[changed]]
            distances_TN[changed] = self._new_distances_XN[places[changed]]
        return ids_TN, distances_TN

    def count_alone(self) -> int:
        """Counts the chunks that have no neighbour."""
        alone = 0
        for first in range(0, len(self), _ROWS_AT_ONCE):
            ids_TN, _ = self.rows(
                np.arange(first, min(first + _ROWS_AT_ONCE, len(self)))
            )
            alone += int(np.count_nonzero(ids_TN[:, 0] < 0))
        return alone

    def patched(
        self,
        size: int,
        rows_X: Int[np.ndarray, " X"],
        ids_XN: Int[np.ndarray, "X N"],
        distances_XN: Float[np.ndarray, "X N"],
    ) -> "NeighbourTable":
        """A table of `size` chunks that differs from this one in some rows, ascending."""
        table = copy.copy(self)
        table._size, table._changed_X = size, rows_X
        table._new_ids_XN, table._new_distances_XN = ids_XN, distances_XN
        return table

    def outside(
        self,
        ids_T: Int[np.ndarray, " T"],
        documents_TD: Int[np.ndarray, "T D"],
        document_of: np.ndarray,
        num_neighbours: int,
    ) -> tuple[Int[np.ndarray, "T N"], Float[np.ndarray, "T N"]]:
        """The nearest neighbours of chunks that come from none of each one's documents.

        Args:
            ids_T: chunks; -1 (padding) has no neighbours.
            documents_TD: documents of the database that a chunk must not retrieve from; a
                negative one is none.
            document_of: document of each chunk of the database.
            num_neighbours: N; absent ones get id -1 and distance inf.
        """
        candidates_TK, distances_TK = self.rows(np.maximum(ids_T, 0))
        keep_TK = (candidates_TK >= 0) & (ids_T >= 0)[:, None]
        found_in_TK = document_of[np.maximum(candidates_TK, 0)]
        for documents_T in documents_TD.T:
            keep_TK &= found_in_TK != documents_T[:, None]
        ids, kept_distances, _ = _first_kept(
            candidates_TK, distances_TK, keep_TK, num_neighbours
        )
        return ids, kept_distances
