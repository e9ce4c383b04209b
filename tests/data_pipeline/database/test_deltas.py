"""Many small additions stay few deltas, and what is found does not change by it."""

import os
import resource
import shutil

import numpy as np
import pytest

from data_pipeline.build import pipeline
from data_pipeline.database import Database, deltas, integrity, verify, versions
from tests import tiny_corpus

pytestmark = pytest.mark.usefixtures("toy_embedder")


@pytest.fixture(scope="module")
def _built(tmp_path_factory, tiny_corpus_folder):
    folder = tmp_path_factory.mktemp("words")
    with tiny_corpus.toy_embedder():
        cfg = tiny_corpus.config(tiny_corpus_folder, lexical=True)
        pipeline.Build(cfg, folder).run("index")
        pipeline.Build(cfg, folder).run("lexical")
        pipeline.Build(cfg, folder).run("neighbours")
    return folder


@pytest.fixture
def worded(_built, tmp_path):
    """A database with words, without sequences, that may be changed."""
    return Database.open(shutil.copytree(_built, tmp_path / "database"))


def note(number):
    return {"id": f"note-{number}", "text": f"Note {number} is of quagga{number}."}


def found_by_word(database, number):
    """The document with the word that only a note has."""
    ids_QN, _ = database.snapshot.lexical.search([f"quagga{number}"], 1)
    return database.found(int(ids_QN[0, 0])).document_id


def state_of(database):
    """All that is found, and what rows and ids stand for."""
    found = database.search(["a quagga", "note"], 40, rank="hybrid")
    table = database.snapshot.chunks()
    ids = np.arange(len(table))
    columns = [table.take(name, ids).tolist() for name in ("tokens", "documents")]
    return found, columns, database.snapshot.documents().to_pydict()


def test_merging_changes_nothing_that_is_read(worded, monkeypatch):
    for number in range(6):
        worded.add([note(number)])
    worded.delete(["note-1", tiny_corpus.PLANTED_IN])
    before, apart = state_of(worded), worded.snapshot
    monkeypatch.setattr(deltas, "MOST", 6)
    worded.add([note(6)])
    assert worded.snapshot.state.deltas == ("000008-merged", "000008")
    worded.delete(["note-6"])
    old, new = before, state_of(worded)
    assert new[0] == old[0]
    assert new[1][0][: len(old[1][0])] == old[1][0]
    assert new[1][1][: len(old[1][1])] == old[1][1]
    assert new[2]["id"][:-1] == old[2]["id"]
    # The versions before keep their own.
    assert Database(apart).search(["a quagga"], 9) == Database.open(
        worded.folder, apart.version
    ).search(["a quagga"], 9)
    assert [said for _, said in verify.files(worded.snapshot) if said] == []
    worded.compact()
    assert worded.search(["a quagga", "note"], 40, rank="hybrid")[0][0].text
    assert len(worded.snapshot.state.deltas) == 1


def test_deltas_stay_few_and_a_chunk_is_merged_a_few_times(worded, monkeypatch):
    monkeypatch.setattr(deltas, "MOST", 4)
    merged = []
    write = deltas.write_merged

    def counting(snapshot, first, there_D, folder):
        write(snapshot, first, there_D, folder)
        merged.append(len(np.load(folder / "lengths.npy")))

    monkeypatch.setattr(deltas, "write_merged", counting)
    for number in range(24):
        worded.add([note(number)])
        assert len(worded.snapshot.state.deltas) <= 5
    added = len(worded.snapshot.chunks()) - sum(
        len(np.load(worded.folder / "chunks" / name / "lengths.npy"))
        for name in worded.snapshot.paths.built_shards("train")
    )
    assert sum(merged) < 4 * added
    for number in range(24):
        assert found_by_word(worded, number) == f"note-{number}"


def test_a_merged_delta_is_no_larger_than_an_index_may_be(worded, monkeypatch):
    monkeypatch.setattr(deltas, "MOST", 2)
    monkeypatch.setitem(worded.manifest["settings"], "index_shard_rows", 5)
    for number in range(5):
        worded.add([note(number)])
    table = worded.snapshot.chunks()
    built = len(worded.snapshot.paths.built_shards("train"))
    added = worded.snapshot.state.deltas
    for place in range(len(added)):
        size = len(table.rows_of_shard(built + place))
        assert size <= 5 or not added[place].endswith("merged")


def test_a_merge_that_fails_leaves_the_version_and_no_file(worded, monkeypatch):
    for number in range(3):
        worded.add([note(number)])
    monkeypatch.setattr(deltas, "MOST", 3)
    there = sorted(path.name for path in (worded.folder / "deltas").iterdir())

    def full(*_):
        raise OSError(28, "No space left on device", "/full")

    with monkeypatch.context() as patch:
        patch.setattr(deltas, "write_merged", full)
        with pytest.raises(OSError, match="make room"):
            worded.add([note(3)])
    assert versions.in_force(worded.folder) == 3
    assert sorted(path.name for path in (worded.folder / "deltas").iterdir()) == there
    worded.add([note(3)])
    assert len(worded.snapshot.state.deltas) == 2


def test_the_number_of_deltas_needs_no_descriptors(worded, monkeypatch):
    monkeypatch.setattr(deltas, "MOST", 10**6)
    for number in range(12):
        worded.add([note(number)])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    Database.open(worded.folder).search(["a"], 1, rank="hybrid")  # imports, threads
    few = max(map(int, os.listdir("/proc/self/fd"))) + 20  # a delta had 11
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        opened = Database.open(worded.folder)
        assert found_by_word(opened, 11) == "note-11"
        opened.search(["quagga11"], 1, rank="hybrid")
        opened.compact()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_records_are_read_once_whatever_the_number_of_deltas(worded, monkeypatch):
    """Each shard that was loaded walked over all of them: 47 s at 250 deltas."""
    monkeypatch.setattr(deltas, "MOST", 10**6)
    for number in range(6):
        worded.add([note(number)])
    read = []
    description = integrity._description

    def counting(shard, *rest):
        read.append(shard)
        return description(shard, *rest)

    monkeypatch.setattr(integrity, "_description", counting)
    Database.open(worded.folder).search(["a"], 1)
    assert len(read) == 2 * 6  # at opening, and when the index is loaded
