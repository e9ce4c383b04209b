"""Causal self-attention over whole sequences, by the kernel that suits the device.

All forms compute the same. `splash` (TPU) and `cudnn` (GPU) never hold the logits of a
whole sequence in memory; `einsum` does, runs everywhere and is what the others are tested
against. What a logit is beyond a product of query and key must be written as further
features of the two: `positions.rotate` and `positions.as_features` do.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from retro_jax.devices import sharding

_SPLASH_BLOCK = 128  # sequences of splash are a multiple of it
_SPLASH_MAX_FEATURES = 512
_CUDNN_MAX_FEATURES = 128


def choose(form: str, num_features: int, length: int) -> str:
    """What 'auto' stands for on this device; any other form is its own choice.

    Args:
        form: as configured.
        num_features: of a query, those for its position included.
        length: tokens of a sequence.
    """
    if form != "auto":
        return form
    platform = sharding.platform()
    if platform == "tpu" and length % _SPLASH_BLOCK == 0:
        return "splash" if num_features <= _SPLASH_MAX_FEATURES else "einsum"
    if platform == "gpu" and num_features <= _CUDNN_MAX_FEATURES:
        return "cudnn"
    return "einsum"


def causal_mask(segments_BL: Int[Array, "B L"]) -> Bool[Array, "B L 1 L"]:
    """True where a query may see a key: not a later one, nor one of another document."""
    length = segments_BL.shape[1]
    causal_LL = jnp.tril(jnp.ones((length, length), bool))
    same_document_BLL = segments_BL[:, :, None] == segments_BL[:, None, :]
    return (causal_LL & same_document_BLL)[:, :, None]


def causal_attention(
    query_BLHX: Float[Array, "B L H X"],
    key_BLHX: Float[Array, "B L H X"],
    value_BLHK: Float[Array, "B L H K"],
    segments_BL: Int[Array, "B L"],
    form: str,
) -> Float[Array, "B L H K"]:
    """What each position reads from the positions of its document up to itself.

    Args:
        query_BLHX: already scaled; X features, the position's included.
        key_BLHX: as many heads as the queries have.
        value_BLHK: K may differ from X.
        segments_BL: document of each token; padding (0) reads padding.
        form: not 'auto' (see `choose`).
    Raises:
        ValueError: for 'splash' with a length that is not a multiple of 128.
    """
    if form == "splash":
        return _splash(query_BLHX, key_BLHX, value_BLHK, segments_BL)
    size = value_BLHK.shape[-1]
    # One size for all three is what the interface wants; the zeros add nothing.
    value_BLHX = _widened(value_BLHK, query_BLHX.shape[-1])
    attended_BLHX = jax.nn.dot_product_attention(
        query_BLHX,
        key_BLHX,
        value_BLHX,
        mask=causal_mask(segments_BL).transpose(0, 2, 1, 3),
        scale=1.0,
        implementation="cudnn" if form == "cudnn" else "xla",
    )
    return attended_BLHX[..., :size]


def _widened(x_BLHK, num_features: int):
    missing = num_features - x_BLHK.shape[-1]
    return jnp.pad(x_BLHK, ((0, 0), (0, 0), (0, 0), (0, missing)))


def _splash(query_BLHX, key_BLHX, value_BLHK, segments_BL):
    """Splash attention on each device's own sequences and heads."""
    length = query_BLHX.shape[1]
    if length % _SPLASH_BLOCK:
        raise ValueError(
            f"model.attention=splash needs sequences of a multiple of {_SPLASH_BLOCK} "
            f"tokens, have {length}; use auto or einsum"
        )
    heads_first = [x.swapaxes(1, 2) for x in (query_BLHX, key_BLHX, value_BLHK)]
    attend = _splash_of_device
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


def _splash_of_device(query_BHLX, key_BHLX, value_BHLK, segments_BL):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    _, num_heads, length, _ = query_BHLX.shape
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
