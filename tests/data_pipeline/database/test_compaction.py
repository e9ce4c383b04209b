"""Compacting finds the same, and leaves no deleted text on the disk."""

import pyarrow.parquet
import pytest

from data_pipeline.database import Database, versions
from tests import tiny_corpus
from tests.changed_database import NEWS, OTHER_NEWS, found_in, opening

pytestmark = pytest.mark.usefixtures("toy_embedder")


def everything_on_disk(folder) -> bytes:
    return b"".join(p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file())


def test_compacting_finds_the_same_and_leaves_no_deleted_text(database):
    document = found_in(database, tiny_corpus.PLANTED, 1)[0]
    database.add([{"id": "news", "text": NEWS}, {"id": "kept", "text": OTHER_NEWS}])
    database.add([{"id": "more", "text": "A third text. " + OTHER_NEWS}])
    database.delete([document, "news"])
    query = [NEWS, OTHER_NEWS, tiny_corpus.PLANTED, "the same again"]

    def sources(opened):
        found = opened.search(query, 200)
        return [[(f.document_id, f.offset, f.distance) for f in row] for row in found]

    before = sources(database)
    number = database.compact()
    assert database.version == number == 4
    assert sources(database) == before == sources(Database.open(database.folder))
    assert b"umbrellas" not in everything_on_disk(database.folder / "chunks")
    for table in database.folder.rglob("*.parquet"):
        text = str(pyarrow.parquet.read_table(table).to_pydict())
        assert "umbrellas" not in text
        assert "tortoises" not in text
    names = {path.name for path in (database.folder / "deltas").iterdir()}
    assert names == {"000004"}
    assert versions.numbers(database.folder) == [4]
    assert not (database.folder / "dataset").exists()
    with pytest.raises(ValueError, match="has no version 0"):
        Database.open(database.folder, version=0)
    assert database.compact() == 4  # nothing more to do
    database.add([{"id": "news", "text": NEWS}])
    assert found_in(database, opening(database, NEWS), 1) == ["news"]
    database.delete(["news", "kept", "more"])
    database.compact()
    assert not list((database.folder / "deltas").iterdir())
    assert not {"news", "kept", "more"} & set(found_in(database, NEWS, 10_000))


def test_compacting_what_was_never_changed(folder):
    assert Database.open(folder).compact() == 0
    assert Database.open(folder).version == 0
