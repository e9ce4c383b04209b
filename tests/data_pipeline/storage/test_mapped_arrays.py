"""A column is the arrays of its shards, one after the other."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.storage.mapped_arrays import Column, open_array


@pytest.fixture(scope="module")
def column_and_whole(tmp_path_factory):
    """Shards of 3, 0 and 4 rows, and their rows in memory."""
    folder = tmp_path_factory.mktemp("column")
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 99, (size, 2)) for size in (3, 0, 4)]
    paths = [folder / f"{number}.npy" for number in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        np.save(path, part)
    return Column(paths), np.concatenate(parts)


def test_it_is_the_shards_in_order(column_and_whole):
    column, whole = column_and_whole
    assert len(column) == 7 and column.row_shape == (2,)
    assert column.first_rows.tolist() == [0, 3, 3, 7]
    np.testing.assert_array_equal(column.whole(), whole)


@given(rows=st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=2), max_size=9))
def test_rows_come_as_they_are_asked_for(column_and_whole, rows):
    column, whole = column_and_whole
    rows = np.array(rows, np.int64).reshape(-1, 2)
    np.testing.assert_array_equal(column.take(rows), whole[rows])


@pytest.mark.parametrize("row", [-1, 7])
def test_a_row_outside_is_refused(column_and_whole, row):
    with pytest.raises(IndexError, match=r"rows must lie in 0\.\.6"):
        column_and_whole[0].take(np.array([0, row]))


def test_no_shards_are_no_rows():
    assert len(Column([])) == 0 and Column([]).row_shape == ()
    assert Column([]).take(np.zeros((0, 2), np.int64)).shape == (0, 2)


@pytest.mark.parametrize("kept", [0, 40, -1])
def test_a_damaged_file_is_named(tmp_path, kept):
    path = tmp_path / "array.npy"
    np.save(path, np.arange(100))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"array\.npy can't be read .*build it again"):
        open_array(path)


@pytest.mark.parametrize("order", ["C", "F"])
def test_small_and_large_arrays_hold_no_descriptor(tmp_path, order):
    """numpy's own maps hold one each: a database of some hundred shards ran out."""
    held = len(os.listdir("/proc/self/fd"))
    opened = []
    for number, rows in enumerate((0, 3, 30_000)):
        array = np.asarray(np.arange(4.0 * rows).reshape(rows, 4), order=order)
        path = tmp_path / f"{number}.npy"
        np.save(path, array)
        opened.append((open_array(path), array))
    assert len(os.listdir("/proc/self/fd")) == held
    for path in tmp_path.iterdir():
        path.unlink()  # as compacting does while others read
    for found, array in opened:
        np.testing.assert_array_equal(found, array)
        assert not found.flags.writeable


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }",
        "{'descr': '<i8', 'fortran_order': False, 'shape': (-4,), }",
        "{'descr': '<i8', 'fortran_order': False, 'shape': (-2, -2), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (4,), }",
        "{'descr': '<i8', 'fortran_order': False, 'shape': (3,), }",
        "{'descr': '<i8', 'fortran_order': False, 'shape': (2**3,), }",
        "{'descr': '|V0', 'fortran_order': False, 'shape': (10**9,), }",
        "__import__('os').system('true')",
    ],
)
def test_a_header_is_believed_only_as_far_as_the_file_goes(tmp_path, header):
    path = tmp_path / "array.npy"
    written = header.encode().ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00v\x00" + written + bytes(32))
    with pytest.raises(ValueError, match=r"array\.npy can't be read .*build it again"):
        open_array(path)


@pytest.mark.parametrize(
    "number", [errno.EMFILE, errno.EACCES, errno.EIO, errno.ENOMEM]
)
def test_a_limit_of_the_system_is_no_damage(tmp_path, monkeypatch, number):
    path = tmp_path / "array.npy"
    np.save(path, np.arange(100))

    def refuse(self, *_):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match=r"array\.npy") as raised:
        open_array(path)
    assert raised.value.errno == number
    assert "again" not in str(raised.value) or number == errno.EIO
    assert "build" not in str(raised.value)


def test_a_missing_file_is_damage(tmp_path):
    with pytest.raises(ValueError, match=r"array\.npy is missing: restore it"):
        open_array(tmp_path / "array.npy")
