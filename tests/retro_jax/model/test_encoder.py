"""A neighbour is encoded from its own text and the chunk that asks, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retro_jax.model import parameters
from retro_jax.model.encoder import Neighbours
from tests import tiny_model

CFG = tiny_model.small_config(encoder_cca_layers=(1,))
B, C, M, N, R = 1, 2, CFG.chunk_len, 2, CFG.neighbour_len
PARAMS = tiny_model.parameters(CFG)


@pytest.fixture(scope="module")
def encode():
    """Encodes (tokens, real, chunks) with all of the asking chunks' tokens real."""

    @jax.jit
    def encoded(tokens_BCNR, real_BCNR, chunk_BCME):
        mask_BCMNR = jnp.ones((B, C, M, N, R), bool)
        found = Neighbours(
            tokens_BCNR, real_BCNR, jnp.ones((B, C, M), bool), mask_BCMNR
        )
        model = parameters.rebuild(CFG, PARAMS)
        return model.encoder(found, chunk_BCME, model.embedding_VD[...])

    return encoded


@pytest.fixture
def given():
    rng = np.random.default_rng(0)
    tokens_BCNR = rng.integers(0, CFG.vocab_size, (B, C, N, R), np.int32)
    chunk_BCME = rng.standard_normal((B, C, M, CFG.width)).astype(np.float32)
    return tokens_BCNR, np.ones((B, C, N, R), bool), chunk_BCME


def test_a_token_reaches_its_own_neighbour_in_both_directions(encode, given):
    tokens_BCNR, real_BCNR, chunk_BCME = given
    other_BCNR = tokens_BCNR.copy()
    other_BCNR[0, 1, 0, 3] = (other_BCNR[0, 1, 0, 3] + 1) % CFG.vocab_size
    before = encode(tokens_BCNR, real_BCNR, chunk_BCME)
    after = encode(other_BCNR, real_BCNR, chunk_BCME)
    changed_BCNR = np.asarray(before != after).any(axis=-1)
    assert changed_BCNR[0, 1, 0].all()
    changed_BCNR[0, 1, 0] = False
    assert not changed_BCNR.any()


def test_a_chunk_reaches_its_own_neighbours_alone(encode, given):
    tokens_BCNR, real_BCNR, chunk_BCME = given
    other_BCME = chunk_BCME.copy()
    other_BCME[0, 1] += 1
    before = encode(tokens_BCNR, real_BCNR, chunk_BCME)
    after = encode(tokens_BCNR, real_BCNR, other_BCME)
    changed_BCNR = np.asarray(before != after).any(axis=-1)
    assert changed_BCNR[0, 1].all() and not changed_BCNR[0, 0].any()


def test_padding_is_not_looked_at(encode, given):
    tokens_BCNR, real_BCNR, chunk_BCME = given
    real_BCNR = real_BCNR.copy()
    real_BCNR[..., 5:] = False
    other_BCNR = np.where(real_BCNR, tokens_BCNR, (tokens_BCNR + 1) % CFG.vocab_size)
    before = np.asarray(encode(tokens_BCNR, real_BCNR, chunk_BCME))
    after = np.asarray(encode(other_BCNR, real_BCNR, chunk_BCME))
    np.testing.assert_array_equal(before[..., :5, :], after[..., :5, :])
