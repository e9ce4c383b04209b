"""The version that a router answers from, and when it goes over to the next.

`version_follower.py` tells the whole story. The shard that leads names the version that is to
follow. It waits until every shard that is there says that it has it. From then on requests are
answered from it; those that began before are finished in theirs, which the shards are asked to
hold until then.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence

from data_pipeline.database import Database
from data_pipeline.service.routing.replica_set import ReplicaSet
from data_pipeline.service.server.observability import Log, Metrics
from data_pipeline.service.server.version_follower import Follower
from data_pipeline.service.wire import messages
from data_pipeline.service.wire import retrieval_pb2 as pb

_EVERY_S = 0.5  # from one renewal of the leases to the next
_SOON_S = 0.1  # while a version is to follow
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
        self._has_gone_over = False  # since the leases were renewed
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

    def follow(self, follow_s: float, on_health: Callable[[bool], Awaitable]) -> None:
        """Goes over to new versions from now on, unless `follow_s` is 0; in an event loop.

        Args:
            on_health: is told, time and again, whether a shard can answer.
        """
        folder = self.current.database.folder
        follower = Follower(
            folder, follow_s=follow_s, metrics=self._metrics, log=self._log
        )
        self._follower = follower
        follower.keep(self._keep_up(follower, follow_s, on_health))

    async def _keep_up(
        self,
        follower: Follower,
        follow_s: float,
        on_health: Callable[[bool], Awaitable],
    ) -> None:
        """Has the shards keep what is needed; goes over to the next version when it can."""
        while True:
            leading = await self._renew_leases()
            await on_health(any(s.can_answer(self.current.state) for s in self._shards))
            if follow_s > 0:
                if leading is not None:
                    await self._prepare(follower, leading)
                if self._next is not None:
                    await self._go_over_if_all_have(follower, self._next)
            quick = self._next is not None or self._has_gone_over
            every_s = _SOON_S if quick else _EVERY_S
            await asyncio.sleep(min(follow_s or _EVERY_S, every_s))

    async def _renew_leases(
        self, named: pb.DatabaseState | None = None
    ) -> pb.DatabaseState | None:
        """Gives the version that the leading shard names.

        Args:
            named: what it named just now; the other shards open it as this router does.
        """
        self._former = [version for version in self._former if version.num_requests]
        if named is None and self._next is not None:
            named = self._next.state
        former = [version.state for version in self._former]
        self._has_gone_over = False
        asked = pb.HoldRequest(
            databases=[self.current.state, *([named] if named else []), *former],
            hold_s=_LEASE_S,
            holder=self._name,
        )
        first = next((s for s in self._shards if not s.is_lost), None)
        answers = await asyncio.gather(
            *(
                shard.renew_leases(asked, _TIMEOUT_S, leads=shard is first)
                for shard in self._shards
            )
        )
        return next((state for state in answers if state is not None), None)

    async def _prepare(self, follower: Follower, leading: pb.DatabaseState) -> None:
        """Opens the version that the leading shard names."""
        if leading == self.current.state:
            self._next = None  # what was to follow was taken back
            return
        newest, number = (self._next or self.current), leading.version
        if leading == newest.state or not follower.is_due(number):
            return
        await self._renew_leases(leading)
        opened = await follower.attempt(
            number, lambda: ServedVersion(newest.database.beside(number))
        )
        if opened is not None and opened.state == leading:
            self._next = opened
            self._waits_until_s = asyncio.get_running_loop().time() + _LONG_S
            self._log("version_opened", version=number)

    async def _go_over_if_all_have(
        self, follower: Follower, coming: ServedVersion
    ) -> None:
        # The slowest shard is waited for: its part would be missing from every answer of
        # the new version. A lost shard is missing in both versions, so nobody waits for it.
        there = [s for s, shard in enumerate(self._shards) if not shard.is_lost]
        lacking = [s for s in there if not self._shards[s].has(coming.state)]
        if there and not lacking:
            self._go_over_to(coming)
        elif not await follower.is_there(coming.number):
            self._next = None  # compacted meanwhile: who lacks it never gets it
        elif asyncio.get_running_loop().time() > (self._waits_until_s or float("inf")):
            self._waits_until_s = None  # once is enough
            self._log("version_waits", version=coming.number, shards=lacking)

    def _go_over_to(self, coming: ServedVersion) -> None:
        before, self.current, self._next = self.current, coming, None
        self._former.append(before)
        self._has_gone_over = True
        for shard in self._shards:
            shard.version_changed()
        self._metrics.version.set(coming.number)
        self._log("version_served", version=coming.number, before=before.number)

    def close(self) -> None:
        """Stays with the version in use."""
        if self._follower is not None:
            self._follower.close()
