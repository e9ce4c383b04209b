"""The requests that a server has under way at once, and those it refuses.

There is a fixed most, and below it a limit that finds what the machine can do. A request
that takes more than half of its time has waited: the limit falls to as many as were answered
meanwhile, for so many are what half of its time is enough for. Each request that is in time
raises it again. Without it an overloaded server works on requests that have no time left,
and answers almost none.
Source: ours. Little's law gives the fall; the slow rise is TCP's (Chiu and Jain 1989).

Each kind of request has an `Admission` of its own, so that one that can't be served in time
shuts out no other. `InFlight` bounds the bytes of all kinds together.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

import grpc

from data_pipeline.service.server.observability import Metrics

_LATE_SHARE = 0.5  # of a request's time
# With less time than that a request is late through no fault of the server's.
_SHORTEST_S = 0.1
_LEAST = 4
# So few bytes that the number of requests bounds them.
_SMALL_BYTES = 64 << 10


class Refused(Exception):
    """An answer that is an error, with its gRPC status."""

    def __init__(self, code: grpc.StatusCode, message: str):
        """`message` is for the caller to read."""
        super().__init__(message)
        self.code = code


class InFlight:
    """The bytes that a server has in hand: of requests, and of answers made and sent."""

    def __init__(self, most_bytes: int, metrics: Metrics):
        """`most_bytes` are in hand at once.

        Small ones are taken always: callers that do not read what they asked for, until
        their connections are closed, shut large answers out but no others.
        """
        self._most_bytes, self._bytes, self._gauge = most_bytes, 0, metrics.bytes

    def take(self, size_bytes: int) -> None:
        """Counts bytes that are about to be.

        Raises:
            Refused: RESOURCE_EXHAUSTED, if there would be more than there may be.
        """
        is_small = size_bytes <= _SMALL_BYTES
        if not is_small and self._bytes + size_bytes > self._most_bytes:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"overloaded: {self._bytes} bytes of requests and answers are under way, "
                f"{size_bytes} more than fit; try again later",
            )
        self._add(size_bytes)

    def give_back(self, size_bytes: int) -> None:
        """Counts bytes that are gone."""
        self._add(-size_bytes)

    def _add(self, change: int) -> None:
        self._bytes += change
        self._gauge.set(self._bytes)


class Admission:
    """How many requests of a kind are under way, and how many there may be."""

    def __init__(
        self,
        running: int,
        waiting: int,
        metrics: Metrics,
        kind: str,
        *,
        now_s: Callable[[], float] = time.monotonic,
    ):
        """Takes how many of a kind can run at once and how many may wait for that."""
        self._running, self._most = running, running + waiting
        self._in_flight = metrics.in_flight.labels(kind)
        self._limit_gauge = metrics.limit.labels(kind)
        self._queue_length = metrics.queue_length.labels(kind)
        self._kind, self._now_s = kind, now_s
        self._count, self._num_answered, self._cut_at_s = 0, 0, -float("inf")
        self._set_limit(self._most)
        self._add(0)

    @contextlib.contextmanager
    def place(self, timeout_s: float) -> Iterator[None]:
        """Counts a request that has so much time.

        Raises:
            Refused: RESOURCE_EXHAUSTED, if as many are under way as there may be.
        """
        if self._count >= int(self._limit):
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"overloaded: {self._count} requests of {self._kind} are under way; try "
                "again later",
            )
        start_s, num_before = self._now_s(), self._num_answered
        self._add(1)
        try:
            yield
            self._num_answered += 1
        finally:
            self._add(-1)
            self._learn(start_s, timeout_s, self._num_answered - num_before)

    def _learn(self, start_s: float, timeout_s: float, num_meanwhile: int) -> None:
        now_s = self._now_s()
        took_s, enough_s = now_s - start_s, _LATE_SHARE * timeout_s
        if took_s <= enough_s:
            self._set_limit(min(self._most, self._limit + 1 / self._limit))
        elif start_s >= self._cut_at_s and timeout_s >= _SHORTEST_S:
            # Those that began before the last cut say nothing of what it has done.
            self._cut_at_s = now_s
            wanted = min(self._limit, num_meanwhile * enough_s / took_s)
            self._set_limit(max(min(_LEAST, self._most), wanted))

    def _set_limit(self, limit: float) -> None:
        self._limit = limit
        self._limit_gauge.set(int(limit))

    def _add(self, change: int) -> None:
        self._count += change
        self._in_flight.set(self._count)
        self._queue_length.set(max(0, self._count - self._running))
