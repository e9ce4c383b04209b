"""Causal self-attention over whole sequences by a fused kernel of the device.

All forms compute what `attention.plain_attention` does, which they are tested against.
`splash` (TPU) and `cudnn` (GPU) never hold the logits of a whole sequence in memory, and
`features` is what they are given, by plain XLA. A kernel knows products of queries and keys
alone: so what else is in a logit is written as further features of the two
(`positions.as_features`; rotations already are).

Letters here: X features of a query and a key, those of the position included.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from retro_jax.devices import sharding
from retro_jax.devices.sharding import constrain
from retro_jax.model import positions

_SPLASH_BLOCK = 128  # sequences of splash are a multiple of it
_SPLASH_MAX_FEATURES = 512
_CUDNN_MAX_FEATURES = 128


class Causal(NamedTuple):
    """Who may see what in causal attention, and what computes it.

    A query sees the positions of its own document up to itself.
    """

    segments_BL: Int[Array, "B L"]  # document of each token; padding (0) sees padding
    form: str = "auto"  # as `model.attention` names it
    window_len: int | None = None  # positions that are seen, the query's own included
    all_see_first: bool = False  # the first position belongs to every document

    @property
    def is_plain(self) -> bool:
        """Whether documents and order alone decide, which is what splash knows."""
        return self.window_len is None and not self.all_see_first

    @property
    def mask_BLNS(self) -> Bool[Array, "B L 1 L"]:
        """True where a query may see a key."""
        length = self.segments_BL.shape[1]
        visible_LL = jnp.tril(jnp.ones((length, length), bool))
        if self.window_len is not None:
            visible_LL &= ~jnp.tril(visible_LL, -self.window_len)
        same_document_BLL = self.segments_BL[:, :, None] == self.segments_BL[:, None, :]
        if self.all_see_first:
            same_document_BLL = same_document_BLL.at[:, :, 0].set(True)
        return (visible_LL & same_document_BLL)[:, :, None]


def resolve_form(causal: Causal, num_features: int) -> str:
    """Gives the form that 'auto' stands for on this device; any other is itself.

    Args:
        num_features: of a query, those for its position included.
    Raises:
        ValueError: for 'splash' with more to hide than it can.
    """
    if causal.form == "splash" and not causal.is_plain:
        raise ValueError(
            "model.attention=splash knows neither model.window_len nor model.bos_id: "
            "use auto, einsum or features"
        )
    if causal.form != "auto":
        return causal.form
    platform, length = sharding.platform(), causal.segments_BL.shape[1]
    if platform == "tpu" and length % _SPLASH_BLOCK == 0 and causal.is_plain:
        return "splash" if num_features <= _SPLASH_MAX_FEATURES else "einsum"
    if platform == "gpu" and num_features <= _CUDNN_MAX_FEATURES:
        return "cudnn"
    return "einsum"


def fused_attention(
    content_BLHK: Float[Array, "B L H K"],
    position_BLHK: Float[Array, "B L H K"] | None,
    key_BLHK: Float[Array, "B L H K"],
    value_BLHK: Float[Array, "B L H K"],
    w_r_DHK,
    causal: Causal,
) -> Float[Array, "B L H K"]:
    """What each position reads from the positions of its document up to itself.

    Args:
        content_BLHK, position_BLHK: see `attention.plain_attention`.
        key_BLHK: as many heads as the queries have.
        w_r_DHK: projects the sinusoids of distances; None without relative positions.
        causal: its form is 'splash', 'cudnn' or 'features' (see `resolve_form`).
    Raises:
        ValueError: for 'splash' with a length that is not a multiple of 128.
    """
    query_BLHX, key_BLHX = content_BLHK, key_BLHK
    if w_r_DHK is not None:
        query_BLHX, key_BLHX = _with_position_features(
            content_BLHK, position_BLHK, key_BLHK, w_r_DHK
        )
    size = value_BLHK.shape[-1]
    query_BLHX *= size**-0.5
    if causal.form == "splash":
        return _splash(query_BLHX, key_BLHX, value_BLHK, causal.segments_BL)
    # One size for all three is what the interface wants; the zeros add nothing.
    missing = query_BLHX.shape[-1] - size
    value_BLHX = jnp.pad(value_BLHK, ((0, 0), (0, 0), (0, 0), (0, missing)))
    attended_BLHX = jax.nn.dot_product_attention(
        query_BLHX,
        key_BLHX,
        value_BLHX,
        mask=causal.mask_BLNS.transpose(0, 2, 1, 3),
        scale=1.0,
        implementation="cudnn" if causal.form == "cudnn" else "xla",
    )
    return attended_BLHX[..., :size]


def _with_position_features(content_BLHK, position_BLHK, key_BLHK, w_r_DHK):
    """Queries and keys whose plain products are the logits, positions included."""
    along_BLHD = jnp.einsum(
        "BLHK,DHK->BLHD", position_BLHK, w_r_DHK[...].astype(content_BLHK.dtype)
    )
    query_BLHD, key_SD = positions.as_features(along_BLHD, key_BLHK.shape[1])
    # Every head sees the same places.
    key_BLHD = jnp.broadcast_to(key_SD[:, None], along_BLHD.shape)
    return (
        constrain(jnp.concatenate([content_BLHK, query_BLHD], axis=-1), "BLHK"),
        constrain(jnp.concatenate([key_BLHK, key_BLHD], axis=-1), "BLHK"),
    )


def _splash(query_BLHX, key_BLHX, value_BLHK, segments_BL):
    """Runs splash attention on each device's own sequences and heads."""
    length = query_BLHX.shape[1]
    if length % _SPLASH_BLOCK:
        raise ValueError(
            f"model.attention=splash needs sequences of a multiple of {_SPLASH_BLOCK} "
            f"tokens, have {length}; use auto or einsum"
        )
    heads_first = [x.swapaxes(1, 2) for x in (query_BLHX, key_BLHX, value_BLHK)]
    attend = _splash_on_device
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:  # the compiler can't partition a kernel by itself
        by_head = sharding.activation_spec("BHLK")
        attend = jax.shard_map(
            attend,
            mesh=mesh,
            in_specs=(by_head, by_head, by_head, sharding.activation_spec("BL")),
            out_specs=by_head,
            check_vma=False,
        )
    return attend(*heads_first, segments_BL).swapaxes(1, 2)


def _splash_on_device(query_BHLX, key_BHLX, value_BHLK, segments_BL):
    # Imported here, for only TPUs need it.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    _, num_heads, length, _ = query_BHLX.shape
    # Of the blocks that divide the length the largest takes the fewest steps.
    block = next(size for size in (512, 256, 128) if length % size == 0)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    mask = splash.MultiHeadMask([splash.CausalMask((length, length))] * num_heads)
    kernel = splash.make_splash_mha_single_device(
        mask=mask, block_sizes=sizes, interpret=sharding.platform() == "cpu"
    )

    def of_sequence(query_HLX, key_HLX, value_HLK, segments_L):
        segments = splash.SegmentIds(q=segments_L, kv=segments_L)
        return kernel(query_HLX, key_HLX, value_HLK, segment_ids=segments)

    return jax.vmap(of_sequence)(query_BHLX, key_BHLX, value_BHLK, segments_BL)
