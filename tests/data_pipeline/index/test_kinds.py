"""All kinds of index answer alike: against naive numpy, their guards and their files."""

import json

import numpy as np
import pytest

from data_pipeline import index
from data_pipeline.index import exact, recall, scann
from tests.vectors import WIDTH, clustered, naive


@pytest.fixture(scope="module")
def vectors_TW():
    return clustered(25_000)


@pytest.fixture(scope="module")
def queries_QW():
    return clustered(500, seed=1)


@pytest.fixture(scope="module")
def approximate(vectors_TW):
    return index.build_index(vectors_TW)


@pytest.fixture(scope="module")
def inverted(vectors_TW):
    return index.build_index(vectors_TW, "faiss-ivfpq")


@pytest.fixture(scope="module", params=["exact", "scann", "faiss-flat", "faiss-ivfpq"])
def small(request):
    return index.build_index(clustered(1_200), request.param)


def test_auto_is_exact_when_small_and_scann_when_large(approximate, vectors_TW):
    assert isinstance(index.build_index(vectors_TW[:19_999]), exact.ExactIndex)
    assert isinstance(approximate, scann.ScannIndex)
    few = index.build_index(vectors_TW[:5], "scann")
    assert isinstance(few, exact.ExactIndex)


def test_auto_is_exact_without_scann(monkeypatch, vectors_TW):
    def missing():
        raise ImportError("no ScaNN")

    monkeypatch.setattr(scann, "import_scann", missing)
    assert isinstance(index.build_index(vectors_TW), exact.ExactIndex)
    with pytest.raises(ImportError, match="no ScaNN"):
        index.build_index(vectors_TW, "scann")


def test_faiss_reaches_its_recall(inverted, vectors_TW, queries_QW):
    for k in (2, 10):
        found = recall.measure_recall(inverted, vectors_TW, queries_QW, k)
        assert found > 0.95  # of other queries than it was tuned with
    assert inverted.recall >= 0.97
    assert inverted.lists_to_search < 100  # of 316: it is not exhaustive
    few = index.build_index(vectors_TW[:999], "faiss-ivfpq")
    assert isinstance(few, exact.ExactIndex)


def test_scann_reaches_its_recall(approximate, vectors_TW, queries_QW):
    for k in (2, 10):
        found = recall.measure_recall(approximate, vectors_TW, queries_QW, k)
        assert found > 0.95  # of other queries than it was tuned with
    assert approximate.recall >= 0.97
    assert approximate.leaves_to_search < 100  # of 316: it is not exhaustive
    strict = index.build_index(vectors_TW, recall_target=0.999)
    assert strict.leaves_to_search > approximate.leaves_to_search
    assert recall.measure_recall(strict, vectors_TW, queries_QW, 2) > 0.995


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("kind", ["scann", "faiss-ivfpq"])
def test_true_distances_in_order(kind, unit):
    vectors_TW = clustered(3_000, unit=unit)
    queries_QW = 3 * clustered(100, seed=1)  # queries need not be unit
    built = index.build_index(vectors_TW, kind, recall_target=1.0)
    ids_QN, distances_QN = built.search(queries_QW, 5)
    wanted_ids_QN, _ = naive(vectors_TW, queries_QW, 5)
    assert np.mean(ids_QN == wanted_ids_QN) > 0.95  # effort is tuned to the nearest two
    assert (np.diff(distances_QN, axis=1) >= 0).all()
    query_P = np.repeat(np.arange(100), 5)
    true_P = exact.pair_distances(vectors_TW, queries_QW, query_P, ids_QN.ravel())
    np.testing.assert_allclose(distances_QN.ravel(), true_P, rtol=1e-6, atol=2e-6)


def test_search_when_k_exceeds_the_rows(small):
    queries_QW = clustered(3, seed=1)
    ids_QN, distances_QN = small.search(queries_QW, 1_500)
    for row in ids_QN:
        np.testing.assert_array_equal(np.sort(row[:1_200]), np.arange(1_200))
    assert (ids_QN[:, 1_200:] == -1).all()
    assert np.isinf(distances_QN[:, 1_200:]).all()
    assert np.isfinite(distances_QN[:, :1_200]).all()


def test_search_when_k_exceeds_what_the_leaves_hold(approximate, inverted, queries_QW):
    for built in (approximate, inverted):
        ids_QN, distances_QN = built.search(queries_QW[:5], 5_000)
        assert (ids_QN >= 0).all()
        assert np.isfinite(distances_QN).all()
        assert (np.diff(distances_QN, axis=1) >= 0).all()
        assert all(len(set(row)) == 5_000 for row in ids_QN.tolist())


def test_one_query_equals_many(small):
    queries_QW = clustered(100, seed=1)
    ids_QN, _ = small.search(queries_QW, 3)
    for row in (0, 50, 99):
        alone_QN, _ = small.search(queries_QW[row : row + 1], 3)
        np.testing.assert_array_equal(alone_QN[0], ids_QN[row])


def test_no_queries_and_no_rows(small):
    ids_QN, distances_QN = small.search(np.zeros((0, WIDTH), np.float32), 4)
    assert ids_QN.shape == distances_QN.shape == (0, 4)
    for kind in ("auto", "faiss-flat", "faiss-ivfpq"):
        empty = index.build_index(np.zeros((0, WIDTH), np.float32), kind)
        ids_QN, distances_QN = empty.search(clustered(2), 3)
        assert (empty.size, empty.width) == (0, WIDTH)
        assert (ids_QN == -1).all()
        assert np.isinf(distances_QN).all()
    assert recall.measure_recall(empty, np.zeros((0, WIDTH)), clustered(2), 3) == 1.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 0.0])
def test_bad_values_never_reach_a_backend(small, value):
    bad_TW = clustered(1_100)
    bad_TW[1_050] = value
    for kind in ("exact", "scann", "faiss-flat", "faiss-ivfpq"):
        with pytest.raises(ValueError, match="row 1050 of vectors"):
            index.build_index(bad_TW, kind)
    with pytest.raises(ValueError, match="row 1050 of queries"):
        small.search(bad_TW, 2)


def test_bad_shapes_and_arguments(small, untyped):
    good_QW = clustered(3)
    for k in (0, -1):
        with pytest.raises(ValueError, match="k must be at least 1"):
            small.search(good_QW, k)
    with pytest.raises(ValueError, match="width 63, the index has 64"):
        small.search(good_QW[:, 1:], 2)
    with pytest.raises(ValueError, match=r"\(64,\)"):
        small.search(good_QW[0], 2)
    with pytest.raises(ValueError, match="int64"):
        index.build_index(np.ones((3, 4), np.int64))
    with pytest.raises(ValueError, match="kind"):
        index.build_index(good_QW, "fast")
    with pytest.raises(ValueError, match="recall_target"):
        index.build_index(good_QW, recall_target=97)


def test_round_trip_and_moving(small, tmp_path):
    queries_QW = clustered(100, seed=1)
    before = small.search(queries_QW, 5)
    small.save(tmp_path / "a" / "index")
    small.save(tmp_path / "a" / "index")  # over the old one
    (tmp_path / "a").rename(tmp_path / "b")
    loaded = index.load_index(tmp_path / "b" / "index")
    assert (loaded.size, loaded.width) == (1_200, WIDTH)
    for found, wanted in zip(loaded.search(queries_QW, 5), before, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["index"]
    assert not list((tmp_path / "b" / "index").glob("*.pkl"))


@pytest.mark.parametrize("kind", ["scann", "faiss-ivfpq"])
def test_two_builds_give_the_same_files(
    kind, approximate, inverted, vectors_TW, tmp_path
):
    {"scann": approximate, "faiss-ivfpq": inverted}[kind].save(tmp_path / "a")
    index.build_index(vectors_TW.copy(), kind).save(tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        first, second = ((tmp_path / x / name).read_bytes() for x in "ab")
        assert first == second, name


def test_damaged_folders_are_named(small, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no index"):
        index.load_index(tmp_path)
    folder = tmp_path / "index"
    small.save(folder)
    meta = json.loads((folder / "meta.json").read_text())
    for name in meta["file_sizes_bytes"]:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1])
        with pytest.raises(ValueError, match=name):
            index.load_index(folder)
        (folder / name).unlink()
        with pytest.raises(ValueError, match=name):
            index.load_index(folder)
        if name == "index.faiss":  # all there, but not what Faiss writes
            (folder / name).write_bytes(bytes(reversed(content)))
            with pytest.raises(ValueError, match="Faiss cannot read"):
                index.load_index(folder)
        (folder / name).write_bytes(content)
    (folder / "scann_docids.pkl").write_bytes(b"cos\nsystem\n")
    with pytest.raises(ValueError, match=r"scann_docids\.pkl"):
        index.load_index(folder)
    (folder / "scann_docids.pkl").unlink()
    (folder / "meta.json").write_text(json.dumps(meta | {"format_version": 0}))
    with pytest.raises(ValueError, match="format version 0"):
        index.load_index(folder)
    (folder / "meta.json").write_text("{")
    with pytest.raises(ValueError, match=r"meta\.json is damaged"):
        index.load_index(folder)
