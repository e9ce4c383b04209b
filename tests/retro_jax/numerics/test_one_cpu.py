"""Products with parameters: one CPU device's own gradients equal JAX's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retro_jax.numerics import one_cpu, projections

SHAPES = {  # einsum: activations, one parameter
    "BLD,DF->BLF": ((2, 16, 32), (32, 48)),
    "BLD,DHK->BLHK": ((2, 16, 48), (48, 2, 16)),
    "BLE,EF->BLF": ((2, 16, 24), (24, 16)),  # a block divides one of two
    "BLHK,HKD->BLD": ((2, 16, 2, 8), (2, 8, 64)),
    "BNSE,EHK->BNSHK": ((2, 3, 8, 32), (32, 2, 8)),
    "BLD,VD->BLV": ((2, 16, 32), (80, 32)),
    "PD,DHK->PHK": ((7, 5), (5, 3, 2)),  # nothing that a block divides
}


def _arrays(einsum: str, num_weights: int, dtype):
    """Small whole numbers, whose products and sums both precisions have exactly."""
    rng = np.random.default_rng(0)
    of_x, of_w = SHAPES[einsum]
    x = jnp.asarray(rng.integers(-2, 3, of_x), dtype)
    weights = [
        jnp.asarray(rng.integers(-2, 3, of_w), jnp.float32) for _ in range(num_weights)
    ]
    return x, weights


def _loss(project, einsum: str, num_weights: int):
    def loss(x, weights):
        found = project(einsum, x, *weights)
        found = found if num_weights > 1 else (found,)
        return sum((i + 1) * jnp.sum(y[..., :3]) for i, y in enumerate(found))

    return loss


@pytest.mark.parametrize("num_weights", [1, 2, 3])
@pytest.mark.parametrize("einsum", SHAPES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_of_one_cpu_are_those_of_plain_einsums(
    einsum, num_weights, dtype, monkeypatch
):
    x, weights = _arrays(einsum, num_weights, dtype)
    found = jax.jit(
        jax.value_and_grad(
            _loss(projections.project, einsum, num_weights), argnums=(0, 1)
        )
    )(x, weights)
    monkeypatch.setattr(one_cpu, "is_in_use", lambda: False)
    expected = jax.value_and_grad(
        _loss(projections.project, einsum, num_weights), argnums=(0, 1)
    )(x, weights)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)),
        found,
        expected,
    )


@pytest.mark.parametrize("einsum", ["BLD,DF->BLF", "BLD,VD->BLV"])
def test_no_product_of_bfloat16_falls_back_to_float32(einsum):
    """Of all three: forward, and both gradients."""
    of_x, of_w = ((2, 256, 128), (128, 256)) if "DF" in einsum else SHAPES[einsum]
    x, w = jnp.ones(of_x, jnp.bfloat16), jnp.ones(of_w)

    def loss(x, w):
        return jnp.sum(projections.project(einsum, x, w, dtype=jnp.float32) ** 2)

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, w).compile()
    computations = compiled.as_text().split("\n\n")
    dots = [text for text in computations if " dot(" in text]
    assert len(dots) == 3
    for text in dots:
        factors = [line for line in text.splitlines() if " parameter(" in line]
        assert all("bf16[" in line for line in factors), text


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_bias_and_its_gradient_are_those_of_a_plain_sum(dtype, monkeypatch):
    rng = np.random.default_rng(0)
    x, weights = (jnp.asarray(rng.integers(-2, 3, (2, 16, 3, 8)), dtype) for _ in "xw")
    bias = jnp.asarray(rng.integers(-2, 3, (3, 8)), jnp.float32)

    def graded(x, bias):
        def loss(x, bias):
            found = projections.plus(x, bias)
            return jnp.sum((found * weights).astype(jnp.float32)), found

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(x, bias)

    monkeypatch.setattr(one_cpu, "is_in_use", lambda: True)
    found = graded(x, bias)
    monkeypatch.setattr(one_cpu, "is_in_use", lambda: False)
    expected = graded(x, bias)
    assert np.abs(found[1][1]).max() > 2
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
