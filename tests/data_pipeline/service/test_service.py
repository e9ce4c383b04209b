"""The retrieval service answers as the database does, and refuses what it must."""

import dataclasses
import os

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from data_pipeline.database import Database
from data_pipeline.service import serve_local
from data_pipeline.service.client import RetrievalClient
from data_pipeline.service.wire import messages
from data_pipeline.service.wire import retrieval_pb2 as pb
from data_pipeline.service.wire.stubs import stub_of
from retro_jax import generation
from tests import tiny_corpus
from tests.served import servers
from tools.benchmark import service as benchmark

_NUM_SERVERS = 3
QUERIES = [
    tiny_corpus.PLANTED,
    "the same again",
    *list(tiny_corpus.texts().values())[:20],
]


@pytest.fixture(scope="module")
def service(sharded_database):
    """A router before three shard servers, and a client."""
    with servers() as running:
        shards = [
            running.shard(sharded_database, s, _NUM_SERVERS)
            for s in range(_NUM_SERVERS)
        ]
        addresses = ",".join(shard.address for shard in shards)
        router = running.router(sharded_database, addresses)
        with grpc.insecure_channel(router.address) as channel:
            yield running, router, shards, channel


@pytest.fixture(scope="module")
def client(service):
    with RetrievalClient(f"grpc://{service[1].address}") as made:
        yield made


@pytest.fixture(scope="module")
def stub(service):
    return stub_of(service[3], "Retrieval")


def test_servers_hold_all_shards_once(service, sharded_database):
    held = [shard.service.versions.newest.index_shards for shard in service[2]]
    assert sharded_database.snapshot.num_shards > _NUM_SERVERS
    assert sorted(sum(held, ())) == list(range(sharded_database.snapshot.num_shards))


@pytest.mark.parametrize("k", [1, 7, 300])
def test_search_is_the_databases_bit_for_bit(client, sharded_database, k):
    queries = QUERIES[:3] if k == 300 else QUERIES
    found = client.search(queries, k)
    assert found == sharded_database.search(queries, k)
    assert len(found[0]) == min(k, sharded_database.snapshot.index().size)


def test_excluded_documents_are_not_found(client, sharded_database):
    excluded = [tiny_corpus.PLANTED_IN, tiny_corpus.MONOTONE]
    found = client.search(QUERIES, 5, exclude_documents=excluded)
    assert found == sharded_database.search(QUERIES, 5, exclude_documents=excluded)
    assert found != client.search(QUERIES, 5)


def test_the_client_is_a_retriever(client, sharded_database):
    assert isinstance(client, generation.Retriever)
    tokens_QM = sharded_database.snapshot.chunks().take("tokens", np.arange(9))
    expected = sharded_database.retrieve(
        tokens_QM, 3, neighbour_len=24, exclude_documents={tiny_corpus.MONOTONE}
    )
    found = client.retrieve(
        tokens_QM, 3, neighbour_len=24, exclude_documents={tiny_corpus.MONOTONE}
    )
    assert isinstance(found, generation.Neighbours)
    for field in dataclasses.fields(expected):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        np.testing.assert_array_equal(ours, theirs, strict=True)


def test_neighbours_are_two_chunks_long_and_absent_ones_none(client, sharded_database):
    tokens_QM = sharded_database.snapshot.chunks().take("tokens", np.arange(1))[:, :5]
    names = sharded_database.snapshot.documents().column("id").to_pylist()
    others = [name for name in names if name != tiny_corpus.PLANTED_IN]
    expected = sharded_database.retrieve(tokens_QM, 60, exclude_documents=others)
    found = client.retrieve(tokens_QM, 60, exclude_documents=others)
    for field in dataclasses.fields(expected):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        np.testing.assert_array_equal(ours, theirs, strict=True)
    assert found.chunk_ids_QN[0, 0] >= 0
    assert found.chunk_ids_QN[0, -2:].tolist() == [-1, -1]


def test_vectors_and_sources_by_chunk(client, sharded_database):
    vectors_QW = sharded_database.embedder.embed(QUERIES)
    for ours, theirs in zip(
        client.nearest(vectors_QW, 4),
        sharded_database.nearest(vectors_QW, 4),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs, strict=True)
    for chunk_id in (0, len(sharded_database.snapshot.chunks()) - 1):
        found = client.found(chunk_id, 0.5)
        assert found == sharded_database.found(chunk_id, 0.5)


def test_it_says_what_it_serves(client, sharded_database):
    description = client.describe()
    assert description.database.fingerprint == sharded_database.fingerprint
    assert description.chunk_len == sharded_database.chunk_len
    assert description.num_shards == _NUM_SERVERS
    assert description.tokenizer_fingerprint == sharded_database.tokenizer.fingerprint


def _vectors(*rows) -> pb.Vectors:
    return messages.pack_vectors(np.array(rows, np.float32))


_ONES = np.ones(32, np.float32)
_TEXT = pb.Texts(texts=["a text"])
_BAD = {
    "k must lie in 1..1000, is 0": {"texts": _TEXT, "k": 0},
    "k must lie in 1..1000, is -1": {"texts": _TEXT, "k": -1},
    "k must lie in 1..1000, is 1000000000": {"texts": _TEXT, "k": 10**9},
    "give texts, token_chunks or vectors": {"k": 1},
    "texts must hold 1..2048 queries, there are 0": {"texts": pb.Texts(), "k": 1},
    "texts must hold 1..2048 queries, there are 2049": {
        "texts": pb.Texts(texts=["a"] * 2049),
        "k": 1,
    },
    "2000 queries with k = 1000 are 2000000 results": {
        "texts": pb.Texts(texts=["a"] * 2000),
        "k": 1000,
    },
    "texts[1] is empty": {"texts": pb.Texts(texts=["a", " \n"]), "k": 1},
    "texts[0] holds a NUL character": {"texts": pb.Texts(texts=["a\0b"]), "k": 1},
    "texts[0] has 65537 bytes": {"texts": pb.Texts(texts=["a" * 65537]), "k": 1},
    "vectors.width is 2, the database's is 32": {"vectors": _vectors([1, 2]), "k": 1},
    "vectors.data has 129 bytes, no multiple of the 128": {
        "vectors": pb.Vectors(data=b"1" * 129, width=32),
        "k": 1,
    },
    "row 1 of vectors is zero": {"vectors": _vectors(_ONES, 0 * _ONES), "k": 1},
    "row 0 of vectors is zero, not finite": {
        "vectors": _vectors(np.nan * _ONES),
        "k": 1,
    },
    "vectors must hold 1..2048 queries, there are 0": {
        "vectors": pb.Vectors(width=32),
        "k": 1,
    },
    "chunk_len must lie in 1..65536, is 0": {
        "token_chunks": pb.TokenChunks(data=b"1234"),
        "k": 1,
    },
    "ids -1..3 are outside 0..": {
        "token_chunks": messages.pack_tokens(np.array([[3, -1]])),
        "k": 1,
    },
    "passage_len must be a multiple of 8 in 0..512, is 12": {
        "texts": _TEXT,
        "k": 1,
        "passage_len": 12,
    },
    "exclude_documents: document 'no such one' is not in the database": {
        "texts": _TEXT,
        "k": 1,
        "exclude_documents": ["no such one"],
    },
    "exclude_documents names 10001 documents": {
        "texts": _TEXT,
        "k": 1,
        "exclude_documents": ["a"] * 10_001,
    },
}


@pytest.mark.parametrize("message", _BAD)
def test_bad_requests_are_told_what_is_wrong(stub, message):
    with pytest.raises(grpc.RpcError) as caught:
        stub.Search(pb.SearchRequest(**_BAD[message]), timeout=10)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert message in caught.value.details()


@pytest.mark.parametrize("data", [b"\x0a\x04\x0a\x02\xff\xfe\x20\x01", b"\xff\xff\xff"])
def test_bytes_that_are_no_request_or_not_utf8(service, data):
    call = service[3].unary_unary("/retro_jax.retrieval.v1.Retrieval/Search")
    with pytest.raises(grpc.RpcError) as caught:
        call(data, timeout=10)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "SearchRequest, or a text in it is not UTF-8" in caught.value.details()


def test_no_such_passages(stub, sharded_database):
    for ids in ([-1], [len(sharded_database.snapshot.chunks())]):
        with pytest.raises(grpc.RpcError, match="is outside 0"):
            stub.Passages(pb.PassagesRequest(chunk_ids=ids), timeout=10)
    other = pb.DatabaseState(fingerprint="other", version=3)
    with pytest.raises(grpc.RpcError, match="not database other version 3"):
        stub.Passages(pb.PassagesRequest(database=other, chunk_ids=[0]), timeout=10)


def test_a_message_too_large_is_refused_and_the_connection_goes_on(stub):
    huge = pb.SearchRequest(texts=pb.Texts(texts=["a" * (65 << 20)]), k=1)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Search(huge, timeout=10)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(stub.Search(pb.SearchRequest(texts=_TEXT, k=1)).results) == 1


def test_the_clients_errors(client, service):
    with pytest.raises(ValueError, match=r"texts\[0\] is empty"):
        client.search([""], 1)
    with pytest.raises(ValueError, match=r"texts\[1\] can't be written in UTF-8"):
        client.search(["a", "\ud800"], 1)
    with pytest.raises(ValueError, match="out of all bounds"):
        client.search(["a"], 2**40)
    for address in ("localhost:50050", "grpc://localhost", "http://localhost:1"):
        with pytest.raises(ValueError, match="is no address of a retrieval service"):
            RetrievalClient(address)
    with pytest.raises(ValueError, match="timeout_s must be positive, is 0"):
        RetrievalClient("grpc://a:1", timeout_s=0)
    with (
        RetrievalClient(f"grpc://{service[2][0].address}") as of_shard,
        pytest.raises(ConnectionError, match="UNIMPLEMENTED"),
    ):
        of_shard.search(["a"], 1)


def test_a_shard_in_anothers_place_is_refused(service, sharded_database):
    running, _, shards, _ = service
    wrong = running.router(
        sharded_database, f"{shards[1].address},{shards[0].address},127.0.0.1:1"
    )
    with (
        RetrievalClient(f"grpc://{wrong.address}") as client,
        pytest.raises(ConnectionError, match="this is shard 1 of 3, not 0 of 3"),
    ):
        client.search(["a"], 1)


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


def test_requests_are_counted(service, client):
    metrics = service[1].metrics

    def counted(code):
        return metrics.value("retro_requests_total", method="Search", code=code)

    before = counted("OK"), counted("INVALID_ARGUMENT")
    client.search(["a"], 1)
    with pytest.raises(ValueError, match="k must lie"):
        client.search(["a"], 0)
    assert (counted("OK"), counted("INVALID_ARGUMENT")) == (
        before[0] + 1,
        before[1] + 1,
    )
    assert metrics.value("retro_request_seconds_count", method="Search") > 1
    assert metrics.value("retro_in_flight") == 0


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
