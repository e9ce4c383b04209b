"""Overlap is counted by hand; what is measured is as much of the split as was asked for."""

import numpy as np
import pytest

from experiments.configs import tiny
from experiments.jobs import measurement

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
    longest = measurement.longest_runs(tiny.get_config(), iter([batch]))
    assert longest.tolist() == [16 * overlaps for overlaps in overlapping]


def test_little_overlap_is_an_eighth_of_a_chunk_as_in_the_paper():
    for shared, is_little in ((8, True), (9, False)):
        batch = _batch(shared, in_chunk=0, of_chunk=0)
        longest = measurement.longest_runs(tiny.get_config(), iter([batch]))
        little_X = measurement.has_little_overlap(tiny.get_config(), longest)
        assert little_X.tolist() == [is_little, True]


class _Sequences:
    """Five sequences, which are given as their numbers."""

    def __len__(self):
        return 5

    def in_order(self, batch_size, every):
        some = range(every // 2, 5, every)
        return (
            some[first : first + batch_size]
            for first in range(0, len(some), batch_size)
        )


@pytest.mark.parametrize(("most", "measured"), [(0, 5), (3, 3), (9, 5)])
def test_no_more_sequences_are_measured_than_were_asked_for(most, measured):
    cfg = tiny.get_config()
    cfg.evaluation.max_sequences, cfg.evaluation.batch_size = most, 1
    assert measurement.num_sequences(cfg, _Sequences()) == measured
    assert len(list(measurement.batches(cfg, _Sequences()))) == measured
