"""One shard's replicas, called as if they were one server that neither fails nor stalls.

A request goes to the replica with the fewest requests under way. If there is no answer
after as long as 95 of 100 recent answers took, a second replica is asked too and the first
answer wins (a hedge, Dean & Barroso 2013): so about one request in twenty is asked twice,
also when all are slow. If a replica can't answer, another is asked at once (a retry).

A replica that fails again and again is left alone (`breaker.py`); if all are, there is no
answer, at once. One that only is slower again and again is asked after the others.
"""

import asyncio
import collections
import random
import statistics
from collections.abc import Sequence
from typing import Any

import grpc

from data_pipeline.service.routing.breaker import Circuit
from data_pipeline.service.routing.replica import Replica, Unanswered
from data_pipeline.service.server.observability import Log, Metrics
from data_pipeline.service.wire import addresses as addresses_of
from data_pipeline.service.wire import retrieval_pb2 as pb

# The hedging delay is drawn from so many answers, anew after every 20 of them.
_RECENT, _ENOUGH = 200, 20
_FIRST_HEDGE_S, _SHORTEST_HEDGE_S = 0.1, 0.005
# A fair time to answer in is so many times the hedging delay, but not less than that.
_FAIR, _SHORTEST_FAIR_S = 4, 0.1
# The caller's own fault, or no time left: no replica would say anything else.
_FINAL = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.DEADLINE_EXCEEDED)


class HedgeDelay:
    """The seconds before a second replica is asked: the slowest 5 % of answers take longer."""

    def __init__(self, fixed_s: float | None = None):
        """Takes a delay that stays, or None to draw it from recent answers."""
        self._is_fixed = fixed_s is not None
        self.now_s = _FIRST_HEDGE_S if fixed_s is None else fixed_s
        self._recent_s: collections.deque[float] = collections.deque(maxlen=_RECENT)
        self._num_new = 0  # answers since the delay was drawn

    def record(self, elapsed_s: float) -> None:
        """Takes how long an answer took; every 20 answers the delay is drawn anew."""
        self._recent_s.append(elapsed_s)
        self._num_new += 1
        if self._num_new == _ENOUGH and not self._is_fixed:
            self._num_new = 0
            # The last of 19 cuts into 20 parts. An earlier one would ask most shards
            # twice, which makes an overloaded service slower still.
            slow_s = statistics.quantiles(self._recent_s, n=20)[-1]
            self.now_s = max(_SHORTEST_HEDGE_S, slow_s)


class ReplicaSet:
    """The servers that hold the same shard."""

    def __init__(
        self, replicas: Sequence[Replica], *, hedge_s: float | None, metrics: Metrics
    ):
        """`hedge_s` fixes the delay of hedges; None draws it from recent answers."""
        self._replicas, self._metrics = replicas, metrics
        self._hedge = HedgeDelay(hedge_s)

    async def call(self, method: str, request, timeout_s: float) -> Any:
        """Gives the first answer of a replica.

        Raises:
            Unanswered: if none answers in time, with what the last one said; at once if
                all are left alone.
        """
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        fair_s = max(_SHORTEST_FAIR_S, _FAIR * self._hedge.now_s)
        for replica in self._replicas:
            replica.try_if_due(method, request, timeout_s, fair_s)
        waiting = self._in_order(request.database)
        if not waiting:
            is_open = (r for r in self._replicas if r.breaker.circuit is Circuit.OPEN)
            raise next(is_open).left_alone()
        running: dict[asyncio.Task, Replica] = {}

        def ask_next() -> None:
            replica = waiting.pop(0)
            left_s = max(0.001, start_s + timeout_s - loop.time())
            task = loop.create_task(replica.call(method, request, left_s, fair_s))
            running[task] = replica

        ask_next()
        try:
            while True:
                hedge_s = self._hedge.now_s if waiting else None
                done, _ = await asyncio.wait(
                    running, timeout=hedge_s, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    self._metrics.hedges.inc()
                    ask_next()
                for task, error in [(task, task.exception()) for task in done]:
                    del running[task]
                    if error is None:
                        if method == "Search":  # reading passages takes another time
                            self._hedge.record(loop.time() - start_s)
                        # Whoever is outrun again and again is asked last from then on.
                        for outrun in running.values():
                            outrun.record_outrun(method)
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

    def _in_order(self, state: pb.DatabaseState) -> list[Replica]:
        """The replicas to ask, one after another; none if all are left alone."""
        # One that is not known to have the version may have it by now.
        able = [r for r in self._replicas if r.may_have(state)] or self._replicas
        asked = [r for r in able if r.breaker.circuit is not Circuit.OPEN]

        def rank(replica: Replica):
            is_last = replica.breaker.circuit is Circuit.LAST
            # Drawn by lot among equals, else all routers would ask the same one first.
            return is_last, replica.in_flight, random.random()

        return sorted(asked, key=rank)

    async def renew_leases(
        self, request: pb.HoldRequest, timeout_s: float, *, leads: bool
    ) -> pb.DatabaseState | None:
        """Asks all replicas to keep versions for a while, and learns which they have.

        Args:
            leads: the router follows the first replica that is there.
        Returns:
            The version that this one says comes next.
        """
        first = next((r for r in self._replicas if not r.is_lost), None)
        named = await asyncio.gather(
            *(
                replica.renew_lease(
                    request, timeout_s, leads=leads and replica is first
                )
                for replica in self._replicas
            )
        )
        return next((state for state in named if state is not None), None)

    @property
    def is_lost(self) -> bool:
        """Whether no replica has answered for some time."""
        return all(replica.is_lost for replica in self._replicas)

    def can_answer(self, state: pb.DatabaseState) -> bool:
        """Whether a replica is there and had a version when last asked."""
        return any(replica.can_answer(state) for replica in self._replicas)

    def has(self, state: pb.DatabaseState) -> bool:
        """Whether a replica answers for a version."""
        return any(replica.surely_has(state) for replica in self._replicas)

    def version_changed(self) -> None:
        """Forgets refusals: another version is asked for from now on."""
        for replica in self._replicas:
            replica.version_changed()

    async def close(self) -> None:
        """Ends the connections."""
        for replica in self._replicas:
            await replica.close()


def connect(
    addresses: str,
    *,
    credentials,
    token: str | None,
    hedge_s: float | None,
    metrics: Metrics,
    log: Log,
) -> list[ReplicaSet]:
    """Makes the replicas of every shard from their addresses.

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
        try:
            addresses_of.checked(address)
        except ValueError as error:
            raise ValueError(f"shards: {error}") from error
        if address in seen:
            raise ValueError(f"shards: {address} is there twice")
        seen.add(address)
    return [
        ReplicaSet(
            [Replica(address, credentials, token, metrics, log) for address in shard],
            hedge_s=hedge_s,
            metrics=metrics,
        )
        for shard in shards
    ]
