"""The versions that a shard server answers for, two at most: see `version_follower.py`."""

import dataclasses

import numpy as np

from data_pipeline.database import Database
from data_pipeline.service.wire import messages
from data_pipeline.service.wire import retrieval_pb2 as pb

_MOST = 2
# What no router holds is given up after that, and with it the files that were deleted.
_UNHELD_S = 5.0
# Two versions that are both needed keep a third one waiting no longer than that: a router
# that can't go on must not keep all others from it.
_PATIENCE_S = 60.0


class ShardVersion:
    """Some index shards of one version of a database, in memory."""

    def __init__(self, database: Database, shard: int, num_shards: int):
        """Loads the shards i of the index with i % num_shards == shard; may be none."""
        self.database, self.number = database, database.version
        self.state = messages.state_of(database)
        self.index_shards = tuple(
            range(shard, database.snapshot.num_shards, num_shards)
        )
        self.width = database.snapshot.index(self.index_shards).width
        self._warm_up()

    def _warm_up(self) -> None:
        """Opens all that requests will read: later its files may be gone."""
        snapshot = self.database.snapshot
        ids = snapshot.documents().column("id").to_pylist()
        there = (name for name in ids if snapshot.has_document(name))
        first = [name for name, _ in zip(there, range(1), strict=False)]
        vectors_QW = np.ones((1, self.width), np.float32)
        self._nearest(vectors_QW, 1, first)
        # Read where most of what is near may not be found.
        snapshot.vectors(np.zeros(0, np.int64))
        if len(snapshot.chunks()):
            messages.read_passages(self.database, [0], 0, sources=True)

    def nearest(
        self, vectors_QW: np.ndarray, k: int, excluded: list[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Searches as `Database.nearest` does, in these shards alone."""
        for name in excluded:
            if not self.database.snapshot.has_document(name):
                raise ValueError(
                    f"exclude_documents: document {name!r} is not in the database"
                )
        try:
            return self._nearest(vectors_QW, k, excluded)
        except ValueError as error:
            # Callers are not told where files lie.
            message = str(error).replace(str(self.database.folder), "the database")
            raise ValueError(message) from error

    def _nearest(
        self, vectors_QW: np.ndarray, k: int, excluded: list[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        return self.database.nearest(
            vectors_QW, k, exclude_documents=excluded, shards=self.index_shards
        )


@dataclasses.dataclass(frozen=True)
class _Lease:
    """What a router needs, until when, and whether it follows this server."""

    states: list[pb.DatabaseState]
    until_s: float
    leads: bool


class HeldVersions:
    """At most two versions, and the leases by which routers keep them."""

    def __init__(self, first: ShardVersion):
        """Answers for one version. Times are of one clock, in seconds."""
        self._held = [first]  # the one that was opened last at the end
        self._leases: dict[str, _Lease] = {}
        self._unheld_since_s: dict[int, float] = {}  # by number, of those held
        self._waits_since_s: float | None = None

    @property
    def newest(self) -> ShardVersion:
        """The version that was opened last."""
        return self._held[-1]

    @property
    def states(self) -> list[pb.DatabaseState]:
        """The states of the versions held."""
        return [version.state for version in self._held]

    def get(self, state: pb.DatabaseState) -> ShardVersion | None:
        """The version that is asked for, if it is held."""
        return next((v for v in self._held if v.state == state), None)

    def numbered(self, number: int) -> ShardVersion | None:
        """The version of a number, if it is held."""
        return next((v for v in self._held if v.number == number), None)

    def lease(
        self,
        holder: str,
        states: list[pb.DatabaseState],
        until_s: float,
        *,
        leads: bool = False,
    ) -> bool:
        """Keeps versions for a router until then, in place of what it had leased before.

        Returns:
            Whether it had leased anything else.
        """
        before, lease = self._leases.get(holder), _Lease(states, until_s, leads)
        self._leases[holder] = lease
        return before is None or (before.states, before.leads) != (states, leads)

    def _renewed(self, now_s: float) -> list[_Lease]:
        """The leases that are not over."""
        # The others go: a router that is gone never comes back by its name.
        self._leases = {h: x for h, x in self._leases.items() if x.until_s > now_s}
        return list(self._leases.values())

    def is_led(self, now_s: float) -> bool:
        """Whether routers say what to open; else the server opens what is in force.

        They do where another server leads them.
        """
        leases = self._renewed(now_s)
        return bool(leases) and not any(lease.leads for lease in leases)

    def wanted(self, now_s: float) -> list[int]:
        """Numbers of the versions that routers hold and that are not here, by urgency."""
        states = [state for lease in self._renewed(now_s) for state in lease.states]
        absent = [state.version for state in states if self.get(state) is None]
        return list(dict.fromkeys(absent))

    def _num_holders(self, version: ShardVersion, now_s: float) -> int:
        return sum(version.state in lease.states for lease in self._renewed(now_s))

    def give_up_unheld(self, in_force: int | None, now_s: float) -> list[int]:
        """Gives up what no router has held for 5 s, and gives the numbers.

        Args:
            in_force: is kept too where there are no routers.
        """
        has_routers = bool(self._renewed(now_s))
        for version in self._held:
            alone = not has_routers and version.number == in_force
            if alone or self._num_holders(version, now_s):
                self._unheld_since_s.pop(version.number, None)
            else:
                self._unheld_since_s.setdefault(version.number, now_s)
        over = [
            version
            for version in self._held
            if now_s - self._unheld_since_s.get(version.number, now_s) >= _UNHELD_S
        ]
        if len(over) == len(self._held):  # nothing better is open yet
            return []
        for version in over:
            self._remove(version)
        return [version.number for version in over]

    def _remove(self, version: ShardVersion) -> None:
        self._held.remove(version)
        self._unheld_since_s.pop(version.number, None)

    def has_room(self, now_s: float) -> bool:
        """Whether one more version may be opened; counts how long that was denied."""
        if len(self._held) < _MOST or self._dispensable(now_s) is not None:
            return True
        if self._waits_since_s is None:
            self._waits_since_s = now_s
        return False

    def _dispensable(self, now_s: float) -> ShardVersion | None:
        """The version to give up for another one: never one that a router answers from.

        After a minute it is that which fewest routers hold.
        """
        least = min(self._held, key=lambda v: self._num_holders(v, now_s))
        waits_since_s = now_s if self._waits_since_s is None else self._waits_since_s
        if self._num_holders(least, now_s) and now_s - waits_since_s < _PATIENCE_S:
            return None
        return least

    def make_room(self, now_s: float) -> bool:
        """Gives up a version if there are two; gives whether there is room now.

        It decides anew: since `has_room` was asked a router may have come to need one.
        """
        if not self.has_room(now_s):
            return False
        if len(self._held) == _MOST:
            given_up = self._dispensable(now_s)
            assert given_up is not None  # else there was no room
            self._remove(given_up)
        self._waits_since_s = None
        return True

    def put(self, version: ShardVersion) -> None:
        """Answers for one more version from now on, for which there is room."""
        self._held.append(version)
