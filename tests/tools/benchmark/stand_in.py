"""A contestant that sleeps instead of taking a step."""

import sys

_CONTESTANT = """
import time
from tools.benchmark import contestant
answers = contestant.private_output()
print("a library speaks")
contestant.take_turns(answers, {{"parameters": 7}}, lambda: time.sleep({step_s}) or 2.5)
"""


def contestant_command(step_s: float) -> list[str]:
    return [sys.executable, "-c", _CONTESTANT.format(step_s=step_s)]
