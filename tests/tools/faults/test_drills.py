"""Drills of one process, and what they compare; those of several take minutes."""

import json

import pytest

from tools.faults import drills


def test_a_mesh_that_has_no_devices_is_named(tmp_path):
    row = drills.Drills(tmp_path).run("wrong device count")
    assert row["outcome"] == "named error"
    assert "does not make up the 4 devices" in row["line"]


def _order(folder, rows):
    folder.mkdir()
    noted = {"step": 1, "rows": rows}
    (folder / "order-1.jsonl").write_text(json.dumps(noted) + "\n")
    return drills._order(folder)


def test_rows_that_are_missing_or_others_are_noticed(tmp_path):
    whole = {str(row): "a" for row in range(8)}
    assert _order(tmp_path / "whole", whole) == {1: whole}
    with pytest.raises(ValueError, match="of step 1 7 rows were read"):
        _order(tmp_path / "less", dict(list(whole.items())[:7]))
    again = {"step": 1, "rows": {"3": "b"}}
    (tmp_path / "whole" / "order-2.jsonl").write_text(json.dumps(again) + "\n")
    with pytest.raises(ValueError, match="row 3 of step 1 was another"):
        drills._order(tmp_path / "whole")


def test_a_missing_shard_is_named_and_the_run_goes_on_once_it_is_back(
    tmp_path, monkeypatch
):
    """The files are moved for real; what the two processes would say is said for them."""
    database = tmp_path / "shard" / "database"
    found = []

    def process(words, environment):
        assert words[:2] == ["tools.faults.toy_embedder", "experiments.main"]
        found.append(list(database.rglob("retro-train.tfrecord-*")))

    def ended(started):
        (shards,) = found[-1:]
        line = "" if shards else "error: retro-train.tfrecord-00000-of-00001 is missing"
        return [drills._Ended(0 if shards else 2, line, 1.0)]

    monkeypatch.setattr(drills, "_process", process)
    monkeypatch.setattr(drills, "_ended", ended)
    row = drills.Drills(tmp_path).run("missing shard")
    assert row["outcome"] == "named error"
    assert [len(shards) for shards in found] == [0, 1]
