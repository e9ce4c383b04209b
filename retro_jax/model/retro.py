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
from retro_jax.model.positions import Frequencies
from retro_jax.model.stack import recomputed
from retro_jax.numerics.projections import project


def _attention(cfg: ModelConfig, rngs: nnx.Rngs, *, cross: bool) -> Attention:
    """A decoder layer's self-attention, or its attention over neighbours."""
    by_decoder = cfg.encoder == "decoder"
    sees_places = cfg.cca_positions if cross else True
    return Attention(
        cfg.width,
        cfg.source_width if cross else cfg.width,
        cfg.num_heads,
        cfg.head_size,
        rngs=rngs,
        # The sum of the updates of all layers keeps its size, however many there are.
        out_gain=(2 * cfg.depth) ** -0.5,
        positions=cfg.positions if sees_places else "none",
        position_width=None if cross else cfg.position_width,
        num_key_heads=cfg.num_key_heads,
        frequencies=Frequencies(cfg.rotary_base, cfg.rotary_scaling),
        biases=cfg.qkv_biases,
        norm_epsilon=cfg.norm_epsilon if cfg.qk_norms else None,
        gated=cross and by_decoder,
    )


class DecoderLayer(nnx.Module):
    """Self-attention, then chunked cross-attention in some layers, then feed-forward."""

    def __init__(self, cfg: ModelConfig, *, reads_neighbours: bool, rngs: nnx.Rngs):
        self.cfg = cfg
        width, epsilon = cfg.width, cfg.norm_epsilon
        by_decoder = cfg.encoder == "decoder"
        self.norm_attention = RMSNorm(width, epsilon)
        self.attention = _attention(cfg, rngs, cross=False)
        self.norm_cross = RMSNorm(width, epsilon) if reads_neighbours else None
        # The encoder normalises what it gives; a decoder's hidden states are as they are.
        self.norm_source = (
            RMSNorm(width, epsilon) if reads_neighbours and by_decoder else None
        )
        self.cross = _attention(cfg, rngs, cross=True) if reads_neighbours else None
        self.norm_ffw = RMSNorm(width, epsilon)
        self.ffw = FeedForward(
            width,
            cfg.ffw_width,
            rngs=rngs,
            out_gain=(2 * cfg.depth) ** -0.5,
            gated=cfg.gated_ffw,
            activation=cfg.ffw_activation,
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
            normed_BLD, normed_BLD[:, None], self.visible(segments_BL)
        )

    def visible(self, segments_BL) -> Causal:
        """What a position may see in the sequence, by the documents of its tokens."""
        cfg = self.cfg
        return Causal(
            segments_BL, cfg.attention, cfg.window_len, cfg.bos_id is not None
        )

    @recomputed
    def retrieve(self, hidden_BLD, encoded_BCNRE, mask_BCMNR):
        """Adds what each position reads in the neighbours of the last complete chunk."""
        batch, num_chunks, chunk_len, *_ = mask_BCMNR.shape
        first = self.cfg.num_openers
        attending_BCMD = chunked_attention.attending_chunks(
            self.norm_cross(hidden_BLD)[:, first:], chunk_len
        )
        source_BCNRE = encoded_BCNRE
        if self.norm_source is not None:
            source_BCNRE = self.norm_source(encoded_BCNRE.astype(hidden_BLD.dtype))
        # Every chunk is a row of a batch of B C.
        update = self.cross(
            attending_BCMD.reshape(batch * num_chunks, chunk_len, -1),
            source_BCNRE.reshape(batch * num_chunks, *source_BCNRE.shape[2:]),
            mask_BCMNR.reshape(batch * num_chunks, *mask_BCMNR.shape[2:]),
            distance_offset=self.cfg.cca_distance,
        )
        update_BCMD = update.reshape(batch, num_chunks, chunk_len, -1)
        length = hidden_BLD.shape[1] - first
        update_BLD = chunked_attention.rejoin(update_BCMD, length)
        return hidden_BLD + jnp.pad(update_BLD, ((0, 0), (first, 0), (0, 0)))

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
        has_encoder = bool(cfg.cca_layers) and cfg.encoder == "own"
        self.encoder = Encoder(cfg, rngs=rngs) if has_encoder else None
        self.norm = RMSNorm(cfg.width, cfg.norm_epsilon)
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
        encoded_BCNTSE: Float[Array, "B C N T S E"] | None = None,
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
            encoded_BCNTSE: what `encode` made of these neighbours before.
        Returns:
            float32 logits.
        Raises:
            ValueError: if neighbours are given for another number of chunks.
        """
        cfg = self.cfg
        if segments_BL is None:
            segments_BL = jnp.ones_like(inputs_BL)
        found = self.neighbours(neighbours_BCNR, neighbour_lengths_BCN, segments_BL)
        hidden_BLD, segments_BL = self.embedded(inputs_BL, segments_BL)
        layers, memory = list(self.decoder), []
        encoder = self.encoder
        if found is not None and encoder is None:
            hidden_BLD = self._read_with_decoder(
                found, encoded_BCNTSE, hidden_BLD, segments_BL
            )
            layers = layers[max(cfg.cca_layers) :]
        elif found is not None and encoder is not None:
            first = min(cfg.cca_layers) - 1  # the first layer with CCA
            for layer in stack.loops(layers[:first], scan=cfg.scan_layers):
                hidden_BLD = layer(hidden_BLD, segments_BL)
            # The encoder reads the activations between that layer's two attentions.
            hidden_BLD = layers[first].attend(hidden_BLD, segments_BL)
            hidden_BCMD = chunked_attention.chunks(
                hidden_BLD[:, cfg.num_openers :], cfg.chunk_len
            )
            encoded_BCNRE = encoder(found, hidden_BCMD, self.embedding_VD[...])
            memory = [encoded_BCNRE, found.mask_BCMNR]
            hidden_BLD = layers[first].retrieve(hidden_BLD, *memory)
            hidden_BLD = layers[first].feed_forward(hidden_BLD)
            layers = layers[first + 1 :]
        for layer in stack.loops(layers, scan=cfg.scan_layers):
            hidden_BLD = layer(hidden_BLD, segments_BL, *memory)
        return self.read_out(self.norm(hidden_BLD[:, cfg.num_openers :]))

    def read_out(self, hidden_BLD: Float[Array, "B L D"]) -> Float[Array, "B L V"]:
        """Logits of hidden states, in float32."""
        weights = self.embedding_VD if self.w_read_VD is None else self.w_read_VD
        return project("BLD,VD->BLV", hidden_BLD, weights[...], dtype=jnp.float32)

    def embedded(self, tokens_BL, segments_BL):
        """Embeddings of tokens, behind the one that opens every sequence if there is one."""
        cfg = self.cfg
        if cfg.bos_id is not None:
            opener = ((0, 0), (1, 0))
            tokens_BL = jnp.pad(tokens_BL, opener, constant_values=cfg.bos_id)
            segments_BL = jnp.pad(segments_BL, opener)
        dtype, scaled = activation_dtype(cfg), cfg.scale_embeddings
        return embed(
            self.embedding_VD[...], tokens_BL, dtype, scaled=scaled
        ), segments_BL

    def _between(self, start: int, stop: int):
        """The layers from `start` to before `stop`, counted from 0, as they are run."""
        return stack.loops(list(self.decoder)[start:stop], scan=self.cfg.scan_layers)

    def _read_with_decoder(
        self, found: Neighbours, encoded_BCNTSE, hidden_BLD, segments_BL
    ):
        """Runs the layers up to the last with CCA, each over what the layers below it read."""
        done = 0
        if encoded_BCNTSE is None:
            encoded_BCNTSE = self.encoded(found)
        encoded_BCNTSE = encoded_BCNTSE[:, : found.tokens_BCNR.shape[1]]
        for place, layer in enumerate(sorted(self.cfg.cca_layers)):
            for part in self._between(done, layer - 1):
                hidden_BLD = part(hidden_BLD, segments_BL)
            encoded_BCNSE = encoded_BCNTSE[:, :, :, place]
            hidden_BLD = self.decoder[layer - 1](
                hidden_BLD, segments_BL, encoded_BCNSE, found.mask_BCMNR
            )
            done = layer
        return hidden_BLD

    def encode(self, tokens_PR: Int[Array, "P R"]) -> Float[Array, "P T S D"]:
        """Encodes neighbours by the decoder itself, which reads them as a text of their own.

        What is given depends on the neighbour alone, so it can be kept.

        Args:
            tokens_PR: the part of each neighbour that is read; what stands after its end
                can't change what is before it.
        Returns:
            The hidden states that go into each of the T layers with CCA, lowest first. S
            is R, and one more if a token opens every sequence.
        Source: ours; CCA as in Borgeaud et al. 2022, section 2.4.
        """
        hidden_BLD, segments_BL = self.embedded(tokens_PR, jnp.ones_like(tokens_PR))
        levels, done = [], 0
        for layer in sorted(self.cfg.cca_layers):
            for part in self._between(done, layer - 1):
                hidden_BLD = part(hidden_BLD, segments_BL)
            levels.append(hidden_BLD)
            done = layer - 1
        return jnp.stack(levels, axis=1)

    def encoded(self, found: Neighbours) -> Float[Array, "B C N T S D"]:
        """Encodes the neighbours of all chunks as `encode` does."""
        *rows, neighbour_len = found.tokens_BCNR.shape
        encoded_PTSD = self.encode(found.tokens_BCNR.reshape(-1, neighbour_len))
        return encoded_PTSD.reshape(*rows, *encoded_PTSD.shape[1:])

    def neighbours(
        self, neighbours_BCNR, lengths_BCN, segments_BL
    ) -> Neighbours | None:
        """The neighbours of the complete chunks; None where there are none to be read.

        Args: see `__call__`.
        """
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
        readable_BCNS = real_BCNR
        if self.cfg.encoder == "decoder":
            # What opens a neighbour is read wherever there is a neighbour.
            opener = ((0, 0),) * 3 + ((self.cfg.num_openers, 0),)
            is_there_BCN1 = real_BCNR.any(axis=-1, keepdims=True)
            readable_BCNS = is_there_BCN1 & jnp.pad(
                real_BCNR, opener, constant_values=True
            )
        readers_BCM = chunked_attention.readers_mask(segments_BL, self.cfg.chunk_len)
        mask_BCMNR = readers_BCM[:, :, :, None, None] & readable_BCNS[:, :, None]
        segments_BCM = chunked_attention.chunks(
            segments_BL[..., None], self.cfg.chunk_len
        )[..., 0]
        return Neighbours(tokens_BCNR, real_BCNR, segments_BCM > 0, mask_BCMNR)
