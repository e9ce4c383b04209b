"""The RETRO model: a decoder that reads neighbours, which an encoder has read before.

Source: Borgeaud et al. 2022, sections 2.3 to 2.5 and algorithm 1. Ours where the paper is
silent: pre-normalisation, a norm at the encoder's end, no biases in matrices.
"""

import functools

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from retro_jax.config import ModelConfig
from retro_jax.model import chunked_attention, stack
from retro_jax.model.attention import Attention
from retro_jax.model.encoder import (
    Encoder,
    activation_dtype,
    cross_positions,
    embedding,
    look_up,
    run_step,
)
from retro_jax.model.layers import FeedForward, RMSNorm, matrix
from retro_jax.numerics.projections import project


class DecoderLayer(nnx.Module):
    """Self-attention, then chunked cross-attention in some layers, then feed-forward.

    Three steps that the model calls one by one, because the encoder reads the
    activations that stand between the first and the second.
    """

    def __init__(self, cfg: ModelConfig, *, reads_neighbours: bool, rngs: nnx.Rngs):
        self.cfg = cfg
        width, heads = cfg.width, (cfg.num_heads, cfg.head_size)
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
                positions=cross_positions(cfg),
                num_key_heads=cfg.num_key_heads,
            )
            if reads_neighbours
            else None
        )
        self.norm_ffw = RMSNorm(width)
        self.ffw = FeedForward(
            width, cfg.ffw_width, rngs=rngs, out_gain=gain, gated=cfg.gated_ffw
        )

    def attend(self, hidden_BLD, segments_BL):
        normed = self.norm_attention(hidden_BLD)
        return hidden_BLD + self.attention.over_itself(
            normed, segments_BL, self.cfg.attention
        )

    def retrieve(self, hidden_BLD, encoded_BCNRE, mask_BCMNR):
        """Adds what each position reads in the neighbours of the last complete chunk."""
        batch, num_chunks, chunk_len, *_ = mask_BCMNR.shape
        attending_BCMD = chunked_attention.attending_chunks(
            self.norm_cross(hidden_BLD), chunk_len
        )
        update = self.cross(
            attending_BCMD.reshape(batch * num_chunks, chunk_len, -1),
            encoded_BCNRE.reshape(batch * num_chunks, *encoded_BCNRE.shape[2:]),
            mask_BCMNR.reshape(batch * num_chunks, *mask_BCMNR.shape[2:]),
            distance_offset=chunk_len - 1 - self.cfg.neighbour_span[0],
        )
        update_BCMD = update.reshape(batch, num_chunks, chunk_len, -1)
        return hidden_BLD + chunked_attention.rejoin(update_BCMD, hidden_BLD.shape[1])

    def feed_forward(self, hidden_BLD):
        return hidden_BLD + self.ffw(self.norm_ffw(hidden_BLD))


class Retro(nnx.Module):
    """A language model that reads the neighbours of every chunk it has completed."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        """Builds the parameters; raises ValueError if `cfg` is not consistent."""
        cfg.validate()
        self.cfg = cfg
        self.embedding_VD = embedding(rngs, cfg.vocab_size, cfg.width)
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
        if segments_BL is None:
            segments_BL = jnp.ones_like(inputs_BL)
        memory = None
        if neighbours_BCNR is not None and self.encoder is not None:
            memory = self._neighbours(
                inputs_BL, neighbours_BCNR, neighbour_lengths_BCN, segments_BL
            )
        hidden_BLD = look_up(
            self.embedding_VD[...], inputs_BL, activation_dtype(self.cfg)
        )
        hidden_BLD = self._decode(hidden_BLD, memory, segments_BL)
        return self._read_out(self.norm(hidden_BLD))

    def _neighbours(self, inputs_BL, neighbours_BCNR, lengths_BCN, segments_BL):
        """Token ids of the complete chunks' neighbours and their masks; None if none."""
        length, num_given = inputs_BL.shape[1], neighbours_BCNR.shape[1]
        num_chunks = length // self.cfg.chunk_len
        if not num_chunks <= num_given <= -(-length // self.cfg.chunk_len):
            raise ValueError(
                f"neighbours of {num_given} chunks for a sequence of {num_chunks} "
                f"complete chunks ({length} tokens in chunks of {self.cfg.chunk_len})"
            )
        if num_chunks == 0:
            return None
        first, end = self.cfg.neighbour_span
        neighbours_BCNR = neighbours_BCNR[:, :num_chunks, :, first:end]
        places_R = first + jnp.arange(neighbours_BCNR.shape[-1])
        real_BCNR = jnp.ones(neighbours_BCNR.shape, bool)
        if lengths_BCN is not None:
            real_BCNR = places_R < lengths_BCN[:, :num_chunks, :, None]
        readers_BCM = chunked_attention.readers_mask(segments_BL, self.cfg.chunk_len)
        mask_BCMNR = readers_BCM[:, :, :, None, None] & real_BCNR[:, :, None]
        return neighbours_BCNR, real_BCNR, mask_BCMNR

    def _decode(self, hidden_BLD, memory, segments_BL):
        cfg = self.cfg
        attend = functools.partial(run_step, cfg, DecoderLayer.attend)
        feed_forward = functools.partial(run_step, cfg, DecoderLayer.feed_forward)

        def decoder_alone(layer, hidden_BLD):
            return feed_forward(layer, attend(layer, hidden_BLD, segments_BL))

        if memory is None:
            return stack.run(
                self.decoder, decoder_alone, hidden_BLD, scan=cfg.scan_layers
            )
        # The encoder reads what stands between two steps of the first layer with CCA.
        first = min(cfg.cca_layers) - 1
        hidden_BLD = stack.run(
            self.decoder[:first], decoder_alone, hidden_BLD, scan=cfg.scan_layers
        )
        hidden_BLD = attend(self.decoder[first], hidden_BLD, segments_BL)
        encoded_BCNRE = self._encode(hidden_BLD, memory, segments_BL)

        def after_attention(layer, hidden_BLD):
            if layer.cross is not None:
                retrieve = functools.partial(
                    run_step, cfg, DecoderLayer.retrieve, layer
                )
                hidden_BLD = retrieve(hidden_BLD, encoded_BCNRE, memory[2])
            return feed_forward(layer, hidden_BLD)

        def with_neighbours(layer, hidden_BLD):
            return after_attention(layer, attend(layer, hidden_BLD, segments_BL))

        hidden_BLD = after_attention(self.decoder[first], hidden_BLD)
        return stack.run(
            self.decoder[first + 1 :],
            with_neighbours,
            hidden_BLD,
            scan=cfg.scan_layers,
        )

    def _encode(self, hidden_BLD, memory, segments_BL):
        """Encodes all neighbours once, given the decoder's activations so far."""
        neighbours_BCNR, real_BCNR, _ = memory
        chunk_len = self.cfg.chunk_len
        segments_BCM = chunked_attention.chunks(segments_BL[..., None], chunk_len)
        return self.encoder(
            neighbours_BCNR,
            real_BCNR,
            chunked_attention.chunks(hidden_BLD, chunk_len),
            segments_BCM[..., 0] > 0,
            self.embedding_VD[...],
        )

    def _read_out(self, hidden_BLD):
        tied = self.w_read_VD is None
        weights_VD = self.embedding_VD[...] if tied else self.w_read_VD[...]
        return project("BLD,VD->BLV", hidden_BLD, weights_VD, dtype=jnp.float32)
