"""Documents cut into chunks lose nothing, and passages stay within a document."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.text import chunks
from data_pipeline.text.chunks import ChunkTable, cut_document
from data_pipeline.text.tokenizer import Tokenizer
from tests import tiny_corpus

CHUNK_LEN = 8


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return Tokenizer.train(tiny_corpus.texts().values(), 400, path)


def ids_of(text, tokenizer):
    return tokenizer.encode(text).tolist()


@given(text=st.text(min_size=1, max_size=80), chunk_len=st.integers(1, 9))
def test_cutting_loses_nothing(tokenizer, text, chunk_len):
    tokens_TM, lengths_T, offsets_T = cut_document(text, tokenizer, chunk_len)
    assert tokens_TM.shape == (len(lengths_T), chunk_len)
    assert (lengths_T[:-1] == chunk_len).all()
    assert 1 <= lengths_T[-1] <= chunk_len
    rows = zip(tokens_TM.tolist(), lengths_T.tolist(), strict=True)
    real = [token for row, length in rows for token in row[:length]]
    assert real == [*ids_of(text, tokenizer), tokenizer.eod_id]
    assert real.count(tokenizer.eod_id) == 1
    padding = tokens_TM.reshape(-1)[len(real) :]
    assert (padding == tokenizer.pad_id).all()
    assert tokenizer.decode(real) == text
    assert tokenizer.decode(tokens_TM.reshape(-1)) == text
    data = text.encode()
    assert tokenizer.token_bytes_V[real].sum() == len(data)
    for row, offset in zip(tokens_TM, offsets_T, strict=True):
        assert data[offset:].startswith(tokenizer.decode_bytes(row))
    sizes = [len(tokenizer.decode_bytes(row)) for row in tokens_TM]
    assert offsets_T.tolist() == [sum(sizes[:i]) for i in range(len(sizes))]


def documents(tokenizer):
    """Of every length modulo M, so that EOD falls on every place of a chunk."""
    whole = " ".join(tiny_corpus.texts().values())
    ids = tokenizer.encode(whole)
    wanted = [*range(1, 20), 1, 1, 40]
    texts = [tokenizer.decode(ids[start : start + n]) for start, n in enumerate(wanted)]
    lengths = {(len(ids_of(text, tokenizer)) + 1) % CHUNK_LEN for text in texts}
    assert lengths == set(range(CHUNK_LEN))
    return texts


@pytest.fixture(scope="module")
def table(tokenizer, tmp_path_factory):
    return write_table(tokenizer, tmp_path_factory.mktemp("shards"), [0, 5, 6, 14, 22])


def write_table(tokenizer, folder, borders):
    texts, shards = documents(tokenizer), []
    for start, stop in itertools.pairwise(borders):
        shard = folder / f"train-{start:05d}"
        shard.mkdir()
        chunks.write_shard(texts[start:stop], start, tokenizer, CHUNK_LEN, shard)
        shards.append(shard)
    assert borders[-1] == len(texts)
    return ChunkTable(shards)


@pytest.mark.parametrize("passage_len", [8, 16, 32])
def test_passages_never_leave_their_document(tokenizer, table, passage_len):
    tokens_TR, lengths_T = table.passages(np.arange(len(table)), passage_len)
    place = 0
    for text in documents(tokenizer):
        ids = ids_of(text, tokenizer)
        for start in range(0, len(ids) + 1, CHUNK_LEN):
            wanted = ids[start : start + passage_len]  # no EOD, no next document
            assert tokens_TR[place, : lengths_T[place]].tolist() == wanted
            assert (tokens_TR[place, lengths_T[place] :] == 0).all()
            place += 1
    assert place == len(table)
    assert tokens_TR.dtype == np.int32


def test_absent_passages_are_empty_in_any_shape(table):
    ids = np.array([[[3, -1], [-1, 0]]])
    tokens, lengths = table.passages(ids, 16)
    assert tokens.shape == (1, 2, 2, 16)
    assert (lengths > 0).tolist() == (ids >= 0).tolist()
    assert (tokens[ids < 0] == 0).all()
    alone, _ = table.passages(np.array([3]), 16)
    np.testing.assert_array_equal(tokens[0, 0, 0], alone[0])
    assert table.passages(np.zeros((0, 2), np.int64), 16)[0].shape == (0, 2, 16)


def test_shards_are_one_table(tokenizer, table, tmp_path):
    one = write_table(tokenizer, tmp_path, [0, 22])
    ids = np.random.default_rng(0).integers(0, len(table), (5, 7))
    for name in chunks.ARRAYS:
        whole = one.take(name, np.arange(len(one)))
        np.testing.assert_array_equal(table.take(name, np.arange(len(table))), whole)
        np.testing.assert_array_equal(table.take(name, ids), whole[ids])
        if name != "tokens":
            np.testing.assert_array_equal(table.column(name), whole)
    rows = [list(table.rows_of_shard(shard)) for shard in range(4)]
    assert list(itertools.chain(*rows)) == list(range(len(table)))
    assert table.take("documents", np.array(rows[1])).tolist() == [5] * len(rows[1])


def test_ids_outside_raise(table):
    for bad in (-1, len(table)):
        with pytest.raises(IndexError, match=f"0..{len(table) - 1}"):
            table.take("tokens", np.array([0, bad]))


def test_no_shards_is_an_empty_table():
    empty = ChunkTable([])
    assert len(empty) == 0
    assert empty.column("documents").shape == (0,)
    assert empty.take("lengths", np.zeros(0, np.int64)).shape == (0,)


@settings(max_examples=5)
@given(vocab_size=st.sampled_from([2**16, 2**16 + 1]))
def test_tokens_are_as_wide_as_the_vocabulary(tokenizer, tmp_path_factory, vocab_size):
    folder = tmp_path_factory.mktemp("wide")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "vocab_size", vocab_size)
        chunks.write_shard(["some text"], 0, tokenizer, CHUNK_LEN, folder)
    wanted = np.uint16 if vocab_size <= 2**16 else np.int32
    assert np.load(folder / "tokens.npy").dtype == wanted


def test_damage_is_named(tokenizer, tmp_path):
    table_folder = tmp_path / "train-00000"
    write_table(tokenizer, tmp_path, [0, 22])
    lengths = np.load(table_folder / "lengths.npy")
    np.save(table_folder / "lengths.npy", lengths[:-1])
    with pytest.raises(ValueError, match=r"lengths\.npy differ"):
        ChunkTable([table_folder])
    path = table_folder / "tokens.npy"
    for content in (path.read_bytes()[:-1], b"", b"\x80\x04N."):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"tokens\.npy can't be read"):
            ChunkTable([table_folder])
    path.unlink()
    with pytest.raises(ValueError, match=r"tokens\.npy is missing"):
        ChunkTable([table_folder])
