"""Passages stand in their documents and name them; a batch gives what one by one does."""

import dataclasses
import json

import numpy as np
import pytest

from data_pipeline.build import pipeline
from data_pipeline.database import Database, Found, results
from tests import tiny_corpus


def test_found_stands_in_its_document(tiny_database, texts):
    for chunk_id in range(len(tiny_database.snapshot.chunks())):
        found = tiny_database.found(chunk_id)
        data = texts[found.document_id].encode()[found.offset :]
        passage = (found.text + found.continuation).encode()
        assert data.startswith(passage)
        # Shorter than two chunks only where the document ends.
        tokens = tiny_database.snapshot.chunks().take("lengths", np.array([chunk_id]))[
            0
        ]
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


def one_by_one(snapshot, chunk_id, distance):
    """A passage from its own chunks alone, read without `ChunkTable.passages`."""
    table, chunk_len = snapshot.chunks(), snapshot.chunk_len
    documents = table.column("documents")
    row = documents[chunk_id]
    parts = []
    for one in (chunk_id, chunk_id + 1):
        if one < len(table) and documents[one] == row:
            is_last = one + 1 == len(table) or documents[one + 1] != row
            length = table.take("lengths", np.array([one]))[0] - is_last  # without EOD
            parts.append(table.take("tokens", np.array([one]))[0, :length])
    texts = [snapshot.tokenizer.decode(tokens) for tokens in parts]
    source = snapshot.documents().slice(row, 1).to_pylist()[0]
    return Found(
        text=texts[0],
        # Only a whole chunk goes on in the next.
        continuation=texts[1] if len(texts) > 1 and len(parts[0]) == chunk_len else "",
        document_id=source["id"],
        title=source["title"],
        uri=source["uri"],
        licence=source["licence"],
        offset=int(table.take("offsets", np.array([chunk_id]))[0]),
        distance=distance,
        chunk_id=chunk_id,
    )


def test_many_passages_are_what_one_by_one_gives(database, toy_embedder):
    """All chunks, twice and out of order: cut, deleted, emptied, added and last ones."""
    names = database.snapshot.documents().column("id").to_pylist()
    database.delete([tiny_corpus.PLANTED_IN, names[7]])
    database.add([{"id": "news", "text": "All is new. " * 9, "title": "T", "uri": "u"}])
    database.compact()
    database.delete([names[3]])
    snapshot = database.snapshot
    rng = np.random.default_rng(0)
    size = len(snapshot.chunks())
    ids_X = rng.permutation(np.tile(np.arange(size), 2))
    distances_X = rng.random(len(ids_X))
    passages = results.passages_at(snapshot, ids_X, distances_X)
    assert passages == [
        one_by_one(snapshot, chunk_id, distance)
        for chunk_id, distance in zip(ids_X.tolist(), distances_X.tolist(), strict=True)
    ]
    assert {type(value) for value in dataclasses.asdict(passages[0]).values()} == {
        *(str, int, float)
    }
    ends = [p for p in passages if not p.continuation]
    assert ends and any(p.chunk_id == size - 1 and p.title == "T" for p in passages)
    assert any(p.document_id == "" for p in passages)  # of what compacting emptied
    assert database.found(5, 0.25) == one_by_one(snapshot, 5, 0.25)
    assert results.passages_at(snapshot, ids_X[:0], distances_X[:0]) == []
    for wrong in (-1, size):
        with pytest.raises(IndexError):
            database.found(wrong)


def test_absent_ones_are_left_out_of_their_rows(tiny_database):
    ids_QN = np.array([[3, -1, 5], [-1, -1, -1], [7, 8, 9]])
    distances_QN = np.arange(9, dtype=np.float32).reshape(3, 3)
    found = results.found_at(tiny_database.snapshot, ids_QN, distances_QN)
    assert [[(f.chunk_id, f.distance) for f in row] for row in found] == [
        [(3, 0.0), (5, 2.0)],
        [],
        [(7, 6.0), (8, 7.0), (9, 8.0)],
    ]
