"""A model that starts as a copier copies before it has learnt anything."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retro_jax.model import parameters
from tests import tiny_model

_CHUNK, _VOCAB = 8, 64


def _config(**changes):
    cfg = tiny_model.config()
    settings = {
        "vocab_size": _VOCAB,
        "chunk_len": _CHUNK,
        "neighbour_len": 2 * _CHUNK,
        "width": 128,
        "encoder_width": 128,
        "head_size": 64,
        "encoder_head_size": 64,
        "depth": 2,
        "cca_layers": (2,),
        "encoder_depth": 1,
        "encoder_cca_layers": (1,),
        "share_embeddings": True,
        "tie_output": True,
        "copy_init": True,
    }
    for name, value in (settings | changes).items():
        setattr(cfg, name, value)
    return cfg


_initial = jax.jit(parameters.initial_parameters, static_argnums=(0, 1))


@functools.partial(jax.jit, static_argnums=0)
def _logits(cfg, params, *inputs):
    return parameters.rebuild(cfg, params)(*inputs)


def _rank_of_what_follows(cfg) -> float:
    """Mean rank, by gain of logit through retrieval, of the token that truly follows.

    The neighbour of chunk 0 is the text itself, a few places further on than the text:
    copying must go by content. 0 is first, (V - 1) / 2 is chance.
    """
    rng = np.random.default_rng(0)
    text = rng.permutation(_VOCAB)[None, : 2 * _CHUNK]
    neighbours = np.stack([np.roll(text[0], 3), rng.permutation(_VOCAB)[: 2 * _CHUNK]])
    params = _initial(cfg, 0)
    inputs_BL = jnp.asarray(text, jnp.int32)
    found = jnp.asarray(np.repeat(neighbours[None, None, :1], 2, axis=1), jnp.int32)
    with_found = _logits(cfg, params, inputs_BL, found)
    gain_LV = np.asarray(with_found - _logits(cfg, params, inputs_BL))[0]
    # Rolled by 3, the neighbour breaks between its own end and start.
    places = [t for t in range(_CHUNK - 1, 2 * _CHUNK - 4)]
    ranks = [np.sum(gain_LV[t] > gain_LV[t, text[0, t + 1]]) for t in places]
    return float(np.mean(ranks))


def test_it_predicts_what_follows_the_same_token_in_a_neighbour():
    assert _rank_of_what_follows(_config()) < 10
    assert _rank_of_what_follows(_config(copy_init=False)) > 20


def test_only_values_differ_and_they_are_the_same_for_a_seed():
    plain, copying = _initial(_config(copy_init=False), 0), _initial(_config(), 0)
    assert {n: x.shape for n, x in plain.items()} == {
        n: x.shape for n, x in copying.items()
    }
    changed = {n for n in plain if not np.array_equal(plain[n], copying[n])}
    assert changed
    assert all("/cross/" in n or "encoder/layers/1/" in n for n in changed)
    again = _initial.lower(_config(), 0).compile()()
    assert all(np.array_equal(copying[n], again[n]) for n in copying)


def test_a_model_without_shared_embeddings_is_refused():
    with pytest.raises(ValueError, match="copy_init needs model.share_embeddings"):
        _config(share_embeddings=False).validate()


def test_the_start_can_be_trained_from():
    cfg = _config()
    params = _initial(cfg, 0)
    tokens = jnp.arange(2 * _CHUNK)[None]
    found = jnp.ones((1, 2, 2, 2 * _CHUNK), jnp.int32)

    def loss(params):
        return jnp.sum(jnp.square(_logits(cfg, params, tokens, found)))

    gradients = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(g).all() for g in gradients.values())
    assert np.abs(gradients["decoder/2/cross/w_q_DHK"]).max() > 0
