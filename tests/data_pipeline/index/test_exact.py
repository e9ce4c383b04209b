"""Exact search is naive search, ties included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_pipeline import index
from data_pipeline.index import exact
from tests.vectors import clustered, naive


@pytest.fixture(scope="module")
def vectors_TW():
    return clustered(25_000)


@pytest.fixture(scope="module")
def queries_QW():
    return clustered(500, seed=1)


@pytest.fixture(scope="module", params=["exact", "scann", "faiss-flat", "faiss-ivfpq"])
def small(request):
    return index.build_index(clustered(1_200), request.param)


# Few distinct integers give many ties; the small blocks of the patch many merges.
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_exact_equals_naive_with_ties(data):
    width = data.draw(st.integers(1, 4))
    elements = st.integers(-2, 2).map(float)
    draw = [
        data.draw(hnp.arrays(np.float32, (rows, width), elements=elements))
        for rows in (data.draw(st.integers(1, 70)), data.draw(st.integers(0, 9)))
    ]
    vectors_TW, queries_QW = (array + np.float32(0.25) for array in draw)
    k = data.draw(st.integers(1, 80))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_ROWS", 16)
        patch.setattr(exact, "_QUERIES", 4)
        patch.setattr(exact, "_PAIRS", 50)
        ids_QN, distances_QN = index.build_index(vectors_TW).search(queries_QW, k)
    wanted_ids_QN, wanted_QN = naive(vectors_TW, queries_QW, k)
    np.testing.assert_array_equal(ids_QN, wanted_ids_QN)
    np.testing.assert_array_equal(distances_QN, wanted_QN)
    assert ids_QN.dtype == np.int64
    assert distances_QN.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_exact_on_real_sized_vectors(monkeypatch, dtype):
    monkeypatch.setattr(exact, "_ROWS", 700)
    vectors_TW = clustered(2_000, unit=False).astype(dtype)
    vectors_TW[1_900:] = vectors_TW[:100]  # duplicates: the lower row comes first
    queries_QW = vectors_TW[:150].astype(np.float32)
    ids_QN, distances_QN = index.build_index(vectors_TW, "exact").search(queries_QW, 7)
    wanted_ids_QN, wanted_QN = naive(vectors_TW.astype(np.float32), queries_QW, 7)
    np.testing.assert_array_equal(ids_QN, wanted_ids_QN)
    np.testing.assert_array_equal(distances_QN, wanted_QN)
    assert (distances_QN[:100, 1] == 0).all()


def test_a_saved_memory_map_is_the_same_file(tmp_path):
    np.save(tmp_path / "vectors.npy", clustered(300).astype(np.float16))
    vectors_TW = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    index.build_index(vectors_TW).save(tmp_path / "index")
    saved = (tmp_path / "index" / "vectors.npy").read_bytes()
    assert saved == (tmp_path / "vectors.npy").read_bytes()
