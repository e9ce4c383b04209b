"""Heads that copy are found where they were put."""

import jax.numpy as jnp
import numpy as np
import pytest

from retro_jax.config import RetrofitConfig
from retro_jax.model import copying_heads
from tests import tiny_decoder


def test_a_random_decoder_has_no_head_that_copies():
    cfg = tiny_decoder.config(cca_layers=())
    scores_TH = copying_heads.copying_scores(cfg, tiny_decoder.backbone())
    assert scores_TH.shape == (cfg.depth, cfg.num_heads)
    with pytest.raises(ValueError, match="no head of this decoder copies"):
        copying_heads.layers_that_copy(RetrofitConfig(), scores_TH)


def test_attention_to_the_token_after_the_previous_occurrence_is_the_score():
    """A head that looks a fixed distance back looks there: rotations decide alone."""
    cfg = tiny_decoder.config(cca_layers=(), rotary_base=1e4)
    params = dict(tiny_decoder.backbone())
    width, size = cfg.width, cfg.head_size
    back = copying_heads.REPEATED_LEN - 1
    # Every token asks, and is asked for, by the same vector; only its place differs.
    params["embedding_VD"] = jnp.ones((cfg.vocab_size, width))
    angles = back * 1e4 ** -(np.arange(0, size, 2) / size)
    unit = np.concatenate([np.ones(size // 2), np.zeros(size // 2)])
    turned = np.concatenate([np.cos(angles), np.sin(angles)])
    query = np.array(params["decoder/1/attention/w_q_DHK"]) * 0
    key = np.array(params["decoder/1/attention/w_k_EHK"]) * 0
    query[:, 2] = 40 * unit / width
    key[:, 1] = 40 * turned / width  # heads 2 and 3 share the second key head
    # A key that is turned ahead meets the query that stands so far behind it.
    params["decoder/1/attention/w_q_DHK"] = jnp.array(query)
    params["decoder/1/attention/w_k_EHK"] = jnp.array(key)
    scores_TH = copying_heads.copying_scores(cfg, params)
    assert scores_TH[0, 2] > 0.9
    assert scores_TH[0].argmax() == 2


def test_the_lowest_layers_that_copy_are_taken_and_their_heads_opened():
    scores_TH = np.zeros((8, 4))
    scores_TH[2, 1], scores_TH[5, [0, 3]], scores_TH[7, 2] = 0.5, (0.9, 0.2), 0.95
    cfg = RetrofitConfig(num_cca_layers=2)
    layers = copying_heads.layers_that_copy(cfg, scores_TH)
    assert layers == (3, 6)
    assert copying_heads.heads_that_copy(cfg, scores_TH, layers) == ((1,), (0, 3))
