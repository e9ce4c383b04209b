"""A folder goes to a store and comes back; what can't be copied is named."""

import pytest

from experiments import copy_stored
from tests import object_stores
from tests.object_stores import BUCKET


def test_a_folder_comes_back_as_it_was(tmp_path, monkeypatch):
    object_stores.use(object_stores.endpoint(), monkeypatch)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c d.txt").write_text("text")
    copy_stored.main([str(tmp_path / "a"), f"s3://{BUCKET}/copied"])
    copy_stored.main([f"s3://{BUCKET}/copied", str(tmp_path / "back")])
    assert (tmp_path / "back" / "b" / "c d.txt").read_text() == "text"
    with pytest.raises(ValueError, match="is there already"):
        copy_stored.main([f"s3://{BUCKET}/copied", str(tmp_path / "back")])


@pytest.mark.parametrize(
    "source, target, message",
    [
        ("here", "there", "one of them is a folder"),
        ("s3://a/b", "gs://a/b", "one of them is a folder"),
        ("nowhere", "s3://a/b", "there is no folder"),
        ("empty", "s3://a/b", "has no files"),
    ],
)
def test_what_can_not_be_copied_is_named(
    tmp_path, monkeypatch, source, target, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        copy_stored.main([source, target])
