"""A router goes over to a version when all shards have it, and back."""

import math
import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from data_pipeline.database import Database, versions
from data_pipeline.service.client import RetrievalClient
from data_pipeline.service.routing import served_version
from data_pipeline.service.shards import held_versions
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
        for number in (1, 2, 3):
            known.add([{"id": f"news {number}", "text": _NEWS}])
            eventually(lambda: [s.version for s in held.states] == [0, 1], 30)
            assert client.search(_QUERIES, 6) == before
        eventually(lambda: any("version_waits" in line for line in running.said))
        assert version_of(router) == 0
        running.stop(stays)  # it is lost, which is noticed
        eventually(lambda: version_of(router) == 3)
        with pytest.raises(ConnectionError, match="lacks shard 1"):
            client.search(_QUERIES, 6)


def test_a_version_that_is_gone_before_all_have_it_is_passed_over(
    running, folder, monkeypatch
):
    """Its files are compacted away while a shard still looks for it."""
    shards, router = following(running, folder)
    known = Database.open(folder)
    late = shards[1].service
    opened, asked = Database.beside, threading.Event()

    def beside(database, version=None):
        if version == 1 and database.snapshot is late.versions.newest.database.snapshot:
            asked.set()
            raise ValueError("not yet")
        return opened(database, version)

    monkeypatch.setattr(Database, "beside", beside)
    known.add([{"id": "news", "text": _NEWS}])
    assert asked.wait(20)
    known.delete([tiny_corpus.PLANTED_IN])
    known.compact()
    eventually(lambda: version_of(router) == known.version)
    with RetrievalClient(f"grpc://{router.address}") as client:
        assert client.search(_QUERIES, 6) == known.search(_QUERIES, 6)


def test_a_version_that_is_asked_for_while_another_is_opened_stays(
    running, folder, monkeypatch
):
    """What was nobody's when room was looked for may be somebody's when it is needed."""
    shard = running.shard(Database.open(folder), 0, 1, follow_s=FOLLOW_S)
    held, known = shard.service.versions, Database.open(folder)
    known.add([{"id": "news", "text": _NEWS}])
    eventually(lambda: len(held.states) == 2)
    both = list(held.states)
    opened = Database.beside

    def beside(database, version=None):
        held.lease("a router", both, math.inf, leads=True)
        return opened(database, version)

    monkeypatch.setattr(Database, "beside", beside)
    known.add([{"id": "more", "text": _NEWS}])
    eventually(lambda: any("version_waits" in line for line in running.said))
    assert held.states == both


def test_health_says_whether_a_shard_can_answer(running, sharded_database):
    shards = [running.shard(sharded_database, s, 2) for s in range(2)]
    addresses = ",".join(shard.address for shard in shards)
    router = running.router(sharded_database, addresses)

    def health(service: str) -> int:
        with grpc.insecure_channel(router.address) as channel:
            asked = health_pb2.HealthCheckRequest(service=service)
            return health_pb2_grpc.HealthStub(channel).Check(asked, timeout=5).status

    statuses = health_pb2.HealthCheckResponse
    ready = ("", "retro_jax.retrieval.v1.Retrieval")
    running.stop(shards[0])
    eventually(lambda: router.service._shards._shards[0].is_lost)
    assert [health(name) for name in ready] == [statuses.SERVING] * 2  # partial answers
    running.stop(shards[1])
    for name in ready:
        eventually(lambda name=name: health(name) == statuses.NOT_SERVING)
    assert health("live") == statuses.SERVING
    running.shard(sharded_database, 1, 2, port=shards[1].port)
    eventually(lambda: health("") == statuses.SERVING)


def test_a_version_that_was_taken_back_is_served_again(running, folder, monkeypatch):
    monkeypatch.setattr(held_versions, "_UNHELD_S", 0.5)
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
        for shard in shards:  # and the other one is given up
            held = shard.service.versions
            eventually(lambda held=held: [s.version for s in held.states] == [0])
