"""Files and folders are there whole or not at all, whatever happens meanwhile."""

import json
import os

import pytest

from data_pipeline.storage import files
from tests.tiny_corpus import contents


class Killed(BaseException):
    """No handler expects it, as none runs when a process is killed."""


def test_fingerprint_is_of_the_value_alone():
    assert files.fingerprint({"a": 1, "b": [2]}) == files.fingerprint(
        {"b": [2], "a": 1}
    )
    values = [{}, [], None, 0, "", "0", {"a": 1}, {"a": 2}, {"b": 1}]
    assert len({files.fingerprint(value) for value in values}) == len(values)


@pytest.mark.parametrize("content", ["text \u00e9", b"\x00\xff", ""])
def test_a_file_is_replaced_whole(tmp_path, content):
    path = tmp_path / "file"
    path.write_text("before")
    files.write_file(path, content)
    wanted = content.encode() if isinstance(content, str) else content
    assert contents(tmp_path) == {"file": wanted}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_file_that_fails_leaves_the_old_one_alone(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    path.write_text("before")

    def failing(*_):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, step, failing)
    with pytest.raises(OSError, match="no space left"):
        files.write_file(path, "after")
    assert contents(tmp_path) == {"file": b"before"}


def test_content_reaches_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        files.os, "fsync", lambda file: calls.append("fsync") or fsync(file)
    )
    monkeypatch.setattr(
        files.os, "replace", lambda *paths: calls.append("replace") or replace(*paths)
    )
    files.write_json(tmp_path / "file.json", {"a": 1})
    assert calls == ["fsync", "replace"]
    assert json.loads((tmp_path / "file.json").read_text()) == {"a": 1}


def test_writers_of_one_file_have_names_of_their_own(tmp_path, monkeypatch):
    """The second begins while the first is in the middle, as another process may."""
    path, names, fsync = tmp_path / "file", [], os.fsync

    def second(file):
        names.extend(each.name for each in tmp_path.iterdir())
        monkeypatch.setattr(files.os, "fsync", fsync)
        files.write_file(path, "second")
        fsync(file)

    monkeypatch.setattr(files.os, "fsync", second)
    files.write_file(path, "first")
    assert len(names) == 1
    assert contents(tmp_path) == {"file": b"first"}


def test_a_folder_appears_when_it_is_full(tmp_path):
    with files.new_folder(tmp_path / "deep" / "folder") as made:
        (made / "one").write_text("1")
        assert not (tmp_path / "deep" / "folder").exists()
    assert contents(tmp_path) == {"deep/folder/one": b"1"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["folder"]


@pytest.mark.parametrize("error", [ValueError, Killed])
def test_a_folder_that_fails_leaves_nothing(tmp_path, error):
    with pytest.raises(error), files.new_folder(tmp_path / "folder") as made:
        (made / "half").write_text("half")
        raise error
    assert not list(tmp_path.iterdir())


def test_a_folder_is_replaced_only_if_asked(tmp_path):
    folder = tmp_path / "folder"
    for text, replaces in (("first", False), ("second", True)):
        with files.new_folder(folder, replaces=replaces) as made:
            (made / "file").write_text(text)
    with pytest.raises(OSError), files.new_folder(folder) as made:
        (made / "file").write_text("third")
    assert contents(tmp_path) == {"folder/file": b"second"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_what_kills_left_goes(tmp_path):
    (tmp_path / ".tmp-a-0123").mkdir()
    (tmp_path / ".tmp-a-0123" / "half").write_text("half")
    (tmp_path / ".tmp-b.json-0123").write_text("{")
    (tmp_path / "whole").write_text("whole")
    files.remove_temporaries(tmp_path)
    assert contents(tmp_path) == {"whole": b"whole"}
    (tmp_path / ".tmp-c-0123").mkdir()
    files.make_folder(tmp_path / "c", lambda made: (made / "file").touch())
    assert sorted(contents(tmp_path)) == ["c/file", "c/shard.json", "whole"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "whole"]


@pytest.mark.parametrize("damage", [b"", b"{", b'{"version": 4}', None])
def test_a_sealed_file_is_believed_only_whole(tmp_path, damage):
    path = tmp_path / "sealed.json"
    files.write_sealed(path, {"version": 3})
    assert files.read_sealed(path) == {"version": 3}
    if damage is None:
        path.write_text(path.read_text().replace("3", "4", 1))
    else:
        path.write_bytes(damage)
    assert files.read_sealed(path) is None
