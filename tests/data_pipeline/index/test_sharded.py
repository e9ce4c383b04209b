"""Indexes in shards: the union is searched as if it were one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.index import exact, sharded
from data_pipeline.storage import costs


def _vectors(num_rows: int, width: int = 8, seed: int = 0):
    rng = np.random.default_rng(seed)
    # Few values, so that many distances are equal.
    return rng.integers(1, 3, (num_rows, width)).astype(np.float32)


def _sharded(vectors_TW, shard_of_T) -> sharded.ShardedIndex:
    shards = []
    for number in np.unique(shard_of_T):
        ids = np.flatnonzero(shard_of_T == number)
        shards.append(sharded.Shard(ids, exact.ExactIndex(vectors_TW[ids])))
    return sharded.ShardedIndex(shards, vectors_TW.shape[1])


@settings(deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 7), st.integers(1, 80), st.integers(0, 10_000)
)
def test_exact_shards_equal_one_exact_index_bit_for_bit(num_rows, num_shards, k, seed):
    vectors_TW = _vectors(num_rows, seed=seed)
    shard_of_T = np.random.default_rng(seed).integers(0, num_shards, num_rows)
    queries_QW = _vectors(5, seed=seed + 1)
    found = _sharded(vectors_TW, shard_of_T).search(queries_QW, k)
    expected = exact.ExactIndex(vectors_TW).search(queries_QW, k)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


def test_a_union_of_nothing_finds_nothing():
    ids, distances = sharded.ShardedIndex([], 8).search(_vectors(2), 3)
    assert ids.tolist() == [[-1] * 3] * 2
    assert np.isinf(distances).all()


@pytest.mark.parametrize("k", [0, -1])
def test_k_must_be_positive(k):
    with pytest.raises(ValueError, match="k must be"):
        _sharded(_vectors(4), np.arange(4) % 2).search(_vectors(1), k)


def test_a_saved_shard_is_the_same_and_a_damaged_one_is_named(tmp_path):
    vectors_TW, ids = _vectors(30), np.arange(30) * 3
    shard, facts, speed = sharded.build_shard(
        ids, vectors_TW, "exact", recall_target=0.9, queries_QW=_vectors(6, seed=1)
    )
    assert facts["rows"] == 30
    assert facts["recall@2"] == 1.0
    assert speed.queries_per_s > 0
    shard.save(tmp_path)
    loaded = sharded.load_shard(tmp_path, vectors_TW.shape[1], 88)
    found = loaded.search(vectors_TW[4:5], 1)[0]
    np.testing.assert_array_equal(found, shard.search(vectors_TW[4:5], 1)[0])
    assert found[0, 0] % 3 == 0
    for wrong, width, num_chunks in (
        (ids[:-1], vectors_TW.shape[1], 88),
        (ids, vectors_TW.shape[1], 87),
        (ids, 5, 88),
        (ids[::-1], vectors_TW.shape[1], 88),
        (ids - 1, vectors_TW.shape[1], 88),
        (ids.astype(float), vectors_TW.shape[1], 88),
    ):
        np.save(tmp_path / "ids.npy", wrong)
        with pytest.raises(ValueError, match=r"ids\.npy names"):
            sharded.load_shard(tmp_path, width, num_chunks)


def test_speeds_of_shards_are_those_of_one_after_the_other():
    def cost(queries_per_s):
        return costs.ShardCost("index", "a", 0, 1.0, 1.0, 1, 1, queries_per_s)

    assert sharded.queries_per_s([cost(300.0)]) == 300
    assert sharded.queries_per_s([cost(300.0), cost(600.0)]) == 200
    assert sharded.queries_per_s([cost(300.0), cost(0.0)]) is None
    assert sharded.queries_per_s([]) is None


def test_facts_of_shards_are_weighted_by_rows():
    each = [
        {"kind": "ExactIndex", "rows": 1, "queries": 5, "recall@2": 1.0},
        {"kind": "ScannIndex", "rows": 3, "queries": 4, "recall@2": 0.96},
    ]
    assert sharded.combined_facts(each) == {
        "kind": "ExactIndex+ScannIndex",
        "shards": 2,
        "rows": 4,
        "queries": 4,
        "recall@2": pytest.approx(0.97),
    }
