"""Contestants in processes of their own that take turns, so that memory is each one's own.

The parent writes a number of steps on a line, the contestant takes them and answers with
a line of JSON; at the end of its input it ends. This file needs no package, so that a
contestant may live in another Python environment.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from tools.benchmark import memory

_ROOT = Path(__file__).parents[2]


def keep_to_cores(count: int) -> None:
    """Binds this process, and the threads it will start, to the first `count` cores."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < count:
        raise ValueError(f"{count} cores asked for, there are {len(cores)}")
    os.sched_setaffinity(0, cores[:count])


def private_output() -> IO[str]:
    """Standard output for the answers alone: what libraries print goes to the error one.

    To be called before libraries are imported.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def take_turns(answers: IO[str], about: dict, step: Callable[[], float]) -> None:
    """A contestant's side: takes steps when asked, until no one asks any more.

    Args:
        about: what the parent is told first.
        step: takes a whole step; gives its loss in nats.
    """
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        step_s, step_cpu_s, loss_nats = [], [], float("nan")
        for _ in range(int(line)):
            start_s, start_cpu_s = time.perf_counter(), time.process_time()
            loss_nats = step()
            step_s.append(time.perf_counter() - start_s)
            step_cpu_s.append(time.process_time() - start_cpu_s)
        answer = {
            "step_s": step_s,
            "step_cpu_s": step_cpu_s,
            "loss_nats": loss_nats,
            "peak_bytes": memory.process_peak_bytes(),
        }
        print(json.dumps(answer), file=answers, flush=True)


class Contestant:
    """The parent's side of one contestant."""

    def __init__(self, name: str, command: Sequence[str]):
        """Starts it; waits for nothing."""
        self.name = name
        self.about: dict = {}
        self.peak_bytes, self.loss_nats = 0, float("nan")
        self.step_s: list[float] = []
        self.step_cpu_s: list[float] = []
        self._process = subprocess.Popen(
            command,
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def ready(self) -> None:
        """Waits until it is; it then idles. A first step, not counted, warms it up."""
        self.about = self._answer()
        self.turn(1)
        self.step_s.clear()
        self.step_cpu_s.clear()

    def turn(self, steps: int) -> None:
        """Lets it take steps and keeps what they took.

        Raises:
            RuntimeError: if it has ended.
        """
        assert self._process.stdin is not None
        if self._process.poll() is None:
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        answer = self._answer()
        self.step_s += answer["step_s"]
        self.step_cpu_s += answer["step_cpu_s"]
        self.peak_bytes, self.loss_nats = answer["peak_bytes"], answer["loss_nats"]

    def end(self) -> None:
        """Ends it and waits for that."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if not self.about:  # it may still be compiling
            self._process.kill()
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{self.name} ended with exit status {self._process.wait()}: see its "
                "message"
            )
        return json.loads(line)
