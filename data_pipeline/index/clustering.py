"""Groups vectors by nearness: the leaves of an approximate index and their members.

Letters here: T vectors, L leaves and their centers.
"""

import numpy as np
from jaxtyping import Float32, Int32, Int64

_ROWS_AT_ONCE = 2_048  # so that their scores stay in a cache
_ROWS_OF_SPILL = 256  # which keeps three times as much
SPILL_WEIGHT = 1.0  # lambda of SOAR


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
    half_norms_L = np.square(centers_LW).sum(axis=1) / 2
    nearest_T = np.empty(len(vectors_TW), np.int64)
    for start in range(0, len(vectors_TW), _ROWS_AT_ONCE):
        # |v - c|^2 = |v|^2 - 2 (v.c - |c|^2 / 2): the largest bracket is the nearest.
        scores_TL = vectors_TW[start : start + _ROWS_AT_ONCE] @ centers_LW.T
        scores_TL -= half_norms_L
        scores_TL.argmax(axis=1, out=nearest_T[start : start + _ROWS_AT_ONCE])
    return nearest_T


def nearest_and_spill(
    vectors_TW: Float32[np.ndarray, "T W"], centers_LW: Float32[np.ndarray, "L W"]
) -> Int32[np.ndarray, "T 2"]:
    """The center nearest to each vector and, if it helps, a second to be found by.

    The second is near as well, but what the vector lacks of it points elsewhere: a query
    for which the first looks too far rarely finds the second so, too. -1 if no other center
    is better at that than the first again.

    Returns:
        Both, ascending; the nearest and -1 where there is no second.
    Source: Sun et al. 2023 (SOAR, arXiv 2404.00774). That there may be no second is
        ScaNN's rule, by comparison with its choices, which are the same, in one thread.
    """
    both_T2 = np.empty((len(vectors_TW), 2), np.int32)
    products_LL = centers_LW @ centers_LW.T
    for start in range(0, len(vectors_TW), _ROWS_OF_SPILL):
        block = slice(start, start + _ROWS_OF_SPILL)
        first_T, second_T = _spill(vectors_TW[block], centers_LW, products_LL)
        has_no_second_T = second_T < 0
        both_T2[block, 0] = np.where(
            has_no_second_T, first_T, np.minimum(first_T, second_T)
        )
        both_T2[block, 1] = np.where(has_no_second_T, -1, np.maximum(first_T, second_T))
    return both_T2


def _spill(
    vectors_TW: np.ndarray, centers_LW: np.ndarray, products_LL: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest center, and the one that loses least; -1 if that is the nearest again.

    With r, a vector v less its nearest center, another center c loses |v - c|^2 and lambda
    times the square of v - c along r; the nearest itself so (1 + lambda) |r|^2.
    """
    rows_T = np.arange(len(vectors_TW))
    products_TL = vectors_TW @ centers_LW.T
    scores_TL = products_TL - products_LL.diagonal() / 2
    first_T = scores_TL.argmax(axis=1)
    norms_T = np.square(vectors_TW).sum(axis=1)
    residuals_T = norms_T - 2 * scores_TL[rows_T, first_T]  # |r|^2
    residuals_T = np.maximum(residuals_T, np.float32(1e-12))
    # (v - c).r = v.r - c.v + c.first, whose last two are products that are there.
    along_TL = products_LL[first_T]
    along_TL -= products_TL
    along_TL += (norms_T - products_TL[rows_T, first_T])[:, None]
    along_TL *= np.sqrt(SPILL_WEIGHT / 2 / residuals_T)[:, None]
    halves_TL = np.square(along_TL, out=along_TL)  # of the losses, less |v|^2 / 2
    halves_TL -= scores_TL
    halves_TL[rows_T, first_T] = np.inf
    second_T = halves_TL.argmin(axis=1)
    loss_T = 2 * halves_TL[rows_T, second_T] + norms_T
    return first_T, np.where(loss_T > (1 + SPILL_WEIGHT) * residuals_T, -1, second_T)
