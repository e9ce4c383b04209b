"""The RETRO model: a decoder that reads neighbours, which an encoder has read before.

`Retro.__call__` is algorithm 1 of the paper, top to bottom; `DecoderLayer` is its layer.
Below its first cross-attention the decoder does not know of neighbours: `Retro.lower` is
that part alone, so that what it gives can be kept.

Source: Borgeaud et al. 2022, sections 2.3 to 2.5 and algorithm 1. Ours where the paper is
silent: pre-normalisation, a norm at the encoder's end, no biases in matrices.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

import retro_jax
from retro_jax.config import ModelConfig
from retro_jax.model import chunked_attention, stack
from retro_jax.model.attention import Attention
from retro_jax.model.encoder import Encoder, Neighbours
from retro_jax.model.kernels import Causal
from retro_jax.model.layers import (
    DrawsKeys,
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


def _attention(cfg: ModelConfig, keys: DrawsKeys, *, cross: bool) -> Attention:
    """A decoder layer's self-attention, or its attention over neighbours."""
    by_decoder = cfg.encoder == "decoder"
    sees_places = cfg.cca_positions if cross else True
    return Attention(
        cfg.width,
        cfg.source_width if cross else cfg.width,
        cfg.num_heads,
        cfg.head_size,
        keys=keys,
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

    def __init__(self, cfg: ModelConfig, *, reads_neighbours: bool, keys: DrawsKeys):
        self.cfg = cfg
        width, epsilon = cfg.width, cfg.norm_epsilon
        by_decoder = cfg.encoder == "decoder"
        self.norm_attention = RMSNorm(width, epsilon)
        self.attention = _attention(cfg, keys, cross=False)
        self.norm_cross = RMSNorm(width, epsilon) if reads_neighbours else None
        # The encoder normalises what it gives; a decoder's hidden states are as they are.
        self.norm_source = (
            RMSNorm(width, epsilon) if reads_neighbours and by_decoder else None
        )
        self.cross = _attention(cfg, keys, cross=True) if reads_neighbours else None
        self.norm_ffw = RMSNorm(width, epsilon)
        self.ffw = FeedForward(
            width,
            cfg.ffw_width,
            keys=keys,
            out_gain=(2 * cfg.depth) ** -0.5,
            gated=cfg.gated_ffw,
            activation=cfg.ffw_activation,
        )

    def __call__(
        self,
        hidden_BLD,
        segments_BL,
        encoded_BCNRE=None,
        mask_BCMNR=None,
        constant_len: int = 0,
        *,
        has_attended: bool = False,
    ):
        """Updates the hidden states; without encoded neighbours as a plain decoder does.

        Args:
            constant_len: positions at the beginning that no gradient goes through.
            has_attended: whether `attend` has been done before.
        """
        if not has_attended:
            hidden_BLD = self.attend(hidden_BLD, segments_BL)
        if self.cross is not None and encoded_BCNRE is not None:
            hidden_BLD = self.retrieve(hidden_BLD, encoded_BCNRE, mask_BCMNR)
        if constant_len == 0:
            return self.feed_forward(hidden_BLD)
        # Apart, so that backward's products are of the others alone.
        constant_BLD = jax.lax.stop_gradient(hidden_BLD[:, :constant_len])
        others_BLD = hidden_BLD[:, constant_len:]
        return jnp.concatenate(
            [self.feed_forward(constant_BLD), self.feed_forward(others_BLD)], axis=1
        )

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

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs | DrawsKeys):
        """Builds the parameters; raises ValueError if `cfg` is not consistent."""
        cfg.validate()
        self.cfg = cfg
        keys = rngs.params if isinstance(rngs, nnx.Rngs) else rngs
        self.embedding_VD = embedding_table(keys, cfg.vocab_size, cfg.width)
        self.decoder = nnx.List(
            DecoderLayer(cfg, reads_neighbours=layer in cfg.cca_layers, keys=keys)
            for layer in range(1, cfg.depth + 1)
        )
        has_encoder = bool(cfg.cca_layers) and cfg.encoder == "own"
        self.encoder = Encoder(cfg, keys=keys) if has_encoder else None
        self.norm = RMSNorm(cfg.width, cfg.norm_epsilon)
        self.w_read_VD = (
            None
            if cfg.tie_output
            else matrix(keys, (cfg.vocab_size, cfg.width), cfg.width)
        )

    @classmethod
    def from_pretrained(cls, folder_or_name: str | Path, *, dtype: str = "") -> "Retro":
        """The model of an exported folder, or of a name of the Hugging Face hub.

        See `retro_jax.pretrained.from_pretrained`, which this is.
        """
        return retro_jax.from_pretrained(folder_or_name, dtype=dtype)

    def __call__(
        self,
        inputs_BL: Int[Array, "B L"],
        neighbours_BCNR: Int[Array, "B C N R"] | None = None,
        neighbour_lengths_BCN: Int[Array, "B C N"] | None = None,
        segments_BL: Int[Array, "B L"] | None = None,
        encoded_BCNTSE: Float[Array, "B C N T S E"] | None = None,
        lower_BSD: Float[Array, "B _ D"] | None = None,
        *,
        constant_len: int = 0,
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
            lower_BSD: what `lower` made of these tokens and segments before.
            constant_len: positions that no gradient goes through. Where CCA alone is
                trained those before the end of the first chunk may be: they read nothing.
        Returns:
            float32 logits.
        Raises:
            ValueError: if neighbours are given for another number of chunks.
        """
        cfg = self.cfg
        segments_BL = jnp.ones_like(inputs_BL) if segments_BL is None else segments_BL
        found = self.neighbours(neighbours_BCNR, neighbour_lengths_BCN, segments_BL)
        hidden_BLD, opened_BL = lower_BSD, self._opened(segments_BL, 0)
        if hidden_BLD is None:
            hidden_BLD, _ = self.embedded(inputs_BL, segments_BL)
            parts = self._between(0, cfg.depth) if found is None else self._below()
            for part in parts:
                hidden_BLD = part(hidden_BLD, opened_BL)
        encoded = encoded_BCNTSE
        if found is not None and self.encoder is not None:
            # The encoder reads the activations between that layer's two attentions.
            text_BLD = hidden_BLD[:, cfg.num_openers :]
            hidden_BCMD = chunked_attention.chunks(text_BLD, cfg.chunk_len)
            encoded = self.encoder(found, hidden_BCMD, self.embedding_VD[...])
        goes_on = found is not None or lower_BSD is not None  # above `lower`
        constant = constant_len + cfg.num_openers if constant_len else 0
        for number, end, memory, above in self._readings(found, encoded, goes_on):
            read = self.decoder[number - 1]
            hidden_BLD = read(
                hidden_BLD, opened_BL, *memory, constant, has_attended=True
            )
            for part in self._between(number, end):
                hidden_BLD = part(hidden_BLD, opened_BL, *above, constant)
            if end < cfg.depth:
                hidden_BLD = self.decoder[end].attend(hidden_BLD, opened_BL)
        return self._logits(hidden_BLD[:, cfg.num_openers :], constant_len)

    def _logits(self, hidden_BLD, constant_len: int):
        """Normalises and reads out; no gradient goes through the first positions."""
        hidden_BLD = self.norm(hidden_BLD)
        if constant_len == 0:
            return self.read_out(hidden_BLD)
        # Apart, so that backward's products are of the others alone.
        constant_BLD = jax.lax.stop_gradient(hidden_BLD[:, :constant_len])
        others_BLD = hidden_BLD[:, constant_len:]
        return jnp.concatenate(
            [self.read_out(constant_BLD), self.read_out(others_BLD)], axis=1
        )

    def read_out(self, hidden_BLD: Float[Array, "B L D"]) -> Float[Array, "B L V"]:
        """Logits of hidden states, in float32."""
        weights = self.embedding_VD if self.w_read_VD is None else self.w_read_VD
        return project("BLD,VD->BLV", hidden_BLD, weights[...], dtype=jnp.float32)

    def embedded(self, tokens_BL, segments_BL):
        """Embeddings of tokens, behind the one that opens every sequence if there is one."""
        cfg = self.cfg
        if cfg.bos_id is not None:
            tokens_BL = self._opened(tokens_BL, cfg.bos_id)
            segments_BL = self._opened(segments_BL, 0)
        dtype, scaled = activation_dtype(cfg), cfg.scale_embeddings
        return embed(
            self.embedding_VD[...], tokens_BL, dtype, scaled=scaled
        ), segments_BL

    def _opened(self, values_BL, opener: int):
        """One more value in front of each row, if a token opens every sequence."""
        before = ((0, 0), (self.cfg.num_openers, 0))
        return jnp.pad(values_BL, before, constant_values=opener)

    def _between(self, start: int, stop: int):
        """The layers from `start` to before `stop`, counted from 0, as they are run."""
        return stack.loops(list(self.decoder)[start:stop], scan=self.cfg.scan_layers)

    def lower(
        self, inputs_BL: Int[Array, "B L"], segments_BL: Int[Array, "B L"]
    ) -> Float[Array, "B S D"]:
        """The hidden states that the first cross-attention adds to.

        What is given depends neither on neighbours nor on CCA's parameters.

        Returns:
            What the first layer with CCA has after its self-attention. S is L, and one
            more if a token opens every sequence.
        """
        hidden_BLD, segments_BL = self.embedded(inputs_BL, segments_BL)
        for part in self._below():
            hidden_BLD = part(hidden_BLD, segments_BL)
        return hidden_BLD

    def last(
        self, inputs_BL: Int[Array, "B L"], segments_BL: Int[Array, "B L"]
    ) -> Float[Array, "B L D"]:
        """The hidden states that `read_out` reads, where no neighbours are read."""
        hidden_BLD, opened_BL = self.embedded(inputs_BL, segments_BL)
        for part in self._between(0, self.cfg.depth):
            hidden_BLD = part(hidden_BLD, opened_BL)
        return self.norm(hidden_BLD[:, self.cfg.num_openers :])

    def _below(self) -> list:
        """What runs below the first cross-attention."""
        first = min(self.cfg.cca_layers) - 1
        return [*self._between(0, first), self.decoder[first].attend]

    def _readings(self, found: Neighbours | None, encoded, goes_on: bool) -> list:
        """Gives where neighbours are read above `lower`, and what.

        Each is the number of a layer, that of the last layer before the next such one, what
        the layer reads and what those between read.

        A decoder that encodes neighbours itself reads another level in each layer with CCA.
        """
        cfg, numbers, nothing = self.cfg, sorted(self.cfg.cca_layers), (None, None)
        if found is None:
            return [(numbers[0], cfg.depth, nothing, nothing)] if goes_on else []
        if self.encoder is not None:
            memory = (encoded, found.mask_BCMNR)
            return [(numbers[0], cfg.depth, memory, memory)]
        encoded_BCNTSE = self.encoded(found) if encoded is None else encoded
        encoded_BCNTSE = encoded_BCNTSE[:, : found.tokens_BCNR.shape[1]]
        ends = [*(number - 1 for number in numbers[1:]), cfg.depth]
        return [
            (number, end, (encoded_BCNTSE[:, :, :, place], found.mask_BCMNR), nothing)
            for place, (number, end) in enumerate(zip(numbers, ends, strict=True))
        ]

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
