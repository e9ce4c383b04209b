"""Folders in a store: whole or not there, checked, with bounded patience for the store."""

import json
import re
import sys
import time

import pytest

from data_pipeline.storage import object_store
from data_pipeline.storage.object_store import ObjectStore, StoreError
from tests import object_stores
from tests.object_stores import BUCKET
from tests.ports import free_port


@pytest.fixture
def s3(monkeypatch, tmp_path):
    """A client of the server; the environment says where it is, and where copies go."""
    object_stores.use(object_stores.endpoint(), monkeypatch)
    monkeypatch.setenv("RETRO_CACHE", str(tmp_path / "cache"))
    return object_stores.client(object_stores.endpoint())


@pytest.fixture
def store(s3, request) -> ObjectStore:
    return ObjectStore(f"s3://{BUCKET}/{request.node.name}", attempts=2)


_ODD = ("a b.txt", "50%.txt", "what?#*[x].txt", "é/ü.bin", "sub/+&=;,@.txt", "'\".txt")


@pytest.fixture
def files(tmp_path) -> dict:
    """A folder's files, of which some have odd names and one is empty."""
    folder = tmp_path / "source"
    for number, name in enumerate(("data.bin", *_ODD)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(range(256)) * number)
    return object_store.files_below(folder)


def _keys(s3, store) -> list[str]:
    prefix = store.url.removeprefix(f"s3://{BUCKET}/")
    found = s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix + "/")
    return [entry["Key"] for entry in found.get("Contents", ())]


def test_what_is_stored_comes_back_with_its_names(store, files, tmp_path):
    store.put("step 1", files)
    assert store.whole() == ["step 1"]
    store.get("step 1", tmp_path / "back")
    back = object_store.files_below(tmp_path / "back")
    assert back.keys() == files.keys() == {"data.bin", *_ODD}
    assert all(back[n].read_bytes() == files[n].read_bytes() for n in files)


def test_hidden_files_are_not_stored(tmp_path):
    (tmp_path / ".lock").write_text("")
    (tmp_path / "data").write_text("")
    assert object_store.files_below(tmp_path).keys() == {"data"}


def _cut(s3, key):
    body = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    s3.put_object(Bucket=BUCKET, Key=key, Body=body[:-1])


def _flip(s3, key):
    body = bytearray(s3.get_object(Bucket=BUCKET, Key=key)["Body"].read())
    body[len(body) // 2] ^= 1
    s3.put_object(Bucket=BUCKET, Key=key, Body=bytes(body))


def _lose(s3, key):
    s3.delete_object(Bucket=BUCKET, Key=key)


@pytest.mark.parametrize("harm", [_cut, _flip, _lose])
@pytest.mark.parametrize("name", ["50%25.txt", "complete.json"])
def test_what_was_harmed_is_named_and_not_taken(store, s3, files, tmp_path, harm, name):
    store.put("one", files)
    (key,) = (key for key in _keys(s3, store) if key.endswith(name))
    harm(s3, key)
    with pytest.raises(ValueError, match="is damaged|is not there") as raised:
        store.get("one", tmp_path / "back")
    assert name in str(raised.value) and not isinstance(raised.value, OSError)
    assert not (tmp_path / "back").exists()
    assert not list(tmp_path.glob(".tmp*"))


def test_an_upload_that_is_broken_off_is_not_whole(store, files, monkeypatch):
    """Also over an older one, which is not whole either, from the first object on."""
    store.put("one", files)

    def broken(path, key, timeout):
        raise KeyboardInterrupt

    monkeypatch.setattr(store._files, "put_file", broken)
    with pytest.raises(KeyboardInterrupt):
        store.put("one", files)
    assert store.whole() == []
    with pytest.raises(ValueError, match="was not stored whole"):
        store.described("one")


def test_a_removed_folder_leaves_nothing(store, s3, files):
    store.put("one", files)
    store.remove("one")
    assert _keys(s3, store) == []


@pytest.mark.parametrize("file", ["../up", "/etc/x", "a//b", "a/../../b", ""])
def test_a_record_that_leads_out_of_the_folder_is_refused(store, s3, tmp_path, file):
    made = {"files": {file: {"size_bytes": 0, "sha256": ""}}}
    made["checksum"] = object_store.fingerprint(made)
    store._files.pipe_file(
        store._key("one", "complete.json"), json.dumps(made).encode()
    )
    with pytest.raises(ValueError, match=r"complete\.json is damaged"):
        store.get("one", tmp_path / "back")


def test_a_copy_is_made_once_and_again_when_another_is_stored(store, s3, files, capsys):
    store.put("", files)
    first = object_store.fetched(store.url + "/")
    assert object_store.fetched(store.url) == first
    assert capsys.readouterr().out.count("copying s3://") == 1
    store.put("", {"data.bin": files["a b.txt"]})
    second = object_store.fetched(store.url)
    assert second != first and [path.name for path in second.iterdir()] == ["data.bin"]
    (second / "data.bin").write_text("")
    with pytest.raises(ValueError, match=r"data.bin is damaged: remove .*copied again"):
        object_store.fetched(store.url)


def _said(act) -> str:
    began_s = time.monotonic()
    with pytest.raises(StoreError) as raised:
        act()
    assert time.monotonic() - began_s < 20
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    "status, code, timeout_s, says",
    [
        (403, "AccessDenied", 60, "ask for the permission, or use others: AWS_"),
        (503, "SlowDown", 0.5, r"\(2 attempts\)"),
        (None, "", 0.5, r"\(2 attempts\).*no answer in time"),
    ],
)
def test_a_store_that_refuses_or_says_nothing_is_named(
    monkeypatch, status, code, timeout_s, says
):
    with object_stores.answering(status, code) as (address, asked):
        object_stores.use(address, monkeypatch)
        store = ObjectStore("s3://bucket/run", timeout_s=timeout_s, attempts=2)
        said = _said(store.check)
    assert status != 403 or len(asked) == 1  # another attempt would not help
    assert said.startswith("s3://bucket/run: can't write")
    assert re.search(says, said), said


def test_a_store_that_is_not_there_is_named(monkeypatch):
    object_stores.use(f"http://127.0.0.1:{free_port()}", monkeypatch)
    said = _said(ObjectStore("s3://bucket/run", timeout_s=1, attempts=2).check)
    assert "(2 attempts)" in said and "is there a way to it?" in said


def test_a_bucket_that_is_not_there_is_named(s3):
    said = _said(ObjectStore("s3://nowhere/run").check)
    assert "make the bucket, or correct the address" in said


def test_credentials_that_are_missing_are_named(s3, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    said = _said(ObjectStore("s3://bucket/run").check)
    assert "give credentials: AWS_ACCESS_KEY_ID" in said


def test_a_store_that_fails_for_a_moment_is_asked_again(store, files, monkeypatch):
    real, times = store._files.put_file, []

    def flaky(path, key, timeout):
        times.append(key)
        if len(times) == 1:
            raise ConnectionResetError("gone")
        return real(path, key, timeout=timeout)

    monkeypatch.setattr(store._files, "put_file", flaky)
    store.put("one", {"data.bin": files["data.bin"]})
    assert len(times) == 2 and store.whole() == ["one"]


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "http://bucket/x", "/tmp/x"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ValueError, match="is no address of a store"):
        ObjectStore(url)


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match=r"gs:// needs gcsfs: .*\[storage\]"):
        ObjectStore("gs://bucket/run")
