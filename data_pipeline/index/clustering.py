"""Groups vectors by nearness: the leaves of an approximate index."""

import numpy as np
from jaxtyping import Float32, Int64

_ROWS_AT_ONCE = 2_048  # so that their scores stay in a cache


def k_means(
    vectors_TW: Float32[np.ndarray, "T W"],
    num_centers: int,
    rng: np.random.Generator,
    *,
    iterations: int,
) -> Float32[np.ndarray, "L W"]:
    """Centers of the groups that Lloyd's algorithm finds from rows drawn at random.

    A center that no row is nearest to begins again at a row. Where there are fewer
    different rows than centers, some stay without rows.

    Args:
        vectors_TW: finite, and at least as many as centers.
        iterations: at least 1; after a few the means hardly move.
    Source: Lloyd 1982 (IEEE Transactions on Information Theory 28). Our own because
        ScaNN's k-means starts either from other rows in every process or one center at a
        time, in double precision, which took longer than all else of an index.
    """
    drawn = rng.choice(len(vectors_TW), num_centers, replace=False)
    centers_LW = vectors_TW[np.sort(drawn)]
    for _ in range(iterations):
        centers_LW, counts_L = _means(vectors_TW, centers_LW)
        empty = np.flatnonzero(counts_L == 0)
        again = rng.choice(len(vectors_TW), len(empty), replace=False)
        centers_LW[empty] = vectors_TW[again]
    return centers_LW


def _means(vectors_TW, centers_LW) -> tuple[np.ndarray, Int64[np.ndarray, " L"]]:
    """The mean of the rows that are nearest to each center, and how many they are."""
    sums_LW = np.zeros(centers_LW.shape, np.float64)
    counts_L = np.zeros(len(centers_LW), np.int64)
    for start in range(0, len(vectors_TW), _ROWS_AT_ONCE):
        block_TW = vectors_TW[start : start + _ROWS_AT_ONCE]
        center_T = nearest(block_TW, centers_LW)
        order_T = np.argsort(center_T, kind="stable")
        found, first, counts = np.unique(
            center_T[order_T], return_index=True, return_counts=True
        )
        sums_LW[found] += np.add.reduceat(block_TW[order_T], first)
        counts_L[found] += counts
    means_LW = sums_LW / np.maximum(counts_L, 1)[:, None]
    return means_LW.astype(np.float32), counts_L


def nearest(
    vectors_TW: Float32[np.ndarray, "T W"], centers_LW: Float32[np.ndarray, "L W"]
) -> Int64[np.ndarray, " T"]:
    """The center that each vector is nearest to; the first of equally near ones."""
    # |v - c|^2 = |v|^2 - 2 (v.c - |c|^2 / 2): the largest bracket is the nearest.
    scores_TL = vectors_TW @ centers_LW.T
    scores_TL -= np.square(centers_LW).sum(axis=1) / 2
    return scores_TL.argmax(axis=1)
