"""Mistakes in the command of a build end in a line, and nothing is built."""

import pytest

from data_pipeline.storage import locks
from tests.commands import TINY, check_mistake


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            (
                "experiments.build_database",
                TINY,
                "--database={tmp}",
                "--config.data.corpus=/no/such/place",
            ),
            "/no/such/place",
        ),
        (
            (
                "experiments.build_database",
                TINY,
                "--database={tmp}",
                "--config.data.chunk_len=0",
            ),
            "data.chunk_len",
        ),
        (
            (
                "experiments.build_database",
                TINY,
                "--database={tmp}",
                "--stage=nothing",
            ),
            "nothing",
        ),
        (
            ("experiments.build_database", TINY, "--database=/proc/nothing"),
            "can't write to /proc/nothing",
        ),
        (("experiments.build_database", TINY, "--database={tmp}", "extra"), "extra"),
        (
            (
                "experiments.build_database",
                TINY,
                "--database={tmp}",
                "--ray_address=a",
            ),
            "--ray_address is for --engine=ray",
        ),
        (
            ("experiments.build_database", TINY, "--database={tmp}", "--workers=-1"),
            "workers must not be negative, is -1",
        ),
    ],
)
def test_mistakes_end_in_a_line_and_not_in_a_traceback(arguments, expected, tmp_path):
    check_mistake(arguments, expected, tmp_path)


def test_the_database_of_a_run_that_is_trained_is_left_alone(tmp_path):
    (tmp_path / "run.json").touch()
    with locks.locked(tmp_path / ".training", "training in"):
        command = ("experiments.build_database", "--workdir={tmp}")
        check_mistake(command, f"another process is training in {tmp_path}", tmp_path)
    assert not (tmp_path / "database").exists()
