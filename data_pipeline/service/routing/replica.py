"""A shard server as a router sees it: its calls, its breaker, the versions it has."""

import asyncio
import time

import grpc
import grpc.aio

from data_pipeline.service.routing.breaker import Breaker
from data_pipeline.service.server.observability import Log, Metrics
from data_pipeline.service.wire import addresses, security
from data_pipeline.service.wire import retrieval_pb2 as pb
from data_pipeline.service.wire.stubs import stub_of

# A server that answers this works: the fault is the caller's, or there are too many.
_WORKING = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
_LOST_AFTER = 3  # leases in a row without an answer


class Unanswered(Exception):
    """No replica answered; `code` is the last one's status."""

    def __init__(self, code: grpc.StatusCode, message: str):
        """`message` names the replica and what it said."""
        super().__init__(message)
        self.code = code


class Replica:
    """A shard server and its circuit breaker."""

    def __init__(
        self, address: str, credentials, token: str | None, metrics: Metrics, log: Log
    ):
        """Connects at the first call, and again whenever the connection is lost."""
        options = [
            *addresses.channel_options(address),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 5000),
        ]
        self._channel = (
            grpc.aio.insecure_channel(address, options)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options)
        )
        self._stub = stub_of(self._channel, "Shard")
        self._metadata, self._log = security.metadata(token), log
        self._left_alone = metrics.left_alone.labels(address)
        self._left_alone.set(0)
        self.address, self.in_flight, self.breaker = address, 0, Breaker()
        self._code = grpc.StatusCode.UNKNOWN  # of the newest failure
        self._slow_method: str | None = None  # if that was slowness: in what
        self._held: list[pb.DatabaseState] | None = None  # None: it was not asked yet
        self._num_missed = 0  # leases in a row without an answer
        self._trials: set[asyncio.Task] = set()

    async def call(self, method: str, request, timeout_s: float, fair_s: float):
        """Sends a request, gives the answer and records how the server did.

        Args:
            fair_s: no answer in less time than that is no failure: a caller in a hurry
                tells nothing of the server.
        Raises:
            Unanswered: if there is no answer within `timeout_s`, or an error.
        """
        self.in_flight += 1
        try:
            call = getattr(self._stub, method)
            answer = await call(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            reason = addresses.explain(error.details(), self.address)
            code, details = error.code(), f"{self.address}: {reason}"
            is_late = code == grpc.StatusCode.DEADLINE_EXCEEDED
            if code in _WORKING:
                self._record_answer_to(method)
            elif not is_late or timeout_s >= fair_s:
                self._code = code
                self._record_failure(details)
            raise Unanswered(code, details) from error
        finally:
            self.in_flight -= 1
        self._record_answer_to(method)
        return answer

    def _record_answer_to(self, method: str) -> None:
        # Searches and passages have threads of their own: one says nothing of the other.
        if self._slow_method in (None, method):
            self._record_answer()

    def _record_answer(self) -> None:
        self._slow_method = None
        if self.breaker.record_answer():
            self._left_alone.set(0)
            self._log("replica_is_back", replica=self.address)

    def _record_failure(self, reason: str, slow_method: str | None = None) -> None:
        self._slow_method = slow_method
        was_slow = slow_method is not None
        if self.breaker.record_failure(time.monotonic(), reason, was_slow=was_slow):
            self._left_alone.set(1)
            self._log("replica_left_alone", replica=self.address, reason=reason)

    def record_outrun(self, method: str) -> None:
        """Counts that another replica answered first."""
        self._record_failure("slower than another replica", method)

    def left_alone(self) -> Unanswered:
        """The error of a request that would have gone to this replica."""
        pause_s = max(0.0, self.breaker.retry_at_s - time.monotonic())
        return Unanswered(
            self._code,
            f"left alone after {self.breaker.in_a_row} failures in a row, tried again in "
            f"{pause_s:.1f} s; it said: {self.breaker.reason}",
        )

    def try_if_due(self, method: str, request, timeout_s: float, fair_s: float) -> None:
        """Sends a request that nobody waits for, if the pause is over."""
        is_telling = self._slow_method in (None, method)
        if not is_telling or not self.breaker.begin_trial(time.monotonic()):
            return

        async def trial() -> None:
            try:
                await self.call(method, request, max(timeout_s, fair_s), fair_s)
            except Unanswered:
                pass
            finally:
                self.breaker.end_trial(time.monotonic())

        task = asyncio.get_running_loop().create_task(trial())
        self._trials.add(task)
        task.add_done_callback(self._trials.discard)

    def version_changed(self) -> None:
        """Forgets a refusal: the server has another version now, or is asked for another."""
        if self._code == grpc.StatusCode.FAILED_PRECONDITION:
            self._record_answer()

    async def renew_lease(
        self, request: pb.HoldRequest, timeout_s: float, *, leads: bool
    ) -> pb.DatabaseState | None:
        """Asks the server to keep versions for a while, and learns which it has.

        Without an answer what it had is believed no more; after three the server is lost.

        Args:
            leads: the router follows this server.
        Returns:
            The version that comes next, if it leads and has one.
        """
        asked = pb.HoldRequest(leads=leads)
        asked.MergeFrom(request)
        try:
            answer = await self._stub.Hold(
                asked, timeout=timeout_s, metadata=self._metadata
            )
        except grpc.aio.AioRpcError:
            self._num_missed += 1
            return None
        held = list(answer.databases)
        if self.is_lost:
            # It is back, perhaps long before the breaker's pause is over.
            self._record_answer()
        elif held != self._held:
            self.version_changed()
        self._held, self._num_missed = held, 0
        return answer.next if leads and answer.HasField("next") else None

    @property
    def is_lost(self) -> bool:
        """Whether the server has not answered for some time."""
        return self._num_missed >= _LOST_AFTER

    def may_have(self, state: pb.DatabaseState) -> bool:
        """Whether the server can answer for a version, as far as is known."""
        return self._held is None or state in self._held

    def can_answer(self, state: pb.DatabaseState) -> bool:
        """Whether the server is there and had a version when last asked."""
        return not self.is_lost and self._held is not None and state in self._held

    def surely_has(self, state: pb.DatabaseState) -> bool:
        """Whether the server said so when last asked, which was just now."""
        return not self._num_missed and self._held is not None and state in self._held

    async def close(self) -> None:
        """Ends the connection."""
        for task in self._trials:
            task.cancel()
        await self._channel.close()
