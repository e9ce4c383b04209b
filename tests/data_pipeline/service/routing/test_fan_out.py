"""Answers of all shards are put together; what is missing is said."""

import json
import time

import pytest

from tests.served import Gate, client_of

_QUERY = ["the same again"]


def test_a_lost_shard_makes_answers_partial(running, sharded_database):
    shards = [running.shard(sharded_database, s, 2) for s in range(2)]
    made = running.router(sharded_database, ",".join(s.address for s in shards))
    with client_of(made) as strict, client_of(made, allow_partial=True) as client:
        assert strict.search(_QUERY, 5) == sharded_database.search(_QUERY, 5)
        running.stop(shards[1])
        start_s = time.monotonic()
        found = client.search(_QUERY, 5)
        assert time.monotonic() - start_s < 2
        left = sharded_database.nearest(
            sharded_database.embedder.embed(_QUERY),
            5,
            shards=shards[0].service.versions.newest.index_shards,
        )
        assert [p.chunk_id for p in found[0]] == left[0][0].tolist()
        with pytest.raises(ConnectionError, match=r"lacks shard 1 \(UNAVAILABLE"):
            strict.search(_QUERY, 5)
        # Passages of the lost shard are read by the other.
        lost = shards[1].service.versions.newest.index_shards[0]
        chunk_id = int(sharded_database.snapshot.index((lost,)).shards[0].ids_T[0]) | 1
        assert client.found(chunk_id).chunk_id == chunk_id
        assert made.metrics.value("retro_partials_total") == 2
        assert made.metrics.value("retro_missing_shards_total", shard="1") == 2
        (line,) = [line for line in running.said if "missing_shards" in line]
        assert json.loads(line)["reasons"]["1"].startswith("UNAVAILABLE")
        running.stop(shards[0])
        with pytest.raises(ConnectionError, match="no shard answered: shard 0: UNAV"):
            client.search(_QUERY, 5)


def test_a_stalled_shard_costs_no_more_than_the_deadline(running, sharded_database):
    gate = Gate()
    stalled = running.shard(sharded_database, 0, 2, nearest=gate)
    other = running.shard(sharded_database, 1, 2)
    made = running.router(sharded_database, f"{stalled.address},{other.address}")
    with client_of(made, timeout_s=4, allow_partial=True) as client:
        found = client.search(_QUERY, 3)  # else a ConnectionError: DEADLINE_EXCEEDED
        assert len(found[0]) == 3
        gate.open.set()
        assert client.search(_QUERY, 3) == sharded_database.search(_QUERY, 3)
