"""What is too far, or asked by too little, is absent; where to cut is chosen by what is lost."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.configs import tiny
from experiments.jobs import reading
from retro_jax.evaluation import ChunkLosses


def _batch() -> dict:
    """Two chunks, the second of two real tokens; two neighbours each, one absent."""
    return {
        "segments_BL": np.array([[1, 1, 1, 1, 1, 1, 0, 0]]),
        "neighbour_lengths_BCN": np.array([[[8, 8], [8, 0]]]),
        "neighbour_distances_BCN": np.array([[[0.2, 0.9], [0.4, 0.1]]], np.float32),
    }


@pytest.mark.parametrize(
    ("limits", "lengths"),
    [
        (reading.ALL, [[8, 8], [8, 0]]),
        (reading.Limits(0.4), [[8, 0], [8, 0]]),  # the limit itself is read
        (reading.Limits(0.3), [[8, 0], [0, 0]]),
        (reading.Limits(least_tokens=2), [[8, 8], [8, 0]]),
        (reading.Limits(least_tokens=3), [[8, 8], [0, 0]]),
        (reading.Limits(-1.0), [[0, 0], [0, 0]]),
    ],
)
def test_what_is_outside_of_the_limits_is_absent(limits, lengths):
    (batch,) = reading.within(iter([_batch()]), limits)
    assert batch["neighbour_lengths_BCN"].tolist() == [lengths]


def test_a_chunk_reads_what_the_one_before_found():
    distances_X, tokens_X = reading.read_by_chunks(iter([_batch(), _batch()]))
    np.testing.assert_allclose(distances_X, [np.inf, 0.2, np.inf, 0.2], rtol=1e-6)
    assert tokens_X.tolist()[1] == 4


def _losses(nats: list) -> ChunkLosses:
    ones_X = np.ones(len(nats))
    return ChunkLosses(np.array(nats, float), ones_X, ones_X, np.arange(len(nats)))


def test_limits_are_those_with_which_the_least_is_lost():
    distances_X = np.array([0.1, 0.2, 0.3, 0.4, np.inf])
    tokens_X = np.array([64, 64, 64, 64, 64])
    off = _losses([2.0] * 5)
    chosen = reading.choose(off, _losses([1, 1, 1, 9, 0]), distances_X, tokens_X)
    assert 0.3 <= chosen["max_distance"] < 0.4
    assert chosen["share_read"] == 0.75
    assert chosen["bits_per_byte"] == pytest.approx((1 + 1 + 1 + 2) / 4 / np.log(2))
    hurts = reading.choose(off, _losses([3] * 5), distances_X, tokens_X)
    assert hurts["max_distance"] == -1 and hurts["share_read"] == 0
    tried = {(each["max_distance"], each["least_tokens"]) for each in hurts["tried"]}
    assert len(tried) == 6


def test_short_chunks_are_cut_off_if_their_passages_hurt():
    for num_short, least in ((8, 8), (7, 1)):  # from fewer nothing is learnt
        tokens_X = np.array([5] * num_short + [40, 40] + [64] * 60)
        on = _losses([9] * num_short + [1] * 62)
        off, distances_X = _losses([2] * len(tokens_X)), np.full(len(tokens_X), 0.2)
        chosen = reading.choose(off, on, distances_X, tokens_X)
        assert (chosen["least_tokens"], chosen["max_distance"]) == (least, 0.2)


def test_nothing_is_chosen_where_nothing_is_read():
    losses = _losses([1.0, 2.0])
    assert reading.choose(losses, losses, np.full(2, np.inf), np.ones(2, int)) == {}


def test_what_is_set_goes_before_what_was_chosen(tmp_path):
    cfg = tiny.get_config()
    assert reading.limits(cfg, tmp_path) == reading.ALL
    chosen = {"max_distance": 0.7, "least_tokens": 16}
    (tmp_path / reading.FILE).write_text(json.dumps(chosen))
    assert reading.limits(cfg, tmp_path) == reading.Limits(0.7, 16)
    cfg.evaluation.max_distance = 0.5
    assert reading.limits(cfg, tmp_path) == reading.Limits(0.5, 16)


class _Retriever:
    def retrieve(self, tokens_QM, num_neighbours):
        shape = (len(tokens_QM), num_neighbours)
        return reading.Found(
            np.ones((*shape, 8), np.int32),
            np.full(shape, 8, np.int32),
            np.arange(num_neighbours)[None].repeat(len(tokens_QM), 0),
            np.linspace(0.2, 0.8, num_neighbours)[None].repeat(len(tokens_QM), 0),
        )


def test_generation_reads_within_the_same_limits():
    near = reading.NearRetriever(_Retriever(), reading.Limits(0.5, 3))
    found = near.retrieve(np.ones((1, 4), np.int32), 2)
    assert found.lengths_QN.tolist() == [[8, 0]]
    assert found.chunk_ids_QN.tolist() == [[0, -1]]
    short = near.retrieve(np.ones((1, 2), np.int32), 2)
    assert short.chunk_ids_QN.tolist() == [[-1, -1]]
    assert dataclasses.is_dataclass(short)
