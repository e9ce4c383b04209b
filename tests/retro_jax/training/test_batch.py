"""What of a batch goes to the devices."""

import dataclasses
import functools

import jax
import numpy as np

from retro_jax.training.batch import (
    to_devices,
    with_worse_neighbours,
    without_neighbours,
)
from retro_jax.training.step import token_losses
from tests import tiny_model

CFG = tiny_model.small_config(vocab_size=16)
PARAMS = tiny_model.parameters(CFG)


def _batch(step: int):
    return tiny_model.batch(CFG, num_sequences=4, seed=step)


def test_a_batch_without_neighbours_is_read_by_the_decoder_alone():
    losses = jax.jit(functools.partial(token_losses, CFG))
    batch, other = _batch(0), _batch(0)
    other["neighbours_BCNR"] = (other["neighbours_BCNR"] + 1) % CFG.vocab_size
    off, also_off = (losses(PARAMS, without_neighbours(b)) for b in (batch, other))
    np.testing.assert_array_equal(off, also_off)
    assert (losses(PARAMS, batch) != losses(PARAMS, other)).any()
    assert (losses(PARAMS, batch) != off).any()


def test_neighbours_go_to_the_devices_only_if_the_model_can_read_any():
    mesh, batch = tiny_model.mesh(1, 1), _batch(0)
    lengths = np.zeros_like(batch["neighbour_lengths_BCN"])
    absent = {**batch, "neighbour_lengths_BCN": lengths}
    one = {**absent, "neighbour_lengths_BCN": lengths.copy()}
    one["neighbour_lengths_BCN"][2, 0, 0] = 1
    baseline = dataclasses.replace(CFG, cca_layers=())
    few = without_neighbours(batch).keys()
    assert len(few) == len(batch) - 2
    assert to_devices(CFG, batch, mesh).keys() == batch.keys()
    assert to_devices(CFG, one, mesh).keys() == batch.keys()
    assert to_devices(CFG, absent, mesh).keys() == few
    assert to_devices(baseline, batch, mesh).keys() == few


def test_a_share_of_chunks_reads_nothing_and_another_what_was_found_for_others():
    shape = (64, 8, 2)
    number = np.arange(64 * 8).reshape(64, 8, 1, 1)
    batch = {
        "neighbours_BCNR": np.broadcast_to(number, (*shape, 3)),
        "neighbour_lengths_BCN": np.full(shape, 3),
    }
    made = with_worse_neighbours(batch, 0.25, 0.5, np.random.default_rng(0))
    absent_BC = (made["neighbour_lengths_BCN"] == 0).all(axis=-1)
    other_BC = made["neighbours_BCNR"][:, :, 0, 0] != number[..., 0, 0]
    assert 0.2 < absent_BC.mean() < 0.3
    assert 0.44 < other_BC.mean() < 0.56
    assert not (absent_BC & other_BC).any()
    # They come from another row of the batch.
    rows_BC = made["neighbours_BCNR"][:, :, 0, 0] // 8
    assert (rows_BC != np.arange(64)[:, None])[other_BC].all()


def test_without_shares_a_batch_stays_as_it_is():
    batch = _batch(0)
    assert with_worse_neighbours(batch, 0, 0, np.random.default_rng(0)) is batch
