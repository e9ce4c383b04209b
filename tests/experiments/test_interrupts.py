"""Ctrl-C is answered from the first moment on, and one that came earlier is not lost."""

import signal
import subprocess
import sys

_HELD_BACK = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
os.kill(os.getpid(), signal.SIGINT)
from experiments import interrupts
print("before", end="")
interrupts.end_at_interrupt()
print("never")
"""


def test_one_that_was_held_back_ends_the_process_in_a_line():
    done = subprocess.run(
        [sys.executable, "-c", _HELD_BACK], capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert done.stdout == "before"
    assert done.stderr == "\nstopped; the same command goes on from here\n"


def test_it_needs_nothing_that_takes_long_to_import():
    code = "import sys; from experiments import interrupts; print(len(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 100


def test_a_second_one_changes_nothing():
    code = """
import os, signal, sys
from experiments import interrupts
os.write = lambda *_: signal.raise_signal(signal.SIGINT)
interrupts.end_at_interrupt()
signal.raise_signal(signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 130 != -signal.SIGINT
