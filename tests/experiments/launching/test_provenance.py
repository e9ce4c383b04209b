"""Where a launch's numbers come from: nothing of it is typed, and no place is told."""

import json
import shlex

import pytest

from data_pipeline.storage.files import write_json
from experiments.launching import provenance, work_units
from tests.experiments.launching.units import unit


def _launched(tmp_path) -> list[work_units.Unit]:
    database = tmp_path / "database"
    (database / "dataset").mkdir(parents=True)
    manifest = {
        "fingerprint": "83c0",
        "corpus": "the World Factbook",
        "chunks": {"train": 9, "test": 3},
        "chunk_len": 64,
        "documents": {
            "train": {"documents": 2, "size_bytes": 7},
            "test": {"documents": 1, "size_bytes": 3},
            "exact_duplicates": 0,
        },
        "settings": {"corpus": str(tmp_path)},
    }
    write_json(database / "manifest.json", manifest)
    write_json(database / "dataset" / "stage.json", {"contents": "dead"})
    units = []
    for number in range(2):
        made = unit(
            tmp_path / "out",
            [f"--database={database}"],
            number=number,
            **{"train.seed": str(number)},
        )
        told = json.loads((made.folder / "unit.json").read_text())
        told |= {
            "launched_as": "--config=tiny --config.train.steps=3 "
            "--config.train.encodings_folder=/home/me/kept",
            "commit": "abc",
            "environment": {"cores": 2},
        }
        write_json(made.folder / "unit.json", told)
        units.append(made)
    units[0].record(state="finished", began_s=1_000_000_000.0, ended_s=1_000_000_060.0)
    units[1].record(state="running", began_s=1_000_000_060.0)
    return units


def test_command_machine_data_and_time_of_a_launch(tmp_path):
    told = provenance.of_launch(_launched(tmp_path))
    assert told == {
        "command": "retro launch --config=tiny --config.train.steps=3 "
        "--config.train.encodings_folder=kept --sweep --out=DIR",
        "commit": "abc",
        "date": "2001-09-09",
        "machine": {"cores": 2},
        "units": 2,
        "finished": 1,
        "unit_seconds": 60.0,
        "databases": [
            {
                "fingerprint": "83c0",
                "corpus": "the World Factbook",
                "chunks": {"train": 9, "test": 3},
                "chunk_len": 64,
                "documents": {"train": 2, "test": 1},
                "dataset": "dead",
            }
        ],
    }


def test_what_is_not_there_is_not_made_up(tmp_path):
    told = provenance.of_launch([unit(tmp_path / "out", [])])
    assert told["date"] is None and told["commit"] is None and told["databases"] == []
    assert told["command"] == "retro launch --out=DIR"


@pytest.mark.parametrize(
    ("flag", "shown"),
    [
        ("--config.a=('off','on')", "\"--config.a=('off','on')\""),
        ("--config.a=two words", "'--config.a=two words'"),
        ("--config.a=it's $5", "'--config.a=it'\"'\"'s $5'"),
        ("--config.a=/one/machine/folder", "--config.a=folder"),
    ],
)
def test_flags_are_told_as_a_shell_takes_them(flag, shown):
    told = provenance._without_places(shlex.join([flag]))
    assert told == shown
    if "/" not in flag:
        assert shlex.split(told) == [flag]
