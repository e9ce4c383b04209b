"""RMSNorm, feed-forward and matrices: the parts of a layer besides attention."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from retro_jax.numerics.projections import project


def matrix(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, gain: float = 1.0):
    """A parameter of normal values with standard deviation gain / sqrt(fan_in)."""
    values = jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param(values * gain * fan_in**-0.5)


class RMSNorm(nnx.Module):
    """Scales each vector to a root mean square of `scale_D`, computed in float32."""

    def __init__(self, width: int):
        self.scale_D = nnx.Param(jnp.ones(width))

    def __call__(self, x_BLD: Float[Array, "... D"]) -> Float[Array, "... D"]:
        x = x_BLD.astype(jnp.float32)
        mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
        return (x * jax.lax.rsqrt(mean_square + 1e-6) * self.scale_D[...]).astype(
            x_BLD.dtype
        )


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU in its tanh form, of any shape, computed in float32 and given in x's precision.

    The gradient keeps nothing but x: JAX's own keeps several arrays as large as the
    feed-forward's inside, and in bfloat16 rounds each of them.
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


class FeedForward(nnx.Module):
    """Two matrices with a GELU between them, which a third may gate.

    Source: Borgeaud et al. 2022 (ungated); gated: Shazeer 2020 (arXiv 2002.05202), GEGLU.
    """

    def __init__(
        self,
        width: int,
        ffw_width: int,
        *,
        rngs: nnx.Rngs,
        out_gain: float,
        gated: bool = False,
    ):
        self.w_in_DF = matrix(rngs, (width, ffw_width), width)
        self.w_out_FD = matrix(rngs, (ffw_width, width), ffw_width, out_gain)
        self.w_gate_DF = matrix(rngs, (width, ffw_width), width) if gated else None

    def __call__(self, x_BLD: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        if self.w_gate_DF is None:
            inner_BLF = gelu(project("BLD,DF->BLF", x_BLD, self.w_in_DF))
        else:
            inner_BLF, gate_BLF = project(
                "BLD,DF->BLF", x_BLD, self.w_in_DF, self.w_gate_DF
            )
            inner_BLF = gelu(inner_BLF) * gate_BLF
        return project("BLF,FD->BLD", inner_BLF, self.w_out_FD)
