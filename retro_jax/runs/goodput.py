"""Goodput: how much of a run's time went into steps that count, and what took the rest.

A process counts each of its seconds in one part, and keeps the sums in a file beside what it
makes. A run's sums are those of all processes that it took, one after the other. What they
trained again is not counted as steps, and the time between them, where one was killed or
preempted, is counted as restarts.
"""

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from retro_jax.runs.metrics import duration
from retro_jax.runs.preemption import Preempted

PARTS = ("steps", "data", "compile", "checkpoint", "start", "evaluation")
REDONE, RESTARTS = "redone", "restarts"  # of a run alone, not of a process
FILE = "time.json"
_WRITE_S = 5.0  # between two looks at the disk: so much a kill may leave uncounted
_LARGEST = 1e12  # of what is read: no run took so many seconds or steps
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Stopwatch:
    """The seconds of this process, each in one of `PARTS`."""

    def __init__(
        self,
        path: Path | None,
        first_step: int = 0,
        *,
        age_s: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Begins in the part `start`.

        Args:
            path: gets the sums; None, as in all processes but the first, writes nothing.
            first_step: steps that were done before.
            age_s: how long this process has run; all of it went into the start.
        """
        self._path, self._clock = path, clock
        self._before = _attempts(path) if path else []
        self._now = self._since_s = clock()
        self._part, self._written_s = "start", -math.inf
        self._seconds = dict.fromkeys(PARTS, 0.0) | {"start": age_s}
        self._own: dict = {
            "began_s": time.time() - age_s,
            "first_step": first_step,
            "step": first_step,
            "to_first_step_s": None,
            "ended": None,
        }

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts the block's time in this part; parts within it are their own."""
        before = self._part
        self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def enter(self, name: str) -> None:
        """Counts the time from now on in this part."""
        now_s = self._clock()
        self._seconds[self._part] += now_s - self._since_s
        self._part, self._since_s = name, now_s

    def move(self, seconds: float, name: str) -> None:
        """Counts seconds that have just passed in another part than the one they passed in."""
        self._seconds[self._part] -= seconds
        self._seconds[name] += seconds

    def resumed(self, first_step: int) -> None:
        """Notes from which step the run goes on."""
        self._own |= {"first_step": first_step, "step": first_step}

    def reached(self, step: int) -> None:
        """Notes that a step is done; now and then the file is written."""
        self._own["step"] = step
        if self._own["to_first_step_s"] is None:
            self.enter(self._part)
            self._own["to_first_step_s"] = sum(self._seconds.values())
        if self._clock() - self._written_s > _WRITE_S:
            self.write()

    def write(self, ended: str | None = None) -> None:
        """Writes the sums until now, whole."""
        if self._path is None:
            return
        self.enter(self._part)
        self._own |= {"seconds": self._seconds, "now_s": time.time(), "ended": ended}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"attempts": [*self._before, self._own]}))
        os.replace(temporary, self._path)
        self._written_s = self._clock()


@contextlib.contextmanager
def measured(folder: Path, *, writes: bool = True) -> Iterator[Stopwatch]:
    """Keeps the time of this process in a folder while the block runs, and how it ended."""
    import jax  # here: who only reads times starts at once

    stopwatch = Stopwatch(folder / FILE if writes else None, age_s=_age_s())

    def heard(event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED:
            stopwatch.move(duration_secs, "compile")

    jax.monitoring.register_event_duration_secs_listener(heard)
    ended = "failed"
    try:
        yield stopwatch
        ended = "finished"
    except Preempted:
        ended = "preempted"
        raise
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
        # What ends the block is worth more than this.
        with contextlib.suppress(OSError):
            stopwatch.write(ended)


def _age_s() -> float:
    """How long ago this process began, where the system says so; else 0."""
    try:
        stat = Path("/proc/self/stat").read_text()
        ticks = int(stat.rpartition(")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf(
            "SC_CLK_TCK"
        )
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
    return max(age_s, 0.0)


def _attempts(path: Path) -> list[dict]:
    """The processes that a file tells of; none if it is not one that `Stopwatch` wrote."""
    try:
        attempts = json.loads(path.read_text())["attempts"]
        return [attempt for attempt in attempts if _is_sound(attempt)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _is_sound(attempt: Mapping) -> bool:
    numbers = [attempt[name] for name in ("began_s", "now_s", "first_step", "step")]
    numbers += [attempt["seconds"][name] for name in PARTS]
    return all(
        isinstance(number, int | float) and abs(number) < _LARGEST for number in numbers
    )


def attempts(workdir: Path) -> tuple[list[dict], list[dict]]:
    """The processes that trained in a run's folder, and those that evaluated."""
    return (
        _attempts(workdir / "metrics" / FILE),
        _attempts(workdir / "evaluation" / FILE),
    )


def summary(workdir: Path) -> dict | None:
    """Where the time of a run went, as JSON; None if it has not begun."""
    trained, evaluated = attempts(workdir)
    if not trained and not evaluated:
        return None
    seconds = dict.fromkeys((*PARTS, REDONE, RESTARTS), 0.0)
    for attempt in (*trained, *evaluated):
        for name in PARTS:
            seconds[name] += attempt["seconds"][name]
    for earlier, later in itertools.pairwise(trained):
        done = earlier["step"] - earlier["first_step"]
        again = min(max(earlier["step"] - later["first_step"], 0), done)
        lost_s = earlier["seconds"]["steps"] * again / done if done > 0 else 0.0
        seconds["steps"] -= lost_s
        seconds[REDONE] += lost_s
        if earlier.get("ended") in (None, "preempted"):
            seconds[RESTARTS] += max(later["began_s"] - earlier["now_s"], 0.0)
    return of_seconds(seconds) | {"processes": len(trained) + len(evaluated)}


def of_seconds(seconds: Mapping[str, float]) -> dict:
    """The share of the time that counts, beside what all parts took."""
    wall_s = sum(seconds.values())
    return {
        "useful_share": seconds["steps"] / wall_s if wall_s > 0 else 0.0,
        "wall_s": wall_s,
        "seconds": dict(seconds),
    }


def total(found: Sequence[Mapping]) -> dict | None:
    """The sums of several runs; None if there are none."""
    if not found:
        return None
    names = found[0]["seconds"]
    return of_seconds(
        {name: sum(one["seconds"][name] for one in found) for name in names}
    )


def line(found: Mapping) -> str:
    """A summary in words: what took most comes first."""
    wall_s = max(found["wall_s"], 1e-9)
    parts = sorted(found["seconds"].items(), key=lambda part: -part[1])
    told = [f"{name} {seconds / wall_s:.0%}" for name, seconds in parts]
    shown = [words for words in told if not words.endswith(" 0%")]
    return f"{found['useful_share']:.0%} of {duration(found['wall_s'])} in useful steps ({', '.join(shown)})"
