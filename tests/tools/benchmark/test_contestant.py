"""Contestants in processes of their own take turns."""

import sys

import pytest

from tests.tools.benchmark.stand_in import contestant_command
from tools.benchmark.contestant import Contestant


def test_contestants_take_turns():
    one = Contestant("one", contestant_command(0.01))
    one.ready()
    one.turn(2)
    one.turn(1)
    one.end()
    assert one.about == {"parameters": 7}
    assert len(one.step_s) == 3 and min(one.step_s) >= 0.01
    assert one.loss_nats == 2.5 and one.peak_bytes > 1_000_000
    assert one._process.returncode == 0


def test_a_contestant_that_ends_is_named():
    one = Contestant("one", [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(RuntimeError, match="one ended with exit status 3"):
        one.ready()
    one.end()
