"""One shard's replicas, called as if they were one server that neither fails nor stalls.

A request goes to the replica with the fewest requests under way. If there is no answer
after as long as 95 of 100 recent answers took, a second replica is asked too and the first
answer wins (a hedge, Dean & Barroso 2013): so about one request in twenty is asked twice,
also when all are slow. If a replica can't answer, another is asked at once (a retry).
Replicas that failed or were outrun come last for a while.
"""

import asyncio
import collections
import random
import statistics
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from data_pipeline.service import retrieval_pb2_grpc as pb_grpc
from data_pipeline.service import security
from data_pipeline.service.observing import Log, Metrics

_PENALTY_S = 1.0
_RECENT, _ENOUGH = 200, 20  # answers that the hedging delay is drawn from
_SHORTEST_HEDGE_S = 0.005
# The caller's own fault, or no time left: no replica would say anything else.
_FINAL = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.DEADLINE_EXCEEDED)


class Unanswered(Exception):
    """No replica answered; `code` is the last one's status."""

    def __init__(self, code: grpc.StatusCode, message: str):
        """`message` names the replica and what it said."""
        super().__init__(message)
        self.code = code


class Replica:
    """A shard server at an address, and how it has been doing."""

    def __init__(self, address: str, credentials, token: str | None, log: Log):
        """Connects at the first call, and again whenever the connection is lost."""
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 5000),
        ]
        self.channel = (
            grpc.aio.insecure_channel(address, options)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options)
        )
        self._stub = pb_grpc.ShardStub(self.channel)
        self._metadata, self._log = security.metadata(token), log
        self.address, self.in_flight, self.last_until_s = address, 0, 0.0
        self._is_well = True

    async def call(self, method: str, request, timeout_s: float):
        """The answer; `Unanswered` if there is none."""
        self.in_flight += 1
        try:
            call = getattr(self._stub, method)
            answer = await call(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), f"{self.address}: {error.details()}"
            if code not in _FINAL:
                self.come_last(details)
            raise Unanswered(code, details) from error
        finally:
            self.in_flight -= 1
        if not self._is_well:
            self._log("replica_is_back", replica=self.address)
            self._is_well = True
        return answer

    def come_last(self, reason: str) -> None:
        """Other replicas are preferred for a while; logged once until it answers."""
        self.last_until_s = asyncio.get_running_loop().time() + _PENALTY_S
        if self._is_well:
            self._log("replica_comes_last", replica=self.address, reason=reason)
            self._is_well = False


class ReplicaSet:
    """The servers that hold the same shard."""

    def __init__(
        self, replicas: Sequence[Replica], *, hedge_s: float | None, metrics: Metrics
    ):
        """`hedge_s` fixes the delay of hedges; None draws it from recent answers."""
        self._replicas, self._hedge_s, self._metrics = replicas, hedge_s, metrics
        self._recent_s: collections.deque[float] = collections.deque(maxlen=_RECENT)

    async def call(self, method: str, request, timeout_s: float) -> Any:
        """The first answer of a replica.

        Raises:
            Unanswered: if none answers in time, with what the last one said.
        """
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        waiting = self._in_order(start_s)
        running: dict[asyncio.Task, Replica] = {}

        def ask_next() -> None:
            replica = waiting.pop(0)
            left_s = max(0.001, start_s + timeout_s - loop.time())
            task = loop.create_task(replica.call(method, request, left_s))
            running[task] = replica

        ask_next()
        try:
            while True:
                hedge_s = self._hedge_delay_s() if waiting else None
                done, _ = await asyncio.wait(
                    running, timeout=hedge_s, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    self._metrics.hedges.inc()
                    ask_next()
                for task, error in [(task, task.exception()) for task in done]:
                    del running[task]
                    if error is None:
                        self._note(loop.time() - start_s, method, running)
                        return task.result()
                    if not isinstance(error, Unanswered) or error.code in _FINAL:
                        raise error
                    if waiting:
                        self._metrics.retries.inc()
                        ask_next()
                    elif not running:
                        raise error
        finally:
            for task in running:
                task.cancel()

    def _in_order(self, now_s: float) -> list[Replica]:
        def rank(replica: Replica):
            return replica.last_until_s > now_s, replica.in_flight, random.random()

        return sorted(self._replicas, key=rank)

    def _hedge_delay_s(self) -> float:
        if self._hedge_s is not None:
            return self._hedge_s
        if len(self._recent_s) < _ENOUGH:
            return 0.1
        return max(_SHORTEST_HEDGE_S, statistics.quantiles(self._recent_s, n=20)[-1])

    def _note(self, elapsed_s: float, method: str, outrun) -> None:
        if method == "Search":  # reading passages takes another time
            self._recent_s.append(elapsed_s)
        for replica in outrun.values():
            replica.come_last("slower than another replica")

    async def close(self) -> None:
        """Ends the connections."""
        for replica in self._replicas:
            await replica.channel.close()


def connect(
    addresses: str,
    *,
    credentials,
    token: str | None,
    hedge_s: float | None,
    metrics: Metrics,
    log: Log,
) -> list[ReplicaSet]:
    """The replicas of every shard.

    Args:
        addresses: 'host:port|host:port,host:port': shards in order, their replicas
            separated by '|'.
    Raises:
        ValueError: naming an address that is none, or is there twice.
    """
    shards = [
        [address.strip() for address in shard.split("|")]
        for shard in addresses.split(",")
    ]
    seen: set[str] = set()
    for address in (address for shard in shards for address in shard):
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError(f"shards: {address!r} is no host:port")
        if address in seen:
            raise ValueError(f"shards: {address} is there twice")
        seen.add(address)
    return [
        ReplicaSet(
            [Replica(address, credentials, token, log) for address in shard],
            hedge_s=hedge_s,
            metrics=metrics,
        )
        for shard in shards
    ]
