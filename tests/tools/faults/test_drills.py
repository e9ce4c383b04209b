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
