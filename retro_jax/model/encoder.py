"""The encoder of neighbours, and what it shares with the decoder.

Source: Borgeaud et al. 2022, sections 2.3 and 2.4; normalised at its end, which is ours.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from retro_jax.config import ModelConfig
from retro_jax.devices import sharding
from retro_jax.devices.sharding import constrain
from retro_jax.model.attention import Attention
from retro_jax.model.layers import FeedForward, RMSNorm, matrix


def cross_positions(cfg: ModelConfig) -> str:
    """Positions of the cross-attentions, which Table 13 also tries without."""
    return cfg.positions if cfg.cca_positions else "none"


class EncoderLayer(nnx.Module):
    """One layer over a neighbour's tokens, which may also look at the asking chunk."""

    def __init__(self, cfg: ModelConfig, *, reads_chunk: bool, rngs: nnx.Rngs):
        width, heads = cfg.encoder_width, (cfg.encoder_heads, cfg.encoder_head_size)
        gain = (3 * cfg.encoder_depth) ** -0.5
        self.norm_attention = RMSNorm(width)
        self.attention = Attention(
            width, width, *heads, rngs=rngs, out_gain=gain, positions=cfg.positions
        )
        self.norm_cross = RMSNorm(width) if reads_chunk else None
        self.cross = (
            Attention(
                width,
                cfg.width,
                *heads,
                rngs=rngs,
                out_gain=gain,
                positions=cross_positions(cfg),
            )
            if reads_chunk
            else None
        )
        self.norm_ffw = RMSNorm(width)
        self.ffw = FeedForward(
            width,
            cfg.encoder_ffw_width,
            rngs=rngs,
            out_gain=gain,
            gated=cfg.gated_ffw,
        )

    def __call__(self, x_BLD, chunk_BNSE, own_mask_BLNS, chunk_mask_BLNS, first_place):
        normed = self.norm_attention(x_BLD)
        x_BLD += self.attention(normed, normed[:, None], own_mask_BLNS)
        if self.cross is not None:
            x_BLD += self.cross(
                self.norm_cross(x_BLD),
                chunk_BNSE,
                chunk_mask_BLNS,
                distance_offset=first_place,
            )
        return x_BLD + self.ffw(self.norm_ffw(x_BLD))


class Encoder(nnx.Module):
    """Encodes each neighbour, bidirectionally, in the light of the chunk that found it."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.embedding_VE = (
            None
            if cfg.share_embeddings
            else embedding(rngs, cfg.vocab_size, cfg.encoder_width)
        )
        self.layers = nnx.List(
            EncoderLayer(cfg, reads_chunk=layer in cfg.encoder_cca_layers, rngs=rngs)
            for layer in range(1, cfg.encoder_depth + 1)
        )
        self.norm = RMSNorm(cfg.encoder_width)

    def __call__(
        self,
        neighbours_BCNR: Int[Array, "B C N R"],
        real_BCNR: Bool[Array, "B C N R"],
        chunk_BCME: Float[Array, "B C M E"],
        chunk_real_BCM: Bool[Array, "B C M"],
        shared_VE: Float[Array, "V E"] | None,
    ) -> Float[Array, "B C N R D"]:
        """Encodes neighbours; what a padded token gives is never looked at.

        Args:
            neighbours_BCNR: token ids.
            real_BCNR: False for padding.
            chunk_BCME: the decoder's activations of the asking chunks, of its width.
            chunk_real_BCM: False for padding at a document's end.
            shared_VE: the decoder's embedding table, if it is shared.
        """
        batch, num_chunks, num_neighbours, neighbour_len = neighbours_BCNR.shape
        table = shared_VE if self.embedding_VE is None else self.embedding_VE[...]
        rows = batch * num_chunks * num_neighbours
        tokens_BL = neighbours_BCNR.reshape(rows, neighbour_len)
        x = look_up(table, tokens_BL, chunk_BCME.dtype)
        own_mask = real_BCNR.reshape(rows, 1, 1, neighbour_len)
        # A row of keys for each chunk serves the rows of all its neighbours.
        chunk_rows = chunk_BCME.reshape(batch * num_chunks, 1, *chunk_BCME.shape[2:])
        chunk_real = chunk_real_BCM.reshape(batch * num_chunks, 1, 1, -1)
        chunk_mask = jnp.repeat(chunk_real, num_neighbours, axis=0)
        step = functools.partial(
            EncoderLayer.__call__, first_place=self.cfg.neighbour_span[0]
        )
        for layer in self.layers:
            x = run_step(self.cfg, step, layer, x, chunk_rows, own_mask, chunk_mask)
        shape = (batch, num_chunks, num_neighbours, neighbour_len, x.shape[-1])
        return self.norm(x).reshape(shape)


def run_step(cfg: ModelConfig, step, *inputs):
    """One step of a layer, its activations recomputed when gradients need them.

    'dots' keeps the products with parameters, which are most of the work; 'full' keeps
    nothing but what goes into a step.
    """
    policies = jax.checkpoint_policies
    if cfg.remat == "dots":
        keeps = policies.dots_with_no_batch_dims_saveable
        step = jax.checkpoint(step, policy=keeps)
    elif cfg.remat == "full":
        step = jax.checkpoint(step, policy=policies.nothing_saveable)
    return step(*inputs)


def embedding(rngs: nnx.Rngs, vocab_size: int, width: int) -> nnx.Param:
    """A table of token embeddings, small so that tied logits start near zero."""
    return matrix(rngs, (vocab_size, width), fan_in=1, gain=0.02)


def look_up(table_VD, tokens_BL, dtype):
    """Embeddings of tokens, times sqrt(D): the table is small for the read-out's sake."""
    # Without this the compiler gathers the activations, and over all replicas.
    table_VD = constrain(table_VD, "VD")
    embedded_BLD = jnp.take(table_VD, tokens_BL, axis=0) * table_VD.shape[-1] ** 0.5
    return constrain(embedded_BLD.astype(dtype), "BLD")


def activation_dtype(cfg: ModelConfig):
    """float32 on CPUs, which gain nothing from bfloat16, and bfloat16 elsewhere."""
    if cfg.dtype != "auto":
        return jnp.dtype(cfg.dtype)
    return jnp.dtype("float32" if sharding.platform() == "cpu" else "bfloat16")
