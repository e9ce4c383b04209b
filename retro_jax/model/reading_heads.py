"""How much each head of cross-attention looks at passages, and not at their openers.

The token that opens a passage holds nothing to copy: attention that rests there is that of
a head which has found nothing to read. Letters here: T layers with CCA, lowest first; B rows are all chunks in `_shares`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from retro_jax.config import ModelConfig
from retro_jax.model import chunked_attention, parameters
from retro_jax.model.attention import attention_weights
from retro_jax.model.encoder import Neighbours
from retro_jax.model.retro import DecoderLayer


def passage_attention(
    cfg: ModelConfig, params: parameters.Parameters, batch
) -> Float[np.ndarray, "T H"]:
    """Measures the mean share of attention that heads give to the words of passages.

    The mean is over the positions that have a passage to read; NaN if none has.

    Args:
        cfg: whose decoder reads neighbours itself.
        batch: inputs, segments, neighbours and their lengths; with `encoded_BCNTSE`, if
            the neighbours have been read before.
    """
    names = ("inputs_BL", "segments_BL", "neighbours_BCNR", "neighbour_lengths_BCN")
    given = {name: batch[name] for name in (*names, "encoded_BCNTSE") if name in batch}
    return np.asarray(_passage_attention(cfg, params, given))


@functools.partial(jax.jit, static_argnums=0)
def _passage_attention(cfg: ModelConfig, params, batch):
    model = parameters.rebuild(cfg, params)
    found = model.neighbours(
        batch["neighbours_BCNR"], batch["neighbour_lengths_BCN"], batch["segments_BL"]
    )
    assert found is not None, "a batch without neighbours"
    encoded_BCNTSE = batch.get("encoded_BCNTSE")
    if encoded_BCNTSE is None:
        encoded_BCNTSE = model.encoded(found)
    hidden_BLD = model.lower(batch["inputs_BL"], batch["segments_BL"])
    _, segments_BL = model.embedded(batch["inputs_BL"], batch["segments_BL"])
    shares, before = [], None
    for place, number in enumerate(sorted(cfg.cca_layers)):
        layer, source_BCNSE = model.decoder[number - 1], encoded_BCNTSE[:, :, :, place]
        if before is not None:
            for between in list(model.decoder)[before : number - 1]:
                hidden_BLD = between(hidden_BLD, segments_BL)
            hidden_BLD = layer.attend(hidden_BLD, segments_BL)
        shares.append(_shares(layer, hidden_BLD, source_BCNSE, found))
        hidden_BLD = layer(
            hidden_BLD, segments_BL, source_BCNSE, found.mask_BCMNR, has_attended=True
        )
        before = number
    return jnp.stack(shares)


def _shares(layer: DecoderLayer, hidden_BLD, source_BCNSE, found: Neighbours):
    """A layer's mean share by head, as its `retrieve` attends."""
    assert layer.cross and layer.norm_cross and layer.norm_source, "a layer without CCA"
    first, chunk_len = layer.cfg.num_openers, layer.cfg.chunk_len
    attending_BCMD = chunked_attention.attending_chunks(
        layer.norm_cross(hidden_BLD)[:, first:], chunk_len
    )
    source_BCNSE = layer.norm_source(source_BCNSE.astype(hidden_BLD.dtype))
    mask_BMNS = found.mask_BCMNR.reshape(-1, *found.mask_BCMNR.shape[2:])
    weights_BHMNS = attention_weights(
        layer.cross,
        attending_BCMD.reshape(-1, *attending_BCMD.shape[2:]),
        source_BCNSE.reshape(-1, *source_BCNSE.shape[2:]),
        mask_BMNS,
        layer.cfg.cca_distance,
    )
    reads_BM = mask_BMNS.any(axis=(2, 3))
    share_BHM = weights_BHMNS[..., first:].astype(jnp.float32).sum(axis=(3, 4))
    return (share_BHM * reads_BM[:, None]).sum(axis=(0, 2)) / reads_BM.sum()
