"""kNN-LM over the passages that were found: what a model gains from them without reading any.

The hidden state before each token of a passage is a key, and that token its value. A
position's own hidden state looks for near keys among the passages that cross-attention would
read there, and what it finds is mixed with what the decoder alone says:

    p(w) = (1 - share) p_decoder(w) + share * sum of softmax(-d^2 / T) over keys with value w

Source: Khandelwal et al. 2020 (arXiv 1911.00172). Theirs looks among all tokens of a database;
ours among those of the N passages, so that it has what the other conditions have.

Letters here: K keys of an attending chunk, X chunks.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from retro_jax.config import ModelConfig
from retro_jax.devices import sharding
from retro_jax.evaluation import ChunkLosses, summed_by_chunk
from retro_jax.model import chunked_attention, parameters
from retro_jax.numerics.token_loss import cross_entropy
from retro_jax.training.batch import Batch


class Mixture(NamedTuple):
    """How what is near is mixed in.

    Attributes:
        share: of the mixture; the decoder has the rest.
        temperature: of the distances, as a part of a key's squared length.
    """

    share: float
    temperature: float


MIXTURES = tuple(
    itertools.starmap(Mixture, itertools.product((0.1, 0.25, 0.5), (0.02, 0.05, 0.15)))
)


def chunk_losses(
    cfg: ModelConfig,
    params: parameters.Parameters,
    mesh,
    batches: Iterable[Batch],
    *,
    mixtures: tuple[Mixture, ...] = MIXTURES,
    advance: Callable[[int], None] = lambda sequences: None,
) -> dict[Mixture, ChunkLosses]:
    """What each mixture loses on every chunk; one pass of the decoder makes all of them.

    Args:
        batches: with neighbours; a chunk without any has the decoder's loss.
        advance: called with the number of sequences done.
    """

    def sums(mine: Batch, has_neighbours: bool):
        del has_neighbours  # an absent one has no keys
        return _sums(cfg, mixtures, params, sharding.to_devices(mine, mesh))

    joined, documents_X = summed_by_chunk(mesh, batches, sums, advance)
    return {
        mixture: ChunkLosses(
            joined[f"nats {number}"], joined["bytes"], joined["tokens"], documents_X
        )
        for number, mixture in enumerate(mixtures)
    }


def chosen_by_halves(
    losses: Mapping[Mixture, ChunkLosses],
) -> tuple[ChunkLosses, tuple[Mixture, ...]]:
    """The loss of half of the documents with what is best on the other half, and what it is.

    So no document has a say in how it is measured itself.
    """
    any_of = next(iter(losses.values()))
    _, rows = np.unique(any_of.documents_X, return_inverse=True)
    is_odd_X = rows % 2 == 1
    chosen = tuple(
        min(losses, key=lambda mixture: losses[mixture].loss_nats_X[others].sum())
        for others in (is_odd_X, ~is_odd_X)
    )
    even, odd = (losses[mixture].loss_nats_X for mixture in chosen)
    nats_X = np.where(is_odd_X, odd, even)
    return (
        ChunkLosses(nats_X, any_of.bytes_X, any_of.tokens_X, any_of.documents_X),
        chosen,
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sums(cfg: ModelConfig, mixtures: tuple[Mixture, ...], params, batch):
    model = parameters.rebuild(cfg, params)
    inputs_BL, targets_BL = batch["inputs_BL"], batch["targets_BL"]
    segments_BL, weights_BL = batch["segments_BL"], batch["loss_weights_BL"]
    hidden_BLD = model.last(inputs_BL, segments_BL)
    alone_BL = cross_entropy(model.read_out(hidden_BLD), targets_BL)
    tokens_BCNR = batch["neighbours_BCNR"]
    keys_BCKD = _keys(model, tokens_BCNR)
    values_BCK, is_key_BCK = _values(tokens_BCNR, batch["neighbour_lengths_BCN"])
    # As long as a normalised state is: distances of unlike states are about twice that.
    length = jnp.sum(jnp.square(model.norm.scale_D[...]))
    nearness_BCMK = _nearness(cfg, hidden_BLD, keys_BCKD) / length
    readers_BCM = chunked_attention.readers_mask(segments_BL, cfg.chunk_len)
    readable_BCMK = readers_BCM[..., None] & is_key_BCK[:, :, None]
    targets_BCM = chunked_attention.attending_chunks(
        targets_BL[..., None], cfg.chunk_len
    )[..., 0]
    is_target_BCMK = targets_BCM[..., None] == values_BCK[:, :, None]

    def by_chunk(values_BL):
        return values_BL.reshape(len(values_BL), -1, cfg.chunk_len).sum(axis=-1)

    sums = {
        "bytes": by_chunk(batch["target_bytes_BL"] * weights_BL),
        "tokens": by_chunk(weights_BL),
    }
    for number, (share, temperature) in enumerate(mixtures):
        logits_BCMK = jnp.where(readable_BCMK, nearness_BCMK / temperature, -jnp.inf)
        found_BCM = _share_of(logits_BCMK, is_target_BCMK)
        # NaN where there is no key.
        found_BL = chunked_attention.rejoin(found_BCM[..., None], inputs_BL.shape[1])
        has_keys_BL = chunked_attention.rejoin(
            readable_BCMK.any(axis=-1)[..., None], inputs_BL.shape[1]
        )
        mixed_BL = -jnp.log((1 - share) * jnp.exp(-alone_BL) + share * found_BL[..., 0])
        nats_BL = jnp.where(has_keys_BL[..., 0], mixed_BL, alone_BL)
        sums[f"nats {number}"] = by_chunk(
            jnp.where(weights_BL > 0, nats_BL * weights_BL, 0.0)
        )
    return sums


def _keys(model, tokens_BCNR):
    """The states behind each token of each passage, which is read as a text of its own."""
    batch, num_chunks, num_neighbours, passage_len = tokens_BCNR.shape
    tokens_BTR = tokens_BCNR.reshape(batch, -1, passage_len)

    def read(tokens_BR):
        return model.last(tokens_BR, jnp.ones_like(tokens_BR))[:, :-1]

    # One after the other: all at once would need the memory of so many sequences.
    keys_TBRD = jax.lax.map(read, tokens_BTR.swapaxes(0, 1))
    keys_BTRD = keys_TBRD.swapaxes(0, 1).astype(jnp.float32)
    return keys_BTRD.reshape(
        batch, num_chunks, num_neighbours * (passage_len - 1), keys_BTRD.shape[-1]
    )


def _values(tokens_BCNR, lengths_BCN):
    """The token behind each key, and whether it is one."""
    shape = (*tokens_BCNR.shape[:2], -1)
    places_R = jnp.arange(1, tokens_BCNR.shape[-1])
    is_text_BCNR = places_R < lengths_BCN[..., None]
    return tokens_BCNR[..., 1:].reshape(shape), is_text_BCNR.reshape(shape)


def _nearness(cfg: ModelConfig, hidden_BLD, keys_BCKD):
    """Minus the squared distances, but for a part that is the same for all keys."""
    queries_BCMD = chunked_attention.attending_chunks(
        hidden_BLD.astype(jnp.float32), cfg.chunk_len
    )
    products = jnp.einsum("BCMD,BCKD->BCMK", queries_BCMD, keys_BCKD)
    return 2 * products - jnp.square(keys_BCKD).sum(axis=-1)[:, :, None]


def _share_of(logits_BCMK, is_target_BCMK):
    """The share of the softmax that keys of the target have; NaN without keys."""
    of_target = jnp.where(is_target_BCMK, logits_BCMK, -jnp.inf)
    whole = jax.nn.logsumexp(logits_BCMK, axis=-1)
    return jnp.exp(jax.nn.logsumexp(of_target, axis=-1) - whole)
