"""The recall of an index: how it is measured, and how effort rises until it is reached.

Effort is the number of leaves (or lists) searched, and of the candidates found in them by
their codes whose distances are computed (re-ranked).
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from absl import logging
from jaxtyping import Float, Float32, Int64

from data_pipeline.index import exact
from data_pipeline.index.protocol import Searchable

_QUERIES, _MIN_QUERIES = 2_000, 100
# Part of the way from the target to 1: queries to come are not those tuned with. That is
# two standard errors of 2,000 at a recall of 0.97.
_MARGIN = 0.2
_K = 2  # the paper's neighbours of a chunk
_MIN_REORDER, _MAX_REORDER = 25, 400
TIE = 1e-6  # squared distance by which float32 results may differ


@dataclasses.dataclass(frozen=True, slots=True)
class Effort:
    """The leaves and candidates that a search looks at, and the recall that they give."""

    leaves: int
    reorder: int  # candidates re-ranked
    recall: float = math.nan


@dataclasses.dataclass(frozen=True, slots=True)
class Goal:
    """Queries, and how far the nearest rows that should be found for them are.

    Attributes:
        rows_Q: a query's own row, which is not counted; -1 where it has none.
        limit_Q: squared distance of the second nearest row, with room for ties.
        target: recall of 2 neighbours that was asked for.
    """

    queries_QW: Float32[np.ndarray, "Q W"]
    rows_Q: Int64[np.ndarray, " Q"]
    limit_Q: Float32[np.ndarray, " Q"]
    target: float

    @classmethod
    def of(
        cls,
        vectors_TW: Float32[np.ndarray, "T W"],
        queries_QW: Float[np.ndarray, "Q W"] | None,
        target: float,
        seed: int,
    ) -> "Goal":
        """Takes up to 2,000 of the queries; rows drawn by the seed if there are under 100."""
        if queries_QW is None or len(queries_QW) < _MIN_QUERIES:
            num_queries = min(_QUERIES, len(vectors_TW))
            drawn = np.random.default_rng(seed).choice(
                len(vectors_TW), num_queries, replace=False
            )
            rows_Q = np.sort(drawn)
            queries_QW = vectors_TW[rows_Q]
        else:
            queries_QW = np.asarray(queries_QW[:_QUERIES], np.float32)
            rows_Q = np.full(len(queries_QW), -1)
        nearest = exact.ExactIndex(vectors_TW).search(queries_QW, _K + 1)
        limit_Q = _without(rows_Q, *nearest)[:, -1] + np.float32(TIE)
        return cls(queries_QW, rows_Q, limit_Q, target)

    @property
    def aim(self) -> float:
        """The recall to reach: somewhat more than was asked for."""
        return self.target + _MARGIN * (1 - self.target)

    def recall(self, search: Callable) -> float:
        """Share of the 2 nearest that `search`, an `Index.search`, finds."""
        found = search(self.queries_QW, _K + 1)
        return float(np.mean(_without(self.rows_Q, *found) <= self.limit_Q[:, None]))

    def tune(
        self, most: int, search_with: Callable[[Effort], Callable], what: str
    ) -> Effort:
        """The least leaves and the candidates that reach the recall.

        Candidates first, with all leaves: four times as many as are needed there, for they
        cost little, too few cost many leaves, and ten neighbours need more than two.

        Args:
            most: leaves that there are.
            search_with: gives the `Index.search` of an effort.
            what: the leaves are called, for the log.
        """
        few = Goal(
            self.queries_QW[::5], self.rows_Q[::5], self.limit_Q[::5], self.target
        )
        reorder = _MIN_REORDER
        while reorder < _MAX_REORDER:
            if few.recall(search_with(Effort(most, reorder))) >= self.aim:
                break
            reorder *= 2
        reorder = min(4 * reorder, _MAX_REORDER)
        leaves, recall = self.least(
            most, lambda leaves: self.recall(search_with(Effort(leaves, reorder)))
        )
        logging.info(
            "%d of %d %s and %d candidates re-ranked give recall@2 %.3f",
            *(leaves, most, what, reorder, recall),
        )
        if recall < self.target:
            logging.warning("recall@2 %.3f is below %.3f", recall, self.target)
        return Effort(leaves, reorder, recall)

    def least(self, most: int, recall_at: Callable[[int], float]) -> tuple[int, float]:
        """The least effort that reaches the aim, else `most`; and its recall.

        It is raised by quarters, from a hundredth of `most`, then halved towards the last
        that was not enough: a quarter too much would be a fifth of every search's time.
        """
        effort, too_little = max(1, most // 100), 0
        while (reached := recall_at(effort)) < self.aim and effort < most:
            too_little = effort
            effort = min(most, max(effort + 1, effort * 5 // 4))
        while reached >= self.aim and effort - too_little > 1:
            between = (too_little + effort) // 2
            if (recall := recall_at(between)) >= self.aim:
                effort, reached = between, recall
            else:
                too_little = between
        return effort, reached


def _without(
    rows_Q: np.ndarray, ids_QN: np.ndarray, distances_QN: np.ndarray
) -> np.ndarray:
    """Distances of the neighbours that are not the query's own row: one fewer."""
    kept_QN = np.where(ids_QN == rows_Q[:, None], np.inf, distances_QN)
    return np.sort(kept_QN, axis=1)[:, :-1]


def measure_recall(
    index: Searchable,
    vectors_TW: Float[np.ndarray, "T W"],
    queries_QW: Float[np.ndarray, "Q W"],
    k: int,
) -> float:
    """Gives the share of the `k` nearest that `index` finds, against exact search.

    1.0 when nothing is to be found.
    """
    found_QN, _ = index.search(queries_QW, k)
    _, nearest_QN = exact.ExactIndex(vectors_TW).search(queries_QW, k)
    return recall_of(found_QN, nearest_QN, vectors_TW, queries_QW)


def recall_of(
    found_QN: Int64[np.ndarray, "Q N"],
    nearest_QN: Float[np.ndarray, "Q M"],
    vectors_TW: Float[np.ndarray, "T W"],
    queries_QW: Float[np.ndarray, "Q W"],
) -> float:
    """Gives the recall of rows that were found.

    A row counts, once, when its true squared distance is at most the k-th nearest one's
    plus 1e-6: of equally near rows any will do.

    Args:
        nearest_QN: squared distances of the M >= N nearest.
    """
    k = found_QN.shape[1]
    wanted = min(k, len(vectors_TW)) * len(queries_QW)
    if not wanted:
        return 1.0
    limit_Q = nearest_QN[:, min(k, len(vectors_TW)) - 1] + TIE
    found_QN = np.sort(found_QN, axis=1)
    is_new_QN = found_QN >= 0
    is_new_QN[:, 1:] &= found_QN[:, 1:] != found_QN[:, :-1]
    query_P, place_P = np.nonzero(is_new_QN)
    distance_P = exact.pair_distances(
        vectors_TW, queries_QW, query_P, found_QN[query_P, place_P]
    )
    return float(np.count_nonzero(distance_P <= limit_Q[query_P]) / wanted)
