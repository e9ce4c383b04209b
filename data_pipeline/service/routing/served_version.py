"""The version that a router answers from, and when it goes over to the next.

`version_follower.py` tells the whole story. A new version waits until every shard that is there says that it has it. From then on
requests are answered from it; those that began before are finished in theirs, which the
shards are asked to hold until then.
"""

import asyncio
import contextlib
import functools
import uuid
from collections.abc import Iterator, Sequence

from data_pipeline.database import Database
from data_pipeline.service.routing.replica_set import ReplicaSet
from data_pipeline.service.server.observability import Log, Metrics
from data_pipeline.service.server.version_follower import Follower
from data_pipeline.service.wire import messages
from data_pipeline.service.wire import retrieval_pb2 as pb

_EVERY_S = 0.5  # from one renewal of the leases to the next
_TIMEOUT_S = 1.0  # for a shard to answer a renewal
_LEASE_S = 5.0  # many renewals: one that is lost gives up no version
_LONG_S = 30.0  # to wait for shards, before that is worth a line in the log


class ServedVersion:
    """A version of the database, as a router needs it, and how many requests are in it."""

    def __init__(self, database: Database):
        """Opens the table of chunks, whose length requests are checked by."""
        database.snapshot.chunks()  # now: later its files may be gone
        self.database, self.num_requests = database, 0
        self.state = messages.state_of(database)

    @property
    def number(self) -> int:
        """The number of the version."""
        return self.database.version


class Switch:
    """The version in use, the one that is to follow, and those being finished."""

    def __init__(
        self,
        database: Database,
        shards: Sequence[ReplicaSet],
        *,
        metrics: Metrics,
        log: Log,
    ):
        """Begins with the version that `database` has open."""
        self._shards, self._metrics, self._log = shards, metrics, log
        self.current = ServedVersion(database)
        self._name = uuid.uuid4().hex  # each router has leases of its own
        self._next: ServedVersion | None = None
        self._waits_until_s: float | None = None  # that the log says so
        self._former: list[ServedVersion] = []
        self._follower: Follower | None = None
        metrics.version.set(self.current.number)

    @contextlib.contextmanager
    def pinned(self) -> Iterator[ServedVersion]:
        """Pins the version that one request is answered from, from its start to its end."""
        version = self.current
        version.num_requests += 1
        try:
            yield version
        finally:
            version.num_requests -= 1

    def follow(self, follow_s: float) -> None:
        """Goes over to new versions from now on; in an event loop."""
        folder = self.current.database.folder
        self._follower = Follower(
            folder, follow_s=follow_s, metrics=self._metrics, log=self._log
        )
        if follow_s > 0:
            self._follower.start(functools.partial(self._open_next, self._follower))
            self._follower.keep(self._keep_leases(min(follow_s, _EVERY_S)))

    async def _open_next(self, follower: Follower, number: int) -> None:
        """Opens the version in force, if it is another than the one that is to follow."""
        if number == self.current.number:
            self._next = None  # what was to follow was taken back
            return
        newest = (self._next or self.current).database
        if number == newest.version:
            return
        opened = await follower.attempt(number, lambda: ServedVersion(newest.newest()))
        if opened is not None and opened.number == number:
            self._next = opened
            self._waits_until_s = asyncio.get_running_loop().time() + _LONG_S
            self._log("version_opened", version=number)

    async def _keep_leases(self, every_s: float) -> None:
        """Has the shards keep what is needed; goes over to the next version when it can."""
        while True:
            coming = self._next
            await self._renew_leases(coming)
            # While the shards were asked it may have been taken back, or another come.
            if coming is not None and coming is self._next:
                self._go_over_if_all_have(coming)
            await asyncio.sleep(every_s)

    async def _renew_leases(self, coming: ServedVersion | None) -> None:
        self._former = [version for version in self._former if version.num_requests]
        needed = [*self._former, self.current, *([coming] if coming else [])]
        asked = pb.HoldRequest(
            databases=[version.state for version in needed],
            hold_s=_LEASE_S,
            holder=self._name,
        )
        await asyncio.gather(
            *(shard.renew_leases(asked, _TIMEOUT_S) for shard in self._shards)
        )

    def _go_over_if_all_have(self, coming: ServedVersion) -> None:
        # The slowest shard is waited for: its part would be missing from every answer of
        # the new version. A lost shard is missing in both versions, so nobody waits for it.
        there = [s for s, shard in enumerate(self._shards) if not shard.is_lost]
        lacking = [s for s in there if not self._shards[s].has(coming.state)]
        if there and not lacking:
            self._go_over_to(coming)
        elif asyncio.get_running_loop().time() > (self._waits_until_s or float("inf")):
            self._waits_until_s = None  # once is enough
            self._log("version_waits", version=coming.number, shards=lacking)

    def _go_over_to(self, coming: ServedVersion) -> None:
        before, self.current, self._next = self.current, coming, None
        self._former.append(before)
        for shard in self._shards:
            shard.version_changed()
        self._metrics.version.set(coming.number)
        self._log("version_served", version=coming.number, before=before.number)

    def close(self) -> None:
        """Stays with the version in use."""
        if self._follower is not None:
            self._follower.close()
