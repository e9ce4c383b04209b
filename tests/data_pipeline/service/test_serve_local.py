"""A service of one machine: how many servers it starts, and that it starts them again."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import grpc
import pytest

from data_pipeline.service import serve_local
from data_pipeline.service.client import RetrievalClient
from data_pipeline.service.wire import retrieval_pb2 as pb
from data_pipeline.service.wire.stubs import stub_of
from tests.ports import free_port
from tests.served import process

_QUERY = ["the same again"]


@pytest.mark.parametrize(
    ("cores", "asked", "servers"), [(2, 0, 1), (8, 0, 2), (640, 0, "all"), (2, 3, 3)]
)
def test_one_machine_starts_a_server_for_four_cores(
    monkeypatch, sharded_database, cores, asked, servers
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    started = serve_local.shards_here(sharded_database.folder, asked)
    assert started == (
        sharded_database.snapshot.num_shards if servers == "all" else servers
    )


def test_more_servers_than_shards_are_refused(sharded_database):
    with pytest.raises(ValueError, match="smaller index_shard_rows"):
        serve_local.shards_here(sharded_database.folder, 99)
    with pytest.raises(ValueError, match="must be at least 0, is -3"):
        serve_local.shards_here(sharded_database.folder, -3)


def _check_that_it_wants_a_token(pid: int, port: int) -> None:
    """A shard server answers its router alone, and nobody reads the token meanwhile."""
    with (
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
        pytest.raises(grpc.RpcError, match="this server wants its token"),
    ):
        stub_of(channel, "Shard").Hold(pb.HoldRequest(), timeout=5)
    flags = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    (path,) = [flag for flag in flags if flag.startswith("--token_file=")]
    assert path.startswith("--token_file=/dev/fd/")


def test_all_on_one_machine(sharded_database):
    port = free_port()
    flags = (
        f"--database={sharded_database.folder}",
        "--num_shards=2",
        f"--port={port}",
        "--host=::1",
    )
    with process("serve_local", *flags, package="tests.toy_service") as (local, said):
        while "router" not in [line["server"] for line in said]:
            said.append(json.loads(local.stderr.readline()))
        for line in said:
            if line["event"] == "serving" and line["server"] != "router":
                _check_that_it_wants_a_token(line["pid"], line["port"])
        with RetrievalClient(f"grpc://[::1]:{port}", timeout_s=10) as client:
            expected = sharded_database.search(_QUERY, 3)
            assert client.search(_QUERY, 3) == expected
            shard = next(line for line in said if line["event"] == "serving")
            os.kill(shard["pid"], signal.SIGKILL)
            with pytest.raises(ConnectionError, match="lacks shard"):
                client.search(_QUERY, 3)
            while said[-1]["server"] != shard["server"] or "pid" not in said[-1]:
                line = local.stderr.readline()
                if line.startswith("{"):
                    said.append(json.loads(line))
            assert said[-1]["port"] == shard["port"]
            deadline_s = time.monotonic() + 10
            found = None
            while found != expected:
                assert time.monotonic() < deadline_s
                with contextlib.suppress(ConnectionError):
                    found = client.search(_QUERY, 3)
        local.send_signal(signal.SIGINT)
        assert local.wait(20) == 130
        rest = local.stderr.read()
        assert rest.count('"event": "stopped"') == 3
        for line in said:
            if line["event"] == "serving" and line["pid"] != shard["pid"]:
                with pytest.raises(ProcessLookupError):
                    os.kill(line["pid"], 0)
