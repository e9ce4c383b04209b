"""GELU and masked softmax are the usual ones, and their gradients keep one array each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retro_jax.numerics.activations import gelu, masked_softmax

L, N, S = 5, 3, 6


def _random(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


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
