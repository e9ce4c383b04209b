"""What the drill of a sweep makes of the launcher's lines, and whom it breaks."""

import pytest

from tools.faults import sweep


def test_a_unit_took_from_its_start_to_its_end():
    said = [(1.0, "unit-000: starts"), (4.5, "unit-000: finished (1 of 3)")]
    assert sweep._wall_s("unit-000", said) == 3.5
    with pytest.raises(KeyError):
        sweep._wall_s("unit-001", said)


def test_a_unit_that_has_saved_nothing_is_left_alone(tmp_path):
    assert not sweep._break(tmp_path, 9, saved_every=2)
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "metrics.jsonl").write_text('{"step": 2}\n')
    assert not sweep._break(tmp_path, 9, saved_every=2)
