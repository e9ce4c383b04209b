"""How an approximate index is tuned: its effort rises until a recall is reached."""

import dataclasses
from collections.abc import Callable

import numpy as np
from absl import logging
from jaxtyping import Float, Float32, Int64

from data_pipeline.index import exact

_QUERIES, _MIN_QUERIES = 1_000, 100
# Part of the way from the target to 1: queries to come are not those tuned with.
_MARGIN = 0.3
_K = 2  # the paper's neighbours of a chunk
_TIE = 1e-6  # squared distance by which float32 results may differ


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
        """Takes up to 1,000 of the queries; rows drawn by the seed if there are under 100."""
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
        limit_Q = _without(rows_Q, *nearest)[:, -1] + np.float32(_TIE)
        return cls(queries_QW, rows_Q, limit_Q, target)

    @property
    def aim(self) -> float:
        """The recall to reach: somewhat more than was asked for."""
        return self.target + _MARGIN * (1 - self.target)

    def recall(self, search: Callable) -> float:
        """Share of the 2 nearest that `search`, an `Index.search`, finds."""
        found = search(self.queries_QW, _K + 1)
        return float(np.mean(_without(self.rows_Q, *found) <= self.limit_Q[:, None]))

    def raise_effort(
        self, most: int, recall_at: Callable[[int], float], what: str
    ) -> float:
        """Finds the least effort that is enough, which is left set.

        It is raised by quarters, from a hundredth of `most`, then halved towards the last
        that was not enough: a quarter too much would be a fifth of every search's time.

        Args:
            recall_at: sets an effort and gives its recall.
            what: the effort is counted in, for the log.
        Returns:
            The recall of that effort.
        """
        effort, too_little = max(1, most // 100), 0
        while (reached := recall_at(effort)) < self.aim and effort < most:
            too_little = effort
            effort = min(most, max(effort + 1, effort * 5 // 4))
        while reached >= self.aim and effort - too_little > 1:
            between = (too_little + effort) // 2
            if recall_at(between) >= self.aim:
                effort = between
            else:
                too_little = between
        reached = recall_at(effort)
        logging.info("%d of %d %s give recall@2 %.3f", effort, most, what, reached)
        if reached < self.target:
            logging.warning("recall@2 %.3f is below %.3f", reached, self.target)
        return reached


def _without(
    rows_Q: np.ndarray, ids_QN: np.ndarray, distances_QN: np.ndarray
) -> np.ndarray:
    """Distances of the neighbours that are not the query's own row: one fewer."""
    kept_QN = np.where(ids_QN == rows_Q[:, None], np.inf, distances_QN)
    return np.sort(kept_QN, axis=1)[:, :-1]
