"""Adding, replacing, deleting and compacting: what is found, and what is on the disk."""

import dataclasses
import errno
import shutil

import numpy as np
import pyarrow.parquet
import pytest

from data_pipeline.database import (
    Database,
    neighbours,
    refreshed_neighbours,
    updates,
    versions,
)
from tests import tiny_corpus

pytestmark = pytest.mark.usefixtures("toy_embedder")

NEWS = "Nine violet tortoises rehearsed an opera inside the marble lighthouse."
OTHER_NEWS = "Four bronze herons audited the accounts of a sleepy cathedral."


@pytest.fixture
def database(tiny_database, tmp_path):
    return Database.open(shutil.copytree(tiny_database.folder, tmp_path / "database"))


def found_in(database, text, k=5):
    return [found.document_id for found in database.search([text], k)[0]]


def opening(database, text) -> str:
    """Of the text, as much as its first chunk holds."""
    return database.tokenizer.decode(
        database.tokenizer.encode(text)[: database.chunk_len]
    )


def everything_on_disk(folder) -> bytes:
    return b"".join(p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file())


def test_what_is_added_is_found_with_its_source(database):
    before = database.fingerprint
    record = {"id": "news", "text": NEWS, "title": "T", "uri": "u:/1", "licence": "L"}
    assert database.add([record]) == 1 == database.version
    assert database.fingerprint != before
    (best,) = database.search([opening(database, NEWS)], 1)[0]
    assert (best.document_id, best.title, best.uri, best.licence) == (
        "news",
        "T",
        "u:/1",
        "L",
    )
    assert best.text.strip()
    assert best.text in NEWS
    assert Database.open(database.folder).search([NEWS], 3) == database.search(
        [NEWS], 3
    )
    # An older version is still what it was.
    old = Database.open(database.folder, version=0)
    assert "news" not in found_in(old, NEWS)
    assert old.fingerprint == before


def test_an_id_is_made_from_the_text(database):
    database.add([{"text": NEWS}])
    (found,) = database.search([opening(database, NEWS)], 1)[0]
    assert len(found.document_id) == 16


def test_retrieve_reads_what_was_added(database):
    database.add([{"id": "news", "text": NEWS}])
    tokens_M = database.chunks().take("tokens", np.array([len(database.chunks()) - 1]))
    got = database.retrieve(tokens_M.astype(np.int32), 1)
    assert got.lengths_QN[0, 0] > 0
    assert database.found(int(got.chunk_ids_QN[0, 0])).document_id == "news"


def test_deleted_documents_are_never_found_again(database):
    document = found_in(database, tiny_corpus.PLANTED, 1)[0]
    ids = set(found_in(database, tiny_corpus.PLANTED, 10_000))
    assert document in ids
    database.delete([document])
    after = found_in(database, tiny_corpus.PLANTED, 10_000)
    assert set(after) == ids - {document}
    assert not np.isin(
        database.document_of_chunk[database.searchable], database.state.deleted_D
    ).any()
    with pytest.raises(ValueError, match=f"'{document}' is not in"):
        database.delete([document])
    with pytest.raises(ValueError, match=f"'{document}' is not in"):
        database.search(["x"], 1, exclude_documents=[document])


def test_replacing_takes_the_old_text_away(database):
    document = found_in(database, tiny_corpus.PLANTED, 1)[0]
    database.replace(
        [{"id": document, "text": NEWS}, {"id": "new", "text": OTHER_NEWS}]
    )
    assert database.version == 1
    best = database.search([opening(database, NEWS)], 1)[0][0]
    assert best.document_id == document
    assert found_in(database, opening(database, OTHER_NEWS), 1) == ["new"]
    texts = [f.text for f in database.search([tiny_corpus.PLANTED], 10_000)[0]]
    assert not any("umbrellas" in text for text in texts)
    database.replace([{"id": document, "text": OTHER_NEWS}])
    texts = [f.text for f in database.search([NEWS], 10_000)[0]]
    assert not any("tortoises" in text for text in texts)


def test_updates_of_nothing_change_nothing(database):
    assert database.add([]) == database.delete([]) == database.replace([]) == 0


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"id": "a"}], r"document 0 \('a'\) has no text"),
        ([{"text": NEWS, "txt": ""}], r"unknown fields \['txt'\]"),
        ([{"text": 3}], "text must be a string, is 3"),
        ([{"text": NEWS, "title": None}], "title must be a string, is None"),
        ([{"text": " \n\t"}], "white space alone"),
        ([{"text": ""}], "white space alone"),
        ([{"text": "a\ud800"}], "text is not Unicode"),
        ([{"id": "\udfff", "text": NEWS}], "id is not Unicode"),
        ([{"id": "", "text": NEWS}], "its id is empty"),
        (
            [{"id": "a", "text": NEWS}, {"id": "a", "text": "b"}],
            "its id is there twice",
        ),
        ([{"text": NEWS}, {"text": NEWS}], "its id is there twice"),
        ([{"id": tiny_corpus.MONOTONE, "text": NEWS}], "are in .* already.*replace"),
    ],
)
def test_bad_documents_are_named_and_nothing_is_added(database, records, message):
    with pytest.raises(ValueError, match=message):
        database.add(records)
    assert database.version == 0
    assert not list((database.folder / "deltas").glob("*"))


def test_odd_ids_and_texts_are_just_strings(database):
    records = [
        {"id": "../../etc/passwd", "text": NEWS},
        {"id": "a\x00b", "text": "NUL \x00 inside, " + OTHER_NEWS},
        {"id": "x" * 5000, "text": "long " * 3000},
    ]
    database.add(records)
    assert found_in(database, opening(database, NEWS), 1) == ["../../etc/passwd"]
    database.delete(["../../etc/passwd", "a\x00b"])
    assert "../../etc/passwd" not in found_in(database, NEWS, 100)


def test_delete_takes_a_list():
    with pytest.raises(ValueError, match="must be a list, are 'abc'"):
        updates.delete(None, "abc")


def test_one_writer_at_a_time(database):
    with (
        versions.sole_writer(database.folder),
        pytest.raises(ValueError, match="another process is changing"),
    ):
        database.add([{"text": NEWS}])


def test_no_change_while_a_build_makes_what_it_would_stand_on(database):
    with (
        versions.sole_builder(database.folder),
        pytest.raises(ValueError, match="another process is building or changing"),
    ):
        database.add([{"text": NEWS}])
    with (
        versions.sole_writer(database.folder),
        pytest.raises(ValueError, match="another process is building or changing"),
        versions.sole_builder(database.folder),
    ):
        pass
    assert database.add([{"text": NEWS}]) == 1


def test_where_there_are_no_locks_it_is_said(database, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(versions.fcntl, "flock", refuse)
    database.add([{"text": NEWS}])
    assert "on a file system without locks" in capsys.readouterr().out


def test_who_switches_is_a_writer_too(database):
    database.add([{"text": NEWS}])
    with (
        versions.sole_writer(database.folder),
        pytest.raises(ValueError, match="another process is changing"),
    ):
        versions.use(database.folder, 0)
    assert versions.in_force(database.folder) == 1


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


def test_versions_can_be_opened_and_put_in_force_again(database):
    database.add([{"id": "news", "text": NEWS}])
    database.delete(["news"])
    assert versions.numbers(database.folder) == [0, 1, 2]
    assert "news" in found_in(Database.open(database.folder, version=1), NEWS, 10_000)
    versions.put_in_force(database.folder, 1)
    assert database.refresh()
    assert "news" in found_in(database, NEWS, 10_000)
    database.add([{"id": "more", "text": OTHER_NEWS}])
    assert database.version == 3  # numbers are never used twice
    with pytest.raises(ValueError, match="has no version 9"):
        Database.open(database.folder, version=9)


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


def test_changed_neighbours_are_those_of_a_search_for_all(database):
    document = found_in(database, tiny_corpus.PLANTED, 1)[0]
    texts = tiny_corpus.texts()
    records = [
        {"id": f"copy-{n}", "text": texts[name] + " And more."}
        for n, name in enumerate(("document-03", "document-11", "held-out"))
    ]
    database.replace(records)
    database.delete([document, database.documents().column("id")[4].as_py()])
    with pytest.raises(ValueError, match="version 2 .* not computed yet"):
        database.neighbours("train")
    refreshed_neighbours.refresh_neighbours(database)
    for split in ("train", "validation", "test"):
        table = database.neighbours(split)
        ids_T = np.arange(len(database.chunks(split)))
        queries = np.concatenate(
            [np.load(s / "vectors.npy") for s in database.shards("embeddings", split)]
        )
        ids_TN, _ = neighbours.find_neighbours(
            database.index,
            queries,
            table.num_candidates,
            database.allowed_for(split, ids_T),
        )
        if split == "train":
            gone = database.state.is_deleted(database.document_of_chunk)
            assert gone.any()
            ids_TN[gone] = -1
        np.testing.assert_array_equal(table.rows(ids_T)[0], ids_TN)
    rows = np.load(next(database.folder.rglob("*-neighbours/train/rows.npy")))
    assert 0 < len(rows) < len(database.chunks())


def test_versions_of_another_build_are_refused(database):
    database.add([{"id": "news", "text": NEWS}])
    state = dataclasses.replace(database.state, base="0123456789abcdef")
    versions.publish(database.folder, state)
    with pytest.raises(ValueError, match="built again with other text"):
        Database.open(database.folder)


@pytest.mark.parametrize("file", ["000001.json", "000001.npy"])
def test_a_damaged_version_is_named(database, file):
    database.add([{"id": "news", "text": NEWS}])
    path = database.folder / "versions" / file
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"000001.* is damaged"):
        Database.open(database.folder)
