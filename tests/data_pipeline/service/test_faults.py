"""What goes wrong around the service: lost, stalled, full and foreign shards, bad flags."""

import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from data_pipeline.database import Database
from data_pipeline.service import router, shard_server
from data_pipeline.service.client import RetrievalClient
from data_pipeline.service.routing import micro_batches, replica_set
from data_pipeline.service.wire import retrieval_pb2 as pb
from data_pipeline.service.wire import security
from data_pipeline.service.wire.stubs import stub_of
from tests.ports import free_port
from tests.served import servers
from tests.toy_embedder import ToyEmbedder

_ROOT = Path(__file__).parents[3]
_TLS = _ROOT / "tests" / "tls"
_QUERY = ["the same again"]


@pytest.fixture
def running():
    with servers() as made:
        yield made


def client_of(served, **options) -> RetrievalClient:
    return RetrievalClient(f"grpc://{served.address}", **options)


class Gate:
    """A shard's search that stands still while the gate is shut."""

    def __init__(self):
        self.open, self.waiting = threading.Event(), threading.Semaphore(0)

    def __call__(self, nearest):
        def search(*arguments):
            self.waiting.release()
            assert self.open.wait(20)
            return nearest(*arguments)

        return search


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
        chunk_id = int(sharded_database.index_of((lost,)).shards[0].ids_T[0]) | 1
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
        assert shard.metrics.value("retro_queue_length") == 2
        for refused in done:
            with pytest.raises(ConnectionError, match="RESOURCE_EXHAUSTED: overloaded"):
                refused.result()
        gate.open.set()
        expected = sharded_database.search(_QUERY, 2)
        assert all(answer.result(10) == expected for answer in waiting)
        assert client.search(_QUERY, 2) == expected
        assert shard.metrics.value("retro_in_flight") == 0


def test_a_request_given_up_keeps_its_thread_and_no_more(running, sharded_database):
    gate = Gate()
    shard = running.shard(sharded_database, 0, 1, nearest=gate, threads=1, waiting=5)
    made = running.router(sharded_database, shard.address)
    with client_of(made, timeout_s=0.3) as client:
        for _ in range(3):
            with pytest.raises(ConnectionError, match="DEADLINE|no shard answered"):
                client.search(_QUERY, 2)
        deadline_s = time.monotonic() + 5
        while shard.metrics.value("retro_in_flight") > 1:  # two had not begun
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        gate.open.set()
    with client_of(made) as client:
        assert client.search(_QUERY, 2) == sharded_database.search(_QUERY, 2)


def test_another_database_is_refused_by_name(running, sharded_database):
    manifest = sharded_database.manifest | {"fingerprint": "feedfeedfeedfeed"}
    other = Database(sharded_database.folder, manifest, sharded_database.state)
    right = running.shard(sharded_database, 0, 2)
    wrong = running.shard(other, 1, 2)
    made = running.router(sharded_database, f"{right.address},{wrong.address}")
    message = (
        "lacks shard 1 .FAILED_PRECONDITION: .*this server has database "
        f"feedfeedfeedfeed version 0, the router database {sharded_database.fingerprint}"
    )
    with client_of(made) as client, pytest.raises(ConnectionError, match=message):
        client.search(_QUERY, 2)
    assert any("feedfeed" in line for line in running.said)


def test_an_updated_database_is_another_version(
    running, sharded_database, tmp_path, toy_embedder
):
    """Servers show the version they began with; one that is behind is missing."""
    folder = shutil.copytree(sharded_database.folder, tmp_path / "copy")
    behind = running.shard(Database.open(folder), 0, 2)
    updated = Database.open(folder)
    updated.delete([updated.documents().column("id")[0].as_py()])
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
            ConnectionError, match=r"lacks shard 0 .* version 0, .* version 2"
        ),
    ):
        client.search(query, 5)


@pytest.mark.parametrize("token", [None, "s3cret"])
def test_tls_and_token(running, sharded_database, token):
    cert, key = _TLS / "localhost.crt", _TLS / "localhost.key"
    secure = {"tls_cert": cert, "tls_key": key, "token": token}
    shard = running.shard(sharded_database, 0, 1, **secure)
    made = running.router(
        sharded_database,
        shard.address,
        credentials=security.channel_credentials(cert),
        **secure,
    )
    address = f"grpcs://localhost:{made.port}"
    with RetrievalClient(address, tls_ca=cert, token=token) as client:
        assert client.search(_QUERY, 2) == sharded_database.search(_QUERY, 2)
    with (
        RetrievalClient(address, tls_ca=_TLS / "other.crt", timeout_s=2) as client,
        pytest.raises(ConnectionError, match="UNAVAILABLE: no authority .* tls_ca"),
    ):
        client.search(_QUERY, 2)
    with (
        RetrievalClient(f"grpc://localhost:{made.port}", timeout_s=2) as client,
        pytest.raises(ConnectionError, match="UNAVAILABLE: .* use grpcs://"),
    ):
        client.search(_QUERY, 2)
    if token is None:
        return
    for wrong in (None, "s3cre", "s3cret2"):
        with (
            RetrievalClient(address, tls_ca=cert, token=wrong) as client,
            pytest.raises(ValueError, match="this server wants its token"),
        ):
            client.search(_QUERY, 2)
    credentials = security.channel_credentials(cert)
    with grpc.secure_channel(f"localhost:{made.port}", credentials) as channel:
        # Probes carry no token.
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=5
        )
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


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


@contextlib.contextmanager
def process(module: str, *flags: str, package: str = "data_pipeline.service"):
    """A server process that serves, and what it said so far; killed at the end."""
    started = subprocess.Popen(
        [sys.executable, "-m", f"{package}.{module}", *flags],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said: list[dict | str] = []
    try:
        while not (said and isinstance(said[-1], dict) and "port" in said[-1]):
            line = started.stderr.readline()
            assert line, said
            said.append(json.loads(line) if line.startswith("{") else line)
        yield started, said
    finally:
        started.send_signal(signal.SIGCONT)
        started.kill()
        started.wait()
        started.stdin.close()
        started.stderr.close()


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


def test_all_on_one_machine(sharded_database):
    port = free_port()
    flags = (
        f"--database={sharded_database.folder}",
        "--num_shards=2",
        f"--port={port}",
    )
    with process("serve_local", *flags, package="tests.toy_service") as (local, said):
        while "router" not in [line["server"] for line in said]:
            said.append(json.loads(local.stderr.readline()))
        with RetrievalClient(f"grpc://127.0.0.1:{port}", timeout_s=10) as client:
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


def test_servers_end_with_their_supervisor(sharded_database):
    flags = (f"--database={sharded_database.folder}", "--shard=0", "--num_shards=1")
    with process("shard_server", *flags, "--until_eof") as (server, _):
        server.stdin.close()
        assert server.wait(10) == 0


@pytest.mark.parametrize(
    "main, flags, message",
    [
        (shard_server, ["--database=/nowhere"], "holds no finished database"),
        (shard_server, ["--shard=2"], "shard must lie in 0..1, is 2"),
        (shard_server, ["--num_shards=99"], "num_shards is 99, the index of "),
        (shard_server, ["--tls_cert=x"], "tls_cert and tls_key go together"),
        (
            shard_server,
            ["--tls_cert=README.md", "--tls_key=README.md"],
            "are no PEM certificate and its key",
        ),
        (shard_server, ["--token_file=/nowhere"], "token_file /nowhere can't be read"),
        (shard_server, ["--port={taken}"], "port {taken} of host 127.0.0.1 can't be"),
        (shard_server, ["--metrics_port={taken}"], "metrics_port {taken} of 127.0.0.1"),
        (shard_server, ["--host=no.such.host.invalid"], "of host no.such.host.invalid"),
        (shard_server, ["--port=x"], "argument --port: invalid port value: 'x'"),
        (shard_server, ["--prot=1"], "unrecognized arguments: --prot=1"),
        (router, ["--shards=a"], "shards: 'a' is no host:port"),
        (router, ["--shards=a:1|b:2,a:1"], "shards: a:1 is there twice"),
        (router, ["--shards=a:1", "--tls_ca=README.md"], "is no PEM certificate"),
        (router, [], "the following arguments are required: --shards"),
    ],
)
def test_wrong_flags_are_one_line(
    main, flags, message, sharded_database, capsys, toy_embedder, monkeypatch
):
    monkeypatch.chdir(_ROOT)
    given = [f"--database={sharded_database.folder}"]
    if main is shard_server:
        given += ["--shard=0", "--num_shards=2"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {"taken": str(taken.getsockname()[1])}
        try:
            status = main.main([*given, *(flag.format(**names) for flag in flags)])
        except SystemExit as ended:
            status = ended.code
    said = capsys.readouterr().err
    assert status == 2
    assert message.format(**names) in said
    lines = [line for line in said.splitlines() if not line.startswith("{")]
    assert len(lines) == 1


def test_texts_of_requests_are_embedded_together_and_errors_are_shared(running):
    sizes, toy = [], ToyEmbedder()

    class Counting:
        width, fingerprint = toy.width, toy.fingerprint

        def embed(self, texts):
            sizes.append(len(texts))
            if "bad" in texts:
                raise ValueError("a bad text")
            return toy.embed(texts)

    async def ask():
        import asyncio

        batches = micro_batches.MicroBatches(Counting(), window_s=0.05, most_texts=6)
        asked = [["a"], ["b", "c"], ["d"] * 5, ["e"]]
        together = await asyncio.gather(*map(batches.embed, asked))
        failed = await asyncio.gather(
            batches.embed(["bad"]), batches.embed(["a"]), return_exceptions=True
        )
        after = await batches.embed(["a"])
        await batches.close()
        return asked, together, failed, after

    asked, together, failed, after = running.run(ask())
    for texts, vectors in zip(asked, together, strict=True):
        np.testing.assert_array_equal(vectors, toy.embed(texts))
    assert [str(error) for error in failed] == ["a bad text"] * 2
    np.testing.assert_array_equal(after, toy.embed(["a"]))
    assert sizes == [3, 6, 2, 1]


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
