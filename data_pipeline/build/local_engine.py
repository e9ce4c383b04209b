"""Makes shards on this machine.

Work that keeps all cores or an accelerator busy is done in this process, one shard after the
other. So is work that uses one core, unless that would take long: then a process a core does
it. These processes end with this one, however it ends: nobody is left who would write into
the next build.
"""

import collections
import dataclasses
import multiprocessing.connection
import os
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from data_pipeline.build.engine import Report, Resource, Work, make_shard

_LONG_S = 20.0  # of work left for one process; others take a few seconds to start
_MOST_PROCESSES = 16  # each holds a shard in memory
_ONE_CORE = {
    "JAX_PLATFORMS": "cpu",
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
}


class LocalEngine:
    """This process, and others where one core is too slow; satisfies `Engine`."""

    def __init__(self, *, workers: int = 0):
        """`workers`: shards made at once, at most; 0 = one a core, 16 or fewer.

        Raises:
            ValueError: if it is negative.
        """
        if workers < 0:
            raise ValueError(f"workers must not be negative, is {workers}")
        self._most = workers or min(_num_cores(), _MOST_PROCESSES)

    def run(
        self,
        work: Work,
        folder: Path,
        shards: Sequence[str],
        resource: Resource,
        on_report: Callable[[Report], None],
    ) -> None:
        """Makes the shards, as `Engine.run` says.

        This process makes the first shard, and the next ones in order. Once a shard is made
        it is known how long the others would take: where that is more than 20 s and the
        work needs one core a shard, a process a core makes all that are left.

        Raises:
            ValueError: if a process that makes a shard is lost.
        """
        may_spread = (
            resource == "core" and self._most > 1 and dataclasses.is_dataclass(work)
        )
        waiting = collections.deque(shards)
        start_s = time.monotonic()
        while waiting:
            made = len(shards) - len(waiting)
            # As long for each that waits as it took for each that is made.
            left_s = (time.monotonic() - start_s) / max(made, 1) * len(waiting)
            if may_spread and made and len(waiting) > 1 and left_s > _LONG_S:
                _spread(work, folder, waiting, min(self._most, len(waiting)), on_report)
                return
            for report in make_shard(work, folder, waiting.popleft()):
                on_report(report)


def _num_cores() -> int:
    """The cores of this process; those of the machine, where a system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _spread(
    work: Work,
    folder: Path,
    waiting: collections.deque[str],
    num_processes: int,
    on_report: Callable[[Report], None],
) -> None:
    """Makes the shards that wait by as many processes."""
    everyone: list[_Process] = []
    try:
        for _ in range(num_processes):
            everyone.append(_Process(work, folder))
            everyone[-1].begin(waiting.popleft())
        busy = list(everyone)
        while busy:
            ready = multiprocessing.connection.wait([p.connection for p in busy])
            for process in [p for p in busy if p.connection in ready]:
                for report in process.result():
                    on_report(report)
                if waiting:
                    process.begin(waiting.popleft())
                else:
                    busy.remove(process)
    finally:
        for process in everyone:
            process.end()


class _Process:
    """Another process of this code, that makes one shard after the other of a stage."""

    def __init__(self, work: Work, folder: Path):
        self.connection, theirs = multiprocessing.Pipe()
        self._folder, self._shard = folder, ""
        paths = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | _ONE_CORE | {"PYTHONPATH": paths},
            start_new_session=True,  # Ctrl-C is for the one that started it
        )
        theirs.close()
        self.connection.send((work, folder))

    def begin(self, shard: str) -> None:
        """Has it make a shard."""
        self._shard = shard
        self.connection.send(shard)

    def result(self) -> list[Report]:
        """Gives what the work reported; raises what it raised, as if it had done so here."""
        try:
            result = self.connection.recv()
        except (EOFError, OSError) as error:
            raise ValueError(
                f"the process that made {self._folder / self._shard} was lost (exit "
                f"status {self._process.wait()}; out of memory? --workers=1 needs least)"
            ) from error
        if isinstance(result, Exception):
            raise result
        return result

    def end(self) -> None:
        """Ends it at once; the shard that it was making is not there."""
        self._process.kill()
        self._process.wait()
        self.connection.close()


def _make_for_parent(connection: Connection) -> None:
    """Runs in the other process, until nobody holds the other end any more."""
    received: queue.SimpleQueue = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                received.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # in the middle of a shard, too

    threading.Thread(target=listen, daemon=True).start()
    work, folder = received.get()
    while True:
        connection.send(_attempt(work, folder, received.get()))


def _attempt(work: Work, folder: Path, shard: str) -> list[Report] | Exception:
    try:
        return list(make_shard(work, folder, shard))
    except Exception as error:  # noqa: BLE001  whoever started this handles it
        error.add_note(traceback.format_exc())
        return _that_can_be_sent(error)


def _that_can_be_sent(error: Exception) -> Exception:
    """An error that the parent can receive: it may lack a library, or its arguments."""
    if type(error).__module__ == "builtins":
        return error
    for kind in (OSError, ValueError):  # a user's mistake stays one
        if isinstance(error, kind):
            return kind(str(error))
    return RuntimeError("".join(traceback.format_exception(error)))


if __name__ == "__main__":
    _make_for_parent(Connection(int(sys.argv[1])))
