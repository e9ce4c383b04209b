"""The RETRO model: a decoder that reads neighbours, which an encoder has read before.

`Retro.__call__` is algorithm 1 of the paper, top to bottom; `DecoderLayer` is its layer.

Source: Borgeaud et al. 2022, sections 2.3 to 2.5 and algorithm 1. Ours where the paper is
silent: pre-normalisation, a norm at the encoder's end, no biases in matrices.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from retro_jax.config import ModelConfig
from retro_jax.model import chunked_attention, stack
from retro_jax.model.attention import Attention
from retro_jax.model.encoder import Encoder, Neighbours
from retro_jax.model.kernels import Causal
from retro_jax.model.layers import (
    FeedForward,
    RMSNorm,
    activation_dtype,
    embed,
    embedding_table,
    matrix,
)
from retro_jax.model.stack import recomputed
from retro_jax.numerics.projections import project


class DecoderLayer(nnx.Module):
    """Self-attention, then chunked cross-attention in some layers, then feed-forward."""

    def __init__(self, cfg: ModelConfig, *, reads_neighbours: bool, rngs: nnx.Rngs):
        self.cfg = cfg
        width, heads = cfg.width, (cfg.num_heads, cfg.head_size)
        # The sum of the updates of all layers keeps its size, however many there are.
        gain = (2 * cfg.depth) ** -0.5
        self.norm_attention = RMSNorm(width)
        self.attention = Attention(
            width,
            width,
            *heads,
            rngs=rngs,
            out_gain=gain,
            positions=cfg.positions,
            position_width=cfg.position_width,
            num_key_heads=cfg.num_key_heads,
        )
        self.norm_cross = RMSNorm(width) if reads_neighbours else None
        self.cross = (
            Attention(
                width,
                cfg.encoder_width,
                *heads,
                rngs=rngs,
                out_gain=gain,
                positions=cfg.positions if cfg.cca_positions else "none",
                num_key_heads=cfg.num_key_heads,
            )
            if reads_neighbours
            else None
        )
        self.norm_ffw = RMSNorm(width)
        self.ffw = FeedForward(
            width, cfg.ffw_width, rngs=rngs, out_gain=gain, gated=cfg.gated_ffw
        )

    def __call__(self, hidden_BLD, segments_BL, encoded_BCNRE=None, mask_BCMNR=None):
        """Updates the hidden states; without encoded neighbours as a plain decoder does."""
        hidden_BLD = self.attend(hidden_BLD, segments_BL)
        if self.cross is not None and encoded_BCNRE is not None:
            hidden_BLD = self.retrieve(hidden_BLD, encoded_BCNRE, mask_BCMNR)
        return self.feed_forward(hidden_BLD)

    @recomputed
    def attend(self, hidden_BLD, segments_BL):
        """Adds what each position reads in its own document, up to itself."""
        normed_BLD = self.norm_attention(hidden_BLD)
        return hidden_BLD + self.attention(
            normed_BLD,
            normed_BLD[:, None],
            Causal(segments_BL, self.cfg.attention),
        )

    @recomputed
    def retrieve(self, hidden_BLD, encoded_BCNRE, mask_BCMNR):
        """Adds what each position reads in the neighbours of the last complete chunk."""
        batch, num_chunks, chunk_len, *_ = mask_BCMNR.shape
        attending_BCMD = chunked_attention.attending_chunks(
            self.norm_cross(hidden_BLD), chunk_len
        )
        # Every chunk is a row of a batch of B C.
        update = self.cross(
            attending_BCMD.reshape(batch * num_chunks, chunk_len, -1),
            encoded_BCNRE.reshape(batch * num_chunks, *encoded_BCNRE.shape[2:]),
            mask_BCMNR.reshape(batch * num_chunks, *mask_BCMNR.shape[2:]),
            # The first attending position is the chunk's last, M - 1 after its start.
            distance_offset=chunk_len - 1 - self.cfg.neighbour_span[0],
        )
        update_BCMD = update.reshape(batch, num_chunks, chunk_len, -1)
        return hidden_BLD + chunked_attention.rejoin(update_BCMD, hidden_BLD.shape[1])

    @recomputed
    def feed_forward(self, hidden_BLD):
        """Adds what each position makes of itself."""
        return hidden_BLD + self.ffw(self.norm_ffw(hidden_BLD))


class Retro(nnx.Module):
    """A language model that reads the neighbours of every chunk it has completed."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        """Builds the parameters; raises ValueError if `cfg` is not consistent."""
        cfg.validate()
        self.cfg = cfg
        self.embedding_VD = embedding_table(rngs, cfg.vocab_size, cfg.width)
        self.decoder = nnx.List(
            DecoderLayer(cfg, reads_neighbours=layer in cfg.cca_layers, rngs=rngs)
            for layer in range(1, cfg.depth + 1)
        )
        self.encoder = Encoder(cfg, rngs=rngs) if cfg.cca_layers else None
        self.norm = RMSNorm(cfg.width)
        self.w_read_VD = (
            None
            if cfg.tie_output
            else matrix(rngs, (cfg.vocab_size, cfg.width), cfg.width)
        )

    def __call__(
        self,
        inputs_BL: Int[Array, "B L"],
        neighbours_BCNR: Int[Array, "B C N R"] | None = None,
        neighbour_lengths_BCN: Int[Array, "B C N"] | None = None,
        segments_BL: Int[Array, "B L"] | None = None,
    ) -> Float[Array, "B L V"]:
        """Logits of the token after each position.

        Position t reads the neighbours of chunk (t + 1) // M - 1, if that chunk belongs
        to its own document. Without neighbours, and where all are absent (length 0), the
        result is that of the decoder alone.

        Args:
            inputs_BL: token ids, of any length L.
            neighbours_BCNR: token ids of each chunk's neighbours, for the L // M complete
                chunks (one more, for an incomplete last chunk, is not looked at).
            neighbour_lengths_BCN: how many of the R tokens are text; all, if not given.
            segments_BL: document of each token, from 1; 0 is padding. One document, if
                not given.
        Returns:
            float32 logits.
        Raises:
            ValueError: if neighbours are given for another number of chunks.
        """
        cfg = self.cfg
        if segments_BL is None:
            segments_BL = jnp.ones_like(inputs_BL)
        found = self._neighbours(neighbours_BCNR, neighbour_lengths_BCN, segments_BL)
        table_VD = self.embedding_VD[...]
        hidden_BLD = embed(table_VD, inputs_BL, activation_dtype(cfg))
        layers, memory = list(self.decoder), []
        if found is not None and self.encoder is not None:
            first = min(cfg.cca_layers) - 1  # the first layer with CCA
            for layer in stack.loops(layers[:first], scan=cfg.scan_layers):
                hidden_BLD = layer(hidden_BLD, segments_BL)
            # The encoder reads the activations between that layer's two attentions.
            hidden_BLD = layers[first].attend(hidden_BLD, segments_BL)
            hidden_BCMD = chunked_attention.chunks(hidden_BLD, cfg.chunk_len)
            encoded_BCNRE = self.encoder(found, hidden_BCMD, table_VD)
            memory = [encoded_BCNRE, found.mask_BCMNR]
            hidden_BLD = layers[first].retrieve(hidden_BLD, *memory)
            hidden_BLD = layers[first].feed_forward(hidden_BLD)
            layers = layers[first + 1 :]
        for layer in stack.loops(layers, scan=cfg.scan_layers):
            hidden_BLD = layer(hidden_BLD, segments_BL, *memory)
        weights_VD = table_VD if self.w_read_VD is None else self.w_read_VD[...]
        return project(
            "BLD,VD->BLV", self.norm(hidden_BLD), weights_VD, dtype=jnp.float32
        )

    def _neighbours(
        self, neighbours_BCNR, lengths_BCN, segments_BL
    ) -> Neighbours | None:
        """The neighbours of the complete chunks; None where there are none to be read."""
        if neighbours_BCNR is None or not self.cfg.cca_layers:
            return None
        length, num_given = segments_BL.shape[1], neighbours_BCNR.shape[1]
        num_chunks = length // self.cfg.chunk_len
        if not num_chunks <= num_given <= -(-length // self.cfg.chunk_len):
            raise ValueError(
                f"neighbours of {num_given} chunks for a sequence of {num_chunks} "
                f"complete chunks ({length} tokens in chunks of {self.cfg.chunk_len})"
            )
        if num_chunks == 0:
            return None
        first, end = self.cfg.neighbour_span
        tokens_BCNR = neighbours_BCNR[:, :num_chunks, :, first:end]
        real_BCNR = jnp.ones(tokens_BCNR.shape, bool)
        if lengths_BCN is not None:
            # Lengths count from the neighbour's start, also where its match is left out.
            places_R = first + jnp.arange(tokens_BCNR.shape[-1])
            real_BCNR = places_R < lengths_BCN[:, :num_chunks, :, None]
        readers_BCM = chunked_attention.readers_mask(segments_BL, self.cfg.chunk_len)
        mask_BCMNR = readers_BCM[:, :, :, None, None] & real_BCNR[:, :, None]
        segments_BCM = chunked_attention.chunks(
            segments_BL[..., None], self.cfg.chunk_len
        )[..., 0]
        return Neighbours(tokens_BCNR, real_BCNR, segments_BCM > 0, mask_BCMNR)
