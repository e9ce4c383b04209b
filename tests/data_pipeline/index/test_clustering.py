"""Leaves of an index: groups of near vectors."""

import numpy as np
import pytest

from data_pipeline.index import clustering


def _rng():
    return np.random.default_rng(0)


def _groups(sizes, width=8):
    """Rows around centers far from each other, in any order; and the centers."""
    rng = np.random.default_rng(1)
    centers_LW = 10 * np.eye(len(sizes), width, dtype=np.float32)
    center_T = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    noise_TW = rng.standard_normal((len(center_T), width), np.float32)
    return centers_LW[center_T] + 0.1 * noise_TW, centers_LW, center_T


def _spread(vectors_TW, centers_LW):
    """Mean squared distance to the nearest center, computed pair by pair."""
    pairs_TL = np.square(vectors_TW[:, None] - centers_LW).sum(axis=2)
    return pairs_TL.min(axis=1).mean()


def test_nearest_is_by_distance_and_the_first_of_ties():
    rng = np.random.default_rng(2)
    vectors_TW = rng.standard_normal((50, 5), np.float32)
    centers_LW = rng.standard_normal((9, 5), np.float32) * 3  # of different lengths
    centers_LW[7] = centers_LW[2]
    pairs_TL = np.square(vectors_TW[:, None] - centers_LW).sum(axis=2)
    found_T = clustering.nearest(vectors_TW, centers_LW)
    np.testing.assert_array_equal(found_T, pairs_TL.argmin(axis=1))
    assert 7 not in found_T


def _spilled_naively(vectors_TW, centers_LW):
    """The definition, pair by pair, in double precision."""
    both_T2 = []
    for vector_W in vectors_TW.astype(np.float64):
        missing_LW = vector_W - centers_LW
        squares_L = np.square(missing_LW).sum(axis=1)
        first = squares_L.argmin()
        direction_W = missing_LW[first] / np.sqrt(squares_L[first])
        losses_L = squares_L + clustering.SPILL_WEIGHT * (missing_LW @ direction_W) ** 2
        second = losses_L.argmin()
        both_T2.append([first, -1] if second == first else sorted([first, second]))
    return np.array(both_T2)


@pytest.mark.parametrize("is_unit", [True, False])
def test_a_vector_is_spilled_to_the_center_that_loses_least(monkeypatch, is_unit):
    rng = np.random.default_rng(6)
    vectors_TW = rng.standard_normal((700, 8), np.float32)
    if is_unit:
        vectors_TW /= np.linalg.norm(vectors_TW, axis=1, keepdims=True)
    centers_LW = clustering.k_means(vectors_TW, 25, _rng(), iterations=4)
    wanted_T2 = _spilled_naively(vectors_TW, centers_LW)
    alone = (wanted_T2[:, 1] == -1).mean()
    assert 0.05 < alone < 0.95
    for rows in (clustering._ROWS_OF_SPILL, 9):
        monkeypatch.setattr(clustering, "_ROWS_OF_SPILL", rows)
        found_T2 = clustering.nearest_and_spill(vectors_TW, centers_LW)
        np.testing.assert_array_equal(found_T2, wanted_T2)


def test_a_vector_that_is_its_center_is_not_spilled():
    vectors_TW = np.eye(5, dtype=np.float32)
    found_T2 = clustering.nearest_and_spill(vectors_TW, vectors_TW)
    assert found_T2.tolist() == [[row, -1] for row in range(5)]


def test_far_groups_are_found_and_centers_are_their_means():
    vectors_TW, _, center_T = _groups([500, 300, 50])
    found_LW = clustering.k_means(vectors_TW, 12, _rng(), iterations=12)
    leaf_T = clustering.nearest(vectors_TW, found_LW)
    for leaf in np.unique(leaf_T):
        assert len(set(center_T[leaf_T == leaf])) == 1  # no leaf holds two groups
        mean_W = vectors_TW[leaf_T == leaf].mean(axis=0)
        np.testing.assert_allclose(found_LW[leaf], mean_W, atol=0.05)


def test_every_iteration_brings_rows_nearer():
    vectors_TW = np.random.default_rng(3).standard_normal((3_000, 6), np.float32)
    spreads = [
        _spread(vectors_TW, clustering.k_means(vectors_TW, 40, _rng(), iterations=i))
        for i in (1, 2, 4, 8)
    ]
    assert all(np.diff(spreads) < 0), spreads


def test_the_same_rows_give_the_same_centers_whatever_the_blocks(monkeypatch):
    vectors_TW, _, _ = _groups([400, 700])
    wanted_LW = clustering.k_means(vectors_TW, 20, _rng(), iterations=5)
    again_LW = clustering.k_means(vectors_TW, 20, _rng(), iterations=5)
    np.testing.assert_array_equal(again_LW, wanted_LW)
    monkeypatch.setattr(clustering, "_ROWS_AT_ONCE", 7)
    blocks_LW = clustering.k_means(vectors_TW, 20, _rng(), iterations=5)
    np.testing.assert_allclose(blocks_LW, wanted_LW, atol=1e-4)


@pytest.mark.parametrize("different", [1, 3, 30])
def test_fewer_different_rows_than_centers(different):
    rows_TW = np.random.default_rng(4).standard_normal((different, 4), np.float32)
    vectors_TW = np.repeat(rows_TW, 10, axis=0)
    found_LW = clustering.k_means(vectors_TW, 10 * different, _rng(), iterations=4)
    assert np.isfinite(found_LW).all()
    assert _spread(vectors_TW, found_LW) < 1e-10  # each has a center to itself
