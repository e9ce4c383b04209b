"""A decoder that reads neighbours with its own layers: `encoder="decoder"`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retro_jax.config import MeshConfig, RetrofitConfig
from retro_jax.devices import sharding
from retro_jax.model import parameters
from tests import tiny_decoder
from tests.tiny_decoder import CHUNK_LEN, NEIGHBOUR_LEN, NUM_NEIGHBOURS, VOCAB_SIZE

BATCH, CHUNKS = 2, 3
LENGTH = CHUNKS * CHUNK_LEN


@functools.partial(jax.jit, static_argnums=0)
def run(cfg, params, *inputs):
    return parameters.rebuild(cfg, params)(*inputs)


@pytest.fixture(name="inputs")
def _inputs():
    rng = np.random.default_rng(1)
    tokens_BL = rng.integers(2, VOCAB_SIZE, (BATCH, LENGTH))
    neighbours = rng.integers(
        2, VOCAB_SIZE, (BATCH, CHUNKS, NUM_NEIGHBOURS, NEIGHBOUR_LEN)
    )
    lengths = np.full(neighbours.shape[:3], NEIGHBOUR_LEN)
    return jnp.array(tokens_BL), jnp.array(neighbours), jnp.array(lengths)


CFG = tiny_decoder.config()


def test_absent_neighbours_leave_the_decoder_bit_for_bit(inputs):
    tokens_BL, neighbours, lengths = inputs
    decoder = dataclasses.replace(CFG, cca_layers=())
    alone = run(decoder, tiny_decoder.backbone(), tokens_BL)
    absent = run(CFG, tiny_decoder.whole(), tokens_BL, neighbours, 0 * lengths)
    np.testing.assert_array_equal(run(CFG, tiny_decoder.whole(), tokens_BL), alone)
    np.testing.assert_array_equal(absent, alone)


def test_open_heads_read_and_shut_heads_do_not(inputs):
    tokens_BL, _neighbours, _lengths = inputs
    alone = run(CFG, tiny_decoder.whole(), tokens_BL)
    shut = run(CFG, tiny_decoder.whole(open_heads=((), ())), *inputs)
    opened = run(CFG, tiny_decoder.whole(), *inputs)
    np.testing.assert_allclose(shut, alone, atol=1e-5)
    change = np.abs(opened - alone).max(axis=(0, 2))
    assert (change[: CHUNK_LEN - 1] < 1e-5).all()  # no chunk is complete yet
    assert (change[CHUNK_LEN - 1 :] > 1e-3).all()


def test_a_random_start_has_no_effect_before_training(inputs):
    params = tiny_decoder.whole(RetrofitConfig(start="random"))
    alone = run(CFG, params, inputs[0])
    np.testing.assert_allclose(run(CFG, params, *inputs), alone, atol=1e-5)


def test_kept_encodings_give_the_same_logits(inputs):
    _, neighbours, _ = inputs
    params = tiny_decoder.whole()
    rows_PR = neighbours.reshape(-1, NEIGHBOUR_LEN)
    encoded = parameters.rebuild(CFG, params).encode(rows_PR)
    kept = encoded.reshape(*neighbours.shape[:3], *encoded.shape[1:])
    np.testing.assert_allclose(
        run(CFG, params, *inputs, None, kept), run(CFG, params, *inputs), atol=1e-4
    )


def test_kept_lower_states_give_the_same_logits_bit_for_bit(inputs):
    """With retrieval on and off; off is the plain decoder."""
    tokens_BL, neighbours, lengths = inputs
    segments_BL = jnp.where(jnp.arange(LENGTH) < 11, 1, 2) + jnp.zeros_like(tokens_BL)
    params = tiny_decoder.whole()
    lower = jax.jit(lambda *text: parameters.rebuild(CFG, params).lower(*text))
    kept = lower(tokens_BL, segments_BL)
    given = (tokens_BL, neighbours, lengths, segments_BL)
    np.testing.assert_array_equal(
        run(CFG, params, *given, None, kept), run(CFG, params, *given)
    )
    plain = dataclasses.replace(CFG, cca_layers=())
    off = (tokens_BL, None, None, segments_BL)
    np.testing.assert_array_equal(
        run(CFG, params, *off, None, kept), run(plain, tiny_decoder.backbone(), *off)
    )


def test_encodings_depend_neither_on_cca_nor_on_what_follows(inputs):
    rows_PR = inputs[1].reshape(-1, NEIGHBOUR_LEN)
    params = tiny_decoder.whole()
    encoded = parameters.rebuild(CFG, params).encode(rows_PR)
    shut = tiny_decoder.whole(open_heads=((), ()))
    np.testing.assert_array_equal(
        encoded, parameters.rebuild(CFG, shut).encode(rows_PR)
    )
    changed = rows_PR.at[:, 10:].set(1)
    again = parameters.rebuild(CFG, params).encode(changed)
    np.testing.assert_allclose(again[:, :, :11], encoded[:, :, :11], atol=1e-5)
    assert np.abs(again - encoded)[:, :, 11:].max() > 1e-2


def test_no_position_sees_what_comes_later(inputs):
    tokens_BL, neighbours, lengths = inputs
    params, place = tiny_decoder.whole(), CHUNK_LEN + 3
    before = run(CFG, params, *inputs)
    later = tokens_BL.at[:, place:].set(1)
    # Chunk 1 is complete with its last token: its neighbours are read from there on.
    unseen = neighbours.at[:, 1:].set(1)
    after = run(CFG, params, later, unseen, lengths)
    np.testing.assert_allclose(after[:, :place], before[:, :place], atol=1e-5)
    assert np.abs(after - before)[:, place:].max() > 1e-2


def test_the_opener_is_the_token_that_a_text_begins_with(inputs):
    tokens_BL, *_ = inputs
    params = tiny_decoder.backbone()
    plain = dataclasses.replace(CFG, cca_layers=(), bos_id=None)
    with_opener = jnp.pad(tokens_BL, ((0, 0), (1, 0)), constant_values=CFG.bos_id)
    written = run(plain, params, with_opener)[:, 1:]
    own = run(dataclasses.replace(CFG, cca_layers=()), params, tokens_BL)
    np.testing.assert_allclose(own, written, atol=1e-5)


def test_documents_see_the_opener_and_not_each_other(inputs):
    tokens_BL, *_ = inputs
    params, half = tiny_decoder.backbone(), LENGTH // 2
    decoder = dataclasses.replace(CFG, cca_layers=())
    segments = jnp.where(jnp.arange(LENGTH) < half, 1, 2) * jnp.ones((BATCH, 1), int)
    both = run(decoder, params, tokens_BL, None, None, segments)
    changed = run(decoder, params, tokens_BL.at[:, :half].set(1), None, None, segments)
    np.testing.assert_allclose(changed[:, half:], both[:, half:], atol=1e-5)
    unopened = dataclasses.replace(decoder, bos_id=None)
    without = run(unopened, params, tokens_BL, None, None, segments)
    assert np.abs(without - both)[:, half:].max() > 1e-2


def test_a_neighbour_is_read_as_if_it_stood_before_the_text(inputs):
    """With all gates open and its own self-attention shut, CCA is attention to a prefix."""
    tokens_BL, neighbours, lengths = inputs
    cfg = tiny_decoder.config(depth=1, cca_layers=(1,), neighbour_len=NEIGHBOUR_LEN)
    params = tiny_decoder.whole(
        open_heads=(tuple(range(cfg.num_heads)),),
        depth=1,
        cca_layers=(1,),
    )
    # What self-attention adds is taken away, on both sides.
    shut = {
        **params,
        "decoder/1/attention/w_o_HKD": 0 * params["decoder/1/cross/w_o_HKD"],
    }
    one = lengths.at[:, :, 1:].set(0)
    # The one position that ends the first chunk reads the first neighbour.
    last = CHUNK_LEN - 1
    read = run(cfg, shut, tokens_BL, neighbours, one)[:, last]
    prefix = jnp.concatenate(
        [neighbours[:, 0, 0], tokens_BL[:, last : last + 1]], axis=1
    )
    # The prefix and the token, the token's attention to itself taken out by a segment.
    plain = dataclasses.replace(cfg, cca_layers=())
    backbone = {
        k: v for k, v in params.items() if "cross" not in k and "source" not in k
    }
    model = parameters.rebuild(plain, backbone)
    hidden, _segments = model.embedded(prefix, jnp.ones_like(prefix))
    layer = model.decoder[0]
    normed = layer.norm_attention(hidden)
    visible = jnp.ones((1, 1, 1, prefix.shape[1] + 1), bool).at[..., -1].set(False)
    attended = layer.attention(
        normed[:, -1:], normed[:, None], visible, distance_offset=prefix.shape[1]
    )
    out = layer.feed_forward(hidden[:, -1:] + attended)
    expected = model.norm(out) @ backbone["embedding_VD"].T
    np.testing.assert_allclose(read, expected[:, 0], atol=1e-3, rtol=1e-3)


def test_loops_over_layers_give_the_same_logits(inputs):
    cfg = tiny_decoder.config(depth=8, cca_layers=(4, 5))
    params = tiny_decoder.whole(depth=8, cca_layers=(4, 5))
    looped = dataclasses.replace(cfg, scan_layers=True)
    np.testing.assert_allclose(
        run(looped, params, *inputs), run(cfg, params, *inputs), atol=1e-3
    )


@pytest.mark.parametrize("sizes", [{"data": 2, "model": 2}, {"data": 1, "model": 4}])
def test_a_mesh_gives_the_same_logits(inputs, sizes):
    """Also one that has more devices than there are key heads."""
    params = tiny_decoder.whole(qkv_biases=True)
    cfg = tiny_decoder.config(qkv_biases=True)
    devices = jax.devices()[: sizes["data"] * sizes["model"]]
    mesh = sharding.make_mesh(MeshConfig(**sizes), devices)
    alone = run(cfg, params, *inputs)
    shardings = sharding.state_shardings(params, mesh)
    with jax.set_mesh(mesh):
        placed = {
            name: jax.device_put(x, shardings[name]) for name, x in params.items()
        }
        spread = run(cfg, placed, *inputs)
    np.testing.assert_allclose(spread, alone, atol=1e-4)


def test_gradients_of_a_frozen_backbone_reach_cca_alone(inputs):
    _tokens_BL, *_ = inputs
    params = tiny_decoder.whole()
    new = {name: x for name, x in params.items() if "cross" in name}

    def loss(new):
        logits = parameters.rebuild(CFG, {**params, **new})(*inputs)
        return jax.nn.log_softmax(logits)[:, :, 5].sum()

    gradients = jax.grad(loss)(new)
    assert all(np.isfinite(g).all() for g in gradients.values())
    gates = gradients["decoder/4/cross/gate_H"]
    assert (np.abs(gates) > 1e-6).all()  # also those that are shut can learn to open


@pytest.mark.parametrize(
    ("heads", "message"),
    [(((0,),), "1 layers"), (((0,), (4,)), "0..3")],
)
def test_heads_that_are_not_there_are_refused(heads, message):
    with pytest.raises(ValueError, match=message):
        tiny_decoder.whole(open_heads=heads)
