"""Everything that exists only because one CPU device multiplies in a way of its own.

TPUs, GPUs and meshes never come here: `projections.py` and `attention_products.py` ask
`is_in_use` and otherwise write plain einsums. Here the same products have gradients of
their own, for the sake of four traits of XLA:CPU that were measured on AVX-512:

- it multiplies bfloat16 at twice float32's rate, summing in float32, but only where the
  left side's last dimension is summed over. A weight's gradient sums over the left side's
  rows and falls back to float32, so the left side is transposed beforehand;
- it transposes an array within whatever computes it, element by element across memory,
  which a barrier prevents;
- few columns are slow, so weights that share their input are multiplied together;
- it sums over rows element by element, so a bias's gradient is a product with ones.

A float32 training step is 1.3 times as fast for it (`python -m tools.benchmark peer`). It
costs this file, and copies of the weights that are multiplied together.

Letters here: C features that are summed over, N features of the product.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from retro_jax.devices import sharding

_BLOCK = 16  # float32 values in a cache line


def is_in_use() -> bool:
    """True where the mesh in use is one CPU device."""
    return sharding.platform() == "cpu" and sharding.num_devices() == 1


def in_memory(x):
    """Writes a transposed array to memory, where a product would otherwise undo it.

    On any other device it gives x as it is, so that gradients need not ask.
    """
    return lax.optimization_barrier(x) if is_in_use() else x


def products(einsum: str, x, weights, dtype) -> list:
    """Multiplies activations with each of some parameters; see `projections.project`."""
    of_x, of_w = einsum.split("->")[0].split(",")
    num_summed = len(set(of_x) & set(of_w))
    num_terms = math.prod(x.shape[x.ndim - num_summed :])
    outer = x.shape[: x.ndim - num_summed]
    x_TC = x.reshape(-1, num_terms)
    if of_w[-1] == of_x[-1]:
        # The read-out: its table is [V, D], and transposing it would cost a copy.
        return [
            _product(dtype, True, x_TC, w[...]).reshape(*outer, -1) for w in weights
        ]
    shapes = [w.shape[num_summed:] for w in weights]
    flat = [w[...].reshape(num_terms, -1) for w in weights]
    ends = itertools.accumulate(w.shape[1] for w in flat[:-1])
    # One wide product in place of several narrow ones.
    product_TN = _product(dtype, False, x_TC, jnp.concatenate(flat, axis=1))
    parts = jnp.split(product_TN, list(ends), axis=1)
    return [
        part.reshape(*outer, *shape) for part, shape in zip(parts, shapes, strict=True)
    ]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(dtype, transposed: bool, x_TC, w):
    """Multiplies x with w_CN, or with w_NC if that is how it is held (`transposed`)."""
    einsum, w = "TC,NC->TN" if transposed else "TC,CN->TN", w.astype(x_TC.dtype)
    product_TN = jnp.einsum(einsum, x_TC, w, preferred_element_type=jnp.float32)
    return product_TN.astype(dtype)


def _forward(dtype, transposed, x, w):
    """Keeps of each factor what the other's gradient needs, if that is wanted at all."""
    # Called, not written out: so `model.remat=dots` sees no product here and keeps none.
    product_TN = _product(dtype, transposed, x.value, w.value)
    # Empty arrays, for what is kept may be arrays and not dtypes.
    dtypes = jnp.zeros(0, x.value.dtype), jnp.zeros(0, w.value.dtype)
    x_TC = x.value if w.perturbed else None
    return product_TN, (x_TC, w.value if x.perturbed else None, dtypes)


def _backward(_, transposed, kept, gradient_TN):
    x_TC, w, (of_x, of_w) = kept
    if isinstance(gradient_TN, SymbolicZero):
        gradient_TN = jnp.zeros(gradient_TN.shape, gradient_TN.dtype)
    # Both products below read it: without the barrier it would be computed in each.
    gradient_TN = lax.optimization_barrier(gradient_TN.astype(of_x.dtype))
    gradient_x = gradient_w = None
    if w is not None:
        einsum = "TN,NC->TC" if transposed else "TN,CN->TC"
        gradient_x = _dot(einsum, gradient_TN, w).astype(of_x.dtype)
    if x_TC is not None:
        # Of the two factors the smaller is transposed.
        by_rows = x_TC.shape[1] > gradient_TN.shape[1]
        gradient_w = (
            _dot("NT,TC->NC", _transposed(gradient_TN), x_TC)
            if by_rows
            else _dot("CT,TN->CN", _transposed(x_TC), gradient_TN)
        )
        gradient_w = gradient_w if by_rows == transposed else _transposed(gradient_w)
        gradient_w = gradient_w.astype(of_w.dtype)
    return gradient_x, gradient_w


_product.defvjp(_forward, _backward, symbolic_zeros=True)


@jax.custom_vjp
def plus(x, bias):
    """Adds a bias of the last axes, whose gradient is a product with ones."""
    return x + bias.astype(x.dtype)


def _plus_forward(x, bias):
    # The empty array carries the bias's shape and dtype to the gradient.
    return x + bias.astype(x.dtype), jnp.zeros((0, *bias.shape), bias.dtype)


def _plus_backward(kept, gradient):
    _, *shape = kept.shape
    gradient_TN = gradient.reshape(-1, math.prod(shape))
    ones_T = jnp.ones(len(gradient_TN), gradient.dtype)
    of_bias_N = _dot("T,TN->N", ones_T, gradient_TN)
    return gradient, of_bias_N.reshape(shape).astype(kept.dtype)


plus.defvjp(_plus_forward, _plus_backward)


def _dot(einsum: str, left, right):
    """Multiplies in the precision of the left side's factors and sums in float32."""
    right = right.astype(left.dtype)
    return jnp.einsum(einsum, left, right, preferred_element_type=jnp.float32)


def _transposed(x_TC):
    """Writes the transpose to memory, so that no product is made to undo it.

    By blocks as long as cache lines: a plain transpose makes a bfloat16 step slower
    (`docs/benchmarks/`).
    """
    rows, columns = x_TC.shape
    if rows % _BLOCK or columns % _BLOCK:
        # The first barrier: a product that was made transposed would sum over rows
        # after all.
        return lax.optimization_barrier(lax.optimization_barrier(x_TC).T)
    blocks = x_TC.reshape(rows // _BLOCK, _BLOCK, columns // _BLOCK, _BLOCK)
    blocks = lax.optimization_barrier(blocks.transpose(2, 0, 1, 3))
    return lax.optimization_barrier(blocks.transpose(0, 3, 1, 2).reshape(columns, rows))
