"""Multi-head attention, over neighbours or over the sequence itself.

How a logit knows where query and key stand to each other is one setting: the paper's
Transformer-XL positions, rotations, or not at all.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from retro_jax.devices.sharding import constrain
from retro_jax.model import kernels, positions
from retro_jax.model.layers import matrix
from retro_jax.numerics import attention_products
from retro_jax.numerics.projections import plus, project

# Of causal attention by einsums: 8 would save 1/16 more, for twice the operations.
_BLOCKS, _MIN_BLOCK = 4, 64


class Attention(nnx.Module):
    """Multi-head attention whose logits also see the distance of query and key.

    With 'relative' positions a logit is (q + u) . k + (q + v) . W_r sinusoid(distance),
    over sqrt(K) (Dai et al. 2019, section 3.3, eq. 1); with 'rotary' ones query and key
    are turned by their places. Keys come in N groups of S; a key's distance does not
    depend on its group, and one softmax spans all groups. Self-attention has one group;
    in CCA the groups are the neighbours.
    Source: Borgeaud et al. 2022, section 2.4, B.1.2; rotary and groups of heads that
    share keys (Ainslie et al. 2023, arXiv 2305.13245) are options of ours.
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
        positions: str = "relative",
        position_width: int | None = None,
        num_key_heads: int | None = None,
    ):
        """Makes the parameters.

        Args:
            positions: relative, rotary or none.
            position_width: of the sinusoids; `width`, as in the paper, if not given.
            num_key_heads: heads of keys and values; as many as of queries if not given.
        """
        heads = (num_heads, head_size)
        key_heads = (num_key_heads or num_heads, head_size)
        self.positions = positions
        self.w_q_DHK = matrix(rngs, (width, *heads), width)
        self.w_k_EHK = matrix(rngs, (source_width, *key_heads), source_width)
        self.w_v_EHK = matrix(rngs, (source_width, *key_heads), source_width)
        relative, sines = positions == "relative", position_width or width
        self.w_r_DHK = matrix(rngs, (sines, *heads), sines) if relative else None
        inner = num_heads * head_size
        self.w_o_HKD = matrix(rngs, (*heads, width), inner, out_gain)
        self.bias_content_HK = nnx.Param(jnp.zeros(heads)) if relative else None
        self.bias_position_HK = nnx.Param(jnp.zeros(heads)) if relative else None

    def __call__(
        self,
        query_BLD: Float[Array, "B L D"],
        source_BNSE: Float[Array, "G N S E"],
        mask_BLNS: Bool[Array, "#B #L #N S"],
        *,
        distance_offset: int = 0,
    ) -> Float[Array, "B L D"]:
        """Updates each query with what it attends to; zeros where it may see nothing.

        Args:
            query_BLD: normalised activations that ask.
            source_BNSE: what is looked at, N groups of S keys; of fewer rows than B, each
                is looked at by as many consecutive rows of queries.
            mask_BLNS: True where query l may see key s of group n.
            distance_offset: query l and key s are l - s + distance_offset apart.
        """
        query_BLHK, key_BNSHK, value_BNSHK = self._heads(
            query_BLD, source_BNSE, distance_offset
        )
        distances_P = positions.relative_distances(
            query_BLD.shape[1], source_BNSE.shape[2], distance_offset
        )
        attended_BLHK = self._attended(
            self._queries(query_BLHK),
            key_BNSHK,
            value_BNSHK,
            mask_BLNS,
            self._of_distances(distances_P, query_BLHK.dtype),
        )
        return project("BLHK,HKD->BLD", attended_BLHK, self.w_o_HKD)

    def over_itself(
        self,
        x_BLD: Float[Array, "B L D"],
        segments_BL: Int[Array, "B L"],
        form: str = "auto",
    ) -> Float[Array, "B L D"]:
        """Causal self-attention within each document, by the kernel that `form` names."""
        size = self.w_q_DHK.shape[-1]
        sines = 0 if self.w_r_DHK is None else self.w_r_DHK.shape[0]
        form = kernels.choose(form, size + sines, x_BLD.shape[1])
        query_BLHK, key_BNSHK, value_BNSHK = self._heads(x_BLD, x_BLD[:, None])
        if form == "einsum":
            attended_BLHK = self._in_blocks(
                query_BLHK, key_BNSHK, value_BNSHK, kernels.causal_mask(segments_BL)
            )
        else:
            query_BLHX, key_BLHX = self._with_features(query_BLHK, key_BNSHK[:, 0])
            attended_BLHK = kernels.causal_attention(
                query_BLHX * size**-0.5, key_BLHX, value_BNSHK[:, 0], segments_BL, form
            )
        return project("BLHK,HKD->BLD", attended_BLHK, self.w_o_HKD)

    def _heads(self, query_BLD, source_BNSE, offset: int = 0):
        """Queries, and keys and values for each of their heads and rows.

        Queries and keys are turned by their places, where positions are rotations.
        """
        query_BLHK = project("BLD,DHK->BLHK", query_BLD, self.w_q_DHK)
        key_BNSHK, value_BNSHK = project(
            "BNSE,EHK->BNSHK", source_BNSE, self.w_k_EHK, self.w_v_EHK
        )
        if self.positions == "rotary":
            query_BLHK = positions.rotate(query_BLHK, offset)
            key_BNSHK = positions.rotate(key_BNSHK)
        num_rows, _, num_heads, _ = query_BLHK.shape
        return query_BLHK, *(
            _repeated(_repeated(x, num_rows, 0), num_heads, 3)
            for x in (key_BNSHK, value_BNSHK)
        )

    def _in_blocks(self, query_BLHK, key_BNSHK, value_BNSHK, mask_BLNS):
        """Causal attention without most of what the mask hides.

        Queries in blocks, each with the keys up to its end: of the logits 5/8 with 4
        blocks, so the same for what is multiplied and what is held.
        """
        length = query_BLHK.shape[1]
        size = length // _BLOCKS if length % (_BLOCKS * _MIN_BLOCK) == 0 else length
        distances_P = positions.relative_distances(length, 1)  # none below 0
        relative_PHK = self._of_distances(distances_P, query_BLHK.dtype)
        # Split, not sliced: the gradient of a slice is padded and added.
        queries = (
            jnp.split(query, length // size, axis=1)
            for query in self._queries(query_BLHK)
        )
        keys, values = (
            attention_products.beginnings(x, size) for x in (key_BNSHK, value_BNSHK)
        )
        blocks = []
        for *block_queries, key, value in zip(*queries, keys, values, strict=True):
            end = key.shape[2]
            blocks.append(
                self._attended(
                    block_queries,
                    key,
                    value,
                    mask_BLNS[:, end - size : end, :, :end],
                    None if relative_PHK is None else relative_PHK[length - end :],
                )
            )
        return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=1)

    def _queries(self, query_BLHK):
        """What asks for content, and for the position if that is relative."""
        if self.positions != "relative":
            return [query_BLHK]
        biases = self.bias_content_HK, self.bias_position_HK
        return [plus(query_BLHK, bias_HK) for bias_HK in biases]

    def _attended(self, queries, key_BNSHK, value_BNSHK, mask_BLNS, relative_PHK):
        """What queries read, before the last projection.

        Args:
            queries: of `_queries`.
            relative_PHK: of the distances, the largest first; those that are left out at
                the end the mask must hide. None without relative positions.
        """
        logits_BHLNS = _logits(queries, key_BNSHK, relative_PHK)
        logits_BHLNS *= key_BNSHK.shape[-1] ** -0.5
        weights_BHLNS = masked_softmax(
            constrain(logits_BHLNS, "BHLNS"), mask_BLNS[:, None], key_BNSHK.dtype
        )
        return attention_products.read(weights_BHLNS, value_BNSHK)

    def _of_distances(self, distances_P, dtype):
        """(P, H, K): products with a query are the logits of distances, if there are any."""
        if self.positions != "relative":
            return None
        sinusoid_PD = positions.sinusoids(distances_P, self.w_r_DHK.shape[0])
        return project("PD,DHK->PHK", sinusoid_PD.astype(dtype), self.w_r_DHK)

    def _with_features(self, query_BLHK, key_BLHK):
        """Queries and keys whose plain products are the logits, positions included."""
        if self.positions != "relative":
            return query_BLHK, key_BLHK
        content_BLHK, position_BLHK = self._queries(query_BLHK)
        along_BLHD = jnp.einsum(
            "BLHK,DHK->BLHD", position_BLHK, self.w_r_DHK[...].astype(query_BLHK.dtype)
        )
        query_BLHD, key_SD = positions.as_features(along_BLHD, key_BLHK.shape[1])
        key_BLHD = jnp.broadcast_to(key_SD[:, None], along_BLHD.shape)
        return (
            constrain(jnp.concatenate([content_BLHK, query_BLHD], axis=-1), "BLHK"),
            constrain(jnp.concatenate([key_BLHK, key_BLHD], axis=-1), "BLHK"),
        )


def _logits(queries, key_BNSHK, relative_PHK):
    content_BHLNS = attention_products.logits(queries[0], key_BNSHK)
    if relative_PHK is None:
        return content_BHLNS
    position_BHLNP = attention_products.logits(queries[1], relative_PHK[None, None])
    position_BHLS = positions.align_distances(
        position_BHLNP[:, :, :, 0], key_BNSHK.shape[2]
    )
    return content_BHLNS + position_BHLS[:, :, :, None, :]


def _repeated(x, num_wanted: int, axis: int):
    """Each entry of an axis several times in a row, so that there are as many."""
    times = num_wanted // x.shape[axis]
    return x if times == 1 else jnp.repeat(x, times, axis=axis)


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
