"""Adding, replacing and deleting: what is found, and what is refused."""

import numpy as np
import pytest

from data_pipeline.database import Database
from tests import tiny_corpus
from tests.changed_database import NEWS, OTHER_NEWS, found_in, opening

pytestmark = pytest.mark.usefixtures("toy_embedder")


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
    tokens_M = database.snapshot.chunks().take(
        "tokens", np.array([len(database.snapshot.chunks()) - 1])
    )
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
        database.snapshot.document_of_chunk[database.snapshot.searchable],
        database.snapshot.state.deleted_D,
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


def test_delete_takes_a_list(database):
    with pytest.raises(ValueError, match="must be a list, are 'abc'"):
        database.delete("abc")
