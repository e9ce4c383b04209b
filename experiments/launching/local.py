"""Work units as processes of this machine, some at a time; those that were taken away go on."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

from experiments import modules
from experiments.launching.host import PREEMPTED
from experiments.launching.work_units import Unit

INTERRUPTED = 130  # as of `interrupts`
_LOOK_S = 0.1
_REST_GRACE_S = 15.0  # for the other hosts of a unit that has lost one


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much the launcher may use and try."""

    parallel: int = 1  # units at a time
    restarts: int = 10  # of a unit that was killed or preempted
    grace_s: float = 120.0  # from being asked to stop to being killed

    def validate(self) -> None:
        """Raises ValueError, naming the flag."""
        for name, least in (("parallel", 1), ("restarts", 0), ("grace_s", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"--{name} must be at least {least}, is {getattr(self, name)}"
                )


class _Running:
    """A unit whose hosts run: one process group each, which ends whole."""

    def __init__(self, unit: Unit):
        self.unit = unit
        self._lost_s = 0.0  # when a host was seen to have failed; 0 = none has
        flags = [[]] if unit.hosts == 1 else _flags(unit.hosts)
        self._hosts = [_host(unit, [*own, "--tied"]) for own in flags]

    def outcome(self) -> int | None:
        """The unit's exit status once all of its hosts have ended, the worst one's first."""
        statuses = [host.poll() for host in self._hosts]
        if None in statuses:
            if any(statuses):  # one has failed; the others soon notice, or are ended
                self._lost_s = self._lost_s or time.monotonic()
                if time.monotonic() - self._lost_s > _REST_GRACE_S:
                    self.kill()
            return None
        self.kill()  # whatever a killed host has left behind
        bad = [status for status in statuses if status]
        return next((s for s in bad if _is_failure(s)), bad[0] if bad else 0)

    def ask_to_stop(self) -> None:
        """Asks every host to save and end."""
        for host in self._hosts:
            if host.poll() is None:
                host.terminate()

    def kill(self) -> None:
        """Ends all processes of the unit at once."""
        for host in self._hosts:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(host.pid, signal.SIGKILL)
        for host in self._hosts:
            host.wait()
            if host.stdin is not None:
                host.stdin.close()


def _host(unit: Unit, flags: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        modules.command(["experiments.launching.host", str(unit.folder), *flags]),
        env=modules.environment(),
        stdin=subprocess.PIPE,  # its end tells the host that the launcher is gone
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,  # Ctrl-C is the launcher's to answer
    )


def _flags(hosts: int) -> list[list[str]]:
    """What tells each of several processes on this machine how to find the others."""
    shared = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={hosts}"]
    return [[*shared, f"--process_id={number}"] for number in range(hosts)]


def free_port() -> int:
    """A port of this machine that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _is_failure(status: int) -> bool:
    """Whether the run itself failed: it was neither killed nor preempted."""
    return status > 0 and status != PREEMPTED and status <= 128


def run(units: Sequence[Unit], limits: Limits, say: Callable[[str], None]) -> int:
    """Runs units to their ends; gives 0, or 2 if some have failed.

    Asked to stop, it asks them to save, waits and gives the exit status of that; asked
    twice, it kills them.
    """
    waiting, restarts = list(units), dict.fromkeys((unit.name for unit in units), 0)
    running: list[_Running] = []
    failed, done = [], 0
    with _asked() as signals:
        try:
            while (waiting or running) and not signals:
                while len(running) < limits.parallel and (
                    unit := _next(waiting, running)
                ):
                    waiting.remove(unit)
                    running.append(_Running(unit))
                    say(f"{unit.name}: starts")
                for one in list(running):
                    if (status := one.outcome()) is None:
                        continue
                    running.remove(one)
                    unit, name = one.unit, one.unit.name
                    if not status:
                        done += 1
                        say(f"{name}: finished ({done} of {len(units)})")
                    elif not _is_failure(status) and restarts[name] < limits.restarts:
                        restarts[name] += 1
                        _note_end(unit, status)
                        say(f"{name}: {_how(status)}; starts again ({restarts[name]})")
                        waiting.insert(0, unit)
                    else:
                        _note_end(unit, status)
                        failed.append(name)
                        say(f"{name}: {_how(status)}: {_last_line(unit)}")
                time.sleep(_LOOK_S)
            _stop(running, limits.grace_s, signals, say)
        finally:
            for one in running:
                one.kill()
    if signals:
        return INTERRUPTED if signals[0] == signal.SIGINT else PREEMPTED
    return 2 if failed else 0


def _next(waiting: Sequence[Unit], running: Sequence[_Running]) -> Unit | None:
    """The first unit that need not wait for the model of another one."""
    busy = {unit.name for unit in waiting} | {one.unit.name for one in running}
    return next((unit for unit in waiting if unit.after not in busy), None)


@contextlib.contextmanager
def _asked() -> Iterator[list[int]]:
    """Collects what has asked this process to stop, while the block runs."""
    got: list[int] = []
    heard = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
    before = {
        number: signal.signal(number, lambda signum, frame: got.append(signum))
        for number in heard
    }
    try:
        yield got
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(
    running: list[_Running],
    grace_s: float,
    signals: list[int],
    say: Callable[[str], None],
) -> None:
    """Waits for units that were asked to stop, until time is up or one asks again."""
    if not running:
        return
    say(f"asks {len(running)} running to save and stop (once more: kills them)")
    for one in running:
        one.ask_to_stop()
    end_s = time.monotonic() + grace_s
    while running and time.monotonic() < end_s and len(signals) < 2:
        for one in list(running):
            if (status := one.outcome()) is not None:
                running.remove(one)
                say(f"{one.unit.name}: {_how(status)}")
        time.sleep(_LOOK_S)
    for one in running:
        one.kill()
        _note_end(one.unit, 128 + signal.SIGKILL)
        say(f"{one.unit.name}: did not stop in time and was killed")


def _note_end(unit: Unit, status: int) -> None:
    """Writes the end of a host that was killed before it could write it itself."""
    if unit.status().get("state") == "running":
        line = f"killed (status {status})"
        unit.record(
            state="killed", exit_status=status, ended_s=time.time(), last_line=line
        )


def _how(status: int) -> str:
    if not status:
        return "finished"
    if status == PREEMPTED:
        return "preempted"
    return f"failed with status {status}" if _is_failure(status) else "killed"


def _last_line(unit: Unit) -> str:
    return unit.status().get("last_line", "")
