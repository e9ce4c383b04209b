"""What a router learns of one server from its answers."""

import time

import pytest

from data_pipeline.service.client import RetrievalClient
from data_pipeline.service.routing import breaker, replica_set
from tests.served import Gate

_QUERY = ["the same again"]


def test_callers_in_a_hurry_do_not_cut_a_shard_off(running, sharded_database):
    gate = Gate()
    stalled = running.shard(sharded_database, 0, 1, nearest=gate, threads=8)
    made = running.router(sharded_database, stalled.address)
    with RetrievalClient(f"grpc://{made.address}", timeout_s=0.05) as client:
        for _ in range(6):
            with pytest.raises(ConnectionError):
                client.search(_QUERY, 30)
    gate.open.set()
    with RetrievalClient(f"grpc://{made.address}") as client:
        assert client.search(_QUERY, 30) == sharded_database.search(_QUERY, 30)
    assert not any("replica_left_alone" in line for line in running.said)


def test_a_server_that_was_lost_is_asked_as_soon_as_it_is_back(
    running, sharded_database, monkeypatch
):
    """Long before the pause is over: routers ask for versions all the time."""
    monkeypatch.setattr(breaker, "_FIRST_PAUSE_S", 600.0)
    shards = [running.shard(sharded_database, s, 2) for s in range(2)]
    addresses = ",".join(shard.address for shard in shards)
    made = running.router(sharded_database, addresses, follow_s=0.05)
    expected = sharded_database.search(_QUERY, 30)
    with RetrievalClient(f"grpc://{made.address}", allow_partial=True) as client:
        assert client.search(_QUERY, 30) == expected
        running.stop(shards[0])
        for _ in range(5):
            assert client.search(_QUERY, 30) != expected
        assert any("replica_left_alone" in line for line in running.said)
        sets: list[replica_set.ReplicaSet] = made.service._shards._shards
        ends_s = time.monotonic() + 20
        while not sets[0].is_lost:
            assert time.monotonic() < ends_s
            time.sleep(0.02)
        running.shard(sharded_database, 0, 2, port=shards[0].port)
        while client.search(_QUERY, 30) != expected:
            assert time.monotonic() < ends_s
            time.sleep(0.02)
