"""Overlap is counted by hand; a curve's end is the whole, and each bin is its own text."""

import numpy as np
import pytest

from experiments.configs import tiny
from experiments.jobs import leakage
from retro_jax.evaluation import ChunkLosses

_CHUNK_LEN, _NEIGHBOUR_LEN = 64, 128


def _batch(shared: int, *, in_chunk: int, of_chunk: int) -> dict[str, np.ndarray]:
    """Two chunks; a neighbour of one holds the first tokens of one of them."""
    inputs_BL = np.arange(1, 2 * _CHUNK_LEN + 1)[None]
    neighbours_BCNR = np.full((1, 2, 1, _NEIGHBOUR_LEN), 1_000)
    copied = inputs_BL[0, in_chunk * _CHUNK_LEN :][:shared]
    neighbours_BCNR[0, of_chunk, 0, 5 : 5 + shared] = copied
    return {
        "inputs_BL": inputs_BL,
        "segments_BL": np.ones_like(inputs_BL),
        "documents_BC": np.zeros((1, 2), np.int64),
        "neighbours_BCNR": neighbours_BCNR,
        "neighbour_lengths_BCN": np.full((1, 2, 1), _NEIGHBOUR_LEN),
    }


@pytest.mark.parametrize(
    ("in_chunk", "of_chunk", "overlapping"),
    [
        (0, 0, [True, False]),  # its own neighbour
        (1, 1, [False, True]),
        (1, 0, [False, True]),  # one that it reads: the chunk before's
        (0, 1, [False, False]),  # neither; the first chunk reads none
    ],
)
def test_a_chunk_overlaps_its_own_neighbours_and_those_it_reads(
    in_chunk, of_chunk, overlapping
):
    batch = _batch(16, in_chunk=in_chunk, of_chunk=of_chunk)
    longest = leakage.longest_runs(tiny.get_config(), iter([batch]))
    assert longest.tolist() == [16 * overlaps for overlaps in overlapping]


def test_little_overlap_is_an_eighth_of_a_chunk_as_in_the_paper():
    for shared, is_little in ((8, True), (9, False)):
        batch = _batch(shared, in_chunk=0, of_chunk=0)
        longest = leakage.longest_runs(tiny.get_config(), iter([batch]))
        little_X = leakage.has_little_overlap(tiny.get_config(), longest)
        assert little_X.tolist() == [is_little, True]


# Six chunks of three documents; the second half shares more and gains more.
_LONGEST_X = np.array([0, 8, 9, 16, 33, 64])
_GAINS_X = np.array([0.0, 1.0, 1.0, 2.0, 4.0, 8.0])


def _losses() -> dict[str, ChunkLosses]:
    ones, documents_X = np.ones(6), np.array([0, 1, 2, 0, 1, 2])

    def lost(nats_X):
        return ChunkLosses(nats_X, 4 * ones, ones, documents_X)

    return {"off": lost(10 * ones), "on": lost(10 * ones - _GAINS_X)}


def test_a_curve_tells_what_of_the_gain_is_left_where_less_is_shared():
    found = leakage.by_overlap(_losses(), _LONGEST_X, _CHUNK_LEN, seed=0)
    assert [each["at_most"] for each in found] == [0.125, 0.25, 0.5, 0.75, 1.0]
    assert [each["chunks"] for each in found] == [2, 4, 4, 5, 6]
    for each in found:
        count = each["chunks"]
        gain = _GAINS_X[:count].mean() / (4 * np.log(2))
        on = each["conditions"]["on"]
        assert on["minus_off"] == pytest.approx(-gain)
        assert on["gain_kept"] == pytest.approx(
            _GAINS_X[:count].mean() / _GAINS_X.mean()
        )
        low, high = on["minus_off_interval"]
        assert low - 1e-9 <= on["minus_off"] <= high + 1e-9
        assert each["conditions"]["off"]["gain_kept"] is None


def test_bins_hold_each_chunk_once_with_an_interval():
    bins = leakage.by_longest_run(_losses(), _LONGEST_X, seed=0)
    assert [(each["from_tokens"], each["chunks"]) for each in bins] == [
        (0, 1),
        (8, 2),
        (16, 3),
    ]
    assert sum(each["bytes"] for each in bins) == 24.0
    assert np.isfinite(bins[1]["conditions"]["on"]["minus_off_interval"]).all()


def test_chunks_with_a_gram_of_the_database_are_left_out(monkeypatch):
    class _Found:
        def __init__(self, inputs_BL, segments_BL):
            self._shape = inputs_BL.shape

        def standing_in(self, database):
            assert database == "a database"
            stands_BL = np.zeros(self._shape, bool)
            stands_BL[1, _CHUNK_LEN] = True  # one token of the fourth chunk
            return stands_BL

    monkeypatch.setattr(leakage, "Grams", _Found)
    batches = [_batch(0, in_chunk=0, of_chunk=0) for _ in range(3)]
    found = leakage.decontaminated(_losses(), batches, "a database", seed=0)
    assert found["chunks"] == 5
    left = np.delete(_GAINS_X, 3).mean() / (4 * np.log(2))
    assert found["conditions"]["on"]["minus_off"] == pytest.approx(-left)
