"""What goes wrong around the service: lost, stalled, full and foreign shards, bad flags."""

import concurrent.futures
import shutil
import signal
import threading
import time

import pytest

from data_pipeline.database import Database
from tests.served import Gate, client_of, process

_QUERY = ["the same again"]


def test_overload_sheds_and_recovers(running, sharded_database):
    gate = Gate()
    shard = running.shard(sharded_database, 0, 1, nearest=gate, threads=1, waiting=2)
    made = running.router(sharded_database, shard.address, most=5)
    with (
        client_of(made) as client,
        concurrent.futures.ThreadPoolExecutor(12) as pool,
    ):
        asked = [pool.submit(client.search, _QUERY, 2) for _ in range(12)]
        deadline_s = time.monotonic() + 5
        while sum(answer.done() for answer in asked) < 9:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        done, waiting = concurrent.futures.wait(asked, timeout=0.2)
        assert len(waiting) == 3  # one runs, two wait
        assert gate.waiting.acquire(timeout=1)
        assert shard.metrics.value("retro_queue_length", kind="vectors") == 2
        for refused in done:
            with pytest.raises(ConnectionError, match="RESOURCE_EXHAUSTED: overloaded"):
                refused.result()
        gate.open.set()
        expected = sharded_database.search(_QUERY, 2)
        assert all(answer.result(10) == expected for answer in waiting)
        assert client.search(_QUERY, 2) == expected
        assert shard.metrics.value("retro_in_flight", kind="vectors") == 0


def test_an_updated_database_is_another_version(
    running, sharded_database, tmp_path, toy_embedder
):
    """Servers show the version they began with; one that is behind is missing."""
    folder = shutil.copytree(sharded_database.folder, tmp_path / "copy")
    behind = running.shard(Database.open(folder), 0, 2)
    updated = Database.open(folder)
    updated.delete([updated.snapshot.documents().column("id")[0].as_py()])
    updated.add([{"id": "new", "text": "a lighthouse keeper counts the ships. " * 9}])
    shards = [running.shard(updated, s, 2) for s in range(2)]
    made = running.router(updated, ",".join(s.address for s in shards))
    query = ["a lighthouse keeper counts"]
    with client_of(made) as client:
        found = client.search(query, 5)
        assert found == updated.search(query, 5)
        assert found[0][0].document_id == "new"
        assert client.describe().database.version == updated.version == 2
    mixed = running.router(updated, f"{behind.address},{shards[1].address}")
    with (
        client_of(mixed) as client,
        pytest.raises(
            ConnectionError, match=r"lacks shard 0 \(FAILED_.* another .* version"
        ),
    ):
        client.search(query, 5)


def test_a_replica_that_stands_still_and_is_killed_under_load(
    running, sharded_database
):
    """No request fails or takes longer than its deadline."""
    flags = (f"--database={sharded_database.folder}", "--shard=0", "--num_shards=1")
    survivor = running.shard(sharded_database, 0, 1, threads=2)
    expected = sharded_database.search(_QUERY, 2)
    with process("shard_server", *flags) as (victim, said):
        addresses = f"127.0.0.1:{said[-1]['port']}|{survivor.address}"
        made = running.router(sharded_database, addresses, hedge_s=0.1)
        until = threading.Event()

        def load() -> list[float]:
            took_s = []
            with client_of(made, timeout_s=10) as client:
                while not until.is_set():
                    start_s = time.monotonic()
                    assert client.search(_QUERY, 2) == expected
                    took_s.append(time.monotonic() - start_s)
            return took_s

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            loads = [pool.submit(load) for _ in range(4)]
            time.sleep(0.4)
            victim.send_signal(signal.SIGSTOP)
            time.sleep(0.8)
            victim.send_signal(signal.SIGCONT)
            time.sleep(0.4)
            victim.kill()
            time.sleep(0.8)
            until.set()
            took_s = [t for one in loads for t in one.result(30)]
    assert len(took_s) > 8
    assert max(took_s) < 10
    assert made.metrics.value("retro_hedges_total") >= 1
    assert made.metrics.value("retro_partials_total") == 0
