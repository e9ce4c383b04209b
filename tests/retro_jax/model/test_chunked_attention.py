import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro_jax.model import chunked_attention, parameters
from tests import reference, tiny_model


def _places(length):
    """x[0, t, 0] = t + 1, so that 0 is what was put in."""
    return jnp.arange(1, length + 1).reshape(1, length, 1)


def test_the_table_of_the_module():
    got = chunked_attention.attending_chunks(_places(12), 4)[0, :, :, 0]
    np.testing.assert_array_equal(got, [[4, 5, 6, 7], [8, 9, 10, 11], [12, 0, 0, 0]])
    got = chunked_attention.attending_chunks(_places(14), 4)[0, :, :, 0]
    np.testing.assert_array_equal(got, [[4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 0]])
    got = chunked_attention.chunks(_places(14), 4)[0, :, :, 0]
    np.testing.assert_array_equal(got, [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]])


shapes = {
    "chunk_len": st.integers(1, 4),
    "num_chunks": st.integers(1, 3),
    "extra": st.integers(0, 3),
}


@settings(max_examples=15)
@given(**shapes)
def test_each_position_stands_in_the_attending_chunk_it_reads(
    chunk_len, num_chunks, extra
):
    length = num_chunks * chunk_len + extra % chunk_len
    attending = np.asarray(
        chunked_attention.attending_chunks(_places(length), chunk_len)
    )
    for t in range(length):
        found = np.argwhere(attending[0, :, :, 0] == t + 1).tolist()
        chunk, place = divmod(t + 1, chunk_len)
        assert found == ([[chunk - 1, place]] if chunk >= 1 else [])


@settings(max_examples=15)
@given(**shapes)
def test_rejoin_puts_them_back(chunk_len, num_chunks, extra):
    length = num_chunks * chunk_len + extra % chunk_len
    attending = chunked_attention.attending_chunks(_places(length), chunk_len)
    expected = _places(length).at[:, : chunk_len - 1].set(0)
    np.testing.assert_array_equal(chunked_attention.rejoin(attending, length), expected)


@pytest.mark.parametrize(
    "segments",
    [
        [1] * 12,
        [1, 1, 1, 1, 2, 2, 2, 0, 3, 3, 3, 3],
        [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0, 2, 2, 2, 2, 2],
    ],
)
def test_readers_are_of_the_chunks_own_document(segments):
    got = np.asarray(chunked_attention.readers_mask(jnp.array([segments]), 4))[0]
    for chunk in range(len(segments) // 4):
        document = max(segments[chunk * 4 : chunk * 4 + 4])
        for place in range(4):
            t = (chunk + 1) * 4 - 1 + place
            reads = t < len(segments) and segments[t] == document > 0
            assert got[chunk, place] == reads, (chunk, place)


@pytest.mark.parametrize("length", [12, 14])
def test_retrieve_equals_the_loop_over_tokens(length):
    cfg = tiny_model.config()
    params = tiny_model.parameters(cfg)
    rng = np.random.default_rng(0)
    hidden_LD = rng.standard_normal((length, cfg.width)).astype(np.float32)
    encoded = rng.standard_normal((3, 2, 8, cfg.encoder_width)).astype(np.float32)
    lengths_CN = np.array([[8, 3], [0, 5], [0, 0]])
    real_CNR = np.arange(8) < lengths_CN[..., None]
    mask_CMNR = np.broadcast_to(real_CNR[:, None], (3, 4, 2, 8))

    layer = parameters.rebuild(cfg, params).decoder[1]
    got = jax.jit(type(layer).retrieve)(
        layer, hidden_LD[None], encoded[None], mask_CMNR[None]
    )[0]

    weights = reference.below(params, "decoder/2")
    normed = reference.rms_norm(hidden_LD, weights["norm_cross/scale_D"])
    update = reference.chunked_cross_attention(
        reference.below(weights, "cross"), normed, encoded, lengths_CN, cfg.chunk_len
    )
    np.testing.assert_allclose(got, hidden_LD + update, atol=1e-5)
    np.testing.assert_array_equal(got[:3], hidden_LD[:3])
    assert np.abs(update[3:11]).max(axis=1).min() > 1e-3
