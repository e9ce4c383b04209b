"""The versions that a shard server answers for, two at most: see `version_follower.py`."""

import numpy as np

from data_pipeline.database import Database
from data_pipeline.service.wire import messages
from data_pipeline.service.wire import retrieval_pb2 as pb

_MOST = 2
# Two versions that are both needed keep a third one waiting no longer than that.
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
        self.nearest(vectors_QW, 1, first)
        if len(snapshot.chunks()):
            messages.read_passages(self.database, [0], 0, sources=True)

    def nearest(
        self, vectors_QW: np.ndarray, k: int, excluded: list[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Searches as `Database.nearest` does, in these shards alone."""
        try:
            return self.database.nearest(
                vectors_QW, k, exclude_documents=excluded, shards=self.index_shards
            )
        except ValueError as error:  # a document that is not there
            # Callers are not told where files lie.
            message = str(error).replace(str(self.database.folder), "the database")
            raise ValueError(f"exclude_documents: {message}") from error


class HeldVersions:
    """At most two versions, and the leases by which routers keep them."""

    def __init__(self, first: ShardVersion):
        """Answers for one version. Times are of one clock, in seconds."""
        self._held = [first]  # the newest last
        # What each router needs, and until when.
        self._leases: dict[str, tuple[list[pb.DatabaseState], float]] = {}
        self._waits_since_s: float | None = None

    @property
    def newest(self) -> ShardVersion:
        """The version that was opened last."""
        return self._held[-1]

    @property
    def states(self) -> list[pb.DatabaseState]:
        """The states of the versions held, the newest last."""
        return [version.state for version in self._held]

    def get(self, state: pb.DatabaseState) -> ShardVersion | None:
        """The version that is asked for, if it is held."""
        return next((v for v in self._held if v.state == state), None)

    def numbered(self, number: int) -> ShardVersion | None:
        """The version of a number, if it is held."""
        return next((v for v in self._held if v.number == number), None)

    def lease(
        self, holder: str, states: list[pb.DatabaseState], until_s: float
    ) -> None:
        """Keeps versions for a router until then, in place of what it had leased before."""
        self._leases[holder] = (states, until_s)

    def _unleased(self, now_s: float) -> list[ShardVersion]:
        """The versions that no router needs."""
        # Leases that are over go: a router that is gone never comes back by its name.
        self._leases = {h: kept for h, kept in self._leases.items() if kept[1] > now_s}
        needed = [state for states, _ in self._leases.values() for state in states]
        return [version for version in self._held if version.state not in needed]

    def ask_for_room(self, now_s: float) -> bool:
        """Gives whether one more version may be opened; counts how long that was denied.

        After a minute it is granted, lest two versions that are both needed keep a third
        one waiting for ever.
        """
        if len(self._held) < _MOST or self._unleased(now_s):
            self._waits_since_s = None
            return True
        if self._waits_since_s is None:
            self._waits_since_s = now_s
        return now_s - self._waits_since_s >= _PATIENCE_S

    def make_room(self, now_s: float) -> ShardVersion | None:
        """Gives up one of two versions: one that no router needs, or the older one."""
        self._waits_since_s = None
        if len(self._held) < _MOST:
            return None
        given_up = (self._unleased(now_s) or self._held)[0]
        self._held.remove(given_up)
        return given_up

    def put_newest(self, version: ShardVersion) -> None:
        """Answers for a version as the newest from now on; it may be held already."""
        self._held = [held for held in self._held if held is not version] + [version]
