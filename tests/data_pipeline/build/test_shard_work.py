"""Work can be sent to another process, and refuses what differs there."""

import dataclasses
import pickle

import numpy as np
import pytest

from data_pipeline.build import shard_work
from data_pipeline.text.tokenizer import Tokenizer
from tests import tiny_corpus

pytestmark = pytest.mark.usefixtures("toy_embedder")


def test_names_of_shards_are_in_order(tiny_database):
    names = shard_work.shard_names(tiny_database.folder)
    assert names == sorted(names)
    train = shard_work.shard_names(tiny_database.folder, "train")
    assert train == [name for name in names if name.startswith("train-")]
    assert {name.split("-")[0] for name in names} == {"train", "validation", "test"}


@pytest.mark.parametrize("max_rows", [1, 100, 10**6])
def test_parts_of_the_index_are_all_training_chunks(tiny_database, max_rows):
    parts = shard_work.index_parts(tiny_database.folder, max_rows)
    ids = [chunk for part in parts for chunk in part]
    assert ids == list(range(len(tiny_database.snapshot.chunks())))
    assert all(0 < len(part) <= max_rows for part in parts)
    assert len(parts) == 1 if max_rows == 10**6 else len(parts) > 1


def test_searches_are_ordered_by_index():
    pairs = [("00000", "train-00001"), ("00001", "test-00000"), ("00000", "test-00000")]
    names = sorted(shard_work.name_of_search(*pair) for pair in pairs)
    assert names == ["00000.test-00000", "00000.train-00001", "00001.test-00000"]


def test_work_is_what_it_was_when_it_was_sent(tiny_database, tmp_path):
    """Engines send it; the same work elsewhere writes the same chunks."""
    folder = tiny_database.folder
    work = shard_work.ChunksWork(folder, "any", 8)
    assert dataclasses.is_dataclass(work)
    sent = pickle.loads(pickle.dumps(work))
    assert sent == work
    assert list(sent("test-00000", tmp_path)) == [1]
    wanted = tiny_corpus.contents(folder / "chunks" / "test-00000")
    wanted.pop("shard.json")
    assert tiny_corpus.contents(tmp_path) == wanted


def test_another_embedder_elsewhere_is_refused(tiny_database, tmp_path):
    work = shard_work.EmbeddingsWork(tiny_database.folder, "any", "toy", "0123")
    with pytest.raises(ValueError, match="'toy' has fingerprint .* and 0123 where the"):
        next(work("test-00000", tmp_path))


def test_a_tokenizer_that_is_given_is_copied(tiny_database, tmp_path):
    given = tiny_database.folder / "tokenizer" / "all" / "tokenizer.model"
    work = shard_work.TokenizerWork(tmp_path, str(given), 400)
    assert list(work("all", tmp_path)) == []
    assert (tmp_path / "tokenizer.model").read_bytes() == given.read_bytes()
    (trained := tmp_path / "trained").mkdir()
    work = shard_work.TokenizerWork(tiny_database.folder, "", 400)
    assert list(work("all", trained)) == ["training the tokenizer"]
    fingerprint = Tokenizer.load(trained / "tokenizer.model").fingerprint
    assert fingerprint == tiny_database.tokenizer.fingerprint


def test_vectors_are_those_of_the_build(tiny_database, tmp_path):
    embedder = shard_work.embedder("toy")
    work = shard_work.EmbeddingsWork(
        tiny_database.folder, "any", "toy", embedder.fingerprint
    )
    table = shard_work.chunk_table(tiny_database.folder, ["test-00000"])
    assert sum(work("test-00000", tmp_path)) == len(table)
    wanted = tiny_database.folder / "embeddings" / "test-00000" / "vectors.npy"
    np.testing.assert_array_equal(np.load(tmp_path / "vectors.npy"), np.load(wanted))
