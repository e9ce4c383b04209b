"""What of a batch goes to the devices."""

import dataclasses
import functools

import jax
import numpy as np

from retro_jax.training.batch import to_devices, without_neighbours
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
