"""The versions that a shard server answers for: two at most, see `following.py`."""

import numpy as np

from data_pipeline.database import Database
from data_pipeline.service.wire import messages
from data_pipeline.service.wire import retrieval_pb2 as pb

_MOST = 2
# Two versions that are both asked for keep a third one waiting no longer than that.
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
        """As `Database.nearest`, in these shards alone."""
        try:
            return self.database.nearest(
                vectors_QW, k, exclude_documents=excluded, shards=self.index_shards
            )
        except ValueError as error:  # a document that is not there
            said = str(error).replace(str(self.database.folder), "the database")
            raise ValueError(f"exclude_documents: {said}") from error


class HeldVersions:
    """At most two versions, and until when each is asked for."""

    def __init__(self, first: ShardVersion):
        """Answers for one version. Times are of one clock, in seconds."""
        self._held = [first]  # the newest last
        # Who holds which, and until when.
        self._holders: dict[str, tuple[list[pb.DatabaseState], float]] = {}
        self._waits_since_s: float | None = None

    @property
    def newest(self) -> ShardVersion:
        """The version that was opened last."""
        return self._held[-1]

    @property
    def states(self) -> list[pb.DatabaseState]:
        """What can be answered for, the newest last."""
        return [version.state for version in self._held]

    def get(self, state: pb.DatabaseState) -> ShardVersion | None:
        """The version that is asked for, if it is held."""
        return next((v for v in self._held if v.state == state), None)

    def hold(self, holder: str, states: list[pb.DatabaseState], until_s: float) -> None:
        """These are asked for until then; what the holder asked for before no longer is."""
        self._holders[holder] = (states, until_s)

    def _idle(self, now_s: float) -> list[ShardVersion]:
        """Versions that nobody asks for."""
        self._holders = {
            h: kept for h, kept in self._holders.items() if kept[1] > now_s
        }
        asked = [state for states, _ in self._holders.values() for state in states]
        return [version for version in self._held if version.state not in asked]

    def show(self, number: int) -> bool:
        """Whether a version is held already; it counts as the newest from now on."""
        found = [version for version in self._held if version.number == number]
        self._held = [v for v in self._held if v.number != number] + found
        return bool(found)

    def has_room(self, now_s: float) -> bool:
        """Whether a version may be opened; if not, whoever waits is remembered."""
        if len(self._held) < _MOST or self._idle(now_s):
            self._waits_since_s = None
            return True
        if self._waits_since_s is None:
            self._waits_since_s = now_s
        return now_s - self._waits_since_s >= _PATIENCE_S

    def make_room(self, now_s: float) -> ShardVersion | None:
        """Gives up one of two versions: one that nobody asks for, or the older one."""
        self._waits_since_s = None
        if len(self._held) < _MOST:
            return None
        given_up = (self._idle(now_s) or self._held)[0]
        self._held.remove(given_up)
        return given_up

    def add(self, version: ShardVersion) -> None:
        """Answers for it from now on."""
        self._held.append(version)
