"""Sequences are windows over a stream of whole documents."""

import inspect

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.sequences import packing
from tests import tiny_corpus


def test_another_seed_is_another_order(tiny_database, tiny_corpus_folder):
    def order(seed):
        cfg = tiny_corpus.config(tiny_corpus_folder, seed=seed)
        return packing.pack(tiny_database.snapshot, "train", cfg).tolist()

    assert order(0) == order(0)
    assert order(0) != order(1)


def test_sequences_are_streamed(tiny_database, tiny_corpus_folder):
    cfg = tiny_corpus.config(tiny_corpus_folder)
    packed_SC = packing.pack(tiny_database.snapshot, "train", cfg)
    assert inspect.isgenerator(
        packing.blocks(tiny_database.snapshot, "train", cfg, packed_SC)
    )


@given(data=st.data())
def test_windows_cover_the_stream(data):
    sizes = np.array(data.draw(st.lists(st.integers(1, 5), max_size=6)), np.int64)
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)[: len(sizes)]
    order = np.array(data.draw(st.permutations(range(len(sizes)))), np.int64)
    length = data.draw(st.integers(1, 6))
    stride = data.draw(st.integers(1, length))
    stream = [c for d in order for c in range(first[d], first[d] + sizes[d])]
    for keep in (False, True):
        found = packing.windows(
            order, first, sizes, length, stride, keep_incomplete=keep
        )
        assert found.shape[1] == length
        for number, row in enumerate(found.tolist()):
            wanted = stream[number * stride : number * stride + length]
            assert row == wanted + [-1] * (length - len(wanted))
        # The new part of each window, as it is scored.
        new = [row if n == 0 else row[length - stride :] for n, row in enumerate(found)]
        flat = [int(c) for row in new for c in row if c >= 0]
        if keep:
            assert flat == stream
        else:
            assert flat == stream[: len(flat)]
            assert len(stream) - len(flat) < (stride if len(found) else length)
            assert (found >= 0).all()
