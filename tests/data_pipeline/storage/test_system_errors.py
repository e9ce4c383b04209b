"""A limit of the system is called by its name, with a file and what to do about it."""

import errno
from pathlib import Path

import pytest

from data_pipeline.storage import system_errors

LIMITS = {
    errno.EMFILE: "ulimit -n",
    errno.ENFILE: "close other programs",
    errno.ENOMEM: "memory",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.EROFS: "not changed",
    errno.EIO: "disk",
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
}


@pytest.mark.parametrize(("number", "advice"), LIMITS.items())
def test_a_limit_is_named_once_with_its_file_and_advice(number, advice):
    inside = OSError(number, "as the system says", "/some/file")
    with (
        pytest.raises(OSError) as raised,
        system_errors.explained(Path("/outer")),
        system_errors.explained(Path("/inner")),
    ):
        raise inside
    assert raised.value.errno == number
    assert raised.value.filename == "/some/file"
    assert type(raised.value) is type(inside)
    said = str(raised.value)
    assert said.count(advice) >= 1 and said.count("as the system says") == 1
    assert "build" not in said and "damaged" not in said
    assert not system_errors.is_damage(inside)


def test_what_names_no_file_gets_one():
    of_arrow = "Failed to open local file '/a/b.parquet'. Detail: too many"
    for error, wanted in (
        (OSError(errno.EMFILE, of_arrow), "/a/b.parquet"),
        (OSError("4096 requested and 12 written"), "/database"),
        (MemoryError("no 8 GiB"), "/database"),
    ):
        with (
            pytest.raises(OSError) as raised,
            system_errors.explained(Path("/database")),
        ):
            raise error
        assert raised.value.filename == wanted
    assert raised.value.errno == errno.ENOMEM


def test_damage_and_other_errors_pass_as_they_are():
    for error in (
        FileNotFoundError(errno.ENOENT, "no such file", "/a"),
        OSError("thrift"),
        ValueError("another"),
    ):
        with (
            pytest.raises(type(error)) as raised,
            system_errors.explained(Path("/database")),
        ):
            raise error
        assert raised.value is error
    assert system_errors.is_damage(FileNotFoundError(errno.ENOENT, "none", "/a"))
    assert system_errors.is_damage(OSError("thrift"))
