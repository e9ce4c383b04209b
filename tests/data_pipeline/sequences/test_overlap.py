"""The longest common run against all pairs of places."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.sequences.overlap import GRAM_LEN, Grams, longest_common_run


def naive(chunk, passages):
    longest = 0
    for passage in passages:
        for i in range(len(chunk)):
            for j in range(len(passage)):
                run = 0
                while (
                    i + run < len(chunk)
                    and j + run < len(passage)
                    and chunk[i + run] == passage[j + run]
                ):
                    run += 1
                longest = max(longest, run)
    return longest


@given(data=st.data())
def test_equals_naive(data):
    num, chunk_len, num_passages, passage_len = (
        data.draw(st.integers(low, high))
        for low, high in ((0, 3), (1, 6), (0, 3), (1, 9))
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    high = data.draw(st.integers(1, 4))  # few tokens: many runs
    chunks = rng.integers(0, high, (num, chunk_len))
    passages = rng.integers(0, high, (num, num_passages, passage_len))
    lengths = rng.integers(0, chunk_len + 1, num)
    passage_lengths = rng.integers(0, passage_len + 1, (num, num_passages))
    found = longest_common_run(chunks, passages, lengths, passage_lengths)
    wanted = [
        naive(
            chunks[x, : lengths[x]],
            [passages[x, n, : passage_lengths[x, n]] for n in range(num_passages)],
        )
        for x in range(num)
    ]
    assert found.tolist() == wanted


def test_padding_never_matches():
    zeros = np.zeros((1, 8), np.int32)
    passages = np.zeros((1, 2, 16), np.int32)
    eight, none = np.array([8]), np.array([0])
    absent, there = np.array([[0, 0]]), np.array([[0, 16]])
    assert longest_common_run(zeros, passages, eight, absent).tolist() == [0]
    assert longest_common_run(zeros, passages, none, there).tolist() == [0]
    assert longest_common_run(zeros, passages, eight, there).tolist() == [8]
    assert longest_common_run(zeros, passages, np.array([3]), there).tolist() == [3]


def test_runs_do_not_join_passages():
    chunk = np.array([[1, 2, 3, 4]])
    passages = np.array([[[9, 9, 1, 2], [3, 4, 9, 9]]])
    lengths = np.array([[4, 4]])
    assert longest_common_run(chunk, passages, np.array([4]), lengths).tolist() == [2]


def test_grams_that_stand_in_the_database_are_found(tiny_database):
    """Across chunks, and no others: against Python's own sets."""
    snapshot = tiny_database.snapshot
    table = snapshot.chunks()
    rows = table.column("documents")
    documents = []
    for row in np.unique(rows):
        ids = np.flatnonzero(rows == row)
        lengths = table.take("lengths", ids)
        tokens = table.take("tokens", ids)
        documents.append(
            [
                int(t)
                for part, size in zip(tokens, lengths, strict=True)
                for t in part[:size]
            ]
        )
    known = {
        tuple(tokens[place : place + GRAM_LEN])
        for tokens in documents
        for place in range(len(tokens) - GRAM_LEN + 1)
    }
    longest = max(documents, key=len)
    rng = np.random.default_rng(0)
    inputs_BL = rng.integers(0, 300, (3, 64))
    inputs_BL[0, 5:30] = longest[3:28]  # 25 tokens, over several chunks of 8
    inputs_BL[1, 40:52] = longest[:12]  # one too few
    inputs_BL[2, 20:40] = longest[:20]
    segments_BL = np.ones_like(inputs_BL)
    segments_BL[2, 32:] = 2  # of two documents: 12 and 8
    found = Grams(inputs_BL, segments_BL).standing_in(snapshot)
    wanted = np.zeros(inputs_BL.shape, bool)
    for row, place in np.ndindex(3, 64 - GRAM_LEN + 1):
        there = slice(place, place + GRAM_LEN)
        is_one = len(set(segments_BL[row, there])) == 1
        if is_one and tuple(inputs_BL[row, there].tolist()) in known:
            wanted[row, there] = True
    np.testing.assert_array_equal(found, wanted)
    assert wanted[0, 5:30].all() and not wanted[1:].any()
