"""Search by vectors and by words together: the two rankings, fused by rank.

For RETRO: Doostmohammadi et al. 2023 (arXiv 2305.16243) found that what its gain comes from
is largely overlap of words, and that re-ranking its neighbours by BM25 lowers perplexity by
a further 13.7 %. Here BM25 also finds passages that the vectors miss.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from data_pipeline.index import exact

if TYPE_CHECKING:
    from data_pipeline.database.database import Database

RANKS = ("dense", "hybrid")
_RANK_CONSTANT = (
    60  # of the source: what is first in one ranking does not drown the other
)
_MIN_DEPTH = 100  # candidates of each ranking


def search(
    database: "Database",
    texts: Sequence[str],
    k: int,
    exclude_documents: Collection[str] = (),
    rank: str = "dense",
) -> tuple[Int[np.ndarray, "Q N"], Float[np.ndarray, "Q N"]]:
    """Chunk ids of the k best, and squared L2 distances of the embeddings.

    "dense" is `Database.nearest` of the texts' vectors. "hybrid" fuses as many as 100 of
    its candidates, or 10 k if that is more, with as many by BM25. A text without words has
    the ranking of its vector alone.

    Args:
        exclude_documents: ids of documents that must not be found.
        rank: "dense" or "hybrid".
    Returns:
        Ids, best first; -1 at inf if fewer. N is k, or less as `Database.nearest`'s. By
        "hybrid" distances do not ascend.
    Raises:
        ValueError: as `Database.nearest`; for another rank; if the words were not indexed.
    """
    if rank not in RANKS:
        raise ValueError(f"rank must be one of {', '.join(RANKS)}, is {rank!r}")
    if rank == "hybrid" and not database.has_words:
        raise ValueError(
            f"{database.folder} was built without an index of words: build it again with "
            '--config.data.lexical=true, or search by rank="dense"'
        )
    if k < 1:
        raise ValueError(f"k must be at least 1, is {k}")
    vectors_QW = database.embedder.embed(list(texts))
    depth = k if rank == "dense" else max(_MIN_DEPTH, 10 * k)
    dense = database.nearest(vectors_QW, depth, exclude_documents=exclude_documents)
    if rank == "dense":
        return dense
    allowed = database.allowed_outside(exclude_documents)
    by_words_QN, _ = database.lexical.search(texts, depth, allowed)
    ids_QN = fuse([dense[0], by_words_QN], k)
    return ids_QN, _distances(database, vectors_QW, ids_QN)


def fuse(rankings: Sequence[Int[np.ndarray, "Q _"]], k: int) -> Int[np.ndarray, "Q N"]:
    """The k best of several rankings: by the sum of 1 / (60 + rank), ranks from 1.

    Args:
        rankings: ids, best first, each at most once in a row; -1 where there is none.
    Returns:
        (Q, k) ids. Of equal sums, what an earlier ranking has first comes first.
    Source: reciprocal rank fusion, Cormack et al. 2009 (SIGIR).
    """
    ids_QM = np.concatenate(rankings, axis=1)
    parts = [
        1 / (_RANK_CONSTANT + np.arange(1, ids_QN.shape[1] + 1)) for ids_QN in rankings
    ]
    scores_M = np.concatenate(parts)
    fused_QN = np.full((len(ids_QM), k), -1, np.int64)
    for query, ids_M in enumerate(ids_QM):
        there_M = ids_M >= 0
        ids, first, place = np.unique(
            ids_M[there_M], return_index=True, return_inverse=True
        )
        scores = np.bincount(place, weights=scores_M[there_M], minlength=len(ids))
        best = np.lexsort((first, -scores))[:k]
        fused_QN[query, : len(best)] = ids[best]
    return fused_QN


def _distances(database: "Database", vectors_QW: np.ndarray, ids_QN: np.ndarray):
    """Squared distances of queries and stored embeddings; inf for id -1."""
    distances_QN = np.full(ids_QN.shape, np.inf, np.float32)
    query_P, place_P = np.nonzero(ids_QN >= 0)
    ids_T, row_P = np.unique(ids_QN[query_P, place_P], return_inverse=True)
    distances_QN[query_P, place_P] = exact.pair_distances(
        database.vectors(ids_T), np.asarray(vectors_QW, np.float32), query_P, row_P
    )
    return distances_QN
