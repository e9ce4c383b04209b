"""Attention to passages is the softmax's own, over the places that have one to read."""

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax.model import parameters, reading_heads
from tests import tiny_decoder
from tests.tiny_decoder import CHUNK_LEN, NEIGHBOUR_LEN, NUM_NEIGHBOURS, VOCAB_SIZE

CFG, PARAMS = tiny_decoder.config(), tiny_decoder.whole()
NUM_CHUNKS, HEADS_A_KEY = 2, CFG.num_heads // CFG.num_key_heads


def make_batch(lengths_BCN) -> dict[str, jax.Array]:
    rng = np.random.default_rng(3)
    shape = (1, NUM_CHUNKS, NUM_NEIGHBOURS, NEIGHBOUR_LEN)
    tokens_BL = rng.integers(2, VOCAB_SIZE, (1, NUM_CHUNKS * CHUNK_LEN), np.int32)
    batch = {
        "inputs_BL": tokens_BL,
        "segments_BL": np.ones_like(tokens_BL),
        "neighbours_BCNR": rng.integers(2, VOCAB_SIZE, shape, np.int32),
        "neighbour_lengths_BCN": np.array(lengths_BCN, np.int32),
    }
    return jax.tree.map(jnp.asarray, batch)


def of_one_query(params, batch, layer: int) -> np.ndarray:
    """The lowest layer's share for chunk 0's last position, by hand, its only reader."""
    model = parameters.rebuild(CFG, params)
    hidden_BLD = model.lower(batch["inputs_BL"], batch["segments_BL"])
    of = model.decoder[layer - 1]
    query_HK = of.cross.queries(
        of.norm_cross(hidden_BLD)[:, [CHUNK_LEN]], CFG.cca_distance
    )[0, 0]
    length = int(batch["neighbour_lengths_BCN"][0, 0, 0])
    level_SD = model.encode(batch["neighbours_BCNR"][0, 0, :1])[0, 0]
    key_SHK = of.cross.keys_and_values(of.norm_source(level_SD)[None, None])[0][0, 0]
    key_SHK = jnp.repeat(key_SHK, HEADS_A_KEY, axis=1)[: length + 1]
    logits_HS = np.einsum("HK,SHK->HS", query_HK, key_SHK) * CFG.head_size**-0.5
    weights_HS = np.exp(logits_HS - logits_HS.max(axis=1, keepdims=True))
    weights_HS /= weights_HS.sum(axis=1, keepdims=True)
    return 1 - weights_HS[:, 0]


def test_shares_are_those_of_a_softmax_by_hand():
    # Nothing but chunk 0 has a passage, and of its readers the first alone is text.
    batch = make_batch([[[11, 0], [0, 0]]])
    batch["segments_BL"] = batch["segments_BL"].at[:, CHUNK_LEN:].set(0)
    shares_TH = reading_heads.passage_attention(CFG, PARAMS, batch)
    assert shares_TH.shape == (len(CFG.cca_layers), CFG.num_heads)
    expected_H = of_one_query(PARAMS, batch, min(CFG.cca_layers))
    np.testing.assert_allclose(shares_TH[0], expected_H, atol=1e-5)
    assert np.ptp(expected_H) > 0.01  # heads differ, so it matters which is which


def test_what_is_absent_counts_for_nothing_and_twice_the_same_for_once():
    one = make_batch([[[11, 0], [9, 0]]])
    both = make_batch([[[11, 11], [9, 9]]])
    first = both["neighbours_BCNR"][:, :, :1]
    both["neighbours_BCNR"] = jnp.concatenate([first, first], axis=2)
    np.testing.assert_allclose(
        reading_heads.passage_attention(CFG, PARAMS, one),
        reading_heads.passage_attention(CFG, PARAMS, both),
        atol=1e-5,
    )


def test_what_has_been_read_before_need_not_be_read_again():
    batch = make_batch([[[16, 12], [9, 3]]])
    model = parameters.rebuild(CFG, PARAMS)
    found = model.neighbours(
        batch["neighbours_BCNR"], batch["neighbour_lengths_BCN"], batch["segments_BL"]
    )
    np.testing.assert_allclose(
        reading_heads.passage_attention(CFG, PARAMS, batch),
        reading_heads.passage_attention(
            CFG, PARAMS, {**batch, "encoded_BCNTSE": model.encoded(found)}
        ),
        atol=1e-5,
    )
