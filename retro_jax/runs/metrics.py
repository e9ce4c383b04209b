"""Metrics of a run: JSON lines for programs, TensorBoard for eyes, a line for people."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from retro_jax.config import WatchConfig
from retro_jax.runs.wandb_run import WandbRun

_FLUSH_S = 60  # how long TensorBoard may lag behind


def bits_per_byte(loss_nats: float, num_bytes: float) -> float:
    """Summed loss in nats over a text of so many UTF-8 bytes, in bits for each byte.

    Comparable between tokenizers, as a loss per token is not. NaN for a text of 0 bytes.
    """
    return loss_nats / (num_bytes * math.log(2)) if num_bytes else math.nan


class MetricsWriter:
    """Appends to `metrics.jsonl` and to TensorBoard event files in one folder.

    If it is asked for, Weights & Biases gets the values, too.

    After a restart at an earlier step the JSON lines past that step are dropped, so the
    file never holds two lines for a step.
    """

    def __init__(
        self,
        folder: Path,
        *,
        first_step: int,
        writes: bool = True,
        watch: WatchConfig | None = None,
        settings: Mapping = MappingProxyType({}),
    ):
        """`writes` is for one of several processes; in the others nothing happens."""
        self._writes = writes
        if not writes:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self._path) if row["step"] <= first_step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(temporary, self._path)
        self._file = self._path.open("a")
        self._boards: list[_Board | WandbRun] = [_Board(folder, first_step + 1)]
        if watch is not None and watch.wandb:
            self._boards.append(WandbRun(watch, folder, settings))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends the values of a step, at once on disk."""
        if not self._writes:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for board in self._boards:
            board.write(step, values)

    def close(self) -> None:
        """Closes the files."""
        if self._writes:
            self._file.close()
            for board in self._boards:
                board.close()


@contextlib.contextmanager
def _absent(module: str) -> Iterator[None]:
    """A module that is not imported yet can't be, as if it were not installed."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # as the import system has it
    try:
        yield
    finally:
        del sys.modules[module]


class _Board:
    """The event file that TensorBoard reads.

    tensorboardX's own SummaryWriter hands events over through a queue between processes,
    which needs a /dev/shm that can be written to.
    """

    def __init__(self, folder: Path, first_step: int):
        # Slow to import: only who writes pays.
        with _absent("torch"):  # tensorboardX would import it, for seconds, for nothing
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.summary import scalar

        self._event, self._scalar = Event, scalar
        self._flushed_s = time.monotonic()
        self._file = EventsWriter(str(folder / "events"))
        # TensorBoard then forgets the steps from here on that an earlier file has.
        log = SessionLog(status=SessionLog.START)
        self._add(first_step, session_log=log)

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            if math.isfinite(value):  # TensorBoard has no place for others
                self._add(step, summary=self._scalar(name, value))
        if time.monotonic() - self._flushed_s > _FLUSH_S:
            self._file.flush()  # waits for the disk
            self._flushed_s = time.monotonic()

    def _add(self, step: int, **content) -> None:
        event = self._event(step=step, wall_time=time.time(), **content)
        self._file.write_event(event)

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict]:
    """The rows of a `metrics.jsonl`; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not (isinstance(row, dict) and type(row.get("step")) is int):
            break  # no writer of ours made it
        rows.append(row)
    return rows


class Rate:
    """Tokens per second and the share of time spent waiting for data, since last asked."""

    def __init__(self, clock=time.perf_counter):
        self._clock = clock
        self._tokens, self._waited_s = 0, 0.0
        self._since = self.moment()

    def add(self, *, tokens: int = 0, waited_s: float = 0.0) -> None:
        """Counts tokens of a step that is done, or a wait for a batch that has ended."""
        self._tokens += tokens
        self._waited_s += waited_s

    def moment(self) -> tuple[float, float]:
        """The time, and how long was waited until then."""
        return self._clock(), self._waited_s

    def take(self, until: tuple[float, float]) -> dict[str, float]:
        """Gives rate and share from the last call's moment to this one, and begins anew."""
        (start_s, waited_before_s), self._since = self._since, until
        elapsed_s = max(until[0] - start_s, 1e-9)
        tokens, self._tokens = self._tokens, 0
        return {
            "tokens_per_s": tokens / elapsed_s,
            "waiting_for_data_share": (until[1] - waited_before_s) / elapsed_s,
        }


def say(line: str) -> None:
    """Prints a line for the person who watches, at once, whatever standard output is."""
    print(line, file=sys.stdout, flush=True)


def duration(seconds: float) -> str:
    """A time in words: '12 s', '3 min 05 s', '2 h 07 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
