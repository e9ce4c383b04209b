"""The client answers as the database does, and says what is wrong."""

import dataclasses

import numpy as np
import pytest

from data_pipeline.service.client import RetrievalClient
from retro_jax import generation
from tests import tiny_corpus
from tests.served import NUM_SERVERS

QUERIES = [
    tiny_corpus.PLANTED,
    "the same again",
    *list(tiny_corpus.texts().values())[:20],
]


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
    assert description.num_shards == NUM_SERVERS
    assert description.tokenizer_fingerprint == sharded_database.tokenizer.fingerprint


def test_the_clients_errors(client, service):
    with pytest.raises(ValueError, match=r"texts\[0\] is empty"):
        client.search([""], 1)
    with pytest.raises(ValueError, match=r"texts\[1\] can't be written in UTF-8"):
        client.search(["a", "\ud800"], 1)
    for call in (
        lambda: client.search("abc", 1),
        lambda: client.search(["a"], 1, exclude_documents="abc"),
    ):
        with pytest.raises(ValueError, match=r"must be a list, are 'abc': give \["):
            call()
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
