"""A shard server holds its shards and refuses what is another's."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from data_pipeline.database import Database, Snapshot
from data_pipeline.service import shard_server
from data_pipeline.service.client import RetrievalClient
from data_pipeline.service.wire import messages
from data_pipeline.service.wire import retrieval_pb2 as pb
from data_pipeline.service.wire.stubs import stub_of
from tests.served import NUM_SERVERS, Gate, client_of, refusal, servers
from tools.benchmark import service as benchmark

_ROOT = Path(__file__).parents[3]

_QUERY = ["the same again"]


def test_servers_hold_all_shards_once(service, sharded_database):
    held = [shard.service.versions.newest.index_shards for shard in service[2]]
    assert sharded_database.snapshot.num_shards > NUM_SERVERS
    assert sorted(sum(held, ())) == list(range(sharded_database.snapshot.num_shards))


def test_a_shard_in_anothers_place_is_refused(service, sharded_database):
    running, _, shards, _ = service
    wrong = running.router(
        sharded_database, f"{shards[1].address},{shards[0].address},127.0.0.1:1"
    )
    with (
        RetrievalClient(f"grpc://{wrong.address}") as client,
        pytest.raises(ConnectionError, match="servers have another database") as raised,
    ):
        client.search(["a"], 1)
    assert "127.0.0.1" not in str(raised.value).removeprefix(f"grpc://{wrong.address}")
    (line,) = [line for line in running.said if "this is shard 1 of 3, not 0" in line]
    assert shards[1].address in line


def test_the_benchmarks_database_can_be_served(tmp_path):
    folder = benchmark.write_database(tmp_path, 90, 8, shards=2, index="exact")
    database = Database.open(folder)
    with servers() as running:
        held = [
            running.shard(database, s, 2).service.versions.newest.index_shards
            for s in range(2)
        ]
    assert held == [(0,), (1,)]
    queries_QW = benchmark._queries(database, 5)
    ids_QN, _ = database.nearest(queries_QW, 3)
    (passage,) = messages.read_passages(database, [int(ids_QN[0, 0])], 128, True)
    found = database.found(passage.chunk_id, 0.25)
    assert messages.found_of(passage, 0.25) == found
    assert found.document_id == f"document-{passage.chunk_id // 20}"


def test_a_request_given_up_keeps_its_thread_and_no_more(running, sharded_database):
    gate = Gate()
    shard = running.shard(sharded_database, 0, 1, nearest=gate, threads=1, waiting=5)
    made = running.router(sharded_database, shard.address)
    with client_of(made, timeout_s=0.3) as client:
        for _ in range(3):
            with pytest.raises(ConnectionError, match="DEADLINE|no shard answered"):
                client.search(_QUERY, 2)
        deadline_s = time.monotonic() + 5
        # Two had not begun.
        while shard.metrics.value("retro_in_flight", kind="vectors") > 1:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        gate.open.set()
    with client_of(made) as client:
        assert client.search(_QUERY, 2) == sharded_database.search(_QUERY, 2)


def test_searches_do_not_wait_for_passages(running, sharded_database, monkeypatch):
    gate = Gate()
    shard = running.shard(sharded_database, 0, 1, threads=1, waiting=0)
    monkeypatch.setattr(messages, "read_passages", gate(messages.read_passages))
    made = running.router(sharded_database, shard.address)
    with client_of(made) as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.found, 0)
        assert gate.waiting.acquire(timeout=10)
        with pytest.raises(ConnectionError, match="1 requests of passages are under"):
            client.found(1)
        assert client.nearest(np.ones((1, 32), np.float32), 2)[0].shape == (1, 2)
        gate.open.set()
        assert asked.result(10).chunk_id == 0


def test_a_passage_is_read_and_given_once(service):
    with grpc.insecure_channel(service[1].address) as channel:
        request = pb.PassagesRequest(chunk_ids=[3, 1] * 10_000, passage_len=512)
        answer = stub_of(channel, "Retrieval").Passages(request, timeout=20)
    assert [passage.chunk_id for passage in answer.passages] == [3, 1]
    assert answer.ByteSize() < 10_000


def test_another_database_is_refused_by_name(running, sharded_database):
    manifest = sharded_database.manifest | {"fingerprint": "feedfeedfeedfeed"}
    other = Database(
        Snapshot(sharded_database.folder, manifest, sharded_database.snapshot.state)
    )
    right = running.shard(sharded_database, 0, 2)
    wrong = running.shard(other, 1, 2)
    made = running.router(sharded_database, f"{right.address},{wrong.address}")
    message = (
        "this server has database feedfeedfeedfeed version 0, the router database "
        f"{sharded_database.fingerprint}"
    )
    with (
        client_of(made) as client,
        pytest.raises(ConnectionError, match="lacks shard 1 .FAILED_PRECONDITION: its"),
    ):
        client.search(_QUERY, 2)
    assert any(message in line for line in running.said)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--database=/nowhere"], "holds no finished database"),
        (["--shard=2"], "shard must lie in 0..1, is 2"),
        (["--num_shards=99"], "num_shards is 99, the index of "),
        (["--tls_cert=x"], "tls_cert and tls_key go together"),
        (
            ["--tls_cert=README.md", "--tls_key=README.md"],
            "are no PEM certificate and its key",
        ),
        (["--token_file=/nowhere"], "token_file /nowhere can't be read"),
        (["--port={taken}"], "port {taken} of host 127.0.0.1 can't be"),
        (["--metrics_port={taken}"], "metrics_port {taken} of 127.0.0.1"),
        (["--host=no.such.host.invalid"], "of host no.such.host.invalid"),
        (["--port=x"], "argument --port: invalid port value: 'x'"),
        (["--prot=1"], "unrecognized arguments: --prot=1"),
    ],
)
def test_wrong_flags_are_one_line(
    flags, message, sharded_database, capsys, monkeypatch
):
    monkeypatch.chdir(_ROOT)
    database = f"--database={sharded_database.folder}"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {"taken": str(taken.getsockname()[1])}
        said = refusal(
            shard_server.main,
            [database, "--shard=0", "--num_shards=2"],
            [flag.format(**names) for flag in flags],
            capsys,
        )
    assert message.format(**names) in said
