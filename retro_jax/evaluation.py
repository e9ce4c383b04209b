"""Bits per byte on held-out text, with retrieval and without, and how sure they are.

Bits per byte compare models over tokenizers. Chunks of a document are not independent,
so uncertainty comes from drawing whole documents anew (bootstrap). Two conditions are
compared on the same documents, draw by draw, which removes how hard the documents are.

Letters here: X chunks of a split, D documents.
"""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from retro_jax.config import ModelConfig
from retro_jax.devices import sharding
from retro_jax.model.layers import activation_dtype
from retro_jax.runs import metrics
from retro_jax.training.batch import Batch, model_inputs, without_neighbours
from retro_jax.training.encodings import Encodings
from retro_jax.training.step import logits, token_losses

NUM_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True, slots=True)
class ChunkLosses:
    """What a model lost on each chunk of a split, in the order of the batches.

    Attributes:
        loss_nats_X: summed over the chunk's scored targets.
        bytes_X: UTF-8 bytes of those targets.
        tokens_X: how many they are; 0 for padding.
        documents_X: the document of each chunk.
    """

    loss_nats_X: Float[np.ndarray, " X"]
    bytes_X: Float[np.ndarray, " X"]
    tokens_X: Float[np.ndarray, " X"]
    documents_X: Int[np.ndarray, " X"]

    def bits_per_byte(self, keep_X: np.ndarray | None = None) -> float:
        """Bits per byte over all chunks, or over some; NaN where there is no text."""
        keep = np.ones(len(self.bytes_X), bool) if keep_X is None else keep_X
        return metrics.bits_per_byte(
            float(self.loss_nats_X[keep].sum()), float(self.bytes_X[keep].sum())
        )

    def perplexity(self, count: float | None = None) -> float:
        """Perplexity of a token, or of whatever the text has so many of; NaN for none."""
        count = float(self.tokens_X.sum()) if count is None else count
        if not count:
            return float("nan")
        return float(np.exp(self.loss_nats_X.sum() / count))

    def where(self, keep_X: np.ndarray) -> "ChunkLosses":
        """The losses of some of the chunks."""
        return ChunkLosses(
            self.loss_nats_X[keep_X],
            self.bytes_X[keep_X],
            self.tokens_X[keep_X],
            self.documents_X[keep_X],
        )

    def by_document(self) -> tuple[np.ndarray, np.ndarray]:
        """Loss in nats and bytes of each document."""
        _, rows = np.unique(self.documents_X, return_inverse=True)
        return (
            np.bincount(rows, weights=self.loss_nats_X),
            np.bincount(rows, weights=self.bytes_X),
        )


def chunk_losses(
    cfg: ModelConfig,
    params,
    mesh,
    batches: Iterable[Batch],
    *,
    retrieval: bool,
    encodings: Encodings | None = None,
    advance: Callable[[int], None] = lambda sequences: None,
) -> ChunkLosses:
    """Losses of every chunk of these batches.

    Args:
        batches: whole batches, also where several processes share the devices.
        retrieval: whether the neighbours in the batches are looked at.
        encodings: what texts and neighbours are read as, where a decoder reads them
            itself.
        advance: called with the number of sequences done, for showing progress.
    """

    def sums(mine: Batch, has_neighbours: bool):
        if not (retrieval and has_neighbours):
            mine = without_neighbours(mine)
        if encodings is not None and activation_dtype(cfg) == jnp.float32:
            mine = encodings.added_to(params, mine)
        elif encodings is not None:
            # Retrieval off is the decoder bit for bit, and XLA keeps more digits of
            # bfloat16 within a program than the kept lower states have.
            mine = encodings.neighbours_added_to(params, mine)
        return _sums_by_chunk(cfg, params, sharding.to_devices(mine, mesh))

    joined, documents_X = summed_by_chunk(mesh, batches, sums, advance)
    return ChunkLosses(joined["nats"], joined["bytes"], joined["tokens"], documents_X)


def summed_by_chunk(
    mesh,
    batches: Iterable[Batch],
    sums: Callable[[Batch, bool], Mapping[str, jax.Array]],
    advance: Callable[[int], None],
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Sums over the chunks of all batches, by name, and the document of each chunk.

    Args:
        sums: gives some of a batch's rows, from this process's rows of it and whether any
            row of any process has neighbours.
        advance: called with the number of sequences done.
    """
    parts: dict[str, list] = defaultdict(list)
    documents = []
    with jax.set_mesh(mesh):
        for batch in batches:
            documents_BC = batch["documents_BC"]
            rows = sharding.local_rows(len(documents_BC), mesh)
            mine = {name: array[rows] for name, array in model_inputs(batch).items()}
            lengths_BCN = batch.get("neighbour_lengths_BCN")
            found = sums(mine, lengths_BCN is not None and bool(lengths_BCN.any()))
            for name, values_BC in sharding.on_host(found).items():
                parts[name].append(values_BC.reshape(-1).astype(np.float64))
            documents.append(documents_BC.reshape(-1))
            # The last batch may be filled up with rows of no document.
            advance(int((documents_BC >= 0).any(axis=1).sum()))
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    return joined, np.concatenate(documents)


def with_neighbours_in_prompt(cfg: ModelConfig, batches: Iterable[Batch]):
    """The bar: the same passages stand before the text, as retrieval-augmented prompts do.

    A batch becomes one for each scored chunk but the first of a sequence: the passages of
    the chunk before it, then the text of its document up to its own end, of which its
    targets alone are scored. Nothing is read by CCA.
    """
    for batch in batches:
        inputs_BL = batch["inputs_BL"]
        num_chunks = inputs_BL.shape[1] // cfg.chunk_len
        chunk_of_L = np.arange(inputs_BL.shape[1]) // cfg.chunk_len
        for chunk in range(1, num_chunks):
            weights_BL = batch["loss_weights_BL"] * (chunk_of_L == chunk)
            if weights_BL.any():
                yield _prompted(batch, chunk, weights_BL, chunk_of_L <= chunk)


def _prompted(batch: Batch, chunk: int, weights_BL, is_seen_L) -> Batch:
    """The batch that scores one chunk behind the passages of the chunk before."""
    tokens_BNR = batch["neighbours_BCNR"][:, chunk - 1]
    lengths_BN = batch["neighbour_lengths_BCN"][:, chunk - 1]
    rows, _, neighbour_len = tokens_BNR.shape
    passages_BP = tokens_BNR.reshape(rows, -1)
    real_BNR = np.arange(neighbour_len) < lengths_BN[..., None]
    segments_BL = batch["segments_BL"]
    chunk_len = segments_BL.shape[1] // batch["documents_BC"].shape[1]
    own_B1 = segments_BL[:, chunk * chunk_len : chunk * chunk_len + 1]
    is_text_BL = (segments_BL == own_B1) & (segments_BL > 0) & is_seen_L
    no_document = np.full((rows, passages_BP.shape[1] // chunk_len), -1)

    def behind_passages(name: str, values_BL):
        return np.concatenate(
            [np.zeros_like(passages_BP, dtype=batch[name].dtype), values_BL], axis=1
        )

    segments = np.concatenate([real_BNR.reshape(rows, -1), is_text_BL], axis=1)
    return {
        "inputs_BL": np.concatenate([passages_BP, batch["inputs_BL"]], axis=1),
        "targets_BL": behind_passages("targets_BL", batch["targets_BL"]),
        "loss_weights_BL": behind_passages("loss_weights_BL", weights_BL),
        "target_bytes_BL": behind_passages("target_bytes_BL", batch["target_bytes_BL"]),
        "segments_BL": segments.astype(segments_BL.dtype),
        "documents_BC": np.concatenate([no_document, batch["documents_BC"]], axis=1),
    }


@functools.partial(jax.jit, static_argnums=0)
def _sums_by_chunk(cfg: ModelConfig, params, batch):
    weights_BL = batch["loss_weights_BL"]
    # Zero weight and a loss that is not finite must give zero, hence not a product.
    losses_BL = token_losses(cfg, params, batch)
    losses_BL = jnp.where(weights_BL > 0, losses_BL * weights_BL, 0.0)

    def by_chunk(values_BL):
        return values_BL.reshape(len(values_BL), -1, cfg.chunk_len).sum(axis=-1)

    return {
        "nats": by_chunk(losses_BL),
        "bytes": by_chunk(batch["target_bytes_BL"] * weights_BL),
        "tokens": by_chunk(weights_BL),
    }


def likeliest_tokens(
    cfg: ModelConfig,
    params,
    mesh,
    batch: Batch,
    *,
    encodings: Encodings | None = None,
) -> np.ndarray:
    """The likeliest next token at each position, without a loss.

    Args:
        batch: without targets; with neighbours or without.
        encodings: what neighbours are read as, where a decoder reads them itself.
    """
    with jax.set_mesh(mesh):
        if not batch["neighbour_lengths_BCN"].any():
            batch = without_neighbours(batch)
        elif encodings is not None:
            batch = encodings.neighbours_added_to(params, batch)
        return sharding.on_host(
            _likeliest(cfg, params, sharding.to_devices(batch, mesh))
        )


@functools.partial(jax.jit, static_argnums=0)
def _likeliest(cfg: ModelConfig, params, batch):
    return jnp.argmax(logits(cfg, params, batch), axis=-1)


def interval(
    losses: ChunkLosses, other: ChunkLosses | None = None, *, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval over documents of bits per byte, or of a difference.

    Args:
        losses: of one condition.
        other: of another on the same documents; the interval is then of
            bits_per_byte(losses) - bits_per_byte(other).
    Returns:
        The 2.5th and the 97.5th percentile; NaN for less than two documents.
    """
    nats_D, bytes_D = losses.by_document()
    if other is not None:
        other_nats_D, other_bytes_D = other.by_document()
        if not np.array_equal(bytes_D, other_bytes_D):
            raise ValueError(
                "the two conditions were not measured on the same documents"
            )
        nats_D = nats_D - other_nats_D
    scored = bytes_D > 0
    nats_D, bytes_D = nats_D[scored], bytes_D[scored]
    if len(bytes_D) < 2:
        return (float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(bytes_D), (NUM_RESAMPLES, len(bytes_D)))
    values = nats_D[draws].sum(axis=1) / (bytes_D[draws].sum(axis=1) * np.log(2))
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
