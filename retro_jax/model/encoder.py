"""The encoder of neighbours: a bidirectional transformer that also reads the asking chunk.

Source: Borgeaud et al. 2022, sections 2.3 and 2.4; normalised at its end, which is ours.
Letters here: G asking chunks of the whole batch.
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from retro_jax.config import ModelConfig
from retro_jax.model.attention import Attention
from retro_jax.model.layers import (
    DrawsKeys,
    FeedForward,
    RMSNorm,
    embed,
    embedding_table,
)
from retro_jax.model.stack import recomputed


class Neighbours(NamedTuple):
    """The neighbours of all complete chunks, as far as `model.neighbour_part` reads them."""

    tokens_BCNR: Int[Array, "B C N R"]
    real_BCNR: Bool[Array, "B C N R"]  # False for padding
    chunk_real_BCM: Bool[Array, "B C M"]  # False for padding of the asking chunk
    mask_BCMNR: Bool[Array, "B C M N R"]  # what attending chunks may read


class EncoderLayer(nnx.Module):
    """One layer over a neighbour's tokens, which may also look at the asking chunk."""

    def __init__(self, cfg: ModelConfig, *, reads_chunk: bool, keys: DrawsKeys):
        self.cfg = cfg
        width, heads = cfg.encoder_width, (cfg.encoder_heads, cfg.encoder_head_size)
        # The sum of the updates of all layers keeps its size, however many there are.
        gain = (3 * cfg.encoder_depth) ** -0.5
        self.norm_attention = RMSNorm(width)
        self.attention = Attention(
            width, width, *heads, keys=keys, out_gain=gain, positions=cfg.positions
        )
        self.norm_cross = RMSNorm(width) if reads_chunk else None
        self.cross = (
            Attention(
                width,
                cfg.width,
                *heads,
                keys=keys,
                out_gain=gain,
                positions=cfg.positions if cfg.cca_positions else "none",
            )
            if reads_chunk
            else None
        )
        self.norm_ffw = RMSNorm(width)
        self.ffw = FeedForward(
            width,
            cfg.encoder_ffw_width,
            keys=keys,
            out_gain=gain,
            gated=cfg.gated_ffw,
        )

    @recomputed
    def __call__(self, x_BLD, own_mask_BLNS, chunk_GNSE, chunk_mask_BLNS):
        """Updates a neighbour's tokens; rows are neighbours, L is R.

        Args:
            own_mask_BLNS: which of the neighbour's own tokens may be seen: text.
            chunk_GNSE: activations of asking chunks, each for all of its neighbours.
            chunk_mask_BLNS: which tokens of the asking chunk may be seen.
        """
        normed_BLD = self.norm_attention(x_BLD)
        x_BLD += self.attention(normed_BLD, normed_BLD[:, None], own_mask_BLNS)
        if self.cross is not None:
            x_BLD += self.cross(
                self.norm_cross(x_BLD),
                chunk_GNSE,
                chunk_mask_BLNS,
                distance_offset=self.cfg.neighbour_span[0],
            )
        return x_BLD + self.ffw(self.norm_ffw(x_BLD))


class Encoder(nnx.Module):
    """Encodes each neighbour, bidirectionally, in the light of the chunk that found it."""

    def __init__(self, cfg: ModelConfig, *, keys: DrawsKeys):
        self.cfg = cfg
        self.embedding_VE = (
            None
            if cfg.share_embeddings
            else embedding_table(keys, cfg.vocab_size, cfg.encoder_width)
        )
        self.layers = nnx.List(
            EncoderLayer(cfg, reads_chunk=layer in cfg.encoder_cca_layers, keys=keys)
            for layer in range(1, cfg.encoder_depth + 1)
        )
        self.norm = RMSNorm(cfg.encoder_width)

    def __call__(
        self,
        neighbours: Neighbours,
        chunk_BCME: Float[Array, "B C M E"],
        shared_VE: Float[Array, "V E"],
    ) -> Float[Array, "B C N R D"]:
        """Encodes neighbours; what a padded token gives is never looked at.

        Args:
            chunk_BCME: the decoder's activations of the asking chunks, of its width.
            shared_VE: the decoder's embedding table, for an encoder without one.
        """
        batch, num_chunks, num_neighbours, neighbour_len = neighbours.tokens_BCNR.shape
        own = self.embedding_VE
        table_VD = shared_VE if own is None else own[...]
        # From here on every neighbour is a row of a batch, and R is L.
        rows = batch * num_chunks * num_neighbours
        tokens_BL = neighbours.tokens_BCNR.reshape(rows, neighbour_len)
        x_BLD = embed(table_VD, tokens_BL, chunk_BCME.dtype)
        own_mask_BLNS = neighbours.real_BCNR.reshape(rows, 1, 1, neighbour_len)
        # A row of keys for each chunk serves the rows of all its neighbours.
        chunk_GNSE = chunk_BCME.reshape(batch * num_chunks, 1, *chunk_BCME.shape[2:])
        chunk_real_GLNS = neighbours.chunk_real_BCM.reshape(
            batch * num_chunks, 1, 1, -1
        )
        chunk_mask_BLNS = jnp.repeat(chunk_real_GLNS, num_neighbours, axis=0)
        for layer in self.layers:
            x_BLD = layer(x_BLD, own_mask_BLNS, chunk_GNSE, chunk_mask_BLNS)
        return self.norm(x_BLD).reshape(*neighbours.tokens_BCNR.shape, x_BLD.shape[-1])
