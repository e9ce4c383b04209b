import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from retro_jax.model.attention import Attention, masked_softmax
from retro_jax.model.layers import FeedForward, RMSNorm, gelu
from tests import reference

L, N, S, D, E = 5, 3, 6, 16, 12


def _random(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def _weights(layer):
    """The arrays of a layer by name, in float64."""
    params = nnx.state(layer, nnx.Param)
    return {name: np.asarray(w[...], np.float64) for name, w in params.items()}


@pytest.fixture(scope="module")
def attention():
    """An attention from width 16 to width 12 with random biases, and its weights."""
    rng = np.random.default_rng(0)
    layer = nnx.eval_shape(
        lambda: Attention(D, E, 2, 8, rngs=nnx.Rngs(0), out_gain=1.0)
    )
    layer = jax.tree.map(lambda w: jnp.asarray(_random(rng, *w.shape) * 0.4), layer)
    return layer, _weights(layer)


def test_rms_norm_scales_to_unit_mean_square():
    rng = np.random.default_rng(1)
    norm = RMSNorm(D)
    norm.scale_D[...] = jnp.asarray(_random(rng, D))
    x = _random(rng, 3, D) * 100
    expected = reference.rms_norm(
        np.asarray(x, np.float64), np.asarray(norm.scale_D[...])
    )
    np.testing.assert_allclose(norm(x), expected, rtol=1e-5)
    assert norm(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


def test_rms_norm_of_bfloat16_is_rounded_only_once():
    x = jnp.asarray(_random(np.random.default_rng(1), 64, D), jnp.bfloat16)
    expected = reference.rms_norm(np.asarray(x, np.float64), np.ones(D))
    got = np.asarray(RMSNorm(D)(x), np.float64)
    np.testing.assert_allclose(got, expected, rtol=2**-8)


def test_rms_norm_of_zeros_is_zeros():
    np.testing.assert_array_equal(RMSNorm(4)(jnp.zeros((1, 4))), 0.0)


def test_feed_forward_equals_the_formula():
    rng = np.random.default_rng(2)
    layer = FeedForward(D, 20, rngs=nnx.Rngs(0), out_gain=1.0)
    weights = _weights(layer)
    x = _random(rng, 2, L, D)
    np.testing.assert_allclose(
        layer(x), reference.feed_forward(np.asarray(x, np.float64), weights), atol=1e-5
    )


@pytest.mark.parametrize("offset", [0, 3])
def test_attention_over_groups_equals_the_loop(attention, offset):
    """CCA's distances: l - s + offset, the same in each group; one joint softmax."""
    layer, weights = attention
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


def test_permuting_the_groups_changes_nothing(attention):
    layer, _ = attention
    rng = np.random.default_rng(4)
    query, source = _random(rng, 1, L, D), _random(rng, 1, N, S, E)
    mask = jnp.asarray(rng.random((1, L, N, S)) < 0.6)
    order = [2, 0, 1]
    np.testing.assert_allclose(
        layer(query, source, mask),
        layer(query, source[:, order], mask[:, :, order]),
        atol=1e-5,
    )


def test_one_query_of_one_key_gets_its_value(attention):
    layer, weights = attention
    rng = np.random.default_rng(6)
    query, source = _random(rng, 1, 1, D), _random(rng, 1, 1, 1, E)
    value_HK = np.einsum("E,EHK->HK", source[0, 0, 0], weights["w_v_EHK"])
    expected_D = np.einsum("HK,HKD->D", value_HK, weights["w_o_HKD"])
    got = layer(query, source, jnp.ones((1, 1, 1, 1), bool))
    np.testing.assert_allclose(got[0, 0], expected_D, atol=1e-5)


def test_masked_softmax_sums_to_one_or_is_exactly_zero():
    rng = np.random.default_rng(7)
    logits = _random(rng, 1, 2, L, N, S) * 10
    mask = rng.random((1, 1, L, N, S)) < 0.5
    mask[:, :, 1] = False
    weights = np.asarray(masked_softmax(logits, jnp.asarray(mask)))
    sums = weights.sum(axis=(-2, -1))
    np.testing.assert_allclose(sums[:, :, [0, 2, 3, 4]], 1.0, rtol=1e-6)
    np.testing.assert_array_equal(sums[:, :, 1], 0.0)
    np.testing.assert_array_equal(weights[~np.broadcast_to(mask, weights.shape)], 0.0)


def test_what_stands_in_a_masked_logit_does_not_matter():
    logits = jnp.zeros((1, 1, 1, 1, 3))
    mask = jnp.array([True, False, True]).reshape(1, 1, 1, 1, 3)
    expected = masked_softmax(logits, mask)
    for garbage in (1e30, np.inf, -np.inf, np.nan):
        got = masked_softmax(logits.at[..., 1].set(garbage), mask)
        np.testing.assert_array_equal(got, expected)


def _softmax_by_parts(logits, mask):
    masked = jnp.where(mask, logits, -1e30)
    flat = jax.nn.softmax(masked.reshape(*masked.shape[:-2], -1), axis=-1)
    return jnp.where(mask, flat.reshape(masked.shape), 0.0)


def test_the_gradient_of_masked_softmax_is_that_of_its_parts():
    rng = np.random.default_rng(17)
    logits = _random(rng, 1, 2, L, N, S) * 3
    mask = rng.random((1, 1, L, N, S)) < 0.5
    mask[:, :, 1] = False  # a query that sees nothing
    mask = jnp.asarray(mask)
    gradient = _random(rng, *logits.shape)
    _, pull_back = jax.vjp(lambda x: masked_softmax(x, mask), logits)
    _, expected = jax.vjp(lambda x: _softmax_by_parts(x, mask), logits)
    np.testing.assert_allclose(pull_back(gradient)[0], expected(gradient)[0], atol=1e-6)
    garbage = jnp.where(mask, logits, jnp.nan)
    _, pull_back = jax.vjp(lambda x: masked_softmax(x, mask), garbage)
    np.testing.assert_allclose(pull_back(gradient)[0], expected(gradient)[0], atol=1e-6)


def _kept(function, x):
    """Shapes and dtypes of what a gradient keeps of the forward pass."""
    _, pull_back = jax.vjp(function, x)
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(pull_back)]


def test_the_gradient_of_masked_softmax_keeps_rounded_weights_alone():
    logits, mask = jnp.zeros((1, 2, L, N, S)), jnp.ones((1, 1, L, N, S), bool)
    kept = _kept(lambda x: masked_softmax(x, mask, jnp.bfloat16), logits)
    assert kept == [(logits.shape, jnp.bfloat16)]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gelu_and_its_gradient_are_jaxs_and_only_the_input_is_kept(dtype):
    x = jnp.linspace(-6, 6, 97).astype(dtype)
    value, pull_back = jax.vjp(gelu, x)
    wide = x.astype(jnp.float32)
    expected, expected_pull_back = jax.vjp(jax.nn.gelu, wide)
    atol = 1e-6 if dtype == jnp.float32 else 2e-2
    assert value.dtype == dtype
    np.testing.assert_allclose(value.astype(jnp.float32), expected, atol=atol)
    (gradient,), (wanted,) = (
        pull_back(jnp.ones_like(x)),
        expected_pull_back(wide * 0 + 1),
    )
    assert gradient.dtype == dtype
    np.testing.assert_allclose(gradient.astype(jnp.float32), wanted, atol=atol)
    assert _kept(gelu, x) == [(x.shape, dtype)]


def test_gradients_are_finite_where_nothing_is_seen(attention):
    layer, _ = attention
    rng = np.random.default_rng(8)
    query, source = _random(rng, 1, L, D), _random(rng, 1, N, S, E)
    mask = jnp.zeros((1, L, N, S), bool)

    def total(layer, query, source):
        return jnp.sum(layer(query, source, mask) ** 2)

    gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(layer, query, source)
    for gradient in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(gradient, 0.0)
