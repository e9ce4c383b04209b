"""A finished database: what it refuses, what it finds and where that comes from."""

import json
import shutil

import numpy as np
import pytest

from data_pipeline.build import pipeline
from data_pipeline.database import Database, manifest
from data_pipeline.embedding import chunk_vectors
from data_pipeline.storage.files import read_sealed, write_sealed
from tests import tiny_corpus
from tests.toy_embedder import ToyEmbedder


@pytest.fixture(scope="module")
def texts():
    return tiny_corpus.texts()


@pytest.fixture
def copy(tiny_database, tmp_path):
    return shutil.copytree(tiny_database.folder, tmp_path / "copy")


def change_manifest(folder, **changes):
    manifest = read_sealed(folder / "manifest.json", ())
    write_sealed(folder / "manifest.json", manifest | changes)


def test_no_database(tmp_path, copy):
    with pytest.raises(ValueError, match="holds no finished database.*build_database"):
        Database.open(tmp_path / "nowhere")


def test_a_damaged_manifest(copy):
    """Every value in it counts: a recall that is read wrong is a false promise."""
    path = copy / "manifest.json"
    whole = path.read_text()
    assert '"recall@2": 1.0' in whole
    for damaged in ("{", "", whole.replace('"recall@2": 1.0', '"recall@2": 1.1')):
        path.write_text(damaged)
        with pytest.raises(ValueError, match="manifest.json is damaged: run the build"):
            Database.open(copy)


@pytest.mark.parametrize("version", [0, manifest.FORMAT_VERSION + 1, None])
def test_another_format(copy, version):
    change_manifest(copy, format_version=version)
    with pytest.raises(ValueError, match=f"format {version}, this code reads 1"):
        Database.open(copy)


@pytest.mark.parametrize(
    "stage", ["documents", "tokenizer", "chunks", "embeddings", "index", "neighbours"]
)
def test_a_manifest_of_other_files(copy, stage):
    """A later build, with other settings, was broken off at this stage."""
    Database.open(copy)
    (copy / stage / "stage.json").unlink()
    with pytest.raises(ValueError, match=f"{stage} is not what .* broken off"):
        Database.open(copy)


def test_another_embedder(copy, toy_embedder):
    assert Database.open(copy).embedder.width == ToyEmbedder.width
    change_manifest(copy, embedder_fingerprint="0123456789abcdef")
    with pytest.raises(ValueError, match="'toy' has fingerprint 70e.*0123456789abcdef"):
        _ = Database.open(copy).embedder


def test_manifest_counts_what_is_there(tiny_database):
    manifest = tiny_database.manifest
    for split in ("train", "validation", "test"):
        assert manifest["chunks"][split] == len(tiny_database.chunks(split)) > 0
        facts = manifest["documents"][split]
        table = tiny_database.documents(split)
        assert facts["documents"] == table.num_rows
        assert facts["size_bytes"] == sum(table.column("size_bytes").to_pylist())
    assert manifest["vocab_size"] == tiny_database.tokenizer.vocab_size
    assert manifest["index"]["recall@2"] == 1.0


def test_a_planted_sentence_is_found_in_its_document(tiny_database, texts):
    chunk = " ".join(tiny_corpus.PLANTED.split()[2:6])
    (found,) = tiny_database.search([chunk], 1)
    (best,) = found
    assert best.document_id == tiny_corpus.PLANTED_IN
    text = texts[best.document_id]
    start = text.index(tiny_corpus.PLANTED)
    assert start - 40 < best.offset < start + len(tiny_corpus.PLANTED)


def test_excluded_documents_are_not_found(tiny_database):
    excluded = [tiny_corpus.PLANTED_IN]
    queries = [tiny_corpus.PLANTED, tiny_corpus.PLANTED[:30]]
    for query in queries:
        (found,) = tiny_database.search([query], 20, exclude_documents=excluded)
        assert len(found) == 20
        while found[0].document_id not in excluded and len(excluded) < 6:
            excluded.append(found[0].document_id)
            (found,) = tiny_database.search([query], 20, exclude_documents=excluded)
            assert not {passage.document_id for passage in found} & set(excluded)
    assert len(excluded) == 6


def test_unknown_document_and_bad_k(tiny_database):
    with pytest.raises(ValueError, match="'no such one' is not in"):
        tiny_database.search(["a"], 1, exclude_documents=["no such one"])
    held_out = tiny_database.documents("test").column("id")[0].as_py()
    with pytest.raises(ValueError, match=f"'{held_out}' is not in"):
        tiny_database.search(["a"], 1, exclude_documents={held_out})
    for k in (0, -1):
        with pytest.raises(ValueError, match=f"k must be at least 1, is {k}"):
            tiny_database.search(["a"], k)


def test_k_beyond_the_database_gives_all_that_has_text(tiny_database):
    (found,) = tiny_database.search(["anything"], len(tiny_database.chunks()) + 5)
    distances = [passage.distance for passage in found]
    assert distances == sorted(distances)
    assert all(passage.text for passage in found)
    table = tiny_database.chunks()
    _, lengths = table.passages(np.arange(len(table)), tiny_database.chunk_len)
    ids = sorted(passage.chunk_id for passage in found)
    assert ids == np.flatnonzero(lengths).tolist()
    assert len(ids) < len(table)  # some chunks are EOD alone


def test_only_training_documents_are_found(tiny_database):
    (found,) = tiny_database.search(["anything"], len(tiny_database.chunks()))
    ids = set(tiny_database.documents().column("id").to_pylist())
    assert {passage.document_id for passage in found} == ids
    for split in ("validation", "test"):
        assert not ids & set(tiny_database.documents(split).column("id").to_pylist())


def test_no_queries(tiny_database):
    assert tiny_database.search([], 3) == []


def test_found_stands_in_its_document(tiny_database, texts):
    for chunk_id in range(len(tiny_database.chunks())):
        found = tiny_database.found(chunk_id)
        data = texts[found.document_id].encode()[found.offset :]
        passage = (found.text + found.continuation).encode()
        assert data.startswith(passage)
        # Shorter than two chunks only where the document ends.
        tokens = tiny_database.chunks().take("lengths", np.array([chunk_id]))[0]
        full = tokens == tiny_database.chunk_len and found.continuation
        assert full or data == passage


def test_found_names_its_source(tmp_path, toy_embedder):
    lines = [
        {"id": f"d{n}", "text": f"{words} " * 9, "title": f"T{n}"}
        | {"uri": f"http://x/{n}", "licence": f"L{n}"}
        for n, words in enumerate(("alpha beta", "kilo lima", "xray zulu"))
    ]
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    cfg = tiny_corpus.config(str(path), validation_share=0.0, test_share=0.0)
    pipeline.Build(cfg, tmp_path / "database").run("neighbours")
    database = Database.open(tmp_path / "database")
    ((found,),) = database.search(["kilo lima"], 1)
    assert (found.document_id, found.title) == ("d1", "T1")
    assert (found.uri, found.licence) == ("http://x/1", "L1")


def test_retrieve_is_search(tiny_database):
    table, tokenizer = tiny_database.chunks("test"), tiny_database.tokenizer
    tokens_QM = table.take("tokens", np.arange(len(table)))
    excluded = [tiny_corpus.PLANTED_IN, tiny_corpus.MONOTONE]
    got = tiny_database.retrieve(tokens_QM, 3, exclude_documents=excluded)
    texts = [tokenizer.decode(tokens_M) for tokens_M in tokens_QM]
    searched = tiny_database.search(texts, 3, exclude_documents=excluded)
    for query, found in enumerate(searched):
        assert [f.chunk_id for f in found] == got.chunk_ids_QN[query].tolist()
        assert [f.distance for f in found] == got.distances_QN[query].tolist()
        for place, passage in enumerate(found):
            length = got.lengths_QN[query, place]
            tokens = got.tokens_QNR[query, place, :length]
            assert tokenizer.decode(tokens) == passage.text + passage.continuation
    longer = tiny_database.retrieve(tokens_QM[:2], 1, neighbour_len=32)
    assert longer.tokens_QNR.shape == (2, 1, 32)
    few = tiny_database.retrieve(tokens_QM[:1], len(tiny_database.chunks()))
    absent = few.chunk_ids_QN[0] < 0
    assert absent.any()
    assert (few.lengths_QN[0] == 0).tolist() == absent.tolist()
    assert np.isinf(few.distances_QN[0][absent]).all()


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_vectors_are_the_same_at_index_and_query_time(tiny_database, split):
    table, decode = tiny_database.chunks(split), tiny_database.tokenizer.decode
    tokens = table.take("tokens", np.arange(len(table)))
    asked = tiny_database.embedder.embed([decode(row) for row in tokens])
    shards = tiny_database.shards("embeddings", split)
    stored = np.concatenate([chunk_vectors.vectors(shard) for shard in shards])
    np.testing.assert_array_equal(asked.astype(np.float16), stored)


def test_a_chunk_finds_itself(tiny_database):
    ids = np.arange(0, len(tiny_database.chunks()), 7)
    tokens = tiny_database.chunks().take("tokens", ids)
    got = tiny_database.retrieve(tokens, 1)
    has_text = got.lengths_QN[:, 0] > 0
    nearest = tiny_database.chunks().take("tokens", got.chunk_ids_QN[:, 0])
    same = (nearest == tokens).all(axis=1)
    assert has_text.all()
    assert (same | (got.distances_QN[:, 0] < 1e-3)).mean() > 0.95
    assert same.mean() > 0.9


def test_stored_neighbours_are_of_other_documents(tiny_database):
    document_of = tiny_database.document_of_chunk
    ids_TN = tiny_corpus.neighbour_ids(tiny_database, "train")
    assert len(ids_TN) == len(document_of)
    assert (ids_TN >= 0).all()
    assert (document_of[ids_TN] != document_of[:, None]).all()
    _, lengths = tiny_database.chunks().passages(ids_TN, tiny_database.chunk_len)
    assert (lengths > 0).all()
