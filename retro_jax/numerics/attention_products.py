"""The two products of attention, with gradients as fast as their forward passes.

JAX's own gradients multiply the logits' float32 cotangents in float32. Here, as in fused
kernels, every factor of a gradient is rounded to the factors' own precision and every sum
is float32; with float32 factors nothing is rounded. It costs bfloat16's rounding of the
logits' gradients. Of the products that sum over queries the small factor is transposed,
not the logits; `one_cpu.in_memory` says for whom that must be written to memory.
Source: ours; Dao et al. 2022 (FlashAttention, arXiv 2205.14135) rounds likewise.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from retro_jax.numerics import one_cpu

# Sums products of the factors' own precision in float32.
_float32 = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@jax.custom_vjp
def logits(
    query_BLHK: Float[Array, "B L H K"], key_BNSHK: Float[Array, "#B N S H K"]
) -> Float[Array, "B H L N S"]:
    """Products of queries and keys, float32. Keys of one row serve all rows."""
    return _float32("BLHK,BNSHK->BHLNS", query_BLHK, key_BNSHK)


def _logits_forward(query_BLHK, key_BNSHK):
    logits_BHLNS = _float32("BLHK,BNSHK->BHLNS", query_BLHK, key_BNSHK)
    return logits_BHLNS, (query_BLHK, key_BNSHK)


def _logits_backward(kept, gradient_BHLNS):
    query_BLHK, key_BNSHK = kept
    # The rounding that makes the gradients as fast as the values.
    gradient_BHLNS = gradient_BHLNS.astype(query_BLHK.dtype)
    of_query_BLHK = _float32("BHLNS,BNSHK->BLHK", gradient_BHLNS, key_BNSHK)
    if key_BNSHK.shape[0] < query_BLHK.shape[0]:
        of_key_BNSHK = _summed_over_rows(gradient_BHLNS, query_BLHK)
    else:
        query_BHKL = one_cpu.in_memory(query_BLHK.transpose(0, 2, 3, 1))
        of_key_BHKNS = _float32("BHKL,BHLNS->BHKNS", query_BHKL, gradient_BHLNS)
        of_key_BNSHK = of_key_BHKNS.transpose(0, 3, 4, 1, 2)
    return of_query_BLHK.astype(query_BLHK.dtype), of_key_BNSHK.astype(key_BNSHK.dtype)


def _summed_over_rows(gradient_BHLNS, query_BLHK):
    """The gradient of keys that serve all rows, as one long sum for each head.

    A product for each row, added afterwards, takes one and a half to seven times as long on
    a CPU.
    """
    batch, length, heads, size = query_BLHK.shape
    query_HKT = query_BLHK.transpose(2, 3, 0, 1).reshape(heads, size, batch * length)
    gradient_HTNS = gradient_BHLNS.transpose(1, 0, 2, 3, 4).reshape(
        heads, batch * length, *gradient_BHLNS.shape[3:]
    )
    of_key_HKNS = _float32(
        "HKT,HTNS->HKNS", one_cpu.in_memory(query_HKT), gradient_HTNS
    )
    return of_key_HKNS.transpose(2, 3, 0, 1)[None]


logits.defvjp(_logits_forward, _logits_backward)


@jax.custom_vjp
def read(
    weights_BHLNS: Float[Array, "B H L N S"], value_BNSHK: Float[Array, "B N S H K"]
) -> Float[Array, "B L H K"]:
    """Sums of values by their weights, in the values' precision."""
    read_BLHK = _float32("BHLNS,BNSHK->BLHK", weights_BHLNS, value_BNSHK)
    return read_BLHK.astype(value_BNSHK.dtype)


def _read_forward(weights_BHLNS, value_BNSHK):
    read_BLHK = _float32("BHLNS,BNSHK->BLHK", weights_BHLNS, value_BNSHK)
    return read_BLHK.astype(value_BNSHK.dtype), (weights_BHLNS, value_BNSHK)


def _read_backward(kept, gradient_BLHK):
    weights_BHLNS, value_BNSHK = kept
    of_weights_BHLNS = _float32("BLHK,BNSHK->BHLNS", gradient_BLHK, value_BNSHK)
    gradient_BHKL = one_cpu.in_memory(gradient_BLHK.transpose(0, 2, 3, 1))
    of_value_BHKNS = _float32("BHKL,BHLNS->BHKNS", gradient_BHKL, weights_BHLNS)
    of_value_BNSHK = of_value_BHKNS.transpose(0, 3, 4, 1, 2)
    return (
        of_weights_BHLNS.astype(weights_BHLNS.dtype),
        of_value_BNSHK.astype(value_BNSHK.dtype),
    )


read.defvjp(_read_forward, _read_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def beginnings(
    x_BNSHK: Float[Array, "B N S H K"], size: int
) -> list[Float[Array, "B N _ H K"]]:
    """Gives the first `size` keys or values, the first 2 `size`, and so on to all.

    Their gradients are added as the products leave them, S last, and transposed once.
    """
    length = x_BNSHK.shape[2]
    return [x_BNSHK[:, :, :end] for end in range(size, length + 1, size)]


def _beginnings_forward(x_BNSHK, size):
    return beginnings(x_BNSHK, size), None


def _beginnings_backward(size, _, gradients):
    each = [gradient.transpose(0, 1, 3, 4, 2) for gradient in gradients]
    parts = []
    for start in range(0, each[-1].shape[-1], size):
        seen = [x[..., start : start + size] for x in each if x.shape[-1] > start]
        # Added in float32 and rounded once, as in a single product over all queries.
        part = functools.reduce(jnp.add, [x.astype(jnp.float32) for x in seen])
        parts.append(part.astype(gradients[0].dtype))
    whole_BNHKS = one_cpu.in_memory(jnp.concatenate(parts, axis=-1))
    return (whole_BNHKS.transpose(0, 1, 4, 2, 3),)


beginnings.defvjp(_beginnings_forward, _beginnings_backward)
