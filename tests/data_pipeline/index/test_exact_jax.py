"""Exact search with an accelerator's proposals; a CPU device stands for one."""

import subprocess
import sys

import hypothesis.extra.numpy as hnp
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.index import exact, exact_jax, sharded

WIDTH = 16


@pytest.fixture
def device(monkeypatch):
    """A CPU device in place of an accelerator, for searches of any size."""
    monkeypatch.setattr(exact_jax, "accelerator", lambda: jax.devices()[1])
    monkeypatch.setattr(exact_jax, "_MIN_ROWS", 1)
    monkeypatch.setattr(exact_jax, "_ROWS", 512)
    monkeypatch.setattr(exact_jax, "_QUERIES", 32)
    return jax.devices()[1]


@pytest.fixture
def searched_in_numpy(monkeypatch):
    """How many queries were searched in numpy, each time that any were."""
    counts = []
    search_all = exact.ExactIndex._compared

    def counted(index, queries_QW, k):
        counts.append(len(queries_QW))
        return search_all(index, queries_QW, k)

    monkeypatch.setattr(exact.ExactIndex, "_compared", counted)
    return counts


def in_numpy(vectors_TW, queries_QW, k):
    """By an index for which there is no accelerator."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_jax, "accelerator", lambda: None)
        return exact.ExactIndex(vectors_TW).search(queries_QW, k)


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("num_rows", [512, 1_300])
def test_it_finds_the_same(device, searched_in_numpy, dtype, num_rows):
    vectors_TW = normal(num_rows, WIDTH).astype(dtype)
    index = exact.ExactIndex(vectors_TW)
    for num_queries, k in ((1, 1), (70, 10), (33, 40)):
        queries_QW = normal(num_queries, WIDTH, seed=k)
        found = index.search(queries_QW, k)
        assert not searched_in_numpy
        assert_same(found, in_numpy(vectors_TW, queries_QW, k))
        searched_in_numpy.clear()
    assert {rows.device for block in index._proposer._blocks for rows in block} == {
        device
    }


def test_vectors_go_there_once(device, monkeypatch):
    sent = []
    put = jax.device_put
    monkeypatch.setattr(
        jax, "device_put", lambda x, to: (sent.append(x), put(x, to))[1]
    )
    index = exact.ExactIndex(normal(1_300, WIDTH))
    index.search(normal(1, WIDTH), 2)
    assert len(sent) == 3 + 1  # blocks of rows and one of queries
    index.search(normal(1, WIDTH), 2)
    assert len(sent) == 3 + 2


def test_as_many_equal_rows_as_are_proposed_are_searched_again(
    device, searched_in_numpy
):
    vectors_TW = normal(900, WIDTH)
    vectors_TW[100:500:4] = vectors_TW[7]  # more than the 32 that are proposed
    vectors_TW[501:520] = vectors_TW[8]  # fewer
    queries_QW = vectors_TW[[7, 8, 9]]
    found = exact.ExactIndex(vectors_TW).search(queries_QW, 5)
    assert searched_in_numpy == [1]
    assert_same(found, in_numpy(vectors_TW, queries_QW, 5))
    assert found[0][0].tolist() == [7, 100, 104, 108, 112]
    assert found[0][1].tolist() == [8, 501, 502, 503, 504]


# Few distinct integers give many ties; few shapes, for each is compiled.
@given(st.integers(1, 40), st.integers(0, 9), st.sampled_from([1, 3, 50]), st.data())
@settings(max_examples=40, deadline=None)
def test_it_is_the_same_with_ties(num_rows, num_queries, k, data):
    elements = st.integers(-2, 2).map(float)
    vectors_TW, queries_QW = (
        data.draw(hnp.arrays(np.float32, (rows, 3), elements=elements)) + 0.25
        for rows in (num_rows, num_queries)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_jax, "accelerator", lambda: jax.devices()[0])
        for name, value in (("_MIN_ROWS", 1), ("_ROWS", 16), ("_QUERIES", 4)):
            patch.setattr(exact_jax, name, value)
        patch.setattr(exact_jax, "_MIN_PROPOSED", 2)
        found = exact.ExactIndex(vectors_TW).search(queries_QW, k)
    assert_same(found, in_numpy(vectors_TW, queries_QW, k))


def test_many_neighbours_are_for_numpy(device, searched_in_numpy):
    vectors_TW = normal(600, WIDTH)
    ids_QN, _ = exact.ExactIndex(vectors_TW).search(vectors_TW[:1], 10**6)
    assert searched_in_numpy == [1]
    assert (np.sort(ids_QN[0, :600]) == np.arange(600)).all()


def test_an_accelerator_that_fails_is_given_up(device, monkeypatch, caplog):
    vectors_TW = normal(600, WIDTH)
    asked = []

    def no_room(*_):
        asked.append(1)
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room")

    monkeypatch.setattr(jax, "device_put", no_room)
    index = exact.ExactIndex(vectors_TW)
    for _ in range(2):
        found = index.search(vectors_TW[:3], 2)
        assert_same(found, in_numpy(vectors_TW, vectors_TW[:3], 2))
    assert asked == [1]
    assert "goes on without the accelerator: RESOURCE_EXHAUSTED" in caplog.text


def test_a_shard_is_measured_with_it(device, searched_in_numpy):
    vectors_TW = normal(600, WIDTH)
    queries_QW = normal(40, WIDTH, seed=1)
    _, facts, _ = sharded.build_shard(
        np.arange(600), vectors_TW, "exact", recall_target=0.9, queries_QW=queries_QW
    )
    assert facts["recall@10"] == 1.0
    assert not searched_in_numpy


def test_jax_is_not_imported_for_nothing():
    code = (
        "import sys, numpy as np\n"
        "from data_pipeline.index import exact, exact_jax\n"
        "vectors_TW = np.ones((exact_jax._MIN_ROWS, 2), np.float32)\n"
        "exact.ExactIndex(vectors_TW).search(vectors_TW[:1], 1)\n"
        "assert 'jax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # JAX_PLATFORMS is cpu
    assert exact_jax.accelerator() is None
