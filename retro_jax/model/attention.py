"""Multi-head attention, over neighbours, over the chunk that asks or over the sequence.

Read `Attention.__call__` and `plain_attention`, which is the formula. All other forms are
behind `dot_product_attention` and compute the same: causal attention in blocks of queries
(here), fused kernels (`kernels.py`), one CPU device's products (`numerics/one_cpu.py`).

Letters here: G rows of a source (each is looked at by B / G rows of queries).
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from retro_jax.devices.sharding import constrain
from retro_jax.model import kernels, positions
from retro_jax.model.layers import DrawsKeys, RMSNorm, matrix
from retro_jax.model.positions import TRANSFORMER_XL, Frequencies
from retro_jax.numerics import attention_products
from retro_jax.numerics.activations import masked_softmax
from retro_jax.numerics.projections import plus, project

# Of causal attention by einsums: 8 would save 1/16 more, for twice the operations.
_BLOCKS, _MIN_BLOCK = 4, 64


KeysAndValues = tuple[Float[Array, "G N S H K"], Float[Array, "G N S H K"]]


class Attention(nnx.Module):
    """Multi-head attention whose logits also see the distance of query and key.

    With 'relative' positions a logit is (q + u) . k + (q + v) . W_r sinusoid(distance),
    over sqrt(K) (Dai et al. 2019, section 3.3, eq. 1); with 'rotary' ones query and key
    are rotated by their places. Keys come in N groups of S; a key's distance does not
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
        keys: DrawsKeys,
        out_gain: float,
        positions: str = "relative",
        position_width: int | None = None,
        num_key_heads: int | None = None,
        frequencies: Frequencies = TRANSFORMER_XL,
        biases: bool = False,
        norm_epsilon: float | None = None,
        gated: bool = False,
    ):
        """Makes the parameters.

        Args:
            positions: relative, rotary or none.
            position_width: of the sinusoids; `width`, as in the paper, if not given.
            num_key_heads: heads of keys and values; as many as of queries if not given.
            frequencies: of rotary positions.
            biases: whether queries, keys and values have biases.
            norm_epsilon: of the norms of each head's queries and keys; None = no norms.
            gated: whether what a head has read is multiplied by a gate of its own.
        """
        heads = (num_heads, head_size)
        key_heads = (num_key_heads or num_heads, head_size)
        self.positions, self.frequencies = positions, frequencies
        self.w_q_DHK = matrix(keys, (width, *heads), width)
        self.w_k_EHK = matrix(keys, (source_width, *key_heads), source_width)
        self.w_v_EHK = matrix(keys, (source_width, *key_heads), source_width)
        relative, sines = positions == "relative", position_width or width
        self.w_r_DHK = matrix(keys, (sines, *heads), sines) if relative else None
        inner = num_heads * head_size
        self.w_o_HKD = matrix(keys, (*heads, width), inner, out_gain)
        self.bias_content_HK = nnx.Param(jnp.zeros(heads)) if relative else None
        self.bias_position_HK = nnx.Param(jnp.zeros(heads)) if relative else None
        self.bias_q_HK = nnx.Param(jnp.zeros(heads)) if biases else None
        self.bias_k_HK = nnx.Param(jnp.zeros(key_heads)) if biases else None
        self.bias_v_HK = nnx.Param(jnp.zeros(key_heads)) if biases else None
        # Assigned once: nnx takes what is None at first for no part of the model.
        eps = norm_epsilon
        self.norm_q = None if eps is None else RMSNorm(head_size, eps)
        self.norm_k = None if eps is None else RMSNorm(head_size, eps)
        self.gate_H = nnx.Param(jnp.ones(num_heads)) if gated else None

    def __call__(
        self,
        query_BLD: Float[Array, "B L D"],
        source_GNSE: Float[Array, "G N S E"] | KeysAndValues,
        visible: Bool[Array, "#B #L #N S"] | kernels.Causal,
        *,
        distance_offset: int = 0,
    ) -> Float[Array, "B L D"]:
        """Updates each query with what it attends to; zeros where it may see nothing.

        Args:
            query_BLD: normalised activations that ask.
            source_GNSE: what is looked at, N groups of S keys; or the keys and values
                that `keys_and_values` made of it before.
            visible: True where query l may see key s of group n; or `Causal`, of queries
                that look at their own sequence.
            distance_offset: query l and key s are l - s + distance_offset apart.
        """
        made = source_GNSE
        if not isinstance(made, tuple):
            made = self.keys_and_values(made)
        key_GNSHK, value_GNSHK = made
        query_BLHK = self.queries(query_BLD, distance_offset)
        content_BLHK, position_BLHK = query_BLHK, None
        if self.positions == "relative":
            content_BLHK = plus(query_BLHK, self.bias_content_HK)
            position_BLHK = plus(query_BLHK, self.bias_position_HK)
        attended_BLHK = dot_product_attention(
            content_BLHK,
            position_BLHK,
            _for_each_query(key_GNSHK, content_BLHK),
            _for_each_query(value_GNSHK, content_BLHK),
            self.w_r_DHK,
            visible,
            distance_offset,
        )
        return self.update(attended_BLHK)

    def update(self, attended_BLHK: Float[Array, "B L H K"]) -> Float[Array, "B L D"]:
        """What is added to each query, by what its heads have read."""
        if self.gate_H is not None:
            gate_H1 = self.gate_H[...].astype(attended_BLHK.dtype)[:, None]
            attended_BLHK = attended_BLHK * gate_H1
        return project("BLHK,HKD->BLD", attended_BLHK, self.w_o_HKD)

    def queries(
        self, query_BLD: Float[Array, "B L D"], offset: positions.Offset = 0
    ) -> Float[Array, "B L H K"]:
        """Queries of each head; with rotary positions rotated by their places.

        Args:
            offset: place of the first query.
        """
        query_BLHK = project("BLD,DHK->BLHK", query_BLD, self.w_q_DHK)
        if self.bias_q_HK is not None:
            query_BLHK = plus(query_BLHK, self.bias_q_HK)
        if self.norm_q is not None:
            query_BLHK = self.norm_q(query_BLHK)
        if self.positions == "rotary":
            return positions.rotate(query_BLHK, offset, self.frequencies)
        return query_BLHK

    def keys_and_values(
        self, source_GNSE: Float[Array, "G N S E"], offset: positions.Offset = 0
    ) -> tuple[Float[Array, "G N S H K"], Float[Array, "G N S H K"]]:
        """Keys of each head, with rotary positions rotated by their places, and values.

        Args:
            offset: place of the first key.
        """
        # B in the einsum: the rows of a source are spread over the mesh as a batch is.
        key_GNSHK, value_GNSHK = project(
            "BNSE,EHK->BNSHK", source_GNSE, self.w_k_EHK, self.w_v_EHK
        )
        if self.bias_k_HK is not None:
            key_GNSHK = plus(key_GNSHK, self.bias_k_HK)
            value_GNSHK = plus(value_GNSHK, self.bias_v_HK)
        if self.norm_k is not None:
            key_GNSHK = self.norm_k(key_GNSHK)
        if self.positions == "rotary":
            key_GNSHK = positions.rotate(key_GNSHK, offset, self.frequencies)
        return key_GNSHK, value_GNSHK


def _for_each_query(x_GNSHK, query_BLHK):
    """Repeats keys or values for the rows and heads of queries that share one."""
    for axis, size in ((0, query_BLHK.shape[0]), (3, query_BLHK.shape[2])):
        times = size // x_GNSHK.shape[axis]
        x_GNSHK = x_GNSHK if times == 1 else jnp.repeat(x_GNSHK, times, axis=axis)
    return x_GNSHK


def attention_weights(
    attention: Attention,
    query_BLD: Float[Array, "B L D"],
    source_BNSE: Float[Array, "B N S E"],
    mask_BLNS: Bool[Array, "B L N S"],
    distance_offset: int = 0,
) -> Float[Array, "B H L N S"]:
    """Weights of attention, to be looked at; with rotary positions or none.

    Args: see `Attention.__call__`.
    """
    query_BLHK = attention.queries(query_BLD, distance_offset)
    key_BNSHK, _ = attention.keys_and_values(source_BNSE)
    key_BNSHK = _for_each_query(key_BNSHK, query_BLHK)
    logits_BHLNS = attention_products.logits(query_BLHK, key_BNSHK)
    logits_BHLNS *= key_BNSHK.shape[-1] ** -0.5
    return masked_softmax(logits_BHLNS, mask_BLNS[:, None])


def plain_attention(
    content_BLHK: Float[Array, "B L H K"],
    position_BLHK: Float[Array, "B L H K"] | None,
    key_BNSHK: Float[Array, "B N S H K"],
    value_BNSHK: Float[Array, "B N S H K"],
    relative_PHK: Float[Array, "P H K"] | None,
    mask_BLNS: Bool[Array, "#B #L #N S"],
) -> Float[Array, "B L H K"]:
    """The formula of attention: softmax((content + position logits) / sqrt(K)) values.

    Args:
        content_BLHK: queries that ask for a key's content, q + u or rotated.
        position_BLHK: queries that ask for a key's distance, q + v; None if none do.
        relative_PHK: W_r sinusoid(distance), for P distances as in
            `positions.relative_distances`, the largest first; the mask must hide those
            that are left out at the end.
    """
    logits_BHLNS = attention_products.logits(content_BLHK, key_BNSHK)
    if relative_PHK is not None:
        # Once for each distance, then moved to each key; all groups share the result.
        distances_BHLNP = attention_products.logits(
            position_BLHK, relative_PHK[None, None]
        )
        position_BHLS = positions.align_distances(
            distances_BHLNP[:, :, :, 0], key_BNSHK.shape[2]
        )
        logits_BHLNS = logits_BHLNS + position_BHLS[:, :, :, None, :]
    logits_BHLNS *= key_BNSHK.shape[-1] ** -0.5
    weights_BHLNS = masked_softmax(
        constrain(logits_BHLNS, "BHLNS"), mask_BLNS[:, None], key_BNSHK.dtype
    )
    return attention_products.read(weights_BHLNS, value_BNSHK)


def dot_product_attention(
    content_BLHK: Float[Array, "B L H K"],
    position_BLHK: Float[Array, "B L H K"] | None,
    key_BNSHK: Float[Array, "B N S H K"],
    value_BNSHK: Float[Array, "B N S H K"],
    w_r_DHK: nnx.Param | None,
    visible: Bool[Array, "#B #L #N S"] | kernels.Causal,
    distance_offset: int = 0,
) -> Float[Array, "B L H K"]:
    """What queries read, by the form of attention that suits mask and device.

    Args:
        content_BLHK, position_BLHK, key_BNSHK, value_BNSHK: see `plain_attention`.
        w_r_DHK: projects the sinusoids of distances; None without relative positions.
        visible, distance_offset: see `Attention`.
    """
    is_causal = isinstance(visible, kernels.Causal)
    length, num_keys = content_BLHK.shape[1], key_BNSHK.shape[2]
    num_sines = 0 if w_r_DHK is None else w_r_DHK.shape[0]
    if isinstance(visible, kernels.Causal):
        num_features = content_BLHK.shape[-1] + num_sines
        form = kernels.resolve_form(visible, num_features)
        if form != "einsum":
            heads = content_BLHK, position_BLHK, key_BNSHK[:, 0], value_BNSHK[:, 0]
            visible = visible._replace(form=form)
            return kernels.fused_attention(*heads, w_r_DHK, visible)
    relative_PHK = None
    if w_r_DHK is not None:
        # Causal attention sees no distance below 0: as many as if there were one key.
        distances_P = positions.relative_distances(
            length, 1 if is_causal else num_keys, distance_offset
        )
        sinusoid_PD = positions.sinusoids(distances_P, num_sines)
        relative_PHK = project(
            "PD,DHK->PHK", sinusoid_PD.astype(content_BLHK.dtype), w_r_DHK
        )
    heads = content_BLHK, position_BLHK, key_BNSHK, value_BNSHK
    if isinstance(visible, kernels.Causal):
        return _blocked_attention(*heads, relative_PHK, visible.mask_BLNS)
    return plain_attention(*heads, relative_PHK, visible)


def _blocked_attention(
    content_BLHK, position_BLHK, key_BNSHK, value_BNSHK, relative_PHK, mask_BLNS
):
    """Causal attention without most of what the mask hides.

    Queries in blocks, each with the keys up to its end: of the logits 5/8 with 4 blocks,
    so the same of what is multiplied and of what is held.
    """
    length = content_BLHK.shape[1]
    size = length // _BLOCKS if length % (_BLOCKS * _MIN_BLOCK) == 0 else length
    # Split, not sliced: the gradient of a slice is padded and added.
    contents, places = (
        [None] * (length // size) if x is None else jnp.split(x, length // size, axis=1)
        for x in (content_BLHK, position_BLHK)
    )
    keys, values = (
        attention_products.beginnings(x, size) for x in (key_BNSHK, value_BNSHK)
    )
    blocks = []
    for content, place, key, value in zip(contents, places, keys, values, strict=True):
        end = key.shape[2]
        # The largest distances come first, and a block's are those below its end.
        relative = None if relative_PHK is None else relative_PHK[length - end :]
        mask = mask_BLNS[:, end - size : end, :, :end]
        blocks.append(plain_attention(content, place, key, value, relative, mask))
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=1)
