"""Progress of a long step: a line that changes on a terminal, plain lines in a log."""

import sys
import time

from data_pipeline.storage.printing import printable


def say(line: str) -> None:
    """One line for the person who watches, at once; text of others in it does no harm."""
    print(printable(line), file=sys.stdout, flush=True)


class Progress:
    """Says how far a step is, how fast it goes and how long it will still take.

    Use as a context manager; `advance` as work is done.
    """

    def __init__(self, name: str, total: int | None, unit: str, clock=time.monotonic):
        """`total` is None where nobody knows; then no time left is given."""
        self._name, self._total, self._unit, self._clock = name, total, unit, clock
        self._is_terminal = sys.stdout.isatty()
        self._every_s = 0.2 if self._is_terminal else 10.0

    # Not Self: the tests' type checker can't resolve it.
    def __enter__(self) -> "Progress":  # noqa: PYI034
        self._began_s = self._said_s = self._clock()
        self._done = 0
        return self

    def advance(self, amount: int) -> None:
        self._done += amount
        now_s = self._clock()
        if now_s - self._said_s >= self._every_s:
            self._said_s = now_s
            end = "\r" if self._is_terminal else "\n"
            print(self._line(now_s), end=end, file=sys.stdout, flush=True)

    def _line(self, now_s: float) -> str:
        rate = self._done / max(now_s - self._began_s, 1e-9)
        so_far = f"{self._done:,} {self._unit}  {_a_second(rate)}"
        if self._total is None:
            return f"{self._name}: {so_far}   "
        left_s = (self._total - self._done) / rate if rate else 0.0
        share = self._done / self._total if self._total else 1.0
        return f"{self._name}: {share:4.0%}  {so_far}  {left_s:.0f} s left   "

    def __exit__(self, kind, error, trace) -> None:
        if kind is None and self._done:
            elapsed_s = self._clock() - self._began_s
            rate = self._done / max(elapsed_s, 1e-9)
            line = f"{self._name}: {self._done:,} {self._unit} in {elapsed_s:.1f} s "
            say(f"{line}({_a_second(rate)})".ljust(78))


def _a_second(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"
