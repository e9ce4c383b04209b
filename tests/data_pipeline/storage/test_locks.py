"""A lock keeps another process out, and says so; where there are none a line is printed."""

import errno
import os

import pytest

from data_pipeline.storage import locks


def test_one_holder_at_a_time(tmp_path):
    path = tmp_path / ".writer"
    with (
        locks.locked(path, "changing"),
        pytest.raises(
            ValueError,
            match=rf"another process is changing {tmp_path}: wait until it is done "
            rf"\(process {os.getpid()} on \S+\)",
        ),
        locks.locked(path, "changing"),
    ):
        pass
    with locks.locked(path, "changing"), locks.locked(tmp_path / ".other", "reading"):
        assert path.exists()


def test_it_is_free_again_after_an_error(tmp_path):
    with pytest.raises(KeyError), locks.locked(tmp_path / ".writer", "changing"):
        raise KeyError
    with locks.locked(tmp_path / ".writer", "changing"):
        pass


def test_where_there_are_no_locks_it_is_said(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with locks.locked(tmp_path / ".writer", "changing"):
        said = capsys.readouterr().out
    assert f"{tmp_path} is on a file system without locks" in said
    assert "process is changing it" in said


def test_other_errors_are_not_taken_for_that(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with (
        pytest.raises(OSError, match="Input/output"),
        locks.locked(tmp_path / ".writer", "changing"),
    ):
        pass


def test_a_link_is_not_followed(tmp_path):
    outside = tmp_path / "thesis"
    outside.write_text("years of work")
    (tmp_path / "lock").symlink_to(outside)
    with pytest.raises(OSError), locks.locked(tmp_path / "lock", "changing"):
        pass
    assert outside.read_text() == "years of work"
