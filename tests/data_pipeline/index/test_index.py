"""Exact and approximate search against naive numpy, their guards and their files."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_pipeline import index
from data_pipeline.index import exact, faiss, recall_goal, scann

WIDTH = 64


def clustered(size, *, seed=0, unit=True):
    """Clusters of fifty, as the chunks of a subject are."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(500, WIDTH))
    vectors_TW = centres[rng.integers(len(centres), size=size)]
    vectors_TW = vectors_TW + 0.5 * rng.normal(size=vectors_TW.shape)
    if unit:
        vectors_TW /= np.linalg.norm(vectors_TW, axis=1, keepdims=True)
    return vectors_TW.astype(np.float32)


def naive(vectors_TW, queries_QW, k):
    """All distances in float64, sorted stably."""
    difference = queries_QW[:, None].astype(np.float64) - vectors_TW[None]
    distances_QT = np.square(difference).sum(-1).astype(np.float32)
    ids_QN = np.argsort(distances_QT, axis=1, kind="stable")[:, :k]
    distances_QN = np.take_along_axis(distances_QT, ids_QN, axis=1)
    missing = ((0, 0), (0, k - ids_QN.shape[1]))
    return (
        np.pad(ids_QN, missing, constant_values=-1),
        np.pad(distances_QN, missing, constant_values=np.inf),
    )


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


@pytest.mark.parametrize("kind", ["faiss-flat", "faiss-ivfpq"])
def test_faiss_is_asked_for_by_its_extra(monkeypatch, kind):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(faiss.importlib, "import_module", missing)
    with pytest.raises(
        ImportError, match=r"retro-jax\[faiss\].*No module named 'faiss'"
    ):
        index.build_index(clustered(1_000), kind)


def test_faiss_reaches_its_recall(inverted, vectors_TW, queries_QW):
    for k in (2, 10):
        recall = index.measure_recall(inverted, vectors_TW, queries_QW, k)
        assert recall > 0.95  # of other queries than it was tuned with
    assert inverted.recall >= 0.97
    assert inverted.lists_to_search < 100  # of 316: it is not exhaustive
    few = index.build_index(vectors_TW[:999], "faiss-ivfpq")
    assert isinstance(few, exact.ExactIndex)


def test_faiss_is_tuned_with_the_queries_to_come(vectors_TW):
    """Rows of the database find themselves in fewer lists than far queries need."""
    rng = np.random.default_rng(0)
    far_QW = rng.normal(size=(200, WIDTH)).astype(np.float32)
    easy = index.build_index(vectors_TW[:5_000], "faiss-ivfpq")
    hard = index.build_index(vectors_TW[:5_000], "faiss-ivfpq", queries_QW=far_QW[::2])
    assert hard.lists_to_search > easy.lists_to_search
    recall = index.measure_recall(hard, vectors_TW[:5_000], far_QW[1::2], 2)
    assert recall > 0.9


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


def test_scann_reaches_its_recall(approximate, vectors_TW, queries_QW):
    for k in (2, 10):
        recall = index.measure_recall(approximate, vectors_TW, queries_QW, k)
        assert recall > 0.95  # of other queries than it was tuned with
    assert approximate.recall >= 0.97
    assert approximate.leaves_to_search < 100  # of 316: it is not exhaustive
    strict = index.build_index(vectors_TW, recall_target=0.999)
    assert strict.leaves_to_search > approximate.leaves_to_search
    assert index.measure_recall(strict, vectors_TW, queries_QW, 2) > 0.995


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
    assert index.measure_recall(empty, np.zeros((0, WIDTH)), clustered(2), 3) == 1.0


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


def test_a_saved_memory_map_is_the_same_file(tmp_path):
    np.save(tmp_path / "vectors.npy", clustered(300).astype(np.float16))
    vectors_TW = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    index.build_index(vectors_TW).save(tmp_path / "index")
    saved = (tmp_path / "index" / "vectors.npy").read_bytes()
    assert saved == (tmp_path / "vectors.npy").read_bytes()


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

    def recall(*ids):
        return index.measure_recall(FixedIndex([ids]), vectors_TW, queries_QW, len(ids))

    assert recall(0, 3) == 1.0  # rows 1, 2, 3 are equally near
    assert recall(0, 4) == 0.5
    assert recall(0, 0) == 0.5
    assert recall(0, -1) == 0.5
    assert recall(4, 4) == 0.0


def test_tensorflow_is_hidden_only_while_scann_is_imported():
    import subprocess
    import sys

    code = (
        "import sys; from data_pipeline.index import scann; scann.import_scann();"
        "assert 'tensorflow' not in sys.modules, 'left behind';"
        "assert 'jax' not in sys.modules, 'jax'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _goal(num_queries: int) -> recall_goal.Goal:
    """Asks for 2 rows at a distance of at most 1; the aim is a recall of 0.92."""
    queries_QW = np.zeros((num_queries, 1), np.float32)
    limit_Q = np.ones(num_queries, np.float32)
    return recall_goal.Goal(queries_QW, np.full(num_queries, -1), limit_Q, target=0.9)


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
    assert tuned == recall_goal.Effort(leaves=7, reorder=given, recall=1.0)
