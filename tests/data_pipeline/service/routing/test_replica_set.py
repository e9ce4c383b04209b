"""Replicas of a shard answer as one server: hedges, retries, addresses."""

from data_pipeline.service.routing import replica_set
from tests.served import Gate, client_of

_QUERY = ["the same again"]


def test_a_stalled_replica_is_hedged(running, sharded_database):
    gate = Gate()
    slow = [running.shard(sharded_database, s, 2, nearest=gate) for s in range(2)]
    fast = [running.shard(sharded_database, s, 2) for s in range(2)]
    addresses = ",".join(
        f"{a.address}|{b.address}" for a, b in zip(slow, fast, strict=True)
    )
    made = running.router(sharded_database, addresses, hedge_s=0.4)
    expected = sharded_database.search(_QUERY, 4)
    with client_of(made, timeout_s=20) as client:
        for _ in range(20):  # the first of a shard is drawn by lot
            assert client.search(_QUERY, 4) == expected
        # Who was outrun three times in a row comes last.
        assert 3 <= made.metrics.value("retro_hedges_total") <= 11
        assert any("slower than another" in line for line in running.said)
    gate.open.set()


def test_the_slowest_twentieth_of_answers_is_hedged():
    delay = replica_set.HedgeDelay()
    assert delay.now_s == 0.1
    recent_s = [number / 1000 for number in range(1, 101)]
    for elapsed_s in recent_s:
        delay.record(elapsed_s)
    assert sum(elapsed_s > delay.now_s for elapsed_s in recent_s) == 5
    for _ in range(200):
        delay.record(0.0001)
    assert delay.now_s == 0.005
