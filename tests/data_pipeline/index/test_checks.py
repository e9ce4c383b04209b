"""What makes a distance meaningless is refused, by row."""

import numpy as np
import pytest

from data_pipeline.index import checks


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 1e30, 1e-30])
def test_the_first_bad_row_is_named(monkeypatch, value):
    monkeypatch.setattr(checks, "_ROWS", 2)  # it stands in the second block
    vectors_TW = np.ones((5, 3), np.float32)
    vectors_TW[3:] = value
    with pytest.raises(ValueError, match="row 3 of vectors is zero, not finite or out"):
        checks.check_vectors(vectors_TW)


@pytest.mark.parametrize(
    ("vectors", "problem"),
    [
        (np.ones(3, np.float32), r"must be \(rows, width\)"),
        (np.ones((2, 3), np.int32), "must be floats"),
        (np.ones((2, 0), np.float32), "have width 0"),
    ],
)
def test_other_arrays_are_refused(vectors, problem):
    with pytest.raises(ValueError, match=problem):
        checks.check_vectors(vectors)


def test_queries_must_fit_the_index():
    with pytest.raises(ValueError, match="k must be at least 1"):
        checks.check_queries(np.ones((1, 3), np.float32), 0, 3)
    with pytest.raises(ValueError, match="queries have width 3, the index has 4"):
        checks.check_queries(np.ones((1, 3), np.float32), 1, 4)
