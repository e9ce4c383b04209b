"""What is written for training is right: read back by TFDS alone, against the database."""

import collections

import numpy as np
import pytest

from data_pipeline.sequences import dataset
from data_pipeline.storage import files
from tests import tiny_corpus
from tools.benchmark import synthetic

CHUNK_LEN, CHUNKS = 8, 4
HELD_OUT = ("validation", "test")


@pytest.fixture(scope="module")
def cfg(tiny_corpus_folder):
    return tiny_corpus.config(tiny_corpus_folder)


@pytest.fixture(scope="module")
def stored(tiny_database):
    """Split -> feature -> all examples of the split, as plain TFDS reads them."""
    import tensorflow_datasets as tfds

    folder = tiny_database.folder / "dataset" / "all" / "retro" / dataset.VERSION
    builder = tfds.builder_from_directory(folder)
    found = {}
    for split in dataset.SPLITS:
        examples = list(tfds.as_numpy(builder.as_dataset(split=split)))
        found[split] = {
            name: np.stack([example[name] for example in examples])
            for name in examples[0]
        }
    return found


def positions(examples, name):
    """A feature of positions as (S, C, M)."""
    return examples[name].reshape(-1, CHUNKS, CHUNK_LEN)


def chunk_ids(database, split, examples):
    """The chunk id of every place of every sequence: by document and place in it.

    In training found from tokens, neighbours and order alone; see each test.
    """
    first = {}
    document_of = database.snapshot.chunks(split).column("documents")
    for chunk, document in enumerate(document_of):
        first.setdefault(int(document), chunk)
    if split != "train":
        stride = CHUNKS // 2
        starts = np.arange(len(examples["documents_C"])) * stride
        ids_SC = starts[:, None] + np.arange(CHUNKS)
        return np.where(ids_SC < len(document_of), ids_SC, -1)
    seen = collections.Counter()
    ids = []
    for document in examples["documents_C"].reshape(-1).tolist():
        ids.append(first[document] + seen[document])
        seen[document] += 1
    return np.array(ids).reshape(-1, CHUNKS)


@pytest.mark.parametrize("split", dataset.SPLITS)
def test_tokens_documents_and_segments(tiny_database, stored, split):
    table, examples = tiny_database.snapshot.chunks(split), stored[split]
    ids_SC = chunk_ids(tiny_database, split, examples)
    real_SC = ids_SC >= 0
    safe = np.maximum(ids_SC, 0)
    assert real_SC.any(axis=1).all()
    wanted = np.where(real_SC, table.take("documents", safe), -1)
    np.testing.assert_array_equal(examples["documents_C"], wanted)
    lengths_SC = np.where(real_SC, table.take("lengths", safe), 0)
    real_SCM = np.arange(CHUNK_LEN) < lengths_SC[..., None]
    tokens_SCM = np.where(real_SCM, table.take("tokens", safe), 0)
    np.testing.assert_array_equal(positions(examples, "inputs_L"), tokens_SCM)
    segments_SCM = positions(examples, "segments_L")
    np.testing.assert_array_equal(segments_SCM > 0, real_SCM)
    for documents, segments, real in zip(wanted, segments_SCM, real_SCM, strict=True):
        number = {}
        for document, row, there in zip(documents, segments, real, strict=True):
            expected = number.setdefault(int(document), len(number) + 1)
            assert (row[there] == expected).all()


def test_each_training_chunk_appears_once(tiny_database, stored):
    table = tiny_database.snapshot.chunks()
    ids = chunk_ids(tiny_database, "train", stored["train"]).reshape(-1)
    assert len(set(ids.tolist())) == len(ids)
    assert len(ids) == len(table) // CHUNKS * CHUNKS
    # Documents are shuffled, and each in one piece but the last, which is cut.
    documents = stored["train"]["documents_C"].reshape(-1)
    runs = documents[np.append(True, documents[1:] != documents[:-1])]
    assert len(set(runs.tolist())) == len(runs)
    assert len(runs) == tiny_database.snapshot.documents().num_rows
    assert (np.diff(runs) < 0).any()


@pytest.mark.parametrize("split", dataset.SPLITS)
def test_targets_are_inputs_shifted_by_one(tiny_database, stored, split):
    examples, table = stored[split], tiny_database.snapshot.chunks(split)
    inputs, targets = examples["inputs_L"], examples["targets_L"]
    np.testing.assert_array_equal(targets[:, :-1], inputs[:, 1:])
    ids_SC = chunk_ids(tiny_database, split, examples)
    weights = examples["loss_weights_L"]
    crossing = 0
    for last, target, weight in zip(
        ids_SC[:, -1], targets[:, -1], weights[:, -1], strict=True
    ):
        following = np.minimum(last + 1, len(table) - 1)
        pair = np.array([max(last, 0), following])
        documents = table.take("documents", pair)
        if last >= 0 and following > last and documents[0] == documents[1]:
            assert target == table.take("tokens", pair)[1, 0]
            assert weight
            crossing += 1
        else:
            assert not weight
    assert crossing
    bytes_V = tiny_database.tokenizer.token_bytes_V
    np.testing.assert_array_equal(examples["target_bytes_L"], bytes_V[targets])


@pytest.mark.parametrize("split", dataset.SPLITS)
def test_weights_cross_no_border(stored, split):
    examples = stored[split]
    segments, weights = examples["segments_L"], examples["loss_weights_L"]
    here, after = segments[:, :-1], segments[:, 1:]
    allowed = (here == after) & (here > 0)
    assert not weights[:, :-1][~allowed].any()
    assert set(np.unique(weights)) == {0, 1}
    if split == "train":
        np.testing.assert_array_equal(weights[:, :-1], allowed)


@pytest.mark.parametrize("split", HELD_OUT)
def test_held_out_tokens_are_scored_exactly_once(tiny_database, stored, split):
    table, examples = tiny_database.snapshot.chunks(split), stored[split]
    document_of, lengths_T = table.column("documents"), table.column("lengths")
    stride = CHUNKS // 2
    scored = np.zeros((len(table) + CHUNKS) * CHUNK_LEN, np.int64)
    for number, weights in enumerate(examples["loss_weights_L"]):
        start = number * stride * CHUNK_LEN
        scored[start : start + len(weights)] += weights
    assert scored.max() == 1
    scored_TM = scored.reshape(-1, CHUNK_LEN)
    assert not scored_TM[len(table) :].any()
    num_documents = tiny_database.snapshot.documents(split).num_rows
    tokens_D = np.bincount(document_of, lengths_T, num_documents)
    scored_D = np.bincount(
        document_of, scored_TM[: len(table)].sum(axis=1), num_documents
    )
    np.testing.assert_array_equal(scored_D, tokens_D - 1)


@pytest.mark.parametrize("split", HELD_OUT)
def test_scored_bytes_are_the_documents(tiny_database, stored, split):
    """From the features alone, as the evaluation sums them."""
    examples = stored[split]
    documents = np.repeat(examples["documents_C"], CHUNK_LEN, axis=1)
    weights = examples["loss_weights_L"] > 0
    table = tiny_database.snapshot.documents(split)
    sizes = np.array(table.column("size_bytes"))
    found_D = np.bincount(
        documents[weights], examples["target_bytes_L"][weights], len(sizes)
    )
    encode = tiny_database.tokenizer.encode
    bytes_V = tiny_database.tokenizer.token_bytes_V
    texts = tiny_corpus.texts()
    first = [bytes_V[encode(texts[name])[0]] for name in table.column("id").to_pylist()]
    np.testing.assert_array_equal(found_D, sizes - np.array(first))


@pytest.mark.parametrize("split", dataset.SPLITS)
def test_neighbours_are_passages_of_other_documents(tiny_database, stored, split):
    examples, table = stored[split], tiny_database.snapshot.chunks()
    ids_SCN = examples["neighbour_ids_CN"]
    tokens, lengths = table.passages(ids_SCN, 2 * CHUNK_LEN)
    np.testing.assert_array_equal(examples["neighbours_CNR"], tokens)
    np.testing.assert_array_equal(examples["neighbour_lengths_CN"], lengths)
    there = ids_SCN >= 0
    np.testing.assert_array_equal(lengths > 0, there)
    np.testing.assert_array_equal(
        np.isfinite(examples["neighbour_distances_CN"]), there
    )
    assert there.mean() > 0.8
    padding = examples["documents_C"] < 0
    assert not there[padding].any()
    for documents_C, ids_CN in zip(examples["documents_C"], ids_SCN, strict=True):
        ids = ids_CN[ids_CN >= 0]
        if split == "train":
            # The continuation is of the same document as the match: see `passages`.
            found_in = tiny_database.snapshot.document_of_chunk[ids]
            assert not set(found_in.tolist()) & set(documents_C.tolist())
        for row in ids_CN:
            found = row[row >= 0].tolist()
            assert len(set(found)) == len(found)
            assert (row[len(found) :] == -1).all()


def test_neighbours_are_the_nearest_that_are_allowed(tiny_database, stored):
    """Some sequences pass over candidates: those of their other documents."""
    examples = stored["train"]
    ids_SC = chunk_ids(tiny_database, "train", examples)
    candidates = tiny_corpus.neighbour_ids(tiny_database, "train")
    document_of, passed_over = tiny_database.snapshot.document_of_chunk, 0
    for ids_C, documents_C, found_CN in zip(
        ids_SC, examples["documents_C"], examples["neighbour_ids_CN"], strict=True
    ):
        for chunk, found in zip(ids_C, found_CN, strict=True):
            near = candidates[chunk]
            allowed = near[~np.isin(document_of[near], documents_C)][:2].tolist()
            assert found.tolist() == allowed + [-1] * (2 - len(allowed))
            passed_over += allowed != near[:2].tolist()
    assert passed_over


def test_two_writes_are_byte_identical(tiny_database, cfg, tmp_path):
    synthetic.write_sequences(tiny_database.snapshot, cfg, tmp_path)
    first = tiny_corpus.contents(tiny_database.folder / "dataset" / "all")
    first.pop("shard.json")
    assert tiny_corpus.contents(tmp_path) == first
    assert any(name.endswith("dataset_info.json") for name in first)


def test_shards_are_parts_of_the_whole(tiny_database, cfg, tmp_path, monkeypatch):
    """Each written by itself: the same records, in the same order, in more files."""
    import tensorflow_datasets as tfds

    def records(folder):
        builder = tfds.builder_from_directory(folder / "retro" / dataset.VERSION)
        info = builder.info.splits
        found = {
            split: list(tfds.as_numpy(builder.as_dataset(split=split)))
            for split in dataset.SPLITS
        }
        return {split: info[split].num_shards for split in info}, found

    one, wanted = records(tiny_database.folder / "dataset" / "all")
    monkeypatch.setattr(dataset, "_SHARD_CHUNKS", 5 * CHUNKS)
    synthetic.write_sequences(tiny_database.snapshot, cfg, tmp_path)
    several, found = records(tmp_path)
    assert set(one.values()) == {1} and min(several.values()) > 1
    for split in dataset.SPLITS:
        assert len(found[split]) == len(wanted[split])
        for example, other in zip(found[split], wanted[split], strict=True):
            assert example.keys() == other.keys()
            for name in example:
                np.testing.assert_array_equal(example[name], other[name])


def test_a_file_system_without_links_gets_copies(
    tiny_database, cfg, tmp_path, monkeypatch
):
    def refused(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(files.os, "link", refused)
    synthetic.write_sequences(tiny_database.snapshot, cfg, tmp_path)
    wanted = tiny_corpus.contents(tiny_database.folder / "dataset" / "all")
    wanted.pop("shard.json")
    assert tiny_corpus.contents(tmp_path) == wanted
