"""What others get during a flood is counted apart from what floods."""

import argparse
import contextlib

from tests.served import servers as running_servers
from tools.faults import floods, servers


def test_others_are_counted_while_a_service_is_flooded(sharded_database, monkeypatch):
    """Servers in this process stand in for processes."""

    class Service:
        peaks_mb = (3, 2, 1)

        def __init__(self, *_, **__):
            self._running = contextlib.ExitStack()
            running = self._running.enter_context(running_servers())
            shard = running.shard(sharded_database, 0, 1)
            self.port = running.router(sharded_database, shard.address).port

        def terminate(self, most_s):
            return 0.25

        def close(self):
            self._running.close()

    monkeypatch.setattr(servers, "Service", Service)
    monkeypatch.setitem(floods._FLOODS, "passages", (2, lambda: floods._passages))
    args = argparse.Namespace(
        queue=4, embedder="toy", clients=2, timeout_s=20, seconds=0.5
    )
    row = floods._row("passages", sharded_database.folder, args)
    assert row["sent"] > 0 and row["others"] > 0 and row["others failed"] == 0
    assert row["others p50 ms"] <= row["others p99 ms"]
    assert (row["router peak MB"], row["shard peak MB"], row["end s"]) == (3, 2, 0.2)
    idle = floods._row(floods._IDLE, sharded_database.folder, args)
    assert idle["sent"] == idle["others failed"] == 0 < idle["others"]
