"""GELU, SiLU and masked softmax, two of them with gradients that keep little memory on every device.

JAX's own gradients of the two keep several arrays as large as the feed-forward's inside
and as all attention weights, which are the largest of a step. Ours keep one each. They
cost a little arithmetic a second time, and see softmax's weights as rounded.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU in its tanh form, of any shape, computed in float32 and given in x's precision.

    The gradient keeps nothing but x: JAX's own keeps several arrays of its size, and in
    bfloat16 rounds each of them.
    Source: Hendrycks & Gimpel 2016 (arXiv 1606.08415), section 2; the gradient is ours.
    """
    return jax.nn.gelu(x.astype(jnp.float32)).astype(x.dtype)


def _gelu_forward(x):
    return gelu(x), x


def _gelu_backward(x, gradient):
    # Else the compiler keeps the forward pass's tanh, for it is the same as this one.
    x, gradient = jax.lax.optimization_barrier((x, gradient))
    _, pull_back = jax.vjp(jax.nn.gelu, x.astype(jnp.float32))
    return (pull_back(gradient.astype(jnp.float32))[0].astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """SiLU, x times its logistic, of any shape, computed in float32 and given in x's precision.

    Source: Hendrycks & Gimpel 2016 (arXiv 1606.08415), section 4.
    """
    return jax.nn.silu(x.astype(jnp.float32)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def masked_softmax(
    logits_BHLNS: Float[Array, "B H L N S"],
    mask_B1LNS: Bool[Array, "#B 1 #L #N S"],
    dtype=jnp.float32,
) -> Float[Array, "B H L N S"]:
    """Softmax over all of (N, S) that the mask leaves; all zeros where it leaves none.

    A masked entry gets a weight of exactly 0, so what stands there can't matter.

    Args:
        dtype: of the weights, which are computed in float32. The gradient keeps them alone,
            so it sees them as rounded (ours, to hold no second copy of all weights).
    """
    logits_BHLNS = jnp.where(mask_B1LNS, logits_BHLNS, -1e30)
    shape = logits_BHLNS.shape
    weights = jax.nn.softmax(logits_BHLNS.reshape(*shape[:-2], -1), axis=-1)
    # Where the mask leaves nothing the softmax is uniform: hence the second look at it.
    return jnp.where(mask_B1LNS, weights.reshape(shape), 0.0).astype(dtype)


def _softmax_forward(logits_BHLNS, mask_B1LNS, dtype):
    weights_BHLNS = masked_softmax(logits_BHLNS, mask_B1LNS, dtype)
    return weights_BHLNS, weights_BHLNS


def _softmax_backward(dtype, weights_BHLNS, gradient_BHLNS):
    weights_BHLNS = weights_BHLNS.astype(jnp.float32)
    each_BHLNS = weights_BHLNS * gradient_BHLNS.astype(jnp.float32)
    sum_BHL11 = each_BHLNS.sum(axis=(-2, -1), keepdims=True)
    return each_BHLNS - weights_BHLNS * sum_BHL11, None


masked_softmax.defvjp(_softmax_forward, _softmax_backward)
