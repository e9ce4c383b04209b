"""A shard server's two versions: which is given up, and what it keeps open."""

import gc
import weakref

import numpy as np
import pytest

from data_pipeline.database import Database
from data_pipeline.service.shards import held_versions
from data_pipeline.service.wire import messages
from data_pipeline.service.wire import retrieval_pb2 as pb
from tests import tiny_corpus

pytestmark = pytest.mark.usefixtures("toy_embedder")


_NEWS = "nine violet tortoises rehearsed an opera inside the marble lighthouse"
_QUERIES = [_NEWS, tiny_corpus.PLANTED]


def test_two_versions_are_kept_and_what_they_share_is_loaded_once(folder):
    database = Database.open(folder)
    first = held_versions.ShardVersion(database, 0, 1)
    held = held_versions.HeldVersions(first)
    Database.open(folder).add([{"id": "news", "text": _NEWS}])
    second = held_versions.ShardVersion(database.beside(), 0, 1)
    for place in first.index_shards:
        loaded = [
            v.database.snapshot.index(v.index_shards).shards for v in (first, second)
        ]
        assert loaded[0][place] is loaded[1][place]
    assert held.has_room(0)
    assert held.make_room(0)
    held.put(second)
    assert held.states == [first.state, second.state]
    assert held.lease("a", [first.state], 5.0)
    assert not held.lease("a", [first.state], 6.0)
    held.lease("b", [first.state], 4.0)
    assert held.has_room(4.5)  # nobody asks for the newer
    held.lease("b", [second.state], 70.0)
    assert not held.has_room(4.5)
    assert not held.make_room(5.0)  # whatever was decided before
    assert held.has_room(6.0)
    held.lease("a", [first.state, second.state], 70.0)
    assert not held.has_room(6.5)
    held.lease("a", [second.state], 70.0)
    assert held.has_room(6.5)
    held.lease("a", [first.state, second.state], 70.0)
    assert not held.make_room(64.4)
    assert held.make_room(64.5)  # a router that is left behind can't keep it for ever
    assert held.get(first.state) is None
    assert held.get(second.state) is second
    gone = weakref.ref(first)
    del first, database, loaded
    gc.collect()
    assert gone() is None


def test_what_is_open_outlives_compaction(folder):
    """Every file that answers are read from is open or in memory once it is warm."""
    database = Database.open(folder)
    database.add([{"id": "news", "text": _NEWS}, {"id": "x", "text": "A b c."}])
    version = held_versions.ShardVersion(Database.open(folder), 0, 1)
    vectors_QW = database.embedder.embed(_QUERIES)
    everything = list(range(len(database.snapshot.chunks())))

    def answers():
        passages = messages.read_passages(version.database, everything, 16, True)
        return [
            *map(np.ndarray.tolist, version.nearest(vectors_QW, 9, ["news"])),
            [passage.SerializeToString() for passage in passages],
        ]

    before = answers()
    database.delete([tiny_corpus.PLANTED_IN, "x"])
    database.compact()
    with pytest.raises(ValueError, match="no version 1"):
        Database.open(folder, 1)
    assert answers() == before
    # Most of what is near may not be found: what is left is compared, for the first time.
    names = version.database.snapshot.documents().column("id").to_pylist()
    others = [name for name in names if version.database.snapshot.has_document(name)]
    found_QN, _ = version.nearest(vectors_QW, 1, others[:-1])
    assert (found_QN >= 0).all()


def _stands_for(number: int) -> held_versions.ShardVersion:
    version = object.__new__(held_versions.ShardVersion)  # nothing is loaded
    version.number = number
    version.state = pb.DatabaseState(fingerprint="a", version=number)
    return version


def test_what_nobody_holds_is_given_up_after_a_while():
    held = held_versions.HeldVersions(_stands_for(1))
    assert held.give_up_unheld(2, 0.0) == []
    assert held.give_up_unheld(2, 100.0) == []  # nothing else is open
    held.put(_stands_for(2))
    # Without routers the version in force stays.
    assert held.give_up_unheld(2, 101.0) == [1]
    held.put(_stands_for(3))
    held.lease("a", [_stands_for(3).state], 120.0)
    assert held.give_up_unheld(2, 110.0) == []
    assert held.give_up_unheld(2, 114.9) == []
    held.lease("b", [_stands_for(2).state], 115.5)
    assert held.give_up_unheld(2, 115.2) == []
    assert held.give_up_unheld(2, 116.0) == []  # it counts anew
    assert held.give_up_unheld(2, 121.1) == []  # both are nobody's now, and 2 in force
    assert held.give_up_unheld(2, 127.0) == [3]


def test_routers_say_what_is_opened_unless_they_follow_this_server():
    held = held_versions.HeldVersions(_stands_for(1))
    states = [_stands_for(number).state for number in (2, 1, 3)]
    assert not held.is_led(0.0)
    held.lease("a", states, 5.0)
    held.lease("b", states[1:], 6.0)
    assert held.is_led(0.0)
    assert held.wanted(0.0) == [2, 3]
    assert held.wanted(5.0) == [3]
    assert held.lease("b", states[1:], 6.0, leads=True)
    assert not held.is_led(0.0)
    assert not held.is_led(6.0)


def test_a_file_that_is_missing_is_not_called_a_wrong_request(folder, monkeypatch):
    """Whoever starts a server is told which file; a caller is not told where it lies."""
    version = held_versions.ShardVersion(Database.open(folder), 0, 1)
    vectors_QW = np.ones((1, version.width), np.float32)
    with pytest.raises(ValueError, match="^exclude_documents: document 'no' is not in"):
        version.nearest(vectors_QW, 1, ["no"])

    def nearest(self, *_, **__):
        raise ValueError(f"{self.folder}/index/vectors.npy is missing")

    monkeypatch.setattr(Database, "nearest", nearest)
    with pytest.raises(ValueError, match="^the database/index/vectors.npy is missing"):
        version.nearest(vectors_QW, 1, [])
    with pytest.raises(ValueError, match=f"^{folder}/index/vectors.npy is missing"):
        held_versions.ShardVersion(Database.open(folder), 0, 1)
