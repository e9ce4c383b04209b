"""One token at a time: the keys and values of a text are kept, not computed again.

`filled` reads a text that is there already, `step` one token more, `steps` several that are
known. All compute what `Retro.__call__` does at these positions. A token that completes a
chunk comes with the chunk's neighbours: it is the first that reads them, and they are
encoded in that step.

A cache has the shape of the longest text that the model was trained on, whatever is in it,
so one step is compiled. Each row has a place of its own for the next token, counted from
the row's beginning, so a row does not depend on what else is in the batch. Places within a
chunk are those of all rows: prompts are padded so that they end with a chunk.

Letters here: S slots of a cache, those of opening tokens included, or keys of a neighbour.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from retro_jax.model import chunked_attention, positions
from retro_jax.model.attention import Attention
from retro_jax.model.encoder import Neighbours
from retro_jax.model.layers import RMSNorm, activation_dtype, embed
from retro_jax.model.retro import DecoderLayer, Retro
from retro_jax.numerics import attention_products
from retro_jax.numerics.activations import masked_softmax
from retro_jax.numerics.projections import plus, project

KeysAndValues = tuple[jax.Array, jax.Array]  # [B N S H K], with as many H as keys have


class Cache(NamedTuple):
    """What a text leaves behind for the tokens after it.

    Attributes:
        layers: keys and values of each layer's self-attention; N is 1.
        is_text_BS: slots that hold text, an opening token counted as text.
        num_tokens_B: places that are taken, padding of the first chunk included.
        chunk_BMD: activations of the last chunk that an encoder of its own will read.
        read: keys and values of the neighbours that are read now, one for each layer with
            CCA; None where nothing is.
        readable_BNS: what of them is text.
    """

    layers: tuple[KeysAndValues, ...]
    is_text_BS: Bool[Array, "B S"]
    num_tokens_B: Int[Array, " B"]
    chunk_BMD: Float[Array, "B M D"] | None
    read: tuple[KeysAndValues, ...] | None
    readable_BNS: Bool[Array, "B N S"] | None


class Distances(NamedTuple):
    """What each distance gives to a logit, of the self- and cross-attention of a layer.

    None where positions are no relative ones. They depend on parameters alone, so they are
    made once for a text.
    """

    own_PHK: Float[Array, "P H K"] | None
    cross_PHK: Float[Array, "P H K"] | None


def distances(model: Retro, num_places: int) -> tuple[Distances, ...]:
    """The distances of each layer in a cache with so many places.

    Those of self-attention begin with 0, those of cross-attention with the last key's.
    """
    cfg = model.cfg
    first, end = cfg.neighbour_span
    num_slots = num_places + cfg.num_openers
    in_cca = jnp.arange(first - end + 1, cfg.chunk_len) + cfg.cca_distance
    return tuple(
        Distances(
            _of_distances(layer.attention, jnp.arange(num_slots), model),
            None if layer.cross is None else _of_distances(layer.cross, in_cca, model),
        )
        for layer in model.decoder
    )


def _of_distances(attention: Attention, distances_P, model: Retro):
    if attention.w_r_DHK is None:
        return None
    width = attention.w_r_DHK.shape[0]
    sinusoid_PD = positions.sinusoids(distances_P.astype(jnp.float32), width)
    dtype = activation_dtype(model.cfg)
    return project("PD,DHK->PHK", sinusoid_PD.astype(dtype), attention.w_r_DHK)


def filled(
    model: Retro,
    inputs_BL: Int[Array, "B L"],
    segments_BL: Int[Array, "B L"],
    num_tokens_B: Int[Array, " B"],
    num_places: int,
    found: Neighbours | None,
    encoded_BCNTSE: Float[Array, "B C N T S E"] | None,
) -> Cache:
    """The cache after the first `num_tokens_B` - 1 tokens of each row, one at least.

    The last token is left to `step`, which gives its logits and reads its neighbours.

    Args:
        inputs_BL: whole chunks of text, which may be followed by padding.
        segments_BL: 1 for text, 0 for padding before and behind it.
        num_places: most tokens that the cache will hold, at least L.
        found: neighbours of the C chunks of `inputs_BL`.
        encoded_BCNTSE: what a decoder that reads neighbours itself made of them; it
            reads them now, if not given.
    """
    cfg, taken = model.cfg, []
    hidden_BLD, opened_BL = model.embedded(inputs_BL, segments_BL)
    chunk_BCMD = None
    for place, layer in enumerate(model.decoder, 1):
        normed_BLD = layer.norm_attention(hidden_BLD)
        kept = layer.attention.keys_and_values(normed_BLD[:, None])
        taken.append(kept)
        hidden_BLD += layer.attention(normed_BLD, kept, layer.visible(opened_BL))
        if place == min(cfg.cca_layers, default=0) and model.encoder is not None:
            chunk_BCMD = chunked_attention.chunks(
                hidden_BLD[:, cfg.num_openers :], cfg.chunk_len
            )
        if layer.cross is not None and found is not None:
            if encoded_BCNTSE is None:
                encoded_BCNTSE = _encoded(model, found, chunk_BCMD)
            source_BCNSE = _level(model, encoded_BCNTSE, place)
            hidden_BLD = layer.retrieve(hidden_BLD, source_BCNSE, found.mask_BCMNR)
        hidden_BLD = layer.feed_forward(hidden_BLD)
    length, last_B = inputs_BL.shape[1], num_tokens_B // cfg.chunk_len - 1
    if chunk_BCMD is not None:
        which_B111 = jnp.maximum(last_B, 0)[:, None, None, None]
        chunk_BCMD = jnp.take_along_axis(chunk_BCMD, which_B111, axis=1)
    is_text_BL = (segments_BL > 0) & (jnp.arange(length) < num_tokens_B[:, None] - 1)
    missing, opener = num_places - length, cfg.num_openers
    is_text_BS = jnp.pad(is_text_BL, ((0, 0), (opener, missing)))
    return Cache(
        tuple((_with_room(k, missing), _with_room(v, missing)) for k, v in taken),
        is_text_BS.at[:, :opener].set(True),
        num_tokens_B - 1,
        None if chunk_BCMD is None else chunk_BCMD[:, 0],
        None,
        None,
    )


def _with_room(x_BNSHK, num_slots: int):
    return jnp.pad(x_BNSHK, ((0, 0), (0, 0), (0, num_slots), (0, 0), (0, 0)))


def _encoded(
    model: Retro, found: Neighbours, chunk_BCMD
) -> Float[Array, "B C N T S E"]:
    """Encodes neighbours; an encoder of its own gives all layers the same."""
    if model.encoder is None:
        return model.encoded(found)
    table_VD = model.embedding_VD[...]
    return model.encoder(found, chunk_BCMD, table_VD)[:, :, :, None]


def _level(model: Retro, encoded_BCNTSE, layer: int) -> Float[Array, "B C N S E"]:
    """What a layer with CCA reads, by its number from 1."""
    level = sorted(model.cfg.cca_layers).index(layer) if model.encoder is None else 0
    return encoded_BCNTSE[:, :, :, level]


def step(
    model: Retro,
    table: tuple[Distances, ...],
    cache: Cache,
    token_B: Int[Array, " B"],
    place: Int[Array, ""] | int,
    found: Neighbours | None = None,
    encoded_BCNTSE: Float[Array, "B 1 N T S E"] | None = None,
) -> tuple[Cache, Float[Array, "B V"], Float[Array, "B N"] | None]:
    """Reads one token of each row.

    Args:
        table: `distances` of the cache.
        place: of the token in its chunk.
        found: neighbours of the chunk that the token completes, as one chunk.
        encoded_BCNTSE: see `filled`.
    Returns:
        The cache with this token; the logits of the next; and how much each neighbour is
        attended to, as a mean over layers and heads (None if nothing is read).
    """
    reading = _Reading(model, cache, place, found, encoded_BCNTSE)
    after, logits_BLV = _read(model, table, cache, token_B[:, None], reading)
    mass_BN = None if reading.mass_BLN is None else reading.mass_BLN[:, 0]
    return after, logits_BLV[:, 0], mass_BN


def steps(
    model: Retro,
    table: tuple[Distances, ...],
    cache: Cache,
    tokens_BL: Int[Array, "B L"],
    place: Int[Array, ""] | int,
) -> tuple[Cache, Float[Array, "B L V"]]:
    """Reads tokens of each row that are there already, as one `step` after the other would.

    Args:
        tokens_BL: of one chunk. All read the neighbours that the cache holds, so the logits
            after one that completes the chunk, and the cache then, are of no meaning.
        place: of the first of them in the chunk.
    Returns:
        The cache with them, and the logits after each.
    """
    reading = _Reading(model, cache, place, None, None)
    return _read(model, table, cache, tokens_BL, reading)


def _read(
    model: Retro,
    table: tuple[Distances, ...],
    cache: Cache,
    tokens_BL: Int[Array, "B L"],
    reading: "_Reading",
) -> tuple[Cache, Float[Array, "B L V"]]:
    """The cache with these tokens, and the logits after each of them."""
    cfg, (batch, length) = model.cfg, tokens_BL.shape
    hidden_BLD = embed(
        model.embedding_VD[...],
        tokens_BL,
        activation_dtype(cfg),
        scaled=cfg.scale_embeddings,
    )
    first_B = cache.num_tokens_B + cfg.num_openers
    slot_BL = first_B[:, None] + jnp.arange(length)
    rows_B1 = jnp.arange(batch)[:, None]
    is_text_BS = cache.is_text_BS.at[rows_B1, slot_BL].set(True)
    past_BLS = slot_BL[..., None] - jnp.arange(is_text_BS.shape[1])
    visible_BLS = is_text_BS[:, None] & (past_BLS >= 0)
    if cfg.window_len is not None:
        visible_BLS &= past_BLS < cfg.window_len
    layers = []
    for number, layer in enumerate(model.decoder):
        attention, normed_BLD = layer.attention, layer.norm_attention(hidden_BLD)
        new = attention.keys_and_values(normed_BLD[:, None], first_B[:, None, None])
        layers.append(_written(cache.layers[number], new, slot_BL))
        attended_BLHK, _ = _attended(
            attention,
            attention.queries(normed_BLD, first_B[:, None]),
            layers[-1],
            visible_BLS[:, :, None],
            table[number].own_PHK,
            jnp.maximum(past_BLS, 0),
        )
        hidden_BLD += attention.update(attended_BLHK)
        hidden_BLD = reading.retrieved(layer, number, hidden_BLD, table)
        hidden_BLD = layer.feed_forward(hidden_BLD)
    logits_BLV = model.read_out(model.norm(hidden_BLD))
    after = Cache(
        tuple(layers),
        is_text_BS,
        cache.num_tokens_B + length,
        reading.chunk_BMD,
        tuple(reading.read) or None,
        reading.readable_BNS,
    )
    return after, logits_BLV


def _written(layer: KeysAndValues, new: KeysAndValues, slot_BL) -> KeysAndValues:
    """Keys and values with those of each row's new tokens in their slots."""
    rows_B1 = jnp.arange(len(slot_BL))[:, None]
    keys, values = (
        kept.at[rows_B1, 0, slot_BL].set(x_BNSHK[:, 0])
        for kept, x_BNSHK in zip(layer, new, strict=True)
    )
    return keys, values


class _Reading:
    """The cross-attention of some tokens, layer by layer."""

    def __init__(self, model: Retro, cache: Cache, place, found, encoded_BCNTSE):
        self._model, self._place, self._found = model, place, found
        self._encoded_BCNTSE = encoded_BCNTSE
        self.chunk_BMD, self.readable_BNS = cache.chunk_BMD, cache.readable_BNS
        self.read: list[KeysAndValues] = []
        self.mass_BLN: Array | None = None
        self._kept = list(cache.read or ())
        # In its attending chunk: the token that completes a chunk is the first.
        self._query = place + 1
        if found is not None:
            self._kept, self._query = [], 0
            self.readable_BNS = found.mask_BCMNR[:, 0, 0]

    def retrieved(self, layer: DecoderLayer, number: int, hidden_BLD, table):
        """Adds what tokens read in the neighbours, as `DecoderLayer.retrieve` does."""
        if layer.cross is None or layer.norm_cross is None:
            return hidden_BLD
        cfg, is_first = self._model.cfg, number + 1 == min(self._model.cfg.cca_layers)
        if is_first and self.chunk_BMD is not None:
            self.chunk_BMD = jax.lax.dynamic_update_slice(
                self.chunk_BMD, hidden_BLD, (0, self._place, 0)
            )
        kept = self._keys_and_values(layer.cross, layer.norm_source, number)
        if kept is None or self.readable_BNS is None:
            return hidden_BLD
        self.read.append(kept)
        query_BLHK = layer.cross.queries(
            layer.norm_cross(hidden_BLD), self._query + cfg.cca_distance
        )
        num_keys, length = kept[0].shape[2], hidden_BLD.shape[1]
        query_L = self._query + jnp.arange(length)
        attended_BLHK, mass_BLN = _attended(
            layer.cross,
            query_BLHK,
            kept,
            self.readable_BNS[:, None],
            table[number].cross_PHK,
            (query_L[:, None] + num_keys - 1 - jnp.arange(num_keys))[None],
        )
        mass_BLN = mass_BLN / len(cfg.cca_layers)
        self.mass_BLN = mass_BLN if self.mass_BLN is None else self.mass_BLN + mass_BLN
        return hidden_BLD + layer.cross.update(attended_BLHK)

    def _keys_and_values(
        self, cross: Attention, norm_source: RMSNorm | None, number: int
    ) -> KeysAndValues | None:
        """Those of the last complete chunk's neighbours; None if there are none."""
        if self._found is None:
            return self._kept[len(self.read)] if self._kept else None
        if self._encoded_BCNTSE is None:
            chunk_BCMD = None if self.chunk_BMD is None else self.chunk_BMD[:, None]
            self._encoded_BCNTSE = _encoded(self._model, self._found, chunk_BCMD)
        source_BNSE = _level(self._model, self._encoded_BCNTSE, number + 1)[:, 0]
        if norm_source is not None:
            dtype = activation_dtype(self._model.cfg)
            source_BNSE = norm_source(source_BNSE.astype(dtype))
        return cross.keys_and_values(source_BNSE)


def _attended(
    attention: Attention,
    query_BLHK: Float[Array, "B L H K"],
    kept: KeysAndValues,
    visible_BLNS: Bool[Array, "B _ N S"],
    distances_PHK: Float[Array, "P H K"] | None,
    which_BLS: Int[Array, "#B L S"],
) -> tuple[Float[Array, "B L H K"], Float[Array, "B L N"]]:
    """What some queries of each row read, and their mean weight over heads on each group.

    Args:
        which_BLS: each key's entry in `distances_PHK`.
    """
    key_BNSHK, value_BNSHK = kept
    batch, length, num_heads, size = query_BLHK.shape
    num_keys = key_BNSHK.shape[3]
    num_shared = num_heads // num_keys

    def by_key(x_BLHK):
        """Heads that share a key stand where further queries would."""
        x_BLHK = x_BLHK.reshape(batch, length, num_keys, num_shared, size)
        return x_BLHK.swapaxes(2, 3).reshape(batch, -1, num_keys, size)

    content_BLHK = query_BLHK
    if distances_PHK is not None:
        content_BLHK = plus(query_BLHK, attention.bias_content_HK)
    logits_BHLNS = attention_products.logits(by_key(content_BLHK), key_BNSHK)
    if distances_PHK is not None:
        place_BLHK = plus(query_BLHK, attention.bias_position_HK)
        of_distances_BHLP = attention_products.logits(
            place_BLHK, distances_PHK[None, None]
        )[:, :, :, 0]
        num_slots = which_BLS.shape[2]
        which_BLS = jnp.broadcast_to(which_BLS, (batch, length, num_slots))
        of_keys_BHLS = jnp.take_along_axis(
            of_distances_BHLP, which_BLS[:, None], axis=3
        )
        shape = (batch, num_keys, num_shared, length, num_slots)
        of_keys_BHLS = of_keys_BHLS.reshape(shape).swapaxes(2, 3)
        logits_BHLNS += of_keys_BHLS.reshape(batch, num_keys, -1, 1, num_slots)
    weights_BHLNS = masked_softmax(
        logits_BHLNS * size**-0.5,
        jnp.repeat(
            jnp.broadcast_to(visible_BLNS, (batch, length, *visible_BLNS.shape[2:])),
            num_shared,
            axis=1,
        )[:, None],
        key_BNSHK.dtype,
    )
    read_BLHK = attention_products.read(weights_BHLNS, value_BNSHK)
    read_BLHK = read_BLHK.reshape(batch, length, num_shared, num_keys, size)
    mass_BHLN = weights_BHLNS.astype(jnp.float32).sum(axis=-1)
    mass_BLN = mass_BHLN.reshape(
        batch, num_keys, length, num_shared, mass_BHLN.shape[-1]
    ).sum(axis=(1, 3))
    return read_BLHK.swapaxes(2, 3).reshape(query_BLHK.shape), mass_BLN / num_heads
