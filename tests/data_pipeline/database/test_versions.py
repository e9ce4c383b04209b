"""What names the versions and the one in force: switched, lost, damaged, locked."""

import dataclasses

import pytest

from data_pipeline.database import Database, versions
from tests import tiny_corpus
from tests.changed_database import NEWS, OTHER_NEWS, flip, found_in

pytestmark = pytest.mark.usefixtures("toy_embedder")


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


def test_versions_of_another_build_are_refused(database):
    database.add([{"id": "news", "text": NEWS}])
    state = dataclasses.replace(database.snapshot.state, base="0123456789abcdef")
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


def test_who_switches_is_a_writer_too(database):
    database.add([{"text": NEWS}])
    with (
        versions.sole_writer(database.folder),
        pytest.raises(ValueError, match="another process is changing"),
    ):
        versions.put_in_force(database.folder, 0)
    assert versions.in_force(database.folder) == 1


def test_without_current_json_no_old_version_is_in_force(folder):
    database = Database.open(folder)
    database.delete([tiny_corpus.PLANTED_IN])
    current = folder / "versions" / "current.json"
    current.unlink()
    with pytest.raises(ValueError, match=r"current.json is missing.*name a version"):
        Database.open(folder)
    with pytest.raises(ValueError, match=r"current.json is missing"):
        database.add([{"text": NEWS}])  # one that was open
    current.write_text('{"version": 1}')  # as it says
    assert not Database.open(folder).snapshot.has_document(tiny_corpus.PLANTED_IN)
    current.write_text('{"version": "1"}')
    with pytest.raises(ValueError, match=r"current.json is damaged"):
        Database.open(folder)


def test_current_json_is_there_before_the_first_version(folder, monkeypatch):
    order = []
    write = versions.write_sealed

    def recording(path, value):
        order.append((path.name, value.get("version")))
        write(path, value)

    monkeypatch.setattr(versions, "write_sealed", recording)
    database = Database.open(folder)
    database.add([{"text": NEWS}])
    first = [("current.json", 0), ("000001.json", None), ("current.json", 1)]
    assert order == first
    database.add([{"text": OTHER_NEWS}])
    assert order[3:] == [("000002.json", None), ("current.json", 2)]


@pytest.mark.parametrize("name", ["current", "oldest", "000003"])
def test_a_flip_in_what_names_versions_is_named_and_nothing_is_cleared(folder, name):
    database = Database.open(folder)
    database.add([{"id": "news", "text": NEWS}])
    database.delete(["news", tiny_corpus.PLANTED_IN])
    database.compact()
    path = folder / "versions" / f"{name}.json"
    content = path.read_bytes()
    before = sorted(folder.rglob("*"))
    refused = 0
    places = range(0, len(content), max(len(content) // 30, 1))
    for place in places:
        for bit in (0x01, 0x80):
            flip(path, place, bit)
            try:
                opened = Database.open(folder)
            except ValueError as error:
                assert f"{name}.json" in str(error)
                refused += 1
                with pytest.raises(ValueError, match=f"{name}.json"):
                    database.add([{"text": NEWS}])
                assert sorted(folder.rglob("*")) == before
            else:  # white space
                assert opened.version == 3
            path.write_bytes(content)
    assert refused > 1.3 * len(places)


def test_a_lost_version_file_is_named_and_nothing_is_cleared(folder):
    database = Database.open(folder)
    database.add([{"id": "news", "text": NEWS}])
    path = folder / "versions" / "000001.json"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(ValueError, match=r"versions/000001.json is missing"):
        Database.open(folder)
    with pytest.raises(ValueError, match=r"versions/000001.json is missing"):
        database.delete(["news"])
    path.write_bytes(content)
    assert Database.open(folder).snapshot.has_document("news")
