"""A shard server's two versions: which is given up, and what it keeps open."""

import gc
import weakref

import numpy as np
import pytest

from data_pipeline.database import Database
from data_pipeline.service.shards import held_versions
from data_pipeline.service.wire import messages
from tests import tiny_corpus

pytestmark = pytest.mark.usefixtures("toy_embedder")


_NEWS = "nine violet tortoises rehearsed an opera inside the marble lighthouse"
_QUERIES = [_NEWS, tiny_corpus.PLANTED]


def test_two_versions_are_kept_and_what_they_share_is_loaded_once(folder):
    database = Database.open(folder)
    first = held_versions.ShardVersion(database, 0, 1)
    held = held_versions.HeldVersions(first)
    Database.open(folder).add([{"id": "news", "text": _NEWS}])
    second = held_versions.ShardVersion(database.newest(), 0, 1)
    for place in first.index_shards:
        loaded = [
            v.database.snapshot.index(v.index_shards).shards for v in (first, second)
        ]
        assert loaded[0][place] is loaded[1][place]
    assert held.ask_for_room(0)
    assert held.make_room(0) is None
    held.put_newest(second)
    held.lease("a", [first.state], 5.0)
    held.lease("b", [first.state], 4.0)
    assert held.ask_for_room(4.5)  # nobody asks for the newer
    held.lease("b", [second.state], 70.0)
    assert not held.ask_for_room(4.5)
    assert held.ask_for_room(5.0)
    held.lease("a", [first.state, second.state], 70.0)
    assert not held.ask_for_room(5.5)
    held.lease("a", [second.state], 70.0)
    assert held.ask_for_room(5.5)
    held.lease("a", [first.state, second.state], 70.0)
    assert not held.ask_for_room(6.0)
    assert not held.ask_for_room(65.9)
    assert held.ask_for_room(66.1)  # somebody must not keep it for ever
    assert held.make_room(66.1) is first
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
