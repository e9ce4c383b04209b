"""A snapshot shows one version for good, and loads no more than it is asked for."""

import numpy as np
import pytest

from data_pipeline.database import Snapshot
from data_pipeline.embedding import chunk_vectors
from tests import tiny_corpus
from tests.changed_database import NEWS

pytestmark = pytest.mark.usefixtures("toy_embedder")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_vectors_are_the_same_at_index_and_query_time(tiny_database, split):
    table, decode = tiny_database.snapshot.chunks(split), tiny_database.tokenizer.decode
    tokens = table.take("tokens", np.arange(len(table)))
    asked = tiny_database.embedder.embed([decode(row) for row in tokens])
    shards = tiny_database.snapshot.paths.shards("embeddings", split)
    stored = np.concatenate([chunk_vectors.vectors(shard) for shard in shards])
    np.testing.assert_array_equal(asked.astype(np.float16), stored)


def test_a_snapshot_stays_and_shares_what_both_versions_have(database):
    before = database.snapshot
    known = before.searchable
    held = before.index().shards
    assert before.at() is before
    database.add([{"id": "news", "text": NEWS}])
    after = before.at()
    assert (before.version, after.version) == (0, 1)
    assert not before.has_document("news") and after.has_document("news")
    np.testing.assert_array_equal(before.searchable, known)
    assert len(after.chunks()) > len(before.chunks())
    assert after.num_shards == before.num_shards + 1
    shards = after.index().shards
    assert all(one is other for one, other in zip(held, shards, strict=False))
    assert after.tokenizer is before.tokenizer and after.embedder is before.embedder
    assert after.at(before.state).fingerprint == before.fingerprint


def test_only_shards_that_are_asked_for_are_loaded(sharded_database):
    snapshot = Snapshot.open(sharded_database.folder)
    (folder,) = snapshot.paths.index_shards()[1:2]
    alone = snapshot.index((1,))
    np.testing.assert_array_equal(
        np.sort(alone.ids), np.sort(np.load(folder / "ids.npy"))
    )
    assert len(alone.shards) == 1 < snapshot.num_shards
    whole = snapshot.index()
    assert whole.size == len(snapshot.searchable)
    assert whole.shards[1] is alone.shards[0]


def test_deleted_documents_keep_their_rows_and_are_not_searchable(database):
    rows_D = database.snapshot.rows_of([tiny_corpus.PLANTED_IN])
    database.delete([tiny_corpus.PLANTED_IN])
    snapshot = database.snapshot
    assert (
        snapshot.documents().column("id")[rows_D[0]].as_py() == tiny_corpus.PLANTED_IN
    )
    assert not snapshot.has_document(tiny_corpus.PLANTED_IN)
    assert not np.isin(snapshot.document_of_chunk[snapshot.searchable], rows_D).any()
    with pytest.raises(ValueError, match=f"'{tiny_corpus.PLANTED_IN}' is not in"):
        snapshot.rows_of([tiny_corpus.PLANTED_IN])
