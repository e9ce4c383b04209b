"""Who fails is left alone: nobody waits for a server that is known not to answer."""

import concurrent.futures
import json
import time

import pytest

from data_pipeline.service.client import RetrievalClient
from data_pipeline.service.routing import (
    breaker,
)
from data_pipeline.service.routing.breaker import Breaker, Circuit
from tests.served import Gate

_QUERY = ["the same again"]
_TIMEOUT_S = 4.0  # of which a shard gets 2.4


def test_three_failures_in_a_row_open_and_one_answer_closes():
    made = Breaker()
    assert [made.record_failure(0, "x") for _ in range(2)] == [False, False]
    assert not made.record_answer()
    assert [made.record_failure(0, f"{n}") for n in range(4)] == [
        False,
        False,
        True,
        False,
    ]
    assert made.circuit is Circuit.OPEN
    assert made.reason == "3"
    assert made.record_answer()
    assert made.circuit is Circuit.CLOSED


def test_trials_are_single_and_rarer_and_rarer(monkeypatch):
    monkeypatch.setattr(breaker.random, "uniform", lambda low, high: 1.0)
    made, now_s, pauses_s = Breaker(), 100.0, []
    assert not made.begin_trial(now_s)
    for _ in range(3):
        made.record_failure(now_s, "x")
    for _ in range(7):
        pauses_s.append(made.retry_at_s - now_s)
        assert not made.begin_trial(made.retry_at_s - 0.01)
        now_s = made.retry_at_s
        assert made.begin_trial(now_s)
        assert not made.begin_trial(now_s + 100)  # one is under way
        made.record_failure(now_s, "x")
        made.end_trial(now_s)
    assert pauses_s == [1, 2, 4, 8, 16, 30, 30]
    assert made.begin_trial(made.retry_at_s)
    made.record_answer()
    made.end_trial(now_s)
    for _ in range(3):
        made.record_failure(0, "x")
    assert made.retry_at_s == 1


def test_who_is_only_slow_is_not_cut_off():
    made = Breaker()
    for _ in range(3):
        made.record_failure(0, "slower", was_slow=True)
    assert made.circuit is Circuit.LAST
    made.record_failure(0, "gone")
    assert made.circuit is Circuit.OPEN
    assert made.reason == "gone"
    made.record_failure(0, "slower", was_slow=True)
    assert made.circuit is Circuit.OPEN


def test_a_stalled_shard_costs_nothing_once_it_is_known(
    running, sharded_database, monkeypatch
):
    monkeypatch.setattr(breaker, "_FIRST_PAUSE_S", 0.3)
    gate = Gate()
    stalled = running.shard(sharded_database, 0, 2, nearest=gate)
    other = running.shard(sharded_database, 1, 2)
    made = running.router(sharded_database, f"{stalled.address},{other.address}")
    expected = sharded_database.search(_QUERY, 30)

    def is_left_alone() -> bool:
        name = "retro_replica_left_alone"
        return made.metrics.value(name, replica=stalled.address) == 1

    options = {"timeout_s": _TIMEOUT_S, "allow_partial": True}
    address = f"grpc://{made.address}"
    with (
        RetrievalClient(address, **options) as client,
        RetrievalClient(address, timeout_s=10) as strict,
        concurrent.futures.ThreadPoolExecutor(3) as pool,
    ):
        start_s = time.monotonic()
        asked = [pool.submit(client.search, _QUERY, 30) for _ in range(3)]
        assert all(len(answer.result()[0]) == 30 for answer in asked)
        assert time.monotonic() - start_s > 0.5 * _TIMEOUT_S
        assert is_left_alone()
        took_s = []
        # As long as a trial or two take, for which nobody waits.
        while sum(took_s) < 1.5 or len(took_s) < 9:
            start_s = time.monotonic()
            assert client.search(_QUERY, 30) != expected
            took_s.append(time.monotonic() - start_s)
        assert sorted(took_s)[-3] < 0.4 * _TIMEOUT_S
        with pytest.raises(
            ConnectionError,
            match=r"shard 0 \(DEADLINE_EXCEEDED: no server of it answered in time\)",
        ):
            strict.search(_QUERY, 30)
        assert any(
            "replica_left_alone" in line and stalled.address in line
            for line in running.said
        )
        gate.open.set()
        ends_s = time.monotonic() + 20
        while client.search(_QUERY, 30) != expected:
            assert time.monotonic() < ends_s
            time.sleep(0.02)
        assert not is_left_alone()
        assert strict.search(_QUERY, 30) == expected
    events = [json.loads(line)["event"] for line in running.said]
    assert events.count("replica_left_alone") == events.count("replica_is_back") == 1
