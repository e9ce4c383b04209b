"""The products of attention: values are einsums', gradients are those of einsums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retro_jax.numerics import attention_products, one_cpu

B, L, N, S, H, K = 3, 4, 2, 5, 2, 6


def whole_numbers(*shape, dtype):
    """Small ones, whose products and sums both precisions have exactly."""
    rng = np.random.default_rng(sum(shape))
    return jnp.asarray(rng.integers(-2, 3, shape), dtype)


def graded(product, left, right, weights):
    def loss(left, right):
        found = product(left, right)
        return jnp.sum(found.astype(jnp.float32) * weights), found

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(left, right)


CASES = {
    "logits": ("BLHK,BNSHK->BHLNS", (B, L, H, K), (B, N, S, H, K), (B, H, L, N, S)),
    "shared keys": (
        "BLHK,BNSHK->BHLNS",
        (B, L, H, K),
        (1, N, S, H, K),
        (B, H, L, N, S),
    ),
    "read": ("BHLNS,BNSHK->BLHK", (B, H, L, N, S), (B, N, S, H, K), (B, L, H, K)),
}


@pytest.mark.parametrize("on_one_cpu", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_einsums(
    case, dtype, on_one_cpu, monkeypatch
):
    monkeypatch.setattr(one_cpu, "is_in_use", lambda: on_one_cpu)
    einsum, left_shape, right_shape, shape = CASES[case]
    left = whole_numbers(*left_shape, dtype=dtype)
    right = whole_numbers(*right_shape, dtype=dtype)
    weights = whole_numbers(*shape, dtype=jnp.float32)
    product = attention_products.read if case == "read" else attention_products.logits
    found = graded(product, left, right, weights)

    def expected_product(left, right):
        wide = jnp.broadcast_to(right, (B, *right.shape[1:]))
        return jnp.einsum(einsum, left, wide)

    expected = graded(
        expected_product, *(x.astype(jnp.float32) for x in (left, right)), weights
    )
    for one, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(one.astype(jnp.float32), other)
    (_, value), gradients = found
    assert value.dtype == (dtype if case == "read" else jnp.float32)
    assert [g.dtype for g in gradients] == [dtype, dtype]


@pytest.mark.parametrize("on_one_cpu", [True, False])
@pytest.mark.parametrize("case", ["logits", "read"])
def test_no_factor_is_float32_in_bfloat16(case, on_one_cpu, monkeypatch):
    monkeypatch.setattr(one_cpu, "is_in_use", lambda: on_one_cpu)
    _, left_shape, right_shape, _ = CASES[case]
    left = whole_numbers(*left_shape, dtype=jnp.bfloat16)
    right = whole_numbers(*right_shape, dtype=jnp.bfloat16)
    product = getattr(attention_products, case)

    def loss(left, right):
        return jnp.sum(product(left, right).astype(jnp.float32) ** 2)

    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(left, right).jaxpr
    dots = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    assert len(dots) >= 2  # the gradients'; the value's may stand in a call
    for dot in dots:
        assert {str(factor.aval.dtype) for factor in dot.invars} == {"bfloat16"}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_beginnings_and_their_gradient_are_those_of_slices(dtype):
    keys = whole_numbers(B, N, 12, H, K, dtype=dtype)
    weights = [whole_numbers(B, N, end, H, K, dtype=dtype) for end in (4, 8, 12)]

    def graded(cut):
        def loss(keys):
            parts = cut(keys)
            products = zip(parts, weights, strict=True)
            return sum(jnp.sum(x * w, dtype=jnp.float32) for x, w in products), parts

        return jax.jit(jax.grad(loss, has_aux=True))(keys)

    gradient, parts = graded(lambda keys: attention_products.beginnings(keys, 4))
    expected, slices = graded(lambda keys: [keys[:, :, :end] for end in (4, 8, 12)])
    assert gradient.dtype == dtype
    np.testing.assert_array_equal(gradient, expected)
    for part, other in zip(parts, slices, strict=True):
        np.testing.assert_array_equal(part, other)


def test_gradients_of_beginnings_are_added_in_float32():
    keys = jnp.zeros((1, 1, 3, 1, 1), jnp.bfloat16)
    weights = [256.0, 1.0, 1.0]  # bfloat16 has no 257, but 258

    def loss(keys):
        parts = attention_products.beginnings(keys, 1)
        return sum(x[0, 0, 0, 0, 0] * w for x, w in zip(parts, weights, strict=True))

    np.testing.assert_array_equal(jax.grad(loss)(keys).reshape(-1), [258, 0, 0])
