"""Where a database's arrays lie."""

import numpy as np
import pytest

from data_pipeline.embedding import chunk_vectors


@pytest.fixture
def folders(tmp_path):
    """Shards of 3, 0 and 7 rows; a row's numbers are its place among all ten."""
    rows_TW = np.arange(10, dtype=np.float16)[:, None] * np.ones(2, np.float16)
    found = []
    for name, part_TW in zip("abc", np.split(rows_TW, [3, 3]), strict=True):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "vectors.npy", part_TW)
        found.append(tmp_path / name)
    return found


@pytest.mark.parametrize(
    ("at_most", "places"),
    [
        (None, range(10)),
        (99, range(10)),
        (10, range(10)),
        (5, range(0, 10, 2)),
        (3, [0, 3, 6]),
        (1, [0]),
    ],
)
def test_some_vectors_are_spread_over_all(folders, at_most, places):
    vectors_TW = chunk_vectors.read_vectors(folders, 2, at_most)
    assert vectors_TW.dtype == np.float32
    np.testing.assert_array_equal(vectors_TW[:, 0], list(places))


def test_no_shards_have_no_vectors():
    assert chunk_vectors.read_vectors([], 4, 100).shape == (0, 4)
