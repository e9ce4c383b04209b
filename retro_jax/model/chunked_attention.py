"""The causal alignment of a sequence's chunks with their neighbours, and nothing else.

Chunk c's neighbours were found with all of chunk c, so the first position that may read
them is the chunk's last one. Chunked cross-attention therefore cuts the sequence into
*attending chunks*, which begin M - 1 places later than the chunks themselves:

    position   0 ... M-2 | M-1 ... 2M-2 | 2M-1 ... 3M-2 | ...
    reads      nothing   | chunk 0's    | chunk 1's     | neighbours

Source: Borgeaud et al. 2022, section 2.4 and listing 1.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped


def chunks(x_BLD: Shaped[Array, "B L D"], chunk_len: int) -> Shaped[Array, "B C M D"]:
    """The complete chunks, C = L // M; an incomplete last one has no readers."""
    batch, length, width = x_BLD.shape
    num_chunks = length // chunk_len
    complete = x_BLD[:, : num_chunks * chunk_len]
    return complete.reshape(batch, num_chunks, chunk_len, width)


def attending_chunks(
    x_BLD: Shaped[Array, "B L D"], chunk_len: int
) -> Shaped[Array, "B C M D"]:
    """The positions that read each complete chunk's neighbours; zeros after the last."""
    batch, length, width = x_BLD.shape
    num_chunks = length // chunk_len
    padding = num_chunks * chunk_len - (length - (chunk_len - 1))
    padded = jnp.pad(x_BLD[:, chunk_len - 1 :], ((0, 0), (0, padding), (0, 0)))
    return padded.reshape(batch, num_chunks, chunk_len, width)


def rejoin(
    update_BCMD: Shaped[Array, "B C M D"], length: int
) -> Shaped[Array, "B L D"]:
    """Attending chunks back in their places; zeros in the first M - 1 positions."""
    batch, num_chunks, chunk_len, width = update_BCMD.shape
    update = update_BCMD.reshape(batch, num_chunks * chunk_len, width)
    update = update[:, : length - (chunk_len - 1)]
    return jnp.pad(update, ((0, 0), (chunk_len - 1, 0), (0, 0)))


def readers_mask(
    segments_BL: Int[Array, "B L"], chunk_len: int
) -> Bool[Array, "B C M"]:
    """Which positions of each attending chunk belong to the document of its chunk.

    The others (the next document's opening, padding) must not read the neighbours. A
    chunk holds one document and padding, at its end or, in a prompt, at its start.
    Source: ours; the paper does not say how it packs documents.
    """
    readers_BCM = attending_chunks(segments_BL[..., None], chunk_len)[..., 0]
    read_BC1 = jnp.max(chunks(segments_BL[..., None], chunk_len), axis=2)
    return (readers_BCM == read_BC1) & (readers_BCM > 0)
