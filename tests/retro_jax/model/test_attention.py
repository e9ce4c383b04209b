"""Attention is the formula, in any kind of position and for any groups of keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from retro_jax.model import attention as attention_lib
from retro_jax.model.attention import Attention
from retro_jax.model.kernels import Causal
from retro_jax.model.layers import Keys
from tests import reference, tiny_model

LENGTH, WIDTH, HEADS, SIZE = 128, 16, 2, 8  # of `tiny_model.attention`
L, N, S, D, E = 5, 3, 6, 16, 12


def _random(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def _weights(layer):
    """The arrays of a layer by name, in float64."""
    params = nnx.state(layer, nnx.Param)
    return {name: np.asarray(w[...], np.float64) for name, w in params.items()}


@pytest.fixture(scope="module")
def random_attention():
    """An attention from width 16 to width 12 with random biases, and its weights."""
    rng = np.random.default_rng(0)
    layer = nnx.eval_shape(lambda: Attention(D, E, 2, 8, keys=Keys(0), out_gain=1.0))
    layer = jax.tree.map(lambda w: jnp.asarray(_random(rng, *w.shape) * 0.4), layer)
    return layer, _weights(layer)


@pytest.mark.parametrize("offset", [0, 3])
def test_attention_over_groups_equals_the_loop(random_attention, offset):
    """CCA's distances: l - s + offset, the same in each group; one joint softmax."""
    layer, weights = random_attention
    rng = np.random.default_rng(3)
    query_LD, source_NSE = _random(rng, L, D), _random(rng, N, S, E)
    mask_LNS = rng.random((L, N, S)) < 0.6
    mask_LNS[2] = False  # a query that may see nothing
    run = jax.jit(functools.partial(Attention.__call__, distance_offset=offset))
    got = run(layer, query_LD[None], source_NSE[None], mask_LNS[None])
    expected = [
        reference.attend_one(
            weights,
            query_LD[i],
            source_NSE[mask_LNS[i]],
            [i - s + offset for _, s in np.argwhere(mask_LNS[i])],
        )
        for i in range(L)
    ]
    np.testing.assert_allclose(got[0], np.stack(expected), atol=1e-5)
    np.testing.assert_array_equal(got[0, 2], 0.0)


def test_permuting_the_groups_changes_nothing(random_attention):
    layer, _ = random_attention
    rng = np.random.default_rng(4)
    query, source = _random(rng, 1, L, D), _random(rng, 1, N, S, E)
    mask = jnp.asarray(rng.random((1, L, N, S)) < 0.6)
    order = [2, 0, 1]
    np.testing.assert_allclose(
        layer(query, source, mask),
        layer(query, source[:, order], mask[:, :, order]),
        atol=1e-5,
    )


def test_one_query_of_one_key_gets_its_value(random_attention):
    layer, weights = random_attention
    rng = np.random.default_rng(6)
    query, source = _random(rng, 1, 1, D), _random(rng, 1, 1, 1, E)
    value_HK = np.einsum("E,EHK->HK", source[0, 0, 0], weights["w_v_EHK"])
    expected_D = np.einsum("HK,HKD->D", value_HK, weights["w_o_HKD"])
    got = layer(query, source, jnp.ones((1, 1, 1, 1), bool))
    np.testing.assert_allclose(got[0, 0], expected_D, atol=1e-5)


def test_gradients_are_finite_where_nothing_is_seen(random_attention):
    layer, _ = random_attention
    rng = np.random.default_rng(8)
    query, source = _random(rng, 1, L, D), _random(rng, 1, N, S, E)
    mask = jnp.zeros((1, L, N, S), bool)

    def total(layer, query, source):
        return jnp.sum(layer(query, source, mask) ** 2)

    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(layer, query, source)
    for gradient in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("num_blocks", [1, 4])
@pytest.mark.parametrize(
    "options",
    [{"positions": "relative", "num_key_heads": 1}, {"positions": "rotary"}],
    ids=["relative", "rotary"],
)
def test_blocks_of_queries_give_what_all_at_once_do(options, num_blocks, monkeypatch):
    monkeypatch.setattr(attention_lib, "_BLOCKS", num_blocks)
    monkeypatch.setattr(attention_lib, "_MIN_BLOCK", LENGTH // num_blocks)
    x_BLD, segments_BL = tiny_model.attention_inputs()
    attention = tiny_model.attention(**options)

    def in_blocks(attention, x_BLD):
        return attention(x_BLD, x_BLD[:, None], Causal(segments_BL, "einsum"))

    def at_once(attention, x_BLD):
        return attention(x_BLD, x_BLD[:, None], Causal(segments_BL).mask_BLNS)

    def graded(read):
        weights_BLD = jnp.cos(jnp.arange(x_BLD.size)).reshape(x_BLD.shape)
        loss = jax.grad(lambda *args: jnp.sum(read(*args) * weights_BLD), (0, 1))
        return jax.jit(loss)(attention, x_BLD)

    text = str(jax.make_jaxpr(in_blocks)(attention, x_BLD))
    assert f"f32[2,{HEADS},{LENGTH // num_blocks},1,{LENGTH}]" in text  # the last block
    assert (f"f32[2,{HEADS},{LENGTH},1,{LENGTH}]" in text) == (num_blocks == 1)
    np.testing.assert_allclose(
        in_blocks(attention, x_BLD), at_once(attention, x_BLD), atol=2e-6
    )
    for one, other in zip(
        jax.tree.leaves(graded(in_blocks)),
        jax.tree.leaves(graded(at_once)),
        strict=True,
    ):
        np.testing.assert_allclose(
            one, other, atol=3e-6 * float(jnp.abs(one).max() + 1)
        )


def rotated(x_K: np.ndarray, place: float) -> np.ndarray:
    """As complex numbers, which the code does not use."""
    half = len(x_K) // 2
    turns = np.exp(1j * place * 10_000.0 ** -(np.arange(half) / half))
    turned = (x_K[:half] + 1j * x_K[half:]) * turns
    return np.concatenate([turned.real, turned.imag])


@pytest.mark.parametrize("offset", [0, 5])
@pytest.mark.parametrize("num_key_heads", [1, 2])
def test_rotary_groups_equal_the_loop(offset, num_key_heads):
    attention = tiny_model.attention(positions="rotary", num_key_heads=num_key_heads)
    rng = np.random.default_rng(2)
    query_BLD = rng.standard_normal((1, 3, WIDTH))
    source_BNSE = rng.standard_normal((1, 2, 4, WIDTH))
    mask_BLNS = rng.random((1, 3, 2, 4)) < 0.7
    mask_BLNS[0, 1] = False
    found = attention(
        jnp.asarray(query_BLD, jnp.float32),
        jnp.asarray(source_BNSE, jnp.float32),
        jnp.asarray(mask_BLNS),
        distance_offset=offset,
    )
    weights = [
        np.asarray(w[...], np.float64)
        for w in (
            attention.w_q_DHK,
            attention.w_k_EHK,
            attention.w_v_EHK,
            attention.w_o_HKD,
        )
    ]
    for place in range(3):
        expected_D = _one_query(
            weights,
            query_BLD[0, place],
            place + offset,
            source_BNSE[0],
            mask_BLNS[0, place],
        )
        np.testing.assert_allclose(found[0, place], expected_D, atol=1e-5)


def _one_query(weights, query_D, place, source_NSE, mask_NS):
    w_q, w_k, w_v, w_o = weights
    update_D = np.zeros(WIDTH)
    for head in range(HEADS):
        key_head = head * w_k.shape[1] // HEADS
        query_K = rotated(query_D @ w_q[:, head], place)
        seen = [(n, s) for n, s in np.ndindex(*mask_NS.shape) if mask_NS[n, s]]
        if not seen:
            continue
        keys = [rotated(source_NSE[n, s] @ w_k[:, key_head], s) for n, s in seen]
        shares = np.exp(np.array(keys) @ query_K / np.sqrt(SIZE))
        values = np.array([source_NSE[n, s] @ w_v[:, key_head] for n, s in seen])
        update_D += (shares / shares.sum()) @ values @ w_o[head]
    return update_D


def test_without_positions_the_order_of_keys_does_not_matter():
    rng = np.random.default_rng(3)
    query_BLD = jnp.asarray(rng.standard_normal((1, 3, WIDTH)), jnp.float32)
    source_BNSE = jnp.asarray(rng.standard_normal((1, 1, 4, WIDTH)), jnp.float32)
    order = np.array([2, 0, 3, 1])
    mask_BLNS = jnp.ones((1, 3, 1, 4), bool)
    for positions, same in (("none", True), ("relative", False), ("rotary", False)):
        attention = tiny_model.attention(positions=positions)
        one = attention(query_BLD, source_BNSE, mask_BLNS)
        other = attention(query_BLD, source_BNSE[:, :, order], mask_BLNS)
        assert np.allclose(one, other, atol=1e-5) == same


def test_a_row_of_keys_may_serve_several_rows_of_queries():
    rng = np.random.default_rng(4)
    query_BLD = jnp.asarray(rng.standard_normal((4, 3, WIDTH)), jnp.float32)
    source_BNSE = jnp.asarray(rng.standard_normal((2, 1, 4, WIDTH)), jnp.float32)
    mask_BLNS = jnp.ones((4, 3, 1, 4), bool)
    attention = tiny_model.attention()
    shared = attention(query_BLD, source_BNSE, mask_BLNS)
    repeated = attention(query_BLD, jnp.repeat(source_BNSE, 2, axis=0), mask_BLNS)
    np.testing.assert_allclose(shared, repeated, atol=1e-6)
