"""A work unit's folder: what it says, and that nobody reads half of it."""

import json

import pytest

from experiments.configs import tiny
from experiments.launching import sweeps, work_units

_POINTS = [{"train.seed": "0"}, {"train.seed": "1"}]


def _planned(points=_POINTS, **train) -> list[sweeps.Planned]:
    made = []
    for point in points:
        cfg = tiny.get_config()
        for name, value in {"seed": int(point["train.seed"]), **train}.items():
            setattr(cfg.train, name, value)
        made.append(sweeps.Planned(point, cfg))
    return made


def _write(tmp_path, planned, hosts=1):
    databases = [tmp_path / "database"] * len(planned)
    return work_units.write(planned, tmp_path, databases, hosts, "typed")


def test_units_are_read_as_they_were_written(tmp_path):
    units = _write(tmp_path, _planned())
    assert [unit.name for unit in units] == ["unit-000", "unit-001"]
    assert work_units.read(tmp_path) == units == _write(tmp_path, _planned())
    assert [unit.point for unit in units] == _POINTS


def test_a_longer_sweep_adds_units_and_another_one_changes_nothing(tmp_path):
    _write(tmp_path, _planned(_POINTS[:1]))
    assert len(_write(tmp_path, _planned())) == 2
    with pytest.raises(
        ValueError, match="train.steps=700 there and train.steps=5 here"
    ):
        _write(tmp_path, _planned([*_POINTS, {"train.seed": "2"}], steps=5))
    assert len(work_units.read(tmp_path)) == 2


def test_a_status_is_changed_in_parts_and_a_damaged_one_is_none(tmp_path):
    unit = _write(tmp_path, _planned())[0]
    assert unit.status() == {} and not unit.is_finished
    unit.record(state="running", job="train")
    unit.record(state="finished")
    assert unit.status() == {"state": "finished", "job": "train"} and unit.is_finished
    (unit.folder / "status.json").write_text(json.dumps(unit.status())[:9])
    assert unit.status() == {}


def test_folders_without_units_are_named(tmp_path):
    (tmp_path / "unit-000").mkdir()
    assert work_units.read_unit(tmp_path / "unit-000") is None
    with pytest.raises(ValueError, match="holds no work units"):
        work_units.read(tmp_path)


def test_a_unit_starts_from_the_folder_of_another(tmp_path):
    planned = _planned()
    planned[1] = sweeps.Planned(planned[1].point, planned[1].experiment, after=0)
    first, second = _write(tmp_path, planned)
    told = json.loads((second.folder / "unit.json").read_text())
    assert told["settings"]["init_from"] == str(first.folder)
    assert work_units.read(tmp_path)[1].after == first.name
    assert first.has_start and not second.has_start
    first.record(state="finished")
    assert second.has_start
