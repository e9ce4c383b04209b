"""RMSNorm, attention with relative positions, feed-forward: the parts of a layer."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from retro_jax import positions
from retro_jax.sharding import constrain


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


class FeedForward(nnx.Module):
    """Two matrices with a GELU between them."""

    def __init__(self, width: int, ffw_width: int, *, rngs: nnx.Rngs, out_gain: float):
        self.w_in_DF = matrix(rngs, (width, ffw_width), width)
        self.w_out_FD = matrix(rngs, (ffw_width, width), ffw_width, out_gain)

    def __call__(self, x_BLD: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        inner_BLF = jnp.einsum(
            "BLD,DF->BLF", x_BLD, self.w_in_DF[...].astype(x_BLD.dtype)
        )
        inner_BLF = jax.nn.gelu(constrain(inner_BLF, "BLF"))
        return jnp.einsum(
            "BLF,FD->BLD", inner_BLF, self.w_out_FD[...].astype(x_BLD.dtype)
        )


class Attention(nnx.Module):
    """Multi-head attention whose logits also see the distance of query and key.

    A logit is (q + u) . k + (q + v) . W_r sinusoid(distance), over sqrt(K). Keys come in
    N groups of S; a key's distance does not depend on its group, and one softmax spans
    all groups. Self-attention has one group; in CCA the groups are the neighbours.
    Source: Dai et al. 2019, section 3.3, eq. 1; Borgeaud et al. 2022, section 2.4, B.1.2.
    """

    def __init__(
        self,
        width: int,
        source_width: int,
        num_heads: int,
        head_size: int,
        *,
        rngs: nnx.Rngs,
        out_gain: float,
    ):
        heads = (num_heads, head_size)
        self.w_q_DHK = matrix(rngs, (width, *heads), width)
        self.w_k_EHK = matrix(rngs, (source_width, *heads), source_width)
        self.w_v_EHK = matrix(rngs, (source_width, *heads), source_width)
        self.w_r_DHK = matrix(rngs, (width, *heads), width)
        inner = num_heads * head_size
        self.w_o_HKD = matrix(rngs, (*heads, width), inner, out_gain)
        self.bias_content_HK = nnx.Param(jnp.zeros(heads))
        self.bias_position_HK = nnx.Param(jnp.zeros(heads))

    def __call__(
        self,
        query_BLD: Float[Array, "B L D"],
        source_BNSE: Float[Array, "B N S E"],
        mask_BLNS: Bool[Array, "#B #L #N S"],
        *,
        distance_offset: int = 0,
        causal: bool = False,
    ) -> Float[Array, "B L D"]:
        """Updates each query with what it attends to; zeros where it may see nothing.

        Args:
            query_BLD: normalised activations that ask.
            source_BNSE: what is looked at, N groups of S keys.
            mask_BLNS: True where query l may see key s of group n.
            distance_offset: query l and key s are l - s + distance_offset apart.
            causal: promises that the mask hides every key with s > l.
        """
        dtype = query_BLD.dtype
        query_BLHK = _project("BLD,DHK->BLHK", query_BLD, self.w_q_DHK)
        key_BNSHK = _project("BNSE,EHK->BNSHK", source_BNSE, self.w_k_EHK)
        value_BNSHK = _project("BNSE,EHK->BNSHK", source_BNSE, self.w_v_EHK)
        content_BHLNS = jnp.einsum(
            "BLHK,BNSHK->BHLNS",
            query_BLHK + self.bias_content_HK[...].astype(dtype),
            key_BNSHK,
            preferred_element_type=jnp.float32,
        )
        position_BHLS = self._position_logits(
            query_BLHK, source_BNSE.shape[2], distance_offset, causal
        )
        logits_BHLNS = content_BHLNS + position_BHLS[:, :, :, None, :]
        logits_BHLNS *= query_BLHK.shape[-1] ** -0.5
        weights_BHLNS = masked_softmax(
            constrain(logits_BHLNS, "BHLNS"), mask_BLNS[:, None]
        )
        attended_BLHK = jnp.einsum(
            "BHLNS,BNSHK->BLHK", weights_BHLNS.astype(dtype), value_BNSHK
        )
        return _project("BLHK,HKD->BLD", attended_BLHK, self.w_o_HKD)

    def _position_logits(self, query_BLHK, num_keys: int, offset: int, causal: bool):
        distances_P = positions.relative_distances(
            query_BLHK.shape[1], num_keys, offset, causal
        )
        sinusoid_PD = positions.sinusoids(distances_P, self.w_r_DHK.shape[0])
        dtype = query_BLHK.dtype
        relative_PHK = _project("PD,DHK->PHK", sinusoid_PD.astype(dtype), self.w_r_DHK)
        logits_BHLP = jnp.einsum(
            "BLHK,PHK->BHLP",
            query_BLHK + self.bias_position_HK[...].astype(dtype),
            relative_PHK,
            preferred_element_type=jnp.float32,
        )
        return positions.align_distances(logits_BHLP, num_keys)


def _project(einsum: str, x, weights: nnx.Param):
    projected = jnp.einsum(einsum, x, weights[...].astype(x.dtype))
    return constrain(projected, einsum.split("->")[1])


def masked_softmax(
    logits_BHLNS: Float[Array, "B H L N S"], mask_B1LNS: Bool[Array, "#B 1 #L #N S"]
) -> Float[Array, "B H L N S"]:
    """Softmax over all of (N, S) that the mask leaves; all zeros where it leaves none.

    A masked entry gets a weight of exactly 0, so what stands there can't matter.
    """
    logits_BHLNS = jnp.where(mask_B1LNS, logits_BHLNS, -1e30)
    shape = logits_BHLNS.shape
    weights = jax.nn.softmax(logits_BHLNS.reshape(*shape[:-2], -1), axis=-1)
    # Where the mask leaves nothing the softmax is uniform: hence the second look at it.
    return jnp.where(mask_B1LNS, weights.reshape(shape), 0.0)
