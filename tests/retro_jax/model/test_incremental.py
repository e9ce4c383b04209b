"""What is kept gives the logits that the whole text gives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retro_jax.config import modern
from retro_jax.model import incremental, parameters
from tests import tiny_decoder, tiny_model

FORMS = {
    "paper": tiny_model.config(
        remat="none", encoder_depth=1, neighbour_part="continuation"
    ),
    "modern": dataclasses.replace(
        modern(tiny_model.config(remat="none", encoder_depth=1)), num_key_heads=1
    ),
    "decoder": tiny_decoder.config(window_len=20),  # of the 32 places of a cache
}
C, N, PADDING = 4, 2, 3
PROMPT_CHUNKS = np.array([1, 2])


def _params(cfg):
    if cfg.encoder == "decoder":
        return tiny_decoder.whole(window_len=cfg.window_len)
    return tiny_model.parameters(cfg)


def _batch(cfg):
    """Two rows, the second with padding at its beginning and an absent neighbour."""
    batch = tiny_model.batch(cfg, num_chunks=C)
    batch["segments_BL"][1, :PADDING] = 0
    batch["neighbour_lengths_BCN"][:, :, 0] = cfg.neighbour_len
    batch["neighbour_lengths_BCN"][1, 1] = 0
    return batch


def _of_chunk(model, batch, chunk_B):
    """The neighbours of one chunk of each row."""
    rows = np.arange(len(chunk_B))
    shape = (len(chunk_B), model.cfg.chunk_len)
    return model.neighbours(
        batch["neighbours_BCNR"][rows, chunk_B][:, None],
        batch["neighbour_lengths_BCN"][rows, chunk_B][:, None],
        jnp.ones(shape, jnp.int32),
    )


def _all_steps(cfg, params, batch):
    """Logits after each token from the end of the prompts on, row by row."""
    chunk_len, rows = cfg.chunk_len, np.arange(len(PROMPT_CHUNKS))
    cache = _filled(cfg, params, batch)
    table = incremental.distances(parameters.rebuild(cfg, params), C * chunk_len)
    places_B, logits = PROMPT_CHUNKS * chunk_len - 1, []
    for _ in range((C - max(PROMPT_CHUNKS)) * chunk_len + 1):
        token_B = batch["inputs_BL"][rows, places_B]
        place = int(places_B[0] % chunk_len)
        is_last = place == chunk_len - 1
        model = parameters.rebuild(cfg, params)
        found = _of_chunk(model, batch, places_B // chunk_len) if is_last else None
        cache, logits_BV, _ = _step(cfg, params, table, cache, token_B, place, found)
        logits.append(logits_BV)
        places_B = places_B + 1
    return np.stack(logits, axis=1)


def _at_once(cfg, params, batch):
    """As `_all_steps`, but for the tokens of a chunk that are read at once."""
    chunk_len, rows = cfg.chunk_len, np.arange(len(PROMPT_CHUNKS))
    cache = _filled(cfg, params, batch)
    batch = jax.tree.map(jnp.asarray, batch)
    model = parameters.rebuild(cfg, params)
    table = incremental.distances(model, C * chunk_len)
    chunk_B, logits = PROMPT_CHUNKS - 1, []
    for _ in range(C - max(PROMPT_CHUNKS)):
        last_B = batch["inputs_BL"][rows, chunk_B * chunk_len + chunk_len - 1]
        found = _of_chunk(model, batch, chunk_B)
        cache, logits_BV, _ = _step(
            cfg, params, table, cache, last_B, chunk_len - 1, found
        )
        logits.append(logits_BV[:, None])
        chunk_B = chunk_B + 1
        within_BM = (chunk_B * chunk_len)[:, None] + np.arange(chunk_len - 1)
        tokens_BM = jnp.asarray(batch["inputs_BL"][rows[:, None], within_BM])
        cache, logits_BMV = _steps(cfg, params, table, cache, tokens_BM, 0)
        logits.append(logits_BMV)
    return np.concatenate(logits, axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _filled(cfg, params, batch):
    model = parameters.rebuild(cfg, params)
    num_chunks = max(PROMPT_CHUNKS)
    inputs_BL = batch["inputs_BL"][:, : num_chunks * cfg.chunk_len]
    is_given = np.arange(inputs_BL.shape[1]) < PROMPT_CHUNKS[:, None] * cfg.chunk_len
    segments_BL = batch["segments_BL"][:, : inputs_BL.shape[1]] * is_given
    found = model.neighbours(
        batch["neighbours_BCNR"][:, :num_chunks],
        batch["neighbour_lengths_BCN"][:, :num_chunks],
        segments_BL,
    )
    num_tokens_B = jnp.asarray(PROMPT_CHUNKS) * cfg.chunk_len
    return incremental.filled(
        model, inputs_BL, segments_BL, num_tokens_B, C * cfg.chunk_len, found, None
    )


@functools.partial(jax.jit, static_argnums=0)
def _step(cfg, params, *arguments):
    return incremental.step(parameters.rebuild(cfg, params), *arguments)


@functools.partial(jax.jit, static_argnums=0)
def _steps(cfg, params, *arguments):
    return incremental.steps(parameters.rebuild(cfg, params), *arguments)


@pytest.mark.parametrize("form", FORMS)
def test_the_logits_at_every_position_are_those_of_the_whole_text(form):
    """Rows begin with prompts of one and of two chunks and go on for two more."""
    cfg = FORMS[form]
    params, batch = _params(cfg), _batch(cfg)
    expected_BLV = tiny_model.forward(cfg)(
        params,
        batch["inputs_BL"],
        batch["neighbours_BCNR"],
        batch["neighbour_lengths_BCN"],
        batch["segments_BL"],
    )
    made_BLV = _all_steps(cfg, params, batch)
    for row, num_chunks in enumerate(PROMPT_CHUNKS):
        first = num_chunks * cfg.chunk_len - 1
        expected_LV = expected_BLV[row, first : first + made_BLV.shape[1]]
        np.testing.assert_allclose(made_BLV[row], expected_LV, atol=1e-4)
    assert np.abs(expected_BLV).max() > 0.1


@pytest.mark.parametrize("form", FORMS)
def test_tokens_that_are_read_at_once_give_the_logits_of_one_after_the_other(form):
    cfg = FORMS[form]
    params, batch = _params(cfg), _batch(cfg)
    one_by_one_BLV = _all_steps(cfg, params, batch)
    made_BLV = _at_once(cfg, params, batch)
    assert made_BLV.shape[1] == (C - max(PROMPT_CHUNKS)) * cfg.chunk_len
    expected_BLV = one_by_one_BLV[:, : made_BLV.shape[1]]
    np.testing.assert_allclose(made_BLV, expected_BLV, atol=1e-5)
