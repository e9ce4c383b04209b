"""Neighbours that updates changed are those of a search for all anew."""

import numpy as np
import pytest

from data_pipeline.database import neighbours, refreshed_neighbours
from data_pipeline.database.search import allowed_for
from tests import tiny_corpus
from tests.changed_database import found_in

pytestmark = pytest.mark.usefixtures("toy_embedder")


def test_changed_neighbours_are_those_of_a_search_for_all(database):
    document = found_in(database, tiny_corpus.PLANTED, 1)[0]
    texts = tiny_corpus.texts()
    records = [
        {"id": f"copy-{n}", "text": texts[name] + " And more."}
        for n, name in enumerate(("document-03", "document-11", "held-out"))
    ]
    database.replace(records)
    database.delete([document, database.snapshot.documents().column("id")[4].as_py()])
    with pytest.raises(ValueError, match="version 2 .* not computed yet"):
        database.snapshot.neighbours("train")
    refreshed_neighbours.refresh_neighbours(database.snapshot)
    for split in ("train", "validation", "test"):
        table = database.snapshot.neighbours(split)
        ids_T = np.arange(len(database.snapshot.chunks(split)))
        queries = np.concatenate(
            [
                np.load(s / "vectors.npy")
                for s in database.snapshot.paths.shards("embeddings", split)
            ]
        )
        ids_TN, _ = neighbours.find_neighbours(
            database.snapshot.index(),
            queries,
            table.num_candidates,
            allowed_for(database.snapshot, split, ids_T),
            database.snapshot.vectors,
        )
        if split == "train":
            gone = database.snapshot.state.is_deleted(
                database.snapshot.document_of_chunk
            )
            assert gone.any()
            ids_TN[gone] = -1
        np.testing.assert_array_equal(table.rows(ids_T)[0], ids_TN)
    rows = np.load(next(database.folder.rglob("*-neighbours/train/rows.npy")))
    assert 0 < len(rows) < len(database.snapshot.chunks())
