"""Neighbours against brute force; forbidden documents never get through."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import index
from data_pipeline.database import neighbours
from data_pipeline.database.neighbours import NeighbourTable, find_neighbours
from data_pipeline.index import sharded
from tests import tiny_corpus


class Counting(sharded.ShardedIndex):
    """An index that keeps what it was asked for."""

    def __init__(self, vectors_TW):
        built = index.build_index(vectors_TW, "exact")
        shard = sharded.Shard(np.arange(len(vectors_TW)), built)
        super().__init__([shard], vectors_TW.shape[1])
        self.asked = []

    def search(self, queries_QW, k):
        self.asked.append((len(queries_QW), k))
        return super().search(queries_QW, k)


def another_document(own_Q, document_T):
    return lambda rows, ids: document_T[ids] != own_Q[rows][:, None]


def brute_force(vectors_TW, queries_QW, num_neighbours, allowed_QT):
    distances_QT = np.square(queries_QW[:, None] - vectors_TW).sum(-1)
    wanted = []
    for distances, allowed in zip(distances_QT, allowed_QT, strict=True):
        order = [t for t in np.argsort(distances, kind="stable") if allowed[t]]
        order = order[:num_neighbours]
        absent = num_neighbours - len(order)
        near = [*distances[order].tolist(), *[np.inf] * absent]
        wanted.append(([*order, *[-1] * absent], near))
    ids, near = zip(*wanted, strict=True)
    return np.array(ids), np.array(near)


@given(data=st.data())
@settings(max_examples=60)
def test_equals_brute_force_under_a_filter(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    size, num_queries = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 12))
    num_neighbours = data.draw(st.integers(1, 5))
    num_documents = data.draw(st.integers(1, 4))
    vectors_TW = rng.integers(-3, 4, (size, 3)).astype(np.float32) + 0.25
    queries_QW = rng.integers(-3, 4, (num_queries, 3)).astype(np.float32) + 0.25
    document_T = rng.integers(0, num_documents, size)
    own_Q = rng.integers(0, num_documents, num_queries)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_QUERIES_AT_ONCE", 5)
        ids_QN, distances_QN = find_neighbours(
            Counting(vectors_TW),
            queries_QW.astype(np.float16),  # as they are stored
            num_neighbours,
            another_document(own_Q, document_T),
            vectors_TW.__getitem__,
        )
    allowed_QT = document_T != own_Q[:, None]
    wanted = brute_force(vectors_TW, queries_QW, num_neighbours, allowed_QT)
    np.testing.assert_array_equal(ids_QN, wanted[0])
    np.testing.assert_allclose(distances_QN, wanted[1], rtol=1e-6)


def test_a_table_has_exact_distances_whatever_an_index_says(monkeypatch):
    """The last digit of an approximate one's differs between processes."""
    monkeypatch.setattr(neighbours, "_QUERIES_AT_ONCE", 3)
    rng = np.random.default_rng(0)
    vectors_TW = rng.normal(size=(50, 8)).astype(np.float16)
    queries_QW = rng.normal(size=(7, 8)).astype(np.float16)
    wanted = index.build_index(vectors_TW, "exact").search(queries_QW, 5)
    shuffled_QN = rng.permuted(wanted[0], axis=1)
    shuffled_QN = np.concatenate([np.full((7, 1), -1), shuffled_QN], axis=1)
    ids_QN, distances_QN = neighbours.with_exact_distances(
        shuffled_QN, queries_QW, lambda ids: vectors_TW[ids]
    )
    np.testing.assert_array_equal(ids_QN[:, :5], wanted[0])
    np.testing.assert_array_equal(distances_QN[:, :5], wanted[1])
    assert (ids_QN[:, 5] == -1).all() and np.isinf(distances_QN[:, 5]).all()


@pytest.mark.parametrize("num_queries", [0, 1, 7])
def test_a_table_is_found_in_two_parts_as_in_one(num_queries):
    rng = np.random.default_rng(0)
    vectors_TW = rng.normal(size=(50, 8)).astype(np.float16)
    queries_QW = rng.normal(size=(num_queries, 8)).astype(np.float16)
    built = Counting(vectors_TW)
    allowed_QT = rng.random((num_queries, 50)) < 0.5

    def allowed(rows, ids):
        return allowed_QT[rows[:, None], ids]

    found = neighbours.exact_neighbours(
        built, queries_QW, 5, allowed, vectors_TW.__getitem__
    )
    wanted = find_neighbours(built, queries_QW, 5, allowed, vectors_TW.__getitem__)
    for got, expected in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("small", "asked"), [(400, [(2, 8)]), (399, [(2, 8), (1, 32)])]
)
def test_a_document_that_owns_all_nearest_entries_is_passed_over(
    small, asked, monkeypatch
):
    """100 entries of its own lie before the first that is allowed."""
    monkeypatch.setattr(neighbours, "_SMALL", small)
    rng = np.random.default_rng(0)
    near = np.array([1, 0]) + 0.01 * rng.normal(size=(100, 2))
    far = np.array([0, 1]) + 0.01 * rng.normal(size=(300, 2))
    vectors_TW = np.concatenate([near, far]).astype(np.float32)
    document_T = np.repeat([0, 1], [100, 300])
    searched = Counting(vectors_TW)
    queries_QW = vectors_TW[[5, 350]]
    own_Q = np.array([0, 0])  # the second query has its neighbours at once
    ids_QN, distances_QN = find_neighbours(
        searched,
        queries_QW,
        2,
        another_document(own_Q, document_T),
        vectors_TW.__getitem__,
    )
    wanted = brute_force(vectors_TW, queries_QW, 2, document_T != own_Q[:, None])
    np.testing.assert_array_equal(ids_QN, wanted[0])
    assert np.isfinite(distances_QN).all()
    # Wider once, and only for who lacks some; then all that is allowed is compared.
    assert searched.asked == asked


def test_a_document_that_is_most_of_the_database_costs_no_more_than_others():
    """What is looked at grows with the database, not with its square."""
    rng = np.random.default_rng(0)
    vectors_TW = rng.normal(size=(3000, 8)).astype(np.float32)
    document_T = np.repeat([0, 1], [2900, 100])
    vectors_TW[:2900] *= 0.01
    vectors_TW[:2900] += 1
    searched = Counting(vectors_TW)
    own_Q = np.zeros(2900, int)
    found = find_neighbours(
        searched,
        vectors_TW[:2900],
        8,
        another_document(own_Q, document_T),
        vectors_TW.__getitem__,
    )
    assert sum(count * k for count, k in searched.asked) <= 2900 * (32 + 128)
    allowed_QT = np.broadcast_to(document_T == 1, (2900, 3000))
    wanted = index.build_index(vectors_TW[2900:], "exact").search(vectors_TW[:2900], 8)
    assert allowed_QT[0, found[0]].all()
    np.testing.assert_array_equal(found[0], wanted[0] + 2900)
    np.testing.assert_array_equal(found[1], wanted[1])


def test_nothing_is_read_where_nothing_is_allowed():
    vectors_TW = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)

    def never(ids):
        raise AssertionError("read for nothing")

    ids_QN, _ = find_neighbours(
        Counting(vectors_TW),
        vectors_TW,
        2,
        lambda rows, ids: np.zeros(ids.shape, bool),
        never,
    )
    assert (ids_QN == -1).all()


@given(data=st.data())
@settings(max_examples=60)
def test_searching_shards_apart_gives_what_their_union_gives(data):
    """Bit for bit, as `stages.Search` and `stages.Merge` do it."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    size, num_queries = data.draw(st.integers(1, 80)), 6
    num_neighbours = data.draw(st.integers(1, 9))
    vectors_TW = rng.integers(1, 3, (size, 4)).astype(np.float32)  # many are equal
    queries_QW = rng.integers(1, 3, (num_queries, 4)).astype(np.float32)
    document_T = rng.integers(0, data.draw(st.integers(1, 4)), size)
    own_Q = rng.integers(0, 4, num_queries)
    shard_of_T = rng.integers(0, data.draw(st.integers(1, 5)), size)
    shards = [
        sharded.Shard(ids, index.build_index(vectors_TW[ids], "exact"))
        for ids in (np.flatnonzero(shard_of_T == s) for s in np.unique(shard_of_T))
    ]

    def search(some):
        return find_neighbours(
            sharded.ShardedIndex(some, 4),
            queries_QW,
            num_neighbours,
            another_document(own_Q, document_T),
            vectors_TW.__getitem__,
        )

    found = sharded.merge([search([shard]) for shard in shards], num_neighbours)
    for ours, theirs in zip(found, search(shards), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


def test_fewer_than_asked_for():
    vectors_TW = np.eye(3, dtype=np.float32)
    ids_QN, distances_QN = find_neighbours(
        Counting(vectors_TW),
        vectors_TW[:1],
        5,
        lambda rows, ids: ids != 0,
        vectors_TW.__getitem__,
    )
    assert sorted(ids_QN[0, :2]) == [1, 2]
    assert (ids_QN[0, 2:] == -1).all()
    assert np.isinf(distances_QN[0, 2:]).all()
    assert np.isfinite(distances_QN[0, :2]).all()


def test_all_forbidden_nothing_there_and_no_queries():
    vectors_TW = np.eye(3, dtype=np.float32)
    built, empty = Counting(vectors_TW), sharded.ShardedIndex([], 3)
    query_QW = np.ones((1, 3), np.float32)
    for searched in (built, empty):
        ids, distances = find_neighbours(
            searched,
            query_QW,
            2,
            lambda rows, ids: np.zeros(ids.shape, bool),
            vectors_TW.__getitem__,
        )
        assert ids.tolist() == [[-1, -1]]
        assert np.isinf(distances).all()
    ids, _ = find_neighbours(
        built,
        query_QW[:0],
        2,
        lambda rows, ids: np.ones(ids.shape, bool),
        vectors_TW.__getitem__,
    )
    assert ids.shape == (0, 2)


@given(data=st.data())
def test_outside_gives_the_nearest_of_other_documents(data, tmp_path_factory):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    size, kept = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 6))
    ids_TN = rng.integers(-1, 30, (size, kept))
    distances_TN = np.sort(rng.random((size, kept)).astype(np.float32), axis=1)
    document_of = np.sort(rng.integers(0, 6, 30))
    folder = tmp_path_factory.mktemp("neighbours")
    shards = [folder / "a", folder / "b"]
    cut = data.draw(st.integers(0, size))
    for shard, part in zip(shards, (slice(0, cut), slice(cut, size)), strict=True):
        shard.mkdir()
        neighbours.write_shard(shard, ids_TN[part], distances_TN[part])
    table = NeighbourTable(shards)
    ids_C = rng.integers(-1, size, 4)
    forbidden_CD = rng.integers(-1, 6, (4, data.draw(st.integers(0, 3))))
    num_neighbours = data.draw(st.integers(1, 8))
    found_CN, found_distances_CN = table.outside(
        ids_C, forbidden_CD, document_of, num_neighbours
    )
    assert found_CN.shape == found_distances_CN.shape == (4, num_neighbours)
    for row, (found, near) in enumerate(zip(found_CN, found_distances_CN, strict=True)):
        chunk, forbidden = ids_C[row], forbidden_CD[row]
        pairs = zip(ids_TN[chunk], distances_TN[chunk], strict=True)
        wanted = [
            (i, d)
            for i, d in pairs
            if chunk >= 0 and i >= 0 and document_of[i] not in forbidden
        ][:num_neighbours]
        wanted += [(-1, np.inf)] * (num_neighbours - len(wanted))
        assert list(zip(found.tolist(), near.tolist(), strict=True)) == wanted


def test_stored_neighbours_are_of_other_documents(tiny_database):
    document_of = tiny_database.snapshot.document_of_chunk
    ids_TN = tiny_corpus.neighbour_ids(tiny_database, "train")
    assert len(ids_TN) == len(document_of)
    assert (ids_TN >= 0).all()
    assert (document_of[ids_TN] != document_of[:, None]).all()
    _, lengths = tiny_database.snapshot.chunks().passages(
        ids_TN, tiny_database.chunk_len
    )
    assert (lengths > 0).all()
