"""What was read stays on disk for others, whole or not at all, within its limit."""

import os

import jax.numpy as jnp
import numpy as np
import pytest

from retro_jax.training import encodings
from retro_jax.training.encodings_folder import EncodingsFolder
from tests.retro_jax.training.test_encodings import CFG, PARAMS, counted, make_batch

ENTRY = np.arange(1000, dtype=np.float32)


def folder_of(path, most_bytes: int = 10**6, reader: str = "a decoder"):
    return EncodingsFolder(path / "kept", most_bytes, reader)


def test_another_run_finds_what_one_has_read(tmp_path, monkeypatch):
    first = encodings.Encodings(CFG, 10**9, folder_of(tmp_path, 10**9))
    read = first.added_to(PARAMS, make_batch())
    encoded, texts = counted(monkeypatch, "_encode"), counted(monkeypatch, "_lower")
    second = encodings.Encodings(CFG, 10**9, folder_of(tmp_path, 10**9))
    found = second.added_to(PARAMS, make_batch())
    assert not encoded and not texts
    for name in ("encoded_BCNTSE", "lower_BSD"):
        np.testing.assert_array_equal(found[name], read[name])


def test_another_decoder_finds_nothing(tmp_path):
    folder_of(tmp_path).keep(b"one", ENTRY)
    assert folder_of(tmp_path, reader="another").get(b"one", np.float32) is None
    assert folder_of(tmp_path).get(b"two", np.float32) is None
    np.testing.assert_array_equal(folder_of(tmp_path).get(b"one", np.float32), ENTRY)


def test_bfloat16_comes_back_as_it_was(tmp_path):
    entry = np.asarray(jnp.linspace(-3, 3, 100, dtype=jnp.bfloat16))
    folder_of(tmp_path).keep(b"one", entry)
    found = folder_of(tmp_path).get(b"one", jnp.bfloat16)
    assert found.dtype == entry.dtype
    np.testing.assert_array_equal(found, entry)


def test_what_was_used_longest_ago_goes_first(tmp_path):
    kept = folder_of(tmp_path, most_bytes=10 * ENTRY.nbytes)
    for number in range(10):
        kept.keep(bytes([number]), ENTRY)
        for path in (tmp_path / "kept").iterdir():  # an hour passes
            there = path.stat().st_mtime - 3600
            os.utime(path, (there, there))
    assert kept.get(b"\0", np.float32) is not None  # used now
    for number in range(10, 14):
        kept.keep(bytes([number]), ENTRY)
    held = sum(path.stat().st_size for path in (tmp_path / "kept").iterdir())
    assert held <= 10 * (ENTRY.nbytes + 128)
    assert kept.get(b"\0", np.float32) is not None
    assert kept.get(b"\1", np.float32) is None


@pytest.mark.parametrize("cut", [0, 50, 2000])
def test_a_damaged_entry_is_as_good_as_none(tmp_path, cut):
    kept = folder_of(tmp_path)
    kept.keep(b"one", ENTRY)
    (path,) = (tmp_path / "kept").iterdir()
    path.write_bytes(path.read_bytes()[:cut])
    assert kept.get(b"one", np.float32) is None
    kept.keep(b"one", ENTRY)
    np.testing.assert_array_equal(kept.get(b"one", np.float32), ENTRY)


def test_an_entry_of_pickled_objects_is_not_loaded(tmp_path):
    kept = folder_of(tmp_path)
    kept.keep(b"one", ENTRY)
    (path,) = (tmp_path / "kept").iterdir()
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert kept.get(b"one", np.float32) is None


def test_a_folder_that_cannot_be_written_costs_nothing_else(tmp_path):
    (tmp_path / "kept").write_text("a file stands there")
    kept = encodings.Encodings(CFG, 10**9, folder_of(tmp_path, 10**9))
    assert "lower_BSD" in kept.added_to(PARAMS, make_batch())


def test_what_was_left_half_written_counts_and_goes(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "x.part").write_bytes(b"\0" * 9 * ENTRY.nbytes)
    os.utime(tmp_path / "kept" / "x.part", (0, 0))
    kept = folder_of(tmp_path, most_bytes=10 * ENTRY.nbytes)
    for number in range(2):
        kept.keep(bytes([number]), ENTRY)
    assert not (tmp_path / "kept" / "x.part").exists()
    assert kept.get(b"\0", np.float32) is not None
