"""Contestants in processes of their own that take turns, each with memory of its own.

The parent writes a number of steps on a line, the contestant takes them and answers with
a line of JSON; at the end of its input it ends. This file needs no package, so that a
contestant may live in another Python environment.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from tools.benchmark import memory

_ROOT = Path(__file__).parents[2]


def serve(
    builders: Mapping[str, Callable[[argparse.Namespace], tuple[dict, Callable]]],
) -> None:
    """Runs the contestant's side of `peer`: reads its flags, then takes turns.

    Args:
        builders: of each model by name; a builder gives what the parent is told first,
            and a function that takes a step and gives its loss in nats.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=builders)
    parser.add_argument("--mode", required=True, help="dtype, or our model's settings")
    parser.add_argument("--retrieval", choices=["on", "off"], required=True)
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--cores", type=int, required=True)
    args = parser.parse_args()
    answers = private_output()  # before libraries are imported
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < args.cores:
        raise ValueError(f"{args.cores} cores asked for, there are {len(cores)}")
    os.sched_setaffinity(0, cores[: args.cores])  # before libraries count them
    take_turns(answers, *builders[args.model](args))


def private_output() -> IO[str]:
    """Keeps standard output for the answers; what libraries print goes to the error one."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def take_turns(answers: IO[str], about: dict, step: Callable[[], float]) -> None:
    """Takes steps when asked, until no one asks any more."""
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        step_s, loss_nats = [], float("nan")
        for _ in range(int(line)):
            start_s = time.perf_counter()
            loss_nats = step()
            step_s.append(time.perf_counter() - start_s)
        answer = {
            "step_s": step_s,
            "loss_nats": loss_nats,
            "peak_bytes": memory.process_peak_bytes(),
        }
        print(json.dumps(answer), file=answers, flush=True)


class Contestant:
    """The parent's side of one contestant: its process, and what its steps took."""

    def __init__(self, name: str, command: Sequence[str]):
        """Starts the process; waits for nothing."""
        self.name = name
        self.about: dict = {}
        self.peak_bytes, self.loss_nats = 0, float("nan")
        self.step_s: list[float] = []
        self._process = subprocess.Popen(
            command,
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def ready(self) -> None:
        """Waits until the contestant is ready; takes a first step, which is not counted."""
        self.about = self._answer()
        self.turn(1)
        self.step_s.clear()

    def turn(self, steps: int) -> None:
        """Lets the contestant take steps and keeps what they took.

        Raises:
            RuntimeError: if the process has ended.
        """
        assert self._process.stdin is not None
        if self._process.poll() is None:
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        answer = self._answer()
        self.step_s += answer["step_s"]
        self.peak_bytes, self.loss_nats = answer["peak_bytes"], answer["loss_nats"]

    def end(self) -> None:
        """Ends the process and waits for its end."""
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
