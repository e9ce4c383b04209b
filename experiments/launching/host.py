"""One host of a work unit: runs its jobs in order and keeps its status.

    python -m experiments.launching.host DIR/unit-000 [flags for each job]

It hands SIGTERM and SIGUSR2 on, so that the run saves, and then ends with status 75. All else
that clusters start ends here: every executor starts this.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from data_pipeline.storage.printing import printable_line, protect_streams
from experiments import modules
from experiments.launching import work_units

PREEMPTED = os.EX_TEMPFAIL  # 75, as of `command_line`, which takes a while to import
_TIED = "--tied"  # ends, as at SIGTERM, when its standard input does
_LINE_CHARS = 300  # of the last line, in a status
# Where clusters say which of a run's processes this is.
_NUMBERS = (
    "JOB_COMPLETION_INDEX",
    "TPU_WORKER_ID",
    "SLURM_PROCID",
    "OMPI_COMM_WORLD_RANK",
    "SKYPILOT_NODE_RANK",
)


class Child:
    """A process that gets the signals which ask this one to stop."""

    def __init__(self) -> None:
        self.asked_to_stop = False
        self._process: subprocess.Popen | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hands the signals of preemption on while the block runs."""
        heard = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
        before = {number: signal.signal(number, self._hand_on) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hand_on(self, number: int, frame: object) -> None:
        self.asked_to_stop = True
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)

    def run(self, words: list[str], heard: Callable[[bytes], None]) -> int:
        """Runs a module to its end, and gives its lines to `heard`; gives its exit status."""
        if self.asked_to_stop:
            return PREEMPTED
        with subprocess.Popen(
            modules.command(words),
            env=modules.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            self._process = process
            if self.asked_to_stop:  # it came meanwhile
                process.terminate()
            for line in process.stdout or ():
                heard(line)
            status = process.wait()
        self._process = None
        return status if status >= 0 else 128 - status


def run(folder: Path, flags: list[str], child: Child) -> int:
    """Runs the jobs of a unit on this host; gives the exit status.

    Raises:
        ValueError: if the folder holds no work unit.
    """
    unit = work_units.read_unit(folder)
    if unit is None:
        raise ValueError(f"{folder} holds no work unit (unit.json): launch one first")
    number = _number(flags)
    record = unit.record if number == 0 else _nothing
    if not unit.has_start:
        line = f"it starts from {unit.after}, which is not finished: launch again then"
        record(state="failed", exit_status=2, ended_s=time.time(), last_line=line)
        print(f"error: {line}", flush=True)
        return 2
    attempts = unit.status().get("attempts", 0) + 1
    here = {"host": socket.gethostname(), "pid": os.getpid(), "attempts": attempts}
    record(state="running", began_s=time.time(), exit_status=None, **here)
    last = ""
    with (folder / f"host-{number}.log").open("ab", buffering=0) as log:

        def heard(line: bytes) -> None:
            nonlocal last
            log.write(line)
            text = line.decode(errors="replace").strip()
            last = text or last
            print(printable_line(text), flush=True)

        status = 0
        for job in unit.jobs:
            record(job=job[1].removeprefix("--job=") if job[1:] else job[0])
            if status := child.run([*job, *flags], heard):
                break
    if status and child.asked_to_stop:
        status = PREEMPTED
    state = {0: "finished", PREEMPTED: "preempted"}.get(
        status, "killed" if status > 128 else "failed"
    )
    told = printable_line(last)[:_LINE_CHARS]
    record(state=state, exit_status=status, ended_s=time.time(), last_line=told)
    return status


def _nothing(**changes: object) -> None:
    """Other hosts than the first write no status."""


def _number(flags: list[str]) -> int:
    """Which of the unit's hosts this is, by its flags or by the cluster's variables."""
    for flag in flags:
        if flag.startswith("--process_id="):
            return int(flag.partition("=")[2])
    if "--distributed" in flags:
        for name in _NUMBERS:
            if os.environ.get(name, "").isdigit():
                return int(os.environ[name])
    return 0


def _end_with_input() -> None:
    """Ends this process in order as soon as nobody holds the other end of its input."""

    def wait() -> None:
        while os.read(0, 1):  # sys.stdin's lock would crash Python as it ends
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def main(argv: list[str]) -> int:
    """Runs the unit that the command line names; gives the exit status."""
    if not argv or argv[0].startswith("-"):
        print("error: name the folder of a work unit", file=sys.stderr)
        return 2
    folder, *flags = argv
    child = Child()
    with child.listening():
        if _TIED in flags:
            flags.remove(_TIED)
            _end_with_input()
        try:
            return run(Path(folder).absolute(), flags, child)
        except (ValueError, OSError) as error:
            print(f"error: {printable_line(str(error))}", file=sys.stderr, flush=True)
            return 2


if __name__ == "__main__":
    protect_streams()
    sys.exit(main(sys.argv[1:]))
