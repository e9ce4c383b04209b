"""A service that loses servers and is flooded is whole again afterwards."""

import argparse

from tools.faults import servers


def test_a_service_loses_servers_and_is_flooded(tmp_path):
    """Real servers; at the end of each fault all answers are whole again."""
    args = argparse.Namespace(
        rows=2000, queue=4, clients=3, seconds=0.9, timeout_s=0.5, seed=0
    )
    rows = servers.rows(tmp_path / "served", args, [])
    by_name = {row["service"]: row for row in rows}
    killed, stalled = by_name["a replica killed"], by_name["a shard stalled"]
    lost, flooded = by_name["a shard killed"], by_name["overload, 5 times"]
    assert killed["requests"] == killed["whole"] + killed["partial"] + killed["failed"]
    assert killed["whole"] > 5
    assert stalled["partial"] + stalled["failed"] > 0
    assert lost["partial"] > 0 and lost["whole"] > 0
    answered = flooded["whole"] + flooded["partial"]
    assert answered + flooded["shed"] + flooded["failed"] == flooded["requests"]
    assert 0 < flooded["normal again s"] < 60
