import jax.numpy as jnp
import numpy as np
from flax import nnx

from retro_jax.model.layers import FeedForward, Keys, RMSNorm
from tests import reference

L, D = 5, 16


def _random(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def _weights(layer):
    """The arrays of a layer by name, in float64."""
    params = nnx.state(layer, nnx.Param)
    return {name: np.asarray(w[...], np.float64) for name, w in params.items()}


def test_keys_are_those_of_nnx():
    keys, rngs = Keys(3), nnx.Rngs(3)
    for _ in range(3):
        assert keys() == rngs.params()


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
    layer = FeedForward(D, 20, keys=Keys(0), out_gain=1.0)
    weights = _weights(layer)
    x = _random(rng, 2, L, D)
    np.testing.assert_allclose(
        layer(x), reference.feed_forward(np.asarray(x, np.float64), weights), atol=1e-5
    )
