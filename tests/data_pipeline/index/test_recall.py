"""Recall counts ties, and effort rises until it is reached."""

import numpy as np
import pytest

from data_pipeline.index import recall
from tests.vectors import clustered


@pytest.fixture(scope="module")
def vectors_TW():
    return clustered(25_000)


@pytest.fixture(scope="module")
def queries_QW():
    return clustered(500, seed=1)


class FixedIndex:
    """Finds what it is told, to test the measure."""

    size, width = 5, 1

    def __init__(self, ids_QN):
        self.ids_QN = np.array(ids_QN)

    def save(self, folder):
        pytest.fail("an index that is only measured is not saved")

    def search(self, queries_QW, k):
        return self.ids_QN, np.zeros(self.ids_QN.shape, np.float32)


def test_recall_counts_ties_and_never_twice():
    vectors_TW = np.array([[1], [2], [2], [2], [9]], np.float32)
    queries_QW = np.array([[1]], np.float32)

    def recall_at(*ids):
        return recall.measure_recall(
            FixedIndex([ids]), vectors_TW, queries_QW, len(ids)
        )

    assert recall_at(0, 3) == 1.0  # rows 1, 2, 3 are equally near
    assert recall_at(0, 4) == 0.5
    assert recall_at(0, 0) == 0.5
    assert recall_at(0, -1) == 0.5
    assert recall_at(4, 4) == 0.0


def _goal(num_queries: int) -> recall.Goal:
    """Asks for 2 rows at a distance of at most 1; the aim is a recall of 0.92."""
    queries_QW = np.zeros((num_queries, 1), np.float32)
    limit_Q = np.ones(num_queries, np.float32)
    return recall.Goal(queries_QW, np.full(num_queries, -1), limit_Q, target=0.9)


@pytest.mark.parametrize("enough", [1, 2, 3, 37, 40, 41, 100])
def test_the_least_effort_that_reaches_the_aim_is_found(enough):
    def recall_at(effort):
        return 0.95 if effort >= enough else 0.91

    assert _goal(1).least(100, recall_at) == (enough, 0.95)
    if enough > 1:
        assert _goal(1).least(enough - 1, recall_at) == (enough - 1, 0.91)


@pytest.mark.parametrize(("needed", "given"), [(1, 100), (40, 200), (350, 400)])
def test_four_times_the_candidates_that_are_needed_are_ranked(needed, given):
    def search_with(effort):
        near = effort.reorder >= needed and effort.leaves >= 7

        def search(queries_QW, k):
            distances_QN = np.full((len(queries_QW), k), 1.0 if near else 2.0)
            return np.zeros(distances_QN.shape, np.int64), distances_QN

        return search

    tuned = _goal(50).tune(60, search_with, "leaves")
    assert tuned == recall.Effort(leaves=7, reorder=given, recall=1.0)
