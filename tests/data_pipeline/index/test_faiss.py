"""Faiss: its extra, its widths, and its tuning."""

import numpy as np
import pytest

from data_pipeline import index
from data_pipeline.index import faiss, recall
from tests.vectors import WIDTH, clustered, naive


@pytest.fixture(scope="module")
def vectors_TW():
    return clustered(25_000)


@pytest.fixture(scope="module")
def queries_QW():
    return clustered(500, seed=1)


@pytest.mark.parametrize("kind", ["faiss-flat", "faiss-ivfpq"])
def test_faiss_is_asked_for_by_its_extra(monkeypatch, kind):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(faiss.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"No module named 'faiss'.*\[faiss\]"):
        index.build_index(clustered(1_000), kind)


def test_faiss_is_tuned_with_the_queries_to_come(vectors_TW):
    """Rows of the database find themselves in fewer lists than far queries need."""
    rng = np.random.default_rng(0)
    far_QW = rng.normal(size=(200, WIDTH)).astype(np.float32)
    easy = index.build_index(vectors_TW[:5_000], "faiss-ivfpq")
    hard = index.build_index(vectors_TW[:5_000], "faiss-ivfpq", queries_QW=far_QW[::2])
    assert hard.lists_to_search > easy.lists_to_search
    found = recall.measure_recall(hard, vectors_TW[:5_000], far_QW[1::2], 2)
    assert found > 0.9


@pytest.mark.parametrize("width", [1, 2, 7, 33])
def test_faiss_takes_every_width(width):
    rng = np.random.default_rng(0)
    vectors_TW = (rng.normal(size=(1_000, width)) + 3).astype(np.float16)
    for kind in ("faiss-flat", "faiss-ivfpq"):
        built = index.build_index(vectors_TW, kind, recall_target=1.0)
        ids_QN, distances_QN = built.search(vectors_TW[:50].astype(np.float32), 1_002)
        wanted_ids_QN, wanted_QN = naive(vectors_TW, vectors_TW[:50], 1_002)
        assert np.mean(ids_QN == wanted_ids_QN) > 0.999
        np.testing.assert_allclose(distances_QN, wanted_QN, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("unit", [True, False])
def test_faiss_flat_equals_exact(unit):
    vectors_TW = 5 * clustered(3_000, unit=unit)
    vectors_TW[2_900:] = vectors_TW[:100]  # duplicates: the lower row comes first
    queries_QW = clustered(100, seed=1)
    found = index.build_index(vectors_TW, "faiss-flat").search(queries_QW, 7)
    wanted = index.build_index(vectors_TW, "exact").search(queries_QW, 7)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_equal_rows_train_faiss():
    same_TW = np.repeat(clustered(4), 300, axis=0)
    built = index.build_index(same_TW, "faiss-ivfpq")
    ids_QN, distances_QN = built.search(same_TW[::300], 300)
    assert (np.sort(ids_QN, axis=1) == np.arange(1_200).reshape(4, 300)).all()
    assert (distances_QN == 0).all()
