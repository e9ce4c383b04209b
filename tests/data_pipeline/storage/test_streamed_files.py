"""Files that a copy lacks are fetched in turn, checked, and let go; a store's faults are named."""

import gc
import json
import os
import socket

import pytest

from data_pipeline.storage import object_store, streamed_files
from data_pipeline.storage.object_store import ObjectStore
from data_pipeline.storage.streamed_files import StreamedFiles
from tests import object_stores
from tests.object_stores import BUCKET

_NAMES = [f"records/{number}.bin" for number in range(5)]


@pytest.fixture
def copy(monkeypatch, tmp_path, request):
    """A copy of a stored folder that lacks its five records, of 100 bytes each."""
    object_stores.use(object_stores.endpoint(), monkeypatch)
    monkeypatch.setenv("RETRO_CACHE", str(tmp_path / "cache"))
    for number, name in enumerate((*_NAMES, "small.json")):
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * 100)
    url = f"s3://{BUCKET}/{request.node.name}"
    ObjectStore(url).put("", object_store.files_below(tmp_path / "source"))
    return object_store.fetched(url, lambda file: file.endswith(".json"))


def _here(copy) -> int:
    return len(list(copy.parent.glob("streamed-*/*.bin")))


def test_they_come_in_turn_and_go_when_there_are_too_many(copy, monkeypatch):
    assert {path.name for path in copy.iterdir()} == {
        "small.json",
        object_store.STREAMED,
    }
    monkeypatch.setattr(streamed_files, "_KEPT_BYTES", 300)
    paths = [copy / name for name in _NAMES]
    most, contents = 0, []
    streamed = StreamedFiles(copy)
    for path in streamed.in_turn(paths):
        contents.append(path.read_bytes())
        most = max(most, _here(copy))
    assert contents == [bytes([number]) * 100 for number in range(5)]
    assert most == _here(copy) == 3  # the last ones may still be read
    del streamed
    gc.collect()
    assert not _here(copy)


def test_a_small_one_is_fetched_once(copy, monkeypatch):
    fetched = []
    real = ObjectStore.receive

    def receive(self, name, file, entry, path):
        fetched.append(file)
        real(self, name, file, entry, path)

    monkeypatch.setattr(ObjectStore, "receive", receive)
    paths = [copy / name for name in _NAMES[:2]]
    assert len(list(StreamedFiles(copy).in_turn(paths * 3))) == 6
    assert fetched == _NAMES[:2]


def test_an_object_that_is_gone_or_another_is_named(copy, request):
    client = object_stores.client(object_stores.endpoint())
    prefix = request.node.name
    client.put_object(Bucket=BUCKET, Key=f"{prefix}/{_NAMES[0]}", Body=b"?" * 100)
    client.delete_object(Bucket=BUCKET, Key=f"{prefix}/{_NAMES[1]}")
    for name, says in ((_NAMES[0], "is damaged"), (_NAMES[1], "is not there")):
        with pytest.raises(ValueError, match=f"{name} {says}"):
            list(StreamedFiles(copy).in_turn([copy / name]))


def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(copy):
    def left(host, process):
        folder = copy.parent / f"streamed-{host}-{process}-x"
        folder.mkdir()
        return folder

    mine = left(socket.gethostname(), os.getpid())
    other_host = left("elsewhere", 2**22 + 1)
    dead = left(socket.gethostname(), 2**22 + 1)  # above any process's number
    list(StreamedFiles(copy).in_turn([copy / _NAMES[0]]))
    assert mine.exists() and other_host.exists() and not dead.exists()


def test_a_whole_copy_streams_nothing_and_a_damaged_record_is_named(tmp_path):
    assert tmp_path / "file" not in StreamedFiles(tmp_path)
    marker = tmp_path / object_store.STREAMED
    marker.write_text(json.dumps({"url": "s3://other/place", "files": {}}))
    with pytest.raises(ValueError, match=r"streamed\.json is damaged: remove"):
        StreamedFiles(tmp_path)
