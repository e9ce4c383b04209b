"""The parts of a model besides attention: embeddings, matrices, RMSNorm, feed-forward."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from retro_jax.config import ModelConfig
from retro_jax.devices import sharding
from retro_jax.numerics.activations import gelu, silu
from retro_jax.numerics.projections import project


def activation_dtype(cfg: ModelConfig):
    """float32 on CPUs, which gain nothing from bfloat16, and bfloat16 elsewhere."""
    if cfg.dtype != "auto":
        return jnp.dtype(cfg.dtype)
    return jnp.dtype("float32" if sharding.platform() == "cpu" else "bfloat16")


class Keys:
    """Random keys, another at each call, which a seed determines.

    nnx.Rngs gives the same, but looks through all that was traced before each of them.
    They are computed while a program is traced: in it, each would be a loop to compile.
    """

    def __init__(self, seed: int):
        with jax.ensure_compile_time_eval():
            self._key = jax.random.key(seed)
        self._count = 0

    def __call__(self) -> jax.Array:
        with jax.ensure_compile_time_eval():
            key = jax.random.fold_in(self._key, self._count)
        self._count += 1
        return key


DrawsKeys = Callable[[], jax.Array]  # Keys, or a stream of nnx.Rngs


def matrix(keys: DrawsKeys, shape: tuple[int, ...], fan_in: int, gain: float = 1.0):
    """A parameter of normal values with standard deviation gain / sqrt(fan_in)."""
    values = jax.random.normal(keys(), shape, jnp.float32)
    return nnx.Param(values * gain * fan_in**-0.5)


def embedding_table(keys: DrawsKeys, vocab_size: int, width: int) -> nnx.Param:
    """A table of token embeddings, small so that tied logits start near zero."""
    return matrix(keys, (vocab_size, width), fan_in=1, gain=0.02)


def embed(
    table_VD: Float[Array, "V D"],
    tokens_BL: Int[Array, "B L"],
    dtype,
    *,
    scaled: bool = True,
) -> Float[Array, "B L D"]:
    """Embeddings of tokens, times sqrt(D): the table is small for the read-out's sake.

    Args:
        scaled: False leaves the factor out, as decoders of the Llama family do.
    """
    # Without this the compiler gathers the activations, and over all replicas.
    table_VD = sharding.constrain(table_VD, "VD")
    embedded_BLD = jnp.take(table_VD, tokens_BL, axis=0)
    if scaled:
        embedded_BLD *= table_VD.shape[-1] ** 0.5
    return sharding.constrain(embedded_BLD.astype(dtype), "BLD")


class RMSNorm(nnx.Module):
    """Scales each vector to a root mean square of `scale_D`, computed in float32."""

    def __init__(self, width: int, epsilon: float = 1e-6):
        self.epsilon = epsilon
        self.scale_D = nnx.Param(jnp.ones(width))

    def __call__(self, x_BLD: Float[Array, "... D"]) -> Float[Array, "... D"]:
        # In float32, so that bfloat16 is rounded once, at the end.
        x = x_BLD.astype(jnp.float32)
        mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(mean_square + self.epsilon)
        return (x * inverse * self.scale_D[...]).astype(x_BLD.dtype)


class FeedForward(nnx.Module):
    """Two matrices with a GELU or SiLU between them, which a third may gate.

    Source: Borgeaud et al. 2022 (ungated); gated: Shazeer 2020 (arXiv 2002.05202), GEGLU
    and SwiGLU.
    """

    def __init__(
        self,
        width: int,
        ffw_width: int,
        *,
        keys: DrawsKeys,
        out_gain: float,
        gated: bool = False,
        activation: str = "gelu",
    ):
        self.activation = activation
        self.w_in_DF = matrix(keys, (width, ffw_width), width)
        self.w_out_FD = matrix(keys, (ffw_width, width), ffw_width, out_gain)
        self.w_gate_DF = matrix(keys, (width, ffw_width), width) if gated else None

    def __call__(self, x_BLD: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        activate = silu if self.activation == "silu" else gelu
        if self.w_gate_DF is None:
            inner_BLF = activate(project("BLD,DF->BLF", x_BLD, self.w_in_DF))
        else:
            inner_BLF, gate_BLF = project(
                "BLD,DF->BLF", x_BLD, self.w_in_DF, self.w_gate_DF
            )
            inner_BLF = activate(inner_BLF) * gate_BLF
        return project("BLF,FD->BLD", inner_BLF, self.w_out_FD)
