"""A stage is believed to be finished only if its record and its files agree."""

import json

import pytest

from data_pipeline.storage import stage_record
from data_pipeline.storage.files import fingerprint, write_json

_SETTINGS, _INPUTS, _SHARDS = {"size": 1, "names": ["x"]}, {"before": "0"}, {"a": 1}


@pytest.fixture
def stage(tmp_path):
    """A finished stage of one shard with one file."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("text")
    identity = stage_record.identity(_SETTINGS, _INPUTS, _SHARDS)
    files = {"a": {"file": {"size_bytes": 4, "sha256": "0"}}}
    write_json(
        tmp_path / "stage.json",
        {
            "fingerprint": fingerprint(identity),
            "contents": fingerprint(files),
            **identity,
            "files": files,
        },
    )
    write_json(tmp_path / "building.json", {"fingerprint": fingerprint(identity)})
    return tmp_path


def test_a_finished_stage_gives_its_contents(stage):
    made = stage_record.read_stage(stage)
    found = stage_record.contents_if_finished(stage, _SETTINGS, _INPUTS, _SHARDS)
    assert found == made["contents"]
    assert not stage_record.was_begun_otherwise(stage, _SETTINGS, _INPUTS, _SHARDS)


@pytest.mark.parametrize(
    "wanted",
    [
        ({"size": 2}, _INPUTS, _SHARDS),
        (_SETTINGS, {"before": "1"}, _SHARDS),
        (_SETTINGS, _INPUTS, {"a": 1, "b": 1}),
    ],
)
def test_a_stage_of_something_else_is_not_finished(stage, wanted):
    assert stage_record.contents_if_finished(stage, *wanted) is None
    assert stage_record.was_begun_otherwise(stage, *wanted)


def test_a_file_that_was_cut_is_noticed(stage):
    (stage / "a" / "file").write_text("tex")
    assert stage_record.contents_if_finished(stage, _SETTINGS, _INPUTS, _SHARDS) is None


def test_a_record_that_was_changed_is_damaged(stage):
    record = json.loads((stage / "stage.json").read_text())
    record["settings"]["size"] = 2
    write_json(stage / "stage.json", record)
    with pytest.raises(ValueError, match="stage.json is damaged: restore it"):
        stage_record.read_stage(stage)
    assert stage_record.changed_settings(stage, _SETTINGS) == []
    assert stage_record.read_stage(stage / "a") is None  # not finished


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        (_SETTINGS, []),
        ({"size": 1, "names": ("x",)}, []),  # the same in JSON
        ({"size": 2, "names": ["x"]}, ["size"]),
        ({"size": 1, "more": 0}, ["more", "names"]),
    ],
)
def test_settings_that_changed_are_named(stage, settings, changed):
    assert stage_record.changed_settings(stage, settings) == changed
