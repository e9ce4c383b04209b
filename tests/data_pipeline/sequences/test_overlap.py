"""The longest common run against all pairs of places."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.sequences.overlap import longest_common_run


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
