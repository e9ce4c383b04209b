"""A router goes over to a version when all shards have it, and back."""

import pytest

from data_pipeline.database import Database, versions
from data_pipeline.service.client import RetrievalClient
from data_pipeline.service.routing import served_version
from tests import tiny_corpus
from tests.served import FOLLOW_S, eventually, following, version_of

pytestmark = pytest.mark.usefixtures("toy_embedder")


_NEWS = "nine violet tortoises rehearsed an opera inside the marble lighthouse"
_QUERIES = [_NEWS, tiny_corpus.PLANTED]


def test_a_router_waits_for_every_shard_that_is_there(running, folder, monkeypatch):
    """And a shard keeps what the router still needs, however many versions pass by."""
    monkeypatch.setattr(served_version, "_LEASE_S", 1.0)
    known = Database.open(folder)
    before = known.search(_QUERIES, 6)
    follows = running.shard(Database.open(folder), 0, 2, follow_s=FOLLOW_S)
    stays = running.shard(Database.open(folder), 1, 2)
    addresses = f"{follows.address},{stays.address}"
    router = running.router(Database.open(folder), addresses, follow_s=FOLLOW_S)
    held = follows.service.versions
    with RetrievalClient(f"grpc://{router.address}") as client:
        for number in (1, 2):
            known.add([{"id": f"news {number}", "text": _NEWS}])
            eventually(lambda number=number: held.newest.number == number, 30)
            assert [state.version for state in held.states] == [0, number]
            assert client.search(_QUERIES, 6) == before
        assert version_of(router) == 0
        running.stop(stays)  # it is lost, which is noticed
        eventually(lambda: version_of(router) == 2)
        with pytest.raises(ConnectionError, match="lacks shard 1"):
            client.search(_QUERIES, 6)


def test_a_version_that_was_taken_back_is_served_again(running, folder):
    shards, router = following(running, folder)
    known = Database.open(folder)
    before = known.search(_QUERIES, 6)
    known.add([{"id": "news", "text": _NEWS}])
    with RetrievalClient(f"grpc://{router.address}") as client:
        eventually(lambda: version_of(router) == 1)
        assert client.search(_QUERIES, 6) == known.search(_QUERIES, 6) != before
        versions.put_in_force(folder, 0)
        eventually(lambda: version_of(router) == 0)
        assert client.search(_QUERIES, 6) == before
        # A shard that still holds a version answers for it before it calls it the newest.
        for shard in shards:
            held = shard.service.versions
            eventually(lambda held=held: [s.version for s in held.states] == [1, 0])
