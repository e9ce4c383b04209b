"""A database as its users see it: what is found, and in which version."""

from dataclasses import astuple

import numpy as np
import pytest

from data_pipeline.database import Database
from tests import tiny_corpus
from tests.changed_database import NEWS, OTHER_NEWS, found_in, opening

pytestmark = pytest.mark.usefixtures("toy_embedder")


def test_a_planted_sentence_is_found_in_its_document(tiny_database, texts):
    chunk = " ".join(tiny_corpus.PLANTED.split()[2:6])
    (found,) = tiny_database.search([chunk], 1)
    (best,) = found
    assert best.document_id == tiny_corpus.PLANTED_IN
    text = texts[best.document_id]
    start = text.index(tiny_corpus.PLANTED)
    assert start - 40 < best.offset < start + len(tiny_corpus.PLANTED)


def test_only_training_documents_are_found(tiny_database):
    (found,) = tiny_database.search(["anything"], len(tiny_database.snapshot.chunks()))
    ids = set(tiny_database.snapshot.documents().column("id").to_pylist())
    assert {passage.document_id for passage in found} == ids
    for split in ("validation", "test"):
        assert not ids & set(
            tiny_database.snapshot.documents(split).column("id").to_pylist()
        )


def test_no_queries(tiny_database):
    assert tiny_database.search([], 3) == []


def test_retrieve_is_search(tiny_database):
    table, tokenizer = tiny_database.snapshot.chunks("test"), tiny_database.tokenizer
    tokens_QM = table.take("tokens", np.arange(len(table)))
    excluded = [tiny_corpus.PLANTED_IN, tiny_corpus.MONOTONE]
    got = tiny_database.retrieve(tokens_QM, 3, exclude_documents=excluded)
    texts = [tokenizer.decode(tokens_M) for tokens_M in tokens_QM]
    with_text = [query for query, text in enumerate(texts) if text]  # not EOD alone
    searched = tiny_database.search(
        [texts[query] for query in with_text], 3, exclude_documents=excluded
    )
    for query, found in zip(with_text, searched, strict=True):
        assert [f.chunk_id for f in found] == got.chunk_ids_QN[query].tolist()
        assert [f.distance for f in found] == got.distances_QN[query].tolist()
        for place, passage in enumerate(found):
            length = got.lengths_QN[query, place]
            tokens = got.tokens_QNR[query, place, :length]
            assert tokenizer.decode(tokens) == passage.text + passage.continuation
    longer = tiny_database.retrieve(tokens_QM[:2], 1, neighbour_len=32)
    assert longer.tokens_QNR.shape == (2, 1, 32)
    few = tiny_database.retrieve(tokens_QM[:1], len(tiny_database.snapshot.chunks()))
    absent = few.chunk_ids_QN[0] < 0
    assert absent.any()
    assert (few.lengths_QN[0] == 0).tolist() == absent.tolist()
    assert np.isinf(few.distances_QN[0][absent]).all()


def test_a_chunk_finds_itself(tiny_database):
    ids = np.arange(0, len(tiny_database.snapshot.chunks()), 7)
    tokens = tiny_database.snapshot.chunks().take("tokens", ids)
    got = tiny_database.retrieve(tokens, 1)
    has_text = got.lengths_QN[:, 0] > 0
    nearest = tiny_database.snapshot.chunks().take("tokens", got.chunk_ids_QN[:, 0])
    same = (nearest == tokens).all(axis=1)
    assert has_text.all()
    assert (same | (got.distances_QN[:, 0] < 1e-3)).mean() > 0.95
    assert same.mean() > 0.9


def test_another_open_database_sees_changes_when_told(database):
    other = Database.open(database.folder)
    database.add([{"id": "news", "text": NEWS}])
    assert "news" not in found_in(other, NEWS)
    assert other.refresh()
    assert not other.refresh()
    assert found_in(other, opening(database, NEWS), 1) == ["news"]
    other.add([{"id": "more", "text": OTHER_NEWS}])  # on what another has made
    database.add([{"id": "most", "text": OTHER_NEWS + NEWS}])
    assert database.version == 3
    assert {"news", "more", "most"} <= set(found_in(database, NEWS, 10_000))


@pytest.mark.parametrize("way", ["search", "retrieve"])
def test_a_search_goes_on_in_the_version_it_began_with(database, monkeypatch, way):
    """Another thread takes what is found off the disk while the query is embedded."""
    (row,) = database.snapshot.rows_of([tiny_corpus.PLANTED_IN])
    ids_T = np.flatnonzero(database.snapshot.document_of_chunk == row)
    tokens_QM = database.snapshot.chunks().take("tokens", ids_T[:1])

    def ask():
        if way == "search":
            return database.search([tiny_corpus.PLANTED], 20)
        return [array.tolist() for array in astuple(database.retrieve(tokens_QM, 20))]

    wanted, embedder = ask(), database.embedder
    embed = embedder.embed

    def embed_late(texts):
        monkeypatch.setattr(embedder, "embed", embed)
        database.delete([tiny_corpus.PLANTED_IN])
        database.compact()
        return embed(texts)

    monkeypatch.setattr(embedder, "embed", embed_late)
    assert ask() == wanted
    assert database.version == 2
    assert ask() != wanted


def test_the_newest_is_opened_beside_the_one_that_is_shown(database):
    assert database.beside() is database
    Database.open(database.folder).add([{"id": "news", "text": NEWS}])
    beside = database.beside()
    assert (database.version, beside.version) == (0, 1)
    assert beside.beside() is beside
    assert not database.snapshot.has_document("news")
    assert beside.snapshot.has_document("news")
