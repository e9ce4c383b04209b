"""Products of activations and parameters, as fast as the device has them.

TPUs, GPUs and meshes get plain einsums. One CPU device gets the same products with
gradients of its own, for the sake of four traits of XLA:CPU that were measured on AVX-512
(`python -m tools.benchmark peer`: a float32 step is 1.3 times as fast for it):

- it multiplies bfloat16 at twice float32's rate, summing in float32, but only where the
  left side's last dimension is summed over. A weight's gradient sums over the left side's
  rows and falls back to float32, so the left side is turned beforehand;
- it turns an array within whatever computes it, element by element across memory, which a
  barrier prevents;
- few columns are slow, so weights that share their input are multiplied together;
- it sums over rows element by element, so a bias's gradient is a product with ones.
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


def project(einsum: str, x, *weights, dtype=None):
    """Products of activations with parameters, sharded by their letters.

    Args:
        einsum: of the activations and one parameter, 'BLD,DHK->BLHK'. What is summed over
            ends the activations' letters and begins the parameter's.
        x: activations, whose precision the factors have.
        weights: parameters (or arrays) of the same letters.
        dtype: of the result; that of the activations, if not given. Sums are float32.
    Returns:
        As many products as parameters: one, or a tuple.
    """
    multiply = _on_one_cpu if _is_one_cpu() else _anywhere
    products = [
        sharding.constrain(product, einsum.split("->")[1])
        for product in multiply(einsum, x, weights, dtype or x.dtype)
    ]
    return products[0] if len(products) == 1 else tuple(products)


def plus(x, bias):
    """Activations plus a parameter of their last axes, in the activations' precision."""
    add = _plus_on_one_cpu if _is_one_cpu() else _plus
    return add(x, bias[...])


def turned_for_cpu(x):
    """What was turned, in memory, where a product would otherwise undo it."""
    return lax.optimization_barrier(x) if _is_one_cpu() else x


def _is_one_cpu() -> bool:
    return sharding.platform() == "cpu" and sharding.num_devices() == 1


def _anywhere(einsum: str, x, weights, dtype):
    return [
        jnp.einsum(einsum, x, w[...].astype(x.dtype), preferred_element_type=dtype)
        for w in weights
    ]


def _on_one_cpu(einsum: str, x, weights, dtype):
    of_x, of_w = einsum.split("->")[0].split(",")
    num_summed = len(set(of_x) & set(of_w))
    num_terms = math.prod(x.shape[x.ndim - num_summed :])
    outer = x.shape[: x.ndim - num_summed]
    x_TC = x.reshape(-1, num_terms)
    if of_w[-1] == of_x[-1]:
        return [
            _product(dtype, True, x_TC, w[...]).reshape(*outer, -1) for w in weights
        ]
    shapes = [w.shape[num_summed:] for w in weights]
    flat = [w[...].reshape(num_terms, -1) for w in weights]
    ends = itertools.accumulate(w.shape[1] for w in flat[:-1])
    product_TN = _product(dtype, False, x_TC, jnp.concatenate(flat, axis=1))
    parts = jnp.split(product_TN, list(ends), axis=1)
    return [
        part.reshape(*outer, *shape) for part, shape in zip(parts, shapes, strict=True)
    ]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(dtype, turned: bool, x_TC, w):
    """Of x and w_CN, or w_NC if `turned`."""
    return _dot("TC,NC->TN" if turned else "TC,CN->TN", x_TC, w).astype(dtype)


def _forward(dtype, turned, x, w):
    """Keeps of each factor what the other's gradient needs, if that is wanted at all."""
    product_TN = _product(dtype, turned, x.value, w.value)
    dtypes = jnp.zeros(0, x.value.dtype), jnp.zeros(0, w.value.dtype)
    x_TC = x.value if w.perturbed else None
    return product_TN, (x_TC, w.value if x.perturbed else None, dtypes)


def _backward(_, turned, kept, gradient_TN):
    x_TC, w, (of_x, of_w) = kept
    if isinstance(gradient_TN, SymbolicZero):
        gradient_TN = jnp.zeros(gradient_TN.shape, gradient_TN.dtype)
    gradient_TN = lax.optimization_barrier(gradient_TN.astype(of_x.dtype))
    gradient_x = gradient_w = None
    if w is not None:
        einsum = "TN,NC->TC" if turned else "TN,CN->TC"
        gradient_x = _dot(einsum, gradient_TN, w).astype(of_x.dtype)
    if x_TC is not None:
        by_rows = x_TC.shape[1] > gradient_TN.shape[1]  # the smaller is turned
        gradient_w = (
            _dot("NT,TC->NC", _turned(gradient_TN), x_TC)
            if by_rows
            else _dot("CT,TN->CN", _turned(x_TC), gradient_TN)
        )
        gradient_w = gradient_w if by_rows == turned else _turned(gradient_w)
        gradient_w = gradient_w.astype(of_w.dtype)
    return gradient_x, gradient_w


_product.defvjp(_forward, _backward, symbolic_zeros=True)


def _plus(x, bias):
    return x + bias.astype(x.dtype)


_plus_on_one_cpu = jax.custom_vjp(_plus)


def _plus_forward(x, bias):
    return _plus(x, bias), jnp.zeros((0, *bias.shape), bias.dtype)


def _plus_backward(kept, gradient):
    _, *shape = kept.shape
    gradient_TN = gradient.reshape(-1, math.prod(shape))
    ones_T = jnp.ones(len(gradient_TN), gradient.dtype)
    of_bias_N = _dot("T,TN->N", ones_T, gradient_TN)
    return gradient, of_bias_N.reshape(shape).astype(kept.dtype)


_plus_on_one_cpu.defvjp(_plus_forward, _plus_backward)


def _dot(einsum: str, left, right):
    """In the precision of the left side's factors, summed in float32."""
    right = right.astype(left.dtype)
    return jnp.einsum(einsum, left, right, preferred_element_type=jnp.float32)


def _turned(x_RC):
    """The transpose, written to memory, so that no product is made to undo it.

    By blocks as long as cache lines: a plain transpose makes a bfloat16 step slower
    (`BENCHMARKS.md`).
    """
    rows, columns = x_RC.shape
    if rows % _BLOCK or columns % _BLOCK:
        # The first barrier: a product that was made turned would sum over rows after all.
        return lax.optimization_barrier(lax.optimization_barrier(x_RC).T)
    blocks = x_RC.reshape(rows // _BLOCK, _BLOCK, columns // _BLOCK, _BLOCK)
    blocks = lax.optimization_barrier(blocks.transpose(2, 0, 1, 3))
    return lax.optimization_barrier(blocks.transpose(0, 3, 1, 2).reshape(columns, rows))
