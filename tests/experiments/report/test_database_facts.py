"""Facts of a database are its own, and a chunk that is not there is refused."""

import numpy as np
import pytest

from experiments.report import database_facts


def test_facts_are_those_of_the_database(tiny_database):
    told = dict(database_facts.facts(tiny_database.snapshot))
    table = tiny_database.snapshot.documents()
    assert told["documents"] == f"{table.num_rows:,} (0 deleted)"
    size_bytes = sum(table.column("size_bytes").to_pylist())
    assert told["text"] == f"{size_bytes / 1e6:,.1f} MB"
    assert (
        told["chunks that can be found"]
        == f"{len(tiny_database.snapshot.searchable):,}"
    )
    chunks = tiny_database.manifest["chunks"]
    assert told["held out"] == (
        f"{chunks['validation']:,} chunks for validation, {chunks['test']:,} chunks for test"
    )
    distances_T = tiny_database.snapshot.neighbours("train").rows(
        np.arange(len(tiny_database.snapshot.neighbours("train")))
    )[1][:, 0]
    middle = np.median(distances_T[np.isfinite(distances_T)])
    assert told["distance, 5 / 50 / 95 %"].split(" / ")[1] == f"{middle:.2f}"
    assert "on disk: deltas" not in told  # it has no updates


def test_a_passage_is_the_chunks_own(tiny_database):
    found = database_facts.passage(tiny_database, 1)
    assert found.chunk_id == 1
    assert found.text == tiny_database.found(1).text
    for chunk_id in (-1, len(tiny_database.snapshot.chunks())):
        with pytest.raises(ValueError, match="chunk ids go from 0 to"):
            database_facts.passage(tiny_database, chunk_id)


def test_distances_are_drawn(tiny_database, tmp_path):
    database_facts.plot_distances(tiny_database.snapshot, tmp_path / "distances.png")
    assert (tmp_path / "distances.png").read_bytes().startswith(b"\x89PNG")
