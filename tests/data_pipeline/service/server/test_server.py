"""The life of a server: health, reflection, draining, signals."""

import concurrent.futures
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from data_pipeline.service.wire import retrieval_pb2 as pb
from data_pipeline.service.wire.stubs import stub_of
from tests.ports import free_port
from tests.served import Gate, client_of, process

_QUERY = ["the same again"]


def test_health_and_reflection(service):
    _, router, shards, _ = service
    names = {
        router.port: ["", "retro_jax.retrieval.v1.Retrieval"],
        shards[0].port: ["", "retro_jax.retrieval.v1.Shard"],
    }
    for port, services in names.items():
        with grpc.insecure_channel(f"127.0.0.1:{port}") as own:
            check = health_pb2_grpc.HealthStub(own).Check
            for name in services:
                answer = check(health_pb2.HealthCheckRequest(service=name), timeout=5)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            listing = reflection_pb2.ServerReflectionRequest(list_services="")
            reflected = reflection_pb2_grpc.ServerReflectionStub(own)
            (answer,) = reflected.ServerReflectionInfo(iter([listing]), timeout=5)
            listed = {entry.name for entry in answer.list_services_response.service}
            assert {services[1], "grpc.health.v1.Health"} <= listed


def test_draining_finishes_what_is_under_way(running, sharded_database):
    gate = Gate()
    shard = running.shard(sharded_database, 0, 1, nearest=gate, pause_s=0.3)
    made = running.router(sharded_database, shard.address)
    with (
        client_of(made) as client,
        concurrent.futures.ThreadPoolExecutor(2) as pool,
        grpc.insecure_channel(shard.address) as channel,
    ):
        asked = pool.submit(client.search, _QUERY, 2)
        assert gate.waiting.acquire(timeout=5)
        check = health_pb2_grpc.HealthStub(channel).Check
        assert check(health_pb2.HealthCheckRequest(), timeout=5).status == 1
        stopping = pool.submit(running.stop, shard)
        deadline_s = time.monotonic() + 5
        while (
            check(health_pb2.HealthCheckRequest(), timeout=5).status
            != health_pb2.HealthCheckResponse.NOT_SERVING
        ):
            assert time.monotonic() < deadline_s
        time.sleep(0.4)  # past the pause: no new ones are taken
        assert not stopping.done()
        gate.open.set()
        # The search is answered; its passages can't be read any more.
        with contextlib.suppress(ConnectionError):
            asked.result(10)
        stopping.result(10)
        code = {"method": "Search", "code": "OK"}
        assert shard.metrics.value("retro_requests_total", **code) == 1
        with pytest.raises(ConnectionError, match="UNAVAILABLE"):
            client.search(_QUERY, 2)


def test_sigterm_ends_a_server_with_0_and_ctrl_c_with_one_line(sharded_database):
    flags = (f"--database={sharded_database.folder}", "--num_shards=2")
    metrics_port = free_port()
    with (
        process("shard_server", *flags, "--shard=0") as (asked, said),
        process(
            "shard_server", *flags, "--shard=1", f"--metrics_port={metrics_port}"
        ) as (interrupted, _),
    ):
        with grpc.insecure_channel(f"127.0.0.1:{said[-1]['port']}") as channel:
            stub = stub_of(channel, "Shard")
            with pytest.raises(grpc.RpcError, match="this server has database"):
                stub.Search(pb.ShardSearchRequest(), timeout=5)
        with socket.create_connection(("127.0.0.1", metrics_port), 5) as scrape:
            scrape.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert (
                b'retro_queue_length{kind="vectors"} 0.0'
                in scrape.makefile("rb").read()
            )
        asked.send_signal(signal.SIGTERM)
        interrupted.send_signal(signal.SIGINT)
        assert asked.wait(10) == 0
        events = [json.loads(line)["event"] for line in asked.stderr]
        assert events == ["draining", "stopped"]
        assert interrupted.wait(10) == 130
        plain = [x for x in interrupted.stderr if not x.startswith("{") and x.strip()]
        assert plain == ["stopping\n"]


def test_servers_end_with_their_supervisor(sharded_database):
    flags = (f"--database={sharded_database.folder}", "--shard=0", "--num_shards=1")
    with process("shard_server", *flags, "--until_eof") as (server, _):
        server.stdin.close()
        assert server.wait(10) == 0


@pytest.mark.parametrize(
    "first_bytes",
    [
        b"",
        b"PRI",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        # With its settings: a connection in order, on which nothing is asked.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)),
    ],
)
def test_connections_that_say_or_ask_nothing_are_closed(
    running, sharded_database, first_bytes
):
    shard = running.shard(sharded_database, 0, 1, handshake_s=0.1, idle_s=0.1)
    with socket.create_connection(("127.0.0.1", shard.port), timeout=20) as silent:
        silent.sendall(first_bytes)
        while silent.recv(1000):
            pass  # what the server says until it closes


def test_a_client_that_was_idle_connects_again(running, sharded_database):
    shard = running.shard(sharded_database, 0, 1)
    made = running.router(sharded_database, shard.address, idle_s=0.05)
    with client_of(made) as client:
        for _ in range(3):
            assert client.describe().num_shards == 1
            time.sleep(0.15)


# A router whose embedder never comes back.
_STUCK = """
import sys, time
from data_pipeline.embedding import embedder
from data_pipeline.service import router
from tests.toy_embedder import ToyEmbedder

class Stuck(ToyEmbedder):
    def embed(self, texts):
        print("embeds", flush=True)
        time.sleep(1000)

embedder.load_embedder = lambda name: Stuck()
sys.exit(router.main(sys.argv[1:]))
"""


@pytest.fixture
def stuck(sharded_database):
    """The process of a router that embeds for ever, and drains for half a second."""
    flags = [f"--database={sharded_database.folder}", "--shards=127.0.0.1:1"]
    router = subprocess.Popen(
        [sys.executable, "-c", _STUCK, *flags, "--drain_s=0.5", "--until_eof"],
        cwd=Path(__file__).parents[4],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with router:
        port = json.loads(router.stderr.readline())["port"]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            search = stub_of(channel, "Retrieval").Search
            request = pb.SearchRequest(texts=pb.Texts(texts=_QUERY), k=1)
            asked = search.future(request, timeout=60)
            assert router.stdout.readline() == "embeds\n"
            yield router
            asked.cancel()
        router.kill()


def test_a_server_ends_within_its_time_whatever_it_does(stuck):
    stuck.stdin.close()  # its supervisor is gone
    assert stuck.wait(20) == -signal.SIGALRM  # the kernel did it
    said = [line for line in stuck.stderr if line.startswith("{")]
    events = [json.loads(line)["event"] for line in said]
    assert events == ["draining", "stopped"]


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_server_at_once(stuck, second):
    stuck.send_signal(signal.SIGTERM)
    assert json.loads(stuck.stderr.readline())["event"] == "draining"
    stuck.send_signal(second)
    assert stuck.wait(20) == -second
