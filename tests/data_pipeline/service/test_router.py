"""A router refuses what it must, and names it."""

import concurrent.futures
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest

from data_pipeline.service import router
from data_pipeline.service.wire import messages
from data_pipeline.service.wire import retrieval_pb2 as pb
from tests.served import client_of, eventually, refusal

_ROOT = Path(__file__).parents[3]


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
    "texts have more than 1048576 bytes: ask with fewer queries": {
        "texts": pb.Texts(texts=["a" * 30_000] * 40),
        "k": 1,
    },
    "token_chunks has 400000 tokens, more than 262144": {
        "token_chunks": pb.TokenChunks(data=bytes(4 * 400_000), chunk_len=4000),
        "k": 1,
    },
    "exclude_documents has 1500000 bytes, more than 1048576": {
        "texts": _TEXT,
        "k": 1,
        "exclude_documents": ["a" * 500_000] * 3,
    },
    "chunk_len must lie in 1..8192, is 0": {
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


def test_one_kind_of_request_does_not_shut_out_the_others(running, sharded_database):
    open_ = threading.Event()
    shard = running.shard(sharded_database, 0, 1)
    made = running.router(sharded_database, shard.address, most=2)
    embed = made.service._batches._embed
    made.service._batches._embed = lambda texts: open_.wait(30) and embed(texts)
    with (
        client_of(made) as client,
        concurrent.futures.ThreadPoolExecutor(2) as pool,
    ):
        searches = [pool.submit(client.search, ["a text"], 1) for _ in range(2)]
        eventually(lambda: made.metrics.value("retro_in_flight", kind="texts") == 2)
        with pytest.raises(ConnectionError, match="2 requests of texts are under way"):
            client.search(["a text"], 1)
        assert client.nearest(_ONES[None], 1)[0].shape == (1, 1)
        assert client.found(0).chunk_id == 0
        open_.set()
        for search in searches:
            assert len(search.result(20)) == 1


def test_no_such_passages(stub, sharded_database):
    for ids in ([-1], [len(sharded_database.snapshot.chunks())]):
        with pytest.raises(grpc.RpcError, match="is outside 0"):
            stub.Passages(pb.PassagesRequest(chunk_ids=ids), timeout=10)
    other = pb.DatabaseState(fingerprint="other", version=3)
    with pytest.raises(grpc.RpcError, match="not database other version 3"):
        stub.Passages(pb.PassagesRequest(database=other, chunk_ids=[0]), timeout=10)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--shards=a"], "shards: 'a' is no address of a server: host:port"),
        (["--shards=a:1|b:2,a:1"], "shards: a:1 is there twice"),
        (["--shards=a:1", "--tls_ca=README.md"], "is no PEM certificate"),
        ([], "the following arguments are required: --shards"),
    ],
)
def test_wrong_flags_are_one_line(
    flags, message, sharded_database, capsys, toy_embedder, monkeypatch
):
    monkeypatch.chdir(_ROOT)
    database = f"--database={sharded_database.folder}"
    assert message in refusal(router.main, [database], flags, capsys)
