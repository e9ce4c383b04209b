"""The life of a server: health, reflection, draining, signals."""

import concurrent.futures
import contextlib
import json
import signal
import socket
import time

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
            assert b"retro_queue_length 0.0" in scrape.makefile("rb").read()
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
