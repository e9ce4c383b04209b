"""Mistakes in the commands of a run end in a line, and nothing is written."""

import pytest

from tests.commands import TINY, check_mistake


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("experiments.main", TINY, "--workdir=/tmp/none", "--job=fly"), "fly"),
        (("experiments.main", TINY, "--workdir={tmp}"), "job"),
        (
            ("experiments.main", TINY, "--workdir={tmp}", "--job=train"),
            "build it with `retro database` (`make database`), with the same --corpus",
        ),
        (
            (
                "experiments.main",
                TINY,
                "--workdir={tmp}",
                "--job=train",
                "--database=grpc://localhost:1",
            ),
            "--job=train needs the database's folder: grpc://localhost:1 is a service",
        ),
        (
            (
                "experiments.main",
                TINY,
                "--workdir={tmp}",
                "--job=train",
                "--config.train.stepz=3",
            ),
            "stepz",
        ),
        (
            (
                "experiments.main",
                TINY,
                "--workdir={tmp}",
                "--job=train",
                "--config.train.steps=abc",
            ),
            "abc",
        ),
        (
            ("experiments.main", f"{TINY}:huge", "--workdir={tmp}", "--job=train"),
            "huge",
        ),
        (
            ("experiments.main", "--config=no.py", "--workdir={tmp}", "--job=train"),
            "no.py",
        ),
    ],
)
def test_mistakes_end_in_a_line_and_not_in_a_traceback(arguments, expected, tmp_path):
    check_mistake(arguments, expected, tmp_path)
