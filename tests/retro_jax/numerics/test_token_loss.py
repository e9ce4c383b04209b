"""The loss of a token is the usual one, and so is its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from retro_jax.numerics.projections import project
from retro_jax.numerics.token_loss import cross_entropy


@pytest.mark.parametrize(
    "scale", [1.0, 30.0, 1e4]
)  # to where probabilities are 0 and 1
def test_loss_and_gradient_are_the_usual_ones(scale):
    rng = np.random.default_rng(0)
    logits_BLV = jnp.asarray(rng.normal(size=(2, 5, 17)) * scale, jnp.float32)
    targets_BL = jnp.asarray(rng.integers(0, 17, (2, 5)))
    weights_BL = jnp.asarray(rng.integers(0, 2, (2, 5)), jnp.float32)

    def of(loss):
        def summed(logits_BLV):
            losses_BL = loss(logits_BLV, targets_BL)
            return (losses_BL * weights_BL).sum(), losses_BL

        return jax.grad(summed, has_aux=True)(logits_BLV)

    usual = of(optax.softmax_cross_entropy_with_integer_labels)
    for got, expected in zip(of(cross_entropy), usual, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
        assert np.abs(expected).max() > 0.01


def test_the_gradient_is_written_over_the_logits():
    """Where the products are the model's; beside the usual loss, for which two are held."""

    def arrays_held(loss):
        def summed(hidden_BLD, weights_VD, targets_BL):
            logits_BLV = project("BLD,VD->BLV", hidden_BLD, weights_VD, dtype="float32")
            return loss(logits_BLV, targets_BL).sum()

        shapes = (
            jax.ShapeDtypeStruct((2, 64, 16), jnp.float32),
            jax.ShapeDtypeStruct((4096, 16), jnp.float32),
            jax.ShapeDtypeStruct((2, 64), jnp.int32),
        )
        compiled = jax.jit(jax.grad(summed, argnums=(0, 1))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes / (4 * 2 * 64 * 4096)

    assert 1 <= arrays_held(cross_entropy) < 1.2
    assert arrays_held(optax.softmax_cross_entropy_with_integer_labels) >= 2
